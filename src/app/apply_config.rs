//! Brings another configuration into force.
//!
//! ```text
//! read ─► plan: keys that need a restart stay ─► roots of trust ─┬─► refused: nothing changed
//!                                                                └─► in force, in this order:
//! products removed ─► keys, limits, routes ─► streams of revoked keys ─► upstreams
//!                  ─► products added ─► webhooks
//! ```
//!
//! The steps that take no time come first: a client that may not listen any more is disconnected
//! before the reload waits for the store.
//!
//! May use: `admission`, `auth`, `config`, `error_chain`, `event`, `http`, `outbound`.

use std::{path::Path, sync::Arc, time::Duration};

use tokio::{task::spawn_blocking, time::timeout};
use tracing::{debug, error, info, warn};

use super::{
    App, assemble,
    config_watch::{ConfigWatcher, ReloadTrigger},
};
use crate::{
    admission::{AdmissionLimits, DisconnectReason},
    auth::{Access, ListenerKey},
    config::{Config, ConfigDiff, Findings, Secret, ServedProduct},
    error_chain::error_chain,
    event::ProductId,
    http::{Relay, admin::AdminState, public::credential::CredentialSources},
    outbound::{
        client::EventStreamClient,
        tls::{TlsError, tls_client_config},
    },
};

/// Valid configuration, and what was made of it already.
struct AcceptedConfig {
    config: Config,
    difference: ConfigDiff,
    client: EventStreamClient,
    tls: rustls::ClientConfig,
}

/// Reasons for which a configuration is refused.
#[derive(Debug, thiserror::Error)]
enum ReloadError {
    #[error(transparent)]
    Findings(#[from] Findings),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("it was given up")]
    Cancelled,
}

impl App {
    /// Reads the configuration, and brings it into force if it is valid as a whole.
    pub(super) async fn reload(&mut self, watch: &mut ConfigWatcher, trigger: ReloadTrigger) {
        let is_requested = matches!(trigger, ReloadTrigger::Signal);
        let loaded = match trigger {
            ReloadTrigger::Signal => watch.read().await,
            ReloadTrigger::Change(loaded) => *loaded,
        };
        let was_good = self.relay.metrics.last_reload_succeeded();
        let AcceptedConfig { config, difference, client, tls } = match self
            .validate(watch, loaded)
            .await
        {
            Ok(accepted) => accepted,
            Err(error) => {
                self.relay.metrics.record_reload(false);
                let problem = error_chain(&error).replace('\n', "; ");
                error!(
                    problem,
                    "the new configuration is refused as a whole, and the old one stays in force"
                );
                return;
            }
        };
        let is_complete = self.apply(config, &client, tls).await;
        self.relay.metrics.record_reload(is_complete);
        let ConfigDiff { applied: changed, restart_required: waiting, .. } = difference;
        let is_notable = is_requested || !was_good || !changed.is_empty();
        match changed.is_empty() {
            _ if !is_notable => {
                debug!("the configuration's files were read again: nothing has changed");
            }
            true => info!(changed = "nothing", "configuration reloaded"),
            false => info!(changed = changed.join(", "), "configuration reloaded"),
        }
        if !waiting.is_empty() {
            warn!(
                keys = waiting.join(", "),
                "these keys cannot be changed while the relay runs: restart it"
            );
        }
    }

    /// Checks everything that could fail, so that a configuration is applied as a whole or not at
    /// all.
    ///
    /// # Errors
    ///
    /// Why the configuration is refused. Nothing has changed.
    async fn validate(
        &self,
        watch: &ConfigWatcher,
        loaded: Result<Config, Findings>,
    ) -> Result<AcceptedConfig, ReloadError> {
        let (config, difference) = watch.plan_reload(&self.config, loaded?)?;
        let ca_file = config.egress.ca_file.clone();
        // The files of roots are read from disk. Whether they can be used must be known before
        // anything changes.
        let read = spawn_blocking(move || load_trust_roots(ca_file.as_deref())).await;
        let (client, tls) = read.map_err(|_| ReloadError::Cancelled)??;
        Ok(AcceptedConfig { config, difference, client, tls })
    }

    /// Brings a configuration into force, and returns whether all of it is: the store may be unable
    /// to take a new product.
    async fn apply(
        &mut self,
        mut config: Config,
        client: &EventStreamClient,
        tls: rustls::ClientConfig,
    ) -> bool {
        // In force from here on: a shutdown may interrupt this function at any await, and reads the
        // drain window of `self.config`.
        let before = std::mem::replace(&mut self.config, config.clone());
        let removed = self.remove_products(&config);
        self.apply_access(&config);
        for product in config.served_products() {
            self.product_tasks.change(product, &self.relay, client).await;
        }
        for product in &removed {
            // First, so that the upstream's connection is closed before the store releases the log.
            self.product_tasks.remove(product).await;
            self.webhooks.suspend_product(product).await;
            self.relay.metrics.remove_product(product);
            self.admin.rejected.erase(product);
            if timeout(
                CONFIG_RELOAD_STORE_TIMEOUT,
                self.store.handle().remove_product(product.clone()),
            )
            .await
            .is_err()
            {
                warn!(
                    %product,
                    "the store cannot be written now: it keeps what is left of the product's \
                     events when it can"
                );
            }
        }
        let absent = self.add_products(&config, client).await;
        // Each worker replaces its sender by this, so only if something can have changed.
        // A file of roots may have other contents under the same name.
        let has_roots = config.egress.ca_file.is_some() || before.egress.ca_file.is_some();
        if has_roots || before.egress.allow_networks != config.egress.allow_networks {
            self.webhooks.set_egress(&config.egress.allow_networks, tls).await;
        }
        // A product that the store did not take is not in force, so the next reload tries it again.
        config.upstreams.retain(|upstream| !absent.contains(&upstream.product_id));
        config.products.retain(|product| !absent.contains(&product.product_id));
        config.webhooks.retain(|webhook| !absent.contains(&webhook.product_id));
        self.webhooks.reconcile(&config.webhooks).await;
        self.config = config;
        self.admin = Arc::new(AdminState {
            upstreams: self.product_tasks.statuses(),
            ..(*self.admin).clone()
        });
        self.routes.replace(&self.config, &self.relay, &self.admin);
        if let Some(certificate) = self.certificate.clone() {
            // The certificate has a watch of its own; an operator who asks for a reload need not
            // wait for that. The files were validated with the configuration.
            let _ = spawn_blocking(move || certificate.reload()).await;
        }
        absent.is_empty()
    }

