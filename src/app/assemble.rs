//! Assembles the parts that a configuration asks for.
//!
//! May use: `admission`, `auth`, `config`, `event`, `feed`, `http`, `log`, `metrics`, `outbound`,
//! `rejected`, `shard`, `store`, `timer_wheel`, `webhook`.

use std::{sync::Arc, time::SystemTime};

use dashmap::DashMap;
use tokio::time::Instant;

use super::{fd_limit::DescriptorPlan, products::UpstreamStatuses};
use crate::{
    admission::{AdmissionLimits, Subscribers},
    auth::{Access, ListenerKey},
    config::{self, Config, Secret, ServerConfig, UpstreamConfig},
    event::ProductId,
    feed::Feed,
    http::{
        Product, Relay,
        admin::{AdminState, REPLAY_GRACE, operator_stream::MAX_OPERATOR_TAILS},
        memory_quota::{BodyQuota, PageQuota},
        public::credential::CredentialSources,
        refusals::Refusals,
    },
    log::{Log, MemoryBounds},
    metrics::Metrics,
    outbound::tls::{TlsError, tls_client_config},
    rejected::RejectedFrames,
    shard::ShardPlacement,
    store::{Store, StoreError, StoreSettings},
    timer_wheel::TimerWheel,
    webhook::{WebhookDependencies, Webhooks},
};

/// Opens the log of each product, and the store.
///
/// Without `log.data_dir` the logs are in memory alone, and the store keeps in memory what webhooks
/// need.
pub(super) fn open_logs(
    config: &Config,
    metrics: &Metrics,
) -> Result<(Vec<Arc<Log>>, Store), StoreError> {
    let log_config = &config.log;
    let bounds = bounds(log_config);
    let products: Vec<ProductId> =
        config.served_products().map(|product| product.id.clone()).collect();
    let settings = StoreSettings {
        directory: log_config.data_dir.clone().unwrap_or_default(),
        retention: log_config.retention,
        retention_bytes: log_config.retention_bytes,
        dead_letter_retention: log_config.dead_letter_retention,
        dead_letter_bytes: log_config.dead_letter_bytes,
        max_concurrent_replays: config.server.max_concurrent_replays,
    };
    if log_config.data_dir.is_some() {
        let (store, logs) = Store::open(settings, bounds, &products, metrics)?;
        return Ok((logs, store));
    }
    let log = |id: &ProductId| Arc::new(Log::new(id.clone(), bounds, metrics.log(id)));
    let logs: Vec<_> = products.iter().map(log).collect();
    let store = Store::in_memory(settings, logs.clone(), metrics)?;
    Ok((logs, store))
}

/// Starts the webhooks that the configuration declares, and those that the store has.
pub(super) fn start_webhooks(
    config: &Config,
    relay: &Relay,
    store: &mut Store,
) -> Result<Webhooks, TlsError> {
    let stored = store.take_webhooks();
    let dependencies = WebhookDependencies {
        fanouts: relay.products.iter().map(|product| Arc::clone(&product.feed.fanout)).collect(),
        store: Arc::clone(store.handle()),
        is_durable: config.log.data_dir.is_some(),
        max_memory_bytes: config.log.memory_bytes,
        allow_networks: &config.egress.allow_networks,
        tls: tls_client_config(config.egress.ca_file.as_deref())?,
        max_connections: DescriptorPlan::new(config).webhooks,
        metrics: Arc::clone(&relay.metrics),
    };
    Ok(Webhooks::start(dependencies, &config.webhooks, stored))
}

