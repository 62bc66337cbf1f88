//! One product as its deliverers see it: log, fan-out and counters.
//!
//! In: entries that the upstream or a publisher appends. Out: subscriptions, for shards, pages and webhooks.
//!
//! May use: `event`, `fanout`, `log`, `metrics`.

use std::sync::Arc;

use crate::{
    event::ProductId,
    fanout::Fanout,
    log::Log,
    metrics::{DeliveryMetrics, Metrics, Transport},
};

/// One product: its log, its fan-out and the counters of its deliveries.
#[derive(Debug)]
pub(crate) struct Feed {
    /// Its name.
    pub(crate) id: ProductId,
    /// What has been kept.
    pub(crate) log: Arc<Log>,
    /// Who is told of what comes.
    pub(crate) fanout: Arc<Fanout>,
    /// The number of the lane on which its events come in.
    pub(crate) home_shard: usize,
    /// The handles of its SSE subscribers.
    pub(crate) sse: DeliveryMetrics,
    /// The handles of its WebSocket subscribers.
    pub(crate) ws: DeliveryMetrics,
    /// All families, for what is counted rarely.
    pub(crate) metrics: Arc<Metrics>,
}

impl Feed {
    /// Connects `log` with a fan-out for `shard_count` shards.
    pub(crate) fn new(
        log: Arc<Log>,
        shard_count: usize,
        home_shard: usize,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let id = log.product().clone();
        Self {
            fanout: Arc::new(Fanout::new(Arc::clone(&log), shard_count)),
            log,
            home_shard,
            sse: metrics.deliveries(&id, Transport::Sse),
            ws: metrics.deliveries(&id, Transport::WebSocket),
            metrics: Arc::clone(metrics),
            id,
        }
    }
}
