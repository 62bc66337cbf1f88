//! Goes on by another configuration.
//!
//! ```text
//! read ─► succession: what waits for a restart stays as it is ─► roots of trust ─┬─► refused: nothing has changed
//!                                                                                └─► in force, in this order:
//! products that go ─► keys, limits, routes ─► streams of revoked keys ─► upstreams ─► products that come ─► webhooks
//! ```
//!
//! What takes no time comes first: whoever may not listen any more is gone before anybody waits for the store.
//!
//! May use: everything.

use std::{path::Path, sync::Arc, time::Duration};

use tokio::{task::spawn_blocking, time::timeout};
use tracing::{debug, error, info, warn};

use super::{App, assemble, config_watch::Watch};
use crate::{
    auth::{Access, SoleKey},
    config::{Config, Difference, Findings, Secret, Upstream},
    error_chain::with_causes,
    event::ProductId,
    http::{
        Relay,
        admin::Admin,
        admission::{Leave, Limits},
        public::credential::Places,
    },
    outbound::client::{self, Client, TlsError},
};

/// Why the configuration is read.
pub(super) enum Reason {
    /// A signal asks for it.
    Signal,
    /// The files have changed, and say this.
    Change(Box<Result<Config, Findings>>),
}

/// Waits until the files have changed; for ever where there are none.
pub(super) async fn changed(watch: Option<&mut Watch>) -> Result<Config, Findings> {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

/// A configuration that nothing stands against, and what has been made of it already.
struct Accepted {
    config: Config,
    difference: Difference,
    client: Client,
    tls: rustls::ClientConfig,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Findings(#[from] Findings),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("it was given up")]
    GivenUp,
}

impl App {
    /// Reads the configuration, and goes on by it if nothing stands against it.
    pub(super) async fn reload(&mut self, watch: &mut Watch, reason: Reason) {
        let is_asked_for = matches!(reason, Reason::Signal);
        let wanted = match reason {
            Reason::Signal => watch.read().await,
            Reason::Change(wanted) => *wanted,
        };
        let was_good = self.relay.metrics.has_reloaded();
        let Accepted { config, difference, client, tls } = match self.judge(watch, wanted).await {
            Ok(accepted) => accepted,
            Err(refusal) => {
                self.relay.metrics.reloaded(false);
                let problem = with_causes(&refusal).replace('\n', "; ");
                error!(problem, "the new configuration is refused as a whole, and the old one stays in force");
                return;
            }
        };
        let is_whole = self.go_on_by(config, &client, tls).await;
        self.relay.metrics.reloaded(is_whole);
        let Difference { changed, waiting } = difference;
        let is_news = is_asked_for || !was_good || !changed.is_empty();
        match changed.is_empty() {
            _ if !is_news => debug!("the configuration's files were read again: nothing has changed"),
            true => info!(changed = "nothing", "configuration reloaded"),
            false => info!(changed = changed.join(", "), "configuration reloaded"),
        }
        if !waiting.is_empty() {
            warn!(keys = waiting.join(", "), "these keys cannot be changed while the relay runs: restart it");
        }
    }

    /// Holds a configuration against everything that could stand against it, so that it is taken as a whole or not at all.
    async fn judge(&self, watch: &Watch, wanted: Result<Config, Findings>) -> Result<Accepted, Refusal> {
        let (config, difference) = watch.succession(&self.config, wanted?)?;
        let ca_file = config.egress.ca_file.clone();
        let read = spawn_blocking(move || roots(ca_file.as_deref())).await;
        let (client, tls) = read.map_err(|_| Refusal::GivenUp)??;
        Ok(Accepted { config, difference, client, tls })
    }

    /// Brings a configuration into force. Whether all of it is: the store may be in the way of a product that comes.
    async fn go_on_by(&mut self, mut config: Config, client: &Client, tls: rustls::ClientConfig) -> bool {
        let before = std::mem::replace(&mut self.config, config.clone());
        let removed = self.take_away(&config);
        self.let_in_by(&config);
        for upstream in &config.upstreams {
            self.feeds.change(upstream, client);
        }
        for product in &removed {
            self.feeds.remove(product).await;
            self.webhooks.lay_aside(product).await;
            self.relay.metrics.forget_product(product);
            self.admin.rejected.erase(product);
            if timeout(PATIENCE, self.store.desk().release(product.clone())).await.is_err() {
                warn!(%product, "the store cannot be written now: it keeps what is left of the product's events when it can");
            }
        }
        let absent = self.bring_in(&config, client).await;
        let has_roots = config.egress.ca_file.is_some() || before.egress.ca_file.is_some();
        if has_roots || before.egress.allow_networks != config.egress.allow_networks {
            self.webhooks.equip(&config.egress.allow_networks, tls).await;
        }
        // What could not be brought in is tried again at the next reload.
        config.upstreams.retain(|upstream| !absent.contains(&upstream.product_id));
        config.webhooks.retain(|webhook| !absent.contains(&webhook.product_id));
        self.webhooks.declare(&config.webhooks).await;
        self.config = config;
        self.admin = Arc::new(Admin { upstreams: self.feeds.boards(), ..(*self.admin).clone() });
        self.doors.replace(&self.config, &self.relay, &self.admin);
        if let Some(certificate) = self.certificate.clone() {
            // It looks at its files by itself; who asks for a reload does not wait for that. Whether they fit has been judged.
            let _ = spawn_blocking(move || certificate.read_again()).await;
        }
        absent.is_empty()
    }

    /// Takes away the products that are configured no more; their subscribers leave at once.
    fn take_away(&self, config: &Config) -> Vec<ProductId> {
        let is_wanted = |id: &ProductId| config.upstreams.iter().any(|upstream| upstream.product_id == *id);
        let removed: Vec<_> =
            self.relay.products.iter().map(|it| it.key().clone()).filter(|id| !is_wanted(id)).collect();
        for id in &removed {
            self.relay.products.remove(id);
            self.relay.subscribers.dismiss_product(id, Leave::Removed);
            self.admin.onlookers.dismiss_product(id, Leave::Removed);
        }
        removed
    }

    /// Lets newcomers in by these rules, and has those leave who would not be let in any more.
    fn let_in_by(&mut self, config: &Config) {
        let server = &config.server;
        for upstream in &config.upstreams {
            self.relay
                .products
                .alter(&upstream.product_id, |_, known| assemble::product_again(server, upstream, known));
        }
        let access = Arc::new(Access::new(&config.auth));
        self.relay = Arc::new(Relay {
            access: Arc::clone(&access),
            places: Places::new(&config.auth, &server.cors_allowed_origins),
            heartbeat_interval: server.heartbeat_interval,
            max_connection_age: server.max_connection_age,
            trusted_proxies: server.trusted_proxies.clone(),
            ..(*self.relay).clone()
        });
        let key = SoleKey::new(config.auth.admin_key.as_ref().map(Secret::expose));
        let operators = Arc::new(key.access());
        let upstreams = self.feeds.boards();
        self.admin = Arc::new(Admin { relay: Arc::clone(&self.relay), upstreams, key, ..(*self.admin).clone() });
        self.doors.replace(config, &self.relay, &self.admin);
        self.relay.subscribers.limit(Limits::new(server));
        self.relay.metrics.has_room_for(server.max_subscribers);
        // Behind the doors: who was let in by the old ones meanwhile is judged here, or when it takes its seat.
        self.relay.subscribers.judge_by(&access);
        self.admin.onlookers.judge_by(&operators);
    }

    /// Brings in the products that are new, and returns those for which that is not possible now.
    async fn bring_in(&mut self, config: &Config, client: &Client) -> Vec<ProductId> {
        let mut absent = Vec::new();
        for upstream in &config.upstreams {
            let product = &upstream.product_id;
            if !self.relay.products.contains_key(product) && !self.begin(config, upstream, client).await {
                error!(%product, "the store cannot be written now, so the product is not served: reload again");
                absent.push(product.clone());
            }
        }
        absent
    }

    async fn begin(&mut self, config: &Config, upstream: &Upstream, client: &Client) -> bool {
        let (id, metrics) = (&upstream.product_id, &self.relay.metrics);
        let adopted = self.store.desk().adopt(id.clone(), assemble::bounds(&config.log), metrics.log(id));
        let Ok(Ok(adopted)) = timeout(PATIENCE, adopted).await else { return false };
        let place = (self.relay.products.len(), self.lanes.runtimes().count());
        let product = Arc::new(assemble::product(&config.server, upstream, adopted.log, place, metrics));
        let fanout = Arc::clone(&product.fanout);
        self.relay.products.insert(id.clone(), product);
        self.feeds.begin(upstream, &self.relay, client);
        self.webhooks.adopt(fanout, &config.webhooks, adopted.webhooks).await;
        true
    }
}

/// Reads the roots of trust, for upstreams and for webhooks.
fn roots(ca_file: Option<&Path>) -> Result<(Client, rustls::ClientConfig), TlsError> {
    Ok((Client::new(ca_file)?, client::tls(ca_file)?))
}

/// How long a reload waits for the store, each time.
const PATIENCE: Duration = Duration::from_secs(5);
