//! State that the routes of the public listener share, and the checks they have in common.
//!
//! In: a request's path, query and headers. Out: a grant and a product, or the problem to answer.
//!
//! May use: `admission`, `auth`, `client_address`, `config`, `event`, `feed`, `log`, `metrics`,
//! `net`, `shard`, `store`, `timer_wheel`.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::extract::{Path, Request, rejection::PathRejection};
use dashmap::DashMap;
use hyper::HeaderMap;
use prometheus::IntCounter;

use super::{
    memory_quota::{BodyQuota, PageQuota},
    problem::Problem,
    public::credential::CredentialSources,
    refusals::Refusals,
};
use crate::{
    admission::Subscribers,
    auth::{Access, Denial, Grant},
    client_address::ClientAddress,
    config::{Network, Permission},
    event::ProductId,
    feed::Feed,
    log::Log,
    metrics::{Metrics, RefusalReason, ShedReason},
    net::Connection,
    shard::ShardPlacement,
    store::StoreHandle,
    timer_wheel::{RuntimePulse, TimerWheel},
};

/// State of the public listener under one configuration.
///
/// A reload builds another `Relay` for later requests and never changes this one. Both share the
/// parts that outlive a configuration: products, subscribers, shards, wheel and store.
#[derive(Clone, Debug)]
pub(crate) struct Relay {
    /// Products by id.
    pub(crate) products: Arc<DashMap<ProductId, Arc<Product>>>,
    /// Keys and token rules.
    pub(crate) access: Arc<Access>,
    /// Places in a request where a credential may be.
    pub(crate) credential_sources: CredentialSources,
    /// Admission of subscribers, and the list of those admitted.
    pub(crate) subscribers: Arc<Subscribers>,
    /// Shards that write to subscribers with sockets of their own.
    pub(crate) shards: Arc<ShardPlacement>,
    /// Quota of pages in memory.
    pub(crate) page_quota: PageQuota,
    /// Quota of published bodies in memory.
    pub(crate) body_quota: BodyQuota,
    /// Timer of all connections.
    pub(crate) wheel: Arc<TimerWheel>,
    /// Sign of life of the public side's runtime.
    pub(crate) pulse: Arc<RuntimePulse>,
    /// Silence after which a subscriber gets a heartbeat.
    pub(crate) heartbeat_interval: Duration,
    /// Age at about which streams are rotated.
    pub(crate) max_connection_age: Option<Duration>,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub(crate) trusted_proxies: Vec<Network>,
    /// Set when graceful shutdown begins; new subscribers are shed from then on.
    pub(crate) is_draining: Arc<AtomicBool>,
    /// Store of the logs; `None` without `log.data_dir`.
    pub(crate) store: Option<Arc<StoreHandle>>,
    /// Refused requests, by address.
    pub(crate) refusals: Arc<Refusals>,
    /// All metric families.
    pub(crate) metrics: Arc<Metrics>,
}

/// One product under one configuration: its feed, and settings and metrics of the public routes.
#[derive(Clone, Debug)]
pub(crate) struct Product {
    /// Log, fan-out and delivery metrics; the same for every configuration.
    pub(crate) feed: Arc<Feed>,
    /// Counter of the events returned in pages.
    pub(crate) paged_events: IntCounter,
    /// Counter of the events appended by publishers.
    pub(crate) published_events: IntCounter,
    /// Largest body that a publisher may send.
    pub(crate) max_publish_bytes: usize,
    /// Scheme, host and port of the upstream, if there is one.
    pub(crate) upstream: Option<String>,
}

impl Relay {
    /// Checks that new subscribers are admitted at all.
    ///
    /// # Errors
    ///
    /// [`ShedReason::Draining`], counted, once graceful shutdown has begun.
    pub(in crate::http) fn ensure_not_draining(&self) -> Result<(), ShedReason> {
        if !self.is_draining.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.metrics.shed(ShedReason::Draining).inc();
        Err(ShedReason::Draining)
    }

    /// Checks that a grant still holds after a wait: its token may have expired meanwhile, or a
    /// reload may have removed the key.
    ///
    /// # Errors
    ///
    /// [`Denial`] of an expired token; [`Denial::Unauthenticated`] if the credential no longer
    /// grants the permission.
    pub(in crate::http) fn ensure_still_granted(
        &self,
        grant: &Grant,
        product: &ProductId,
        permission: Permission,
    ) -> Result<(), Denial> {
        grant.check_not_expired()?;
        // By the rules in force now, not by `self.access`, which a reload may have replaced.
        match self.subscribers.access().still_grants(&grant.proof, product, permission) {
            true => Ok(()),
            false => Err(Denial::Unauthenticated),
        }
    }