/// Returns the state that public routes share, with a log and a fan-out for each product.
pub(super) fn relay(
    config: &Config,
    logs: Vec<Arc<Log>>,
    store: &Store,
    shard_count: usize,
    metrics: &Arc<Metrics>,
) -> Relay {
    let server = &config.server;
    let products = DashMap::new();
    for (index, log) in logs.into_iter().enumerate() {
        let Some(served) = config.served_product(log.product()) else { continue };
        let product = product(server, served.upstream, log, (index, shard_count), metrics);
        products.insert(product.feed.id.clone(), Arc::new(product));
    }
    let access = Arc::new(Access::new(&config.auth));
    metrics.set_max_subscribers(server.max_subscribers);
    Relay {
        products: Arc::new(products),
        credential_sources: CredentialSources::new(&config.auth, &server.cors_allowed_origins),
        subscribers: Subscribers::new(
            AdmissionLimits::new(server),
            Arc::clone(&access),
            Arc::clone(metrics),
        ),
        access,
        shards: ShardPlacement::new(shard_count, server.write_timeout),
        page_quota: PageQuota::default(),
        body_quota: BodyQuota::default(),
        wheel: TimerWheel::new(),
        pulse: Arc::default(),
        heartbeat_interval: server.heartbeat_interval,
        max_connection_age: server.max_connection_age,
        trusted_proxies: server.trusted_proxies.clone(),
        is_draining: Arc::default(),
        refusals: Refusals::new(metrics),
        store: config.log.data_dir.is_some().then(|| Arc::clone(store.handle())),
        metrics: Arc::clone(metrics),
    }
}

/// Returns the public side of one product, the `index`-th on `shard_count` shards.
pub(super) fn product(
    server: &ServerConfig,
    upstream: Option<&UpstreamConfig>,
    log: Arc<Log>,
    (index, shard_count): (usize, usize),
    metrics: &Arc<Metrics>,
) -> Product {
    let id = log.product().clone();
    Product {
        // Round-robin: products share the shards evenly.
        feed: Arc::new(Feed::new(log, shard_count, index % shard_count, metrics)),
        paged_events: metrics.paged(&id),
        published_events: metrics.published(&id),
        max_publish_bytes: max_publish_bytes(server, upstream),
        upstream: upstream.map(|it| it.url.origin()),
    }
}

/// Returns the product under another configuration. Log, fan-out and counters are shared.
pub(super) fn reconfigured_product(
    server: &ServerConfig,
    upstream: Option<&UpstreamConfig>,
    existing: Arc<Product>,
) -> Arc<Product> {
    let origin = upstream.map(|it| it.url.origin());
    let max_publish_bytes = max_publish_bytes(server, upstream);
    if (existing.max_publish_bytes, &existing.upstream) == (max_publish_bytes, &origin) {
        return existing;
    }
    Arc::new(Product { max_publish_bytes, upstream: origin, ..(*existing).clone() })
}

fn max_publish_bytes(server: &ServerConfig, upstream: Option<&UpstreamConfig>) -> usize {
    let max_event_bytes = upstream.map_or(u64::MAX, |it| it.max_event_bytes);
    usize::try_from(server.max_publish_bytes.min(max_event_bytes)).unwrap_or(usize::MAX)
}

/// Returns the state of the admin side.
pub(super) fn admin(
    config: &Config,
    relay: &Arc<Relay>,
    webhooks: &Arc<Webhooks>,
    upstreams: UpstreamStatuses,
    rejected: Arc<RejectedFrames>,
) -> AdminState {
    let key = ListenerKey::new(config.auth.admin_key.as_ref().map(Secret::expose));
    let access = Arc::new(key.to_access());
    AdminState {
        relay: Arc::clone(relay),
        operator_tails: Subscribers::new(
            AdmissionLimits::at_most(MAX_OPERATOR_TAILS),
            access,
            Arc::clone(&relay.metrics),
        ),
        webhooks: Arc::clone(webhooks),
        upstreams,
        key,
        rejected,
        stream_registrations: Arc::default(),
        started: SystemTime::now(),
        replay_grace_end: Instant::now() + REPLAY_GRACE,
    }
}

/// Returns the bounds of a log's memory.
pub(super) fn bounds(log: &config::LogConfig) -> MemoryBounds {
    MemoryBounds { events: log.memory_events, bytes: log.memory_bytes }
}
