//! State that the routes of the public listener share.
//!
//! May use: `auth`, `config`, `event`, `fanout`, `log`, `metrics`, `shard`, `store`, `timer_wheel`.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::extract::{Path, rejection::PathRejection};
use dashmap::DashMap;
use hyper::HeaderMap;
use prometheus::IntCounter;

use super::{
    admission::Subscribers,
    problem::Problem,
    public::{
        credential::CredentialSources, page::PageQuota, publish::BodyQuota,
        ws::message::WsMessageCache,
    },
};
use crate::{
    auth::{Access, Denial, Grant},
    config::{Network, Permission},
    event::ProductId,
    feed::Feed,
    metrics::{Metrics, ShedReason},
    shard::ShardPlacement,
    store::StoreHandle,
    timer_wheel::TimerWheel,
};

/// What the routes of the public listener share. Another configuration is another `Relay`, for the requests that come from then
/// on; what stands, such as products and subscribers, is the same in both.
#[derive(Clone, Debug)]
pub(crate) struct Relay {
    /// What there is to listen to.
    pub(crate) products: Arc<DashMap<ProductId, Arc<Product>>>,
    /// Who may.
    pub(crate) access: Arc<Access>,
    /// Where it is looked for who asks.
    pub(crate) credential_sources: CredentialSources,
    /// Who does.
    pub(crate) subscribers: Arc<Subscribers>,
    /// Who writes their streams.
    pub(crate) shards: Arc<ShardPlacement>,
    /// Pages that are being sent.
    pub(crate) page_quota: PageQuota,
    /// What publishers are sending.
    pub(crate) body_quota: BodyQuota,
    /// The timer of all connections.
    pub(crate) wheel: Arc<TimerWheel>,
    /// A connection silent for this long gets a heartbeat.
    pub(crate) heartbeat_interval: Duration,
    /// Streams end at about this age.
    pub(crate) max_connection_age: Option<Duration>,
    /// Proxies whose word on the client's address counts.
    pub(crate) trusted_proxies: Vec<Network>,
    /// Set while the relay is leaving.
    pub(crate) is_draining: Arc<AtomicBool>,
    /// The store behind the logs, if there is one.
    pub(crate) store: Option<Arc<StoreHandle>>,
    /// Where those who are turned away are counted.
    pub(crate) metrics: Arc<Metrics>,
}

/// One product as the public side sees it.
#[derive(Clone, Debug)]
pub(crate) struct Product {
    /// What its deliverers share.
    pub(crate) feed: Arc<Feed>,
    /// Its newest events as WebSocket subscribers get them.
    pub(crate) ws_messages: Arc<WsMessageCache>,
    /// Payloads given in pages.
    pub(crate) paged_events: IntCounter,
    /// Payloads that publishers have added.
    pub(crate) published_events: IntCounter,
    /// The largest payload that publishers may send.
    pub(crate) max_publish_bytes: usize,
    /// Scheme, host and port of its upstream.
    pub(crate) upstream: String,
}

impl Relay {
    /// Whether newcomers are let in at all.
    ///
    /// # Errors
    ///
    /// [`ShedReason::Draining`] while the relay is leaving.
    pub(in crate::http) fn ensure_not_draining(&self) -> Result<(), ShedReason> {
        if !self.is_draining.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.metrics.shed(ShedReason::Draining).inc();
        Err(ShedReason::Draining)
    }

    /// Whether whoever has been let in still may: its token may be over by now, or the keys others.
    ///
    /// # Errors
    ///
    /// [`Denial::Unauthenticated`] when it may not.
    pub(in crate::http) fn ensure_still_granted(
        &self,
        grant: &Grant,
        product: &ProductId,
        permission: Permission,
    ) -> Result<(), Denial> {
        grant.check_not_expired()?;
        match self.subscribers.access().still_grants(&grant.proof, product, permission) {
            true => Ok(()),
            false => Err(Denial::Unauthenticated),
        }
    }

    /// Whether this product has not been taken away since somebody asked for it.
    ///
    /// # Errors
    ///
    /// 404 when it has.
    pub(in crate::http) fn ensure_still_served(&self, feed: &Feed) -> Result<(), Problem> {
        let is_served = self
            .products
            .get(&feed.id)
            .is_some_and(|known| Arc::ptr_eq(&known.feed.log, &feed.log));
        if is_served { Ok(()) } else { Err(Problem::not_found("no such product")) }
    }

    /// Whether something of the past is not there yet: of a file that is being checked, or of the relay before this one.
    pub(in crate::http) fn is_recovering(&self) -> bool {
        let is_checking = self.store.as_ref().is_some_and(|store| store.is_recovering());
        is_checking || self.products.iter().any(|product| product.feed.log.is_recovering())
    }

    /// Whether the log keeps less than it promises.
    pub(in crate::http) fn is_degraded(&self) -> bool {
        self.store.as_ref().is_some_and(|store| store.is_degraded())
    }

    /// Who asks, and the product it wants to read.
    ///
    /// # Errors
    ///
    /// 401, 403, 404 or 400 in this order.
    pub(in crate::http) fn authorize_subscribe(
        &self,
        path: Result<Path<String>, PathRejection>,
        query: &str,
        headers: &HeaderMap,
    ) -> Result<(Grant, Arc<Product>), Problem> {
        self.authorize(path, query, headers, Permission::Subscribe)
    }

    /// Who asks, and the product it asks for, with this in mind.
    ///
    /// # Errors
    ///
    /// 401, 403, 404 or 400 in this order.
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

    /// The product a path names, if the grant has the permission there.
    ///
    /// # Errors
    ///
    /// 400, 403 or 404.
    fn authorized_product(
        &self,
        path: Result<Path<String>, PathRejection>,
        grant: &Grant,
        permission: Permission,
    ) -> Result<Arc<Product>, Problem> {
        let Path(name) =
            path.map_err(|_| Problem::bad_request("the product id in the path is not UTF-8"))?;
        let unknown = || Problem::not_found("no such product");
        let id = ProductId::new(&name).map_err(|_| unknown())?;
        grant.check(&id, permission)?;
        self.products.get(&id).map(|product| Arc::clone(&product)).ok_or_else(unknown)
    }

    /// The client's address: the peer's, or what trusted proxies say before they pass it on.
    pub(in crate::http) fn client_address(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let is_trusted =
            |address: IpAddr| self.trusted_proxies.iter().any(|network| network.contains(address));
        let mut client = peer;
        let hops =
            headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok());
        let hops: Vec<&str> = hops.flat_map(|value| value.split(',')).map(str::trim).collect();
        for hop in hops.into_iter().rev() {
            // From the right: each hop was written by the proxy after it, so belief ends with the first untrusted one.
            let Some(address) = parse_forwarded_address(hop) else { break };
            if !is_trusted(client) {
                break;
            }
            client = address;
        }
        client
    }
}

/// An address as proxies write it: with or without a port.
fn parse_forwarded_address(hop: &str) -> Option<IpAddr> {
    hop.parse().ok().or_else(|| hop.parse::<SocketAddr>().ok().map(|socket| socket.ip()))
}
