//! Builds the rooms that a configuration asks for.
//!
//! May use: everything.

use std::{sync::Arc, time::SystemTime};

use dashmap::DashMap;

use super::products::Boards;
use crate::{
    auth::{Access, SoleKey},
    config::{self, Config, Secret, Server, Upstream},
    event::ProductId,
    fanout::Fanout,
    http::{
        Product, Relay,
        admin::{Admin, operator_stream::MOST_ONLOOKERS},
        admission::{Limits, Subscribers},
        public::{credential::Places, page::Pages, publish::Bodies},
    },
    log::{Bounds, Log},
    metrics::{Metrics, Transport},
    outbound::client::{self, TlsError},
    rejected::Rejected,
    shard::Shards,
    store::{Settings, Store, StoreError},
    timer_wheel::Wheel,
    webhook::{Ground, Webhooks},
};

/// The log of each product, and the store. Without a directory the logs are in memory alone, and the store keeps in memory
/// what webhooks need.
pub(super) fn logs(config: &Config, metrics: &Metrics) -> Result<(Vec<Arc<Log>>, Store), StoreError> {
    let kept = &config.log;
    let bounds = bounds(kept);
    let products: Vec<ProductId> = config.upstreams.iter().map(|upstream| upstream.product_id.clone()).collect();
    let settings = Settings {
        directory: kept.data_dir.clone().unwrap_or_default(),
        retention: kept.retention,
        retention_bytes: kept.retention_bytes,
        dead_letter_retention: kept.dead_letter_retention,
        dead_letter_bytes: kept.dead_letter_bytes,
        max_concurrent_replays: config.server.max_concurrent_replays,
    };
    if kept.data_dir.is_some() {
        let (store, logs) = Store::open(settings, bounds, &products, metrics)?;
        return Ok((logs, store));
    }
    let log = |id: &ProductId| Arc::new(Log::new(id.clone(), bounds, metrics.log(id)));
    let logs: Vec<_> = products.iter().map(log).collect();
    let store = Store::in_memory(settings, logs.clone(), metrics)?;
    Ok((logs, store))
}

/// The webhooks that the file declares, and those that the store has kept.
pub(super) fn webhooks(config: &Config, relay: &Relay, store: &mut Store) -> Result<Webhooks, TlsError> {
    let kept = store.take_webhooks();
    let ground = Ground {
        fanouts: relay.products.iter().map(|product| Arc::clone(&product.fanout)).collect(),
        desk: Arc::clone(store.desk()),
        is_durable: config.log.data_dir.is_some(),
        memory_bytes: config.log.memory_bytes,
        allow_networks: &config.egress.allow_networks,
        tls: client::tls(config.egress.ca_file.as_deref())?,
        metrics: Arc::clone(&relay.metrics),
    };
    Ok(Webhooks::start(ground, &config.webhooks, kept))
}

/// What the public routes share: a log and a fan-out for each product.
pub(super) fn relay(
    config: &Config,
    logs: Vec<Arc<Log>>,
    store: &Store,
    lanes: usize,
    metrics: &Arc<Metrics>,
) -> Relay {
    let server = &config.server;
    let products = DashMap::new();
    for (number, log) in logs.into_iter().enumerate() {
        let Some(upstream) = config.upstreams.iter().find(|upstream| upstream.product_id == *log.product()) else {
            continue;
        };
        let product = product(server, upstream, log, (number, lanes), metrics);
        products.insert(product.id.clone(), Arc::new(product));
    }
    let access = Arc::new(Access::new(&config.auth));
    metrics.has_room_for(server.max_subscribers);
    Relay {
        products: Arc::new(products),
        places: Places::new(&config.auth, &server.cors_allowed_origins),
        subscribers: Subscribers::new(Limits::new(server), Arc::clone(&access), Arc::clone(metrics)),
        access,
        shards: Shards::new(lanes, server.write_timeout),
        pages: Pages::default(),
        bodies: Bodies::default(),
        wheel: Wheel::new(),
        heartbeat_interval: server.heartbeat_interval,
        max_connection_age: server.max_connection_age,
        trusted_proxies: server.trusted_proxies.clone(),
        is_draining: Arc::default(),
        store: config.log.data_dir.is_some().then(|| Arc::clone(store.desk())),
        metrics: Arc::clone(metrics),
    }
}

/// The public side of one product, which is the number-th on so many lanes.
pub(super) fn product(
    server: &Server,
    upstream: &Upstream,
    log: Arc<Log>,
    (number, lanes): (usize, usize),
    metrics: &Arc<Metrics>,
) -> Product {
    let id = log.product().clone();
    Product {
        fanout: Arc::new(Fanout::new(Arc::clone(&log), lanes)),
        log,
        lane: number % lanes,
        sse: metrics.deliveries(&id, Transport::Sse),
        ws: metrics.deliveries(&id, Transport::WebSocket),
        envelopes: Arc::default(),
        paged: metrics.delivered(&id, Transport::Page),
        published: metrics.published(&id),
        max_publish_bytes: max_publish_bytes(server, upstream),
        upstream: upstream.url.origin(),
        metrics: Arc::clone(metrics),
        id,
    }
}

/// What the product is by another configuration. What stands is shared.
pub(super) fn product_again(server: &Server, upstream: &Upstream, known: Arc<Product>) -> Arc<Product> {
    let (max_publish_bytes, origin) = (max_publish_bytes(server, upstream), upstream.url.origin());
    if (known.max_publish_bytes, &known.upstream) == (max_publish_bytes, &origin) {
        return known;
    }
    Arc::new(Product { max_publish_bytes, upstream: origin, ..(*known).clone() })
}

fn max_publish_bytes(server: &Server, upstream: &Upstream) -> usize {
    usize::try_from(server.max_publish_bytes.min(upstream.max_event_bytes)).unwrap_or(usize::MAX)
}

/// The admin side.
pub(super) fn admin(
    config: &Config,
    relay: &Arc<Relay>,
    webhooks: &Arc<Webhooks>,
    upstreams: Boards,
    rejected: Arc<Rejected>,
) -> Admin {
    let key = SoleKey::new(config.auth.admin_key.as_ref().map(Secret::expose));
    let access = Arc::new(key.access());
    Admin {
        relay: Arc::clone(relay),
        onlookers: Subscribers::new(Limits::at_most(MOST_ONLOOKERS), access, Arc::clone(&relay.metrics)),
        wheel: Wheel::new(),
        webhooks: Arc::clone(webhooks),
        upstreams,
        key,
        rejected,
        streamed: Arc::default(),
        started: SystemTime::now(),
    }
}

/// How much a log keeps in memory.
pub(super) fn bounds(log: &config::Log) -> Bounds {
    Bounds { events: log.memory_events, bytes: log.memory_bytes }
}