    /// Checks that the product has not been removed by a reload since the request was routed.
    ///
    /// The log identifies the product: one that was removed and added again has another log.
    ///
    /// # Errors
    ///
    /// 404 if the product has been removed.
    pub(in crate::http) fn ensure_still_served(&self, feed: &Feed) -> Result<(), Problem> {
        let is_served = self
            .products
            .get(&feed.id)
            .is_some_and(|known| Arc::ptr_eq(&known.feed.log, &feed.log));
        if is_served { Ok(()) } else { Err(Problem::not_found("no such product")) }
    }

    /// Returns whether a store file is being checked, so that its history is not available yet.
    pub(in crate::http) fn is_checking_store(&self) -> bool {
        self.store.as_ref().is_some_and(|store| store.is_recovering())
    }

    /// Returns whether the first replay of an upstream relay, to an empty log, is not over.
    pub(in crate::http) fn is_receiving_history(&self) -> bool {
        self.products.iter().any(|product| product.feed.log.is_recovering())
    }

    /// Returns the products whose upstream relay has not ended its replay, by name.
    pub(in crate::http) fn replaying_products(&self) -> BTreeSet<ProductId> {
        let is_replaying = |log: &Log| log.is_recovering() || log.is_replaying();
        let products = self.products.iter();
        let replaying = products.filter(|product| is_replaying(&product.feed.log));
        replaying.map(|product| product.feed.id.clone()).collect()
    }

    /// Returns whether the store persists less than the configuration promises.
    pub(in crate::http) fn is_degraded(&self) -> bool {
        self.store.as_ref().is_some_and(|store| store.is_degraded())
    }

    /// Authenticates a request to subscribe and finds its product.
    ///
    /// # Errors
    ///
    /// As [`Relay::authorize`].
    pub(in crate::http) fn authorize_subscribe(
        &self,
        path: Result<Path<String>, PathRejection>,
        query: &str,
        headers: &HeaderMap,
    ) -> Result<(Grant, Arc<Product>), Problem> {
        self.authorize(path, query, headers, Permission::Subscribe)
    }

    /// Authenticates a request and finds the product in its path, for one permission.
    ///
    /// # Errors
    ///
    /// 401 without a valid credential; then 400 for a path that is not UTF-8, 404 for a name that
    /// no product can have, 403 without the permission, 404 for an unknown product. So only a
    /// holder of the permission learns whether a product exists.
    pub(in crate::http) fn authorize(
        &self,
        path: Result<Path<String>, PathRejection>,
        query: &str,
        headers: &HeaderMap,
        permission: Permission,
    ) -> Result<(Grant, Arc<Product>), Problem> {
        let grant = self
            .access
            .authenticate(self.credential_sources.credential(query, headers).as_ref())?;
        let product = self.authorized_product(path, &grant, permission)?;
        Ok((grant, product))
    }

    /// Returns the product in the path if the grant has the permission for it.
    fn authorized_product(
        &self,
        path: Result<Path<String>, PathRejection>,
        grant: &Grant,
        permission: Permission,
    ) -> Result<Arc<Product>, Problem> {
        let Path(name) =
            path.map_err(|_| Problem::bad_request("the product id in the path is not UTF-8"))?;
        // A refusal: a client that asks for a product that is not served may do so for ever.
        let unknown =
            || Problem::not_found("no such product").refused_for(RefusalReason::NotAllowed);
        let id = ProductId::new(&name).map_err(|_| unknown())?;
        grant.check(&id, permission)?;
        self.products.get(&id).map(|product| Arc::clone(&product)).ok_or_else(unknown)
    }

    /// Returns the address of a request's client, for middleware.
    pub(in crate::http) fn client_of(&self, request: &Request) -> Option<ClientAddress> {
        let connection = request.extensions().get::<Connection>()?;
        Some(self.client_address(connection.peer.ip(), request.headers()))
    }

    /// Returns the address of a request's client.
    pub(in crate::http) fn client_address(
        &self,
        peer: IpAddr,
        headers: &HeaderMap,
    ) -> ClientAddress {
        ClientAddress::of_request(peer, headers, &self.trusted_proxies)
    }
}