    /// Removes the products that are configured no more, and disconnects their subscribers.
    ///
    /// The product is taken out of the map first: a request that begins after that finds none, and
    /// a subscriber that was admitted before is disconnected.
    fn remove_products(&self, config: &Config) -> Vec<ProductId> {
        let removed: Vec<_> = self
            .relay
            .products
            .iter()
            .map(|it| it.key().clone())
            .filter(|id| config.served_product(id).is_none())
            .collect();
        for id in &removed {
            self.relay.products.remove(id);
            self.relay.subscribers.disconnect_product(id, DisconnectReason::Removed);
            self.admin.operator_tails.disconnect_product(id, DisconnectReason::Removed);
        }
        removed
    }

    /// Applies these rules to new subscribers, and disconnects those that the rules would refuse.
    fn apply_access(&mut self, config: &Config) {
        let server = &config.server;
        for product in config.served_products() {
            self.relay.products.alter(product.id, |_, existing| {
                assemble::reconfigured_product(server, product.upstream, existing)
            });
        }
        let access = Arc::new(Access::new(&config.auth));
        // Requests share a `Relay` that never changes: another configuration is another `Relay`,
        // which shares products, permits, shards, wheel and store.
        self.relay = Arc::new(Relay {
            access: Arc::clone(&access),
            credential_sources: CredentialSources::new(&config.auth, &server.cors_allowed_origins),
            heartbeat_interval: server.heartbeat_interval,
            max_connection_age: server.max_connection_age,
            trusted_proxies: server.trusted_proxies.clone(),
            ..(*self.relay).clone()
        });
        let key = ListenerKey::new(config.auth.admin_key.as_ref().map(Secret::expose));
        let operator_access = Arc::new(key.to_access());
        let upstreams = self.product_tasks.statuses();
        self.admin = Arc::new(AdminState {
            relay: Arc::clone(&self.relay),
            upstreams,
            key,
            ..(*self.admin).clone()
        });
        self.routes.replace(config, &self.relay, &self.admin);
        self.relay.subscribers.set_limits(AdmissionLimits::new(server));
        self.relay.metrics.set_max_subscribers(server.max_subscribers);
        // After the routes: a request that the former router admitted meanwhile is judged here, or
        // when it takes its permit. `Subscribers` sets the rules before it judges each permit, and
        // a new subscriber takes its permit before it is judged by the rules in force, so one of
        // the two sees it.
        self.relay.subscribers.set_access(&access);
        self.admin.operator_tails.set_access(&operator_access);
    }

    /// Adds the products that are new, and returns those that the store cannot take now.
    async fn add_products(
        &mut self,
        config: &Config,
        client: &EventStreamClient,
    ) -> Vec<ProductId> {
        let mut absent = Vec::new();
        for served in config.served_products() {
            let product = served.id;
            if !self.relay.products.contains_key(product)
                && !self.add_product(config, served, client).await
            {
                error!(
                    %product,
                    "the store cannot be written now, so the product is not served: reload again"
                );
                absent.push(product.clone());
            }
        }
        absent
    }

    /// Adds a product, and returns whether the store could take it.
    async fn add_product(
        &mut self,
        config: &Config,
        served: ServedProduct<'_>,
        client: &EventStreamClient,
    ) -> bool {
        let (id, metrics) = (served.id, &self.relay.metrics);
        let adopted = self.store.handle().add_product(
            id.clone(),
            assemble::bounds(&config.log),
            metrics.log(id),
        );
        let Ok(Ok(adopted)) = timeout(CONFIG_RELOAD_STORE_TIMEOUT, adopted).await else {
            return false;
        };
        let index_and_shards = (self.relay.products.len(), self.shard_threads.runtimes().count());
        let product = Arc::new(assemble::product(
            &config.server,
            served.upstream,
            adopted.log,
            index_and_shards,
            metrics,
        ));
        let fanout = Arc::clone(&product.feed.fanout);
        // The log is ready before the first request can find the product.
        self.relay.products.insert(id.clone(), product);
        self.product_tasks.start(served, &self.relay, client);
        self.webhooks.resume_product(fanout, &config.webhooks, adopted.webhooks).await;
        true
    }
}

/// Reads the roots of trust, for upstreams and for webhooks.
fn load_trust_roots(
    ca_file: Option<&Path>,
) -> Result<(EventStreamClient, rustls::ClientConfig), TlsError> {
    Ok((EventStreamClient::new(ca_file)?, tls_client_config(ca_file)?))
}

/// Time that a reload waits for the store, at each command.
const CONFIG_RELOAD_STORE_TIMEOUT: Duration = Duration::from_secs(5);
