//! One product as its deliverers see it: log, fan-out, WebSocket messages and counters.
//!
//! In: entries that ingest or a publisher appends. Out: subscriptions, for shards and HTTP routes.
//! Reloading the configuration replaces an `http::Product` and keeps its feed.
//!
//! May use: `event`, `fanout`, `log`, `metrics`, `ws_frame`.

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    event::{Event, ProductId},
    fanout::Fanout,
    log::Log,
    metrics::{DeliveryMetrics, Metrics, Transport},
    ws_frame::WsMessageCache,
};

/// One product: its log, its fan-out and the counters of its deliveries.
#[derive(Debug)]
pub(crate) struct Feed {
    /// Product that the entries belong to.
    pub(crate) id: ProductId,
    /// Entries, in memory and in the store.
    pub(crate) log: Arc<Log>,
    /// Subscriptions to the log, and their wake-ups.
    pub(crate) fanout: Arc<Fanout>,
    /// Index of the shard thread that runs the product's ingest and fan-out.
    pub(crate) home_shard: usize,
    ws_messages: WsMessageCache,
    sse: DeliveryMetrics,
    ws: DeliveryMetrics,
    /// All metric families, for counters that are looked up by label: disconnects.
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
            ws_messages: WsMessageCache::default(),
            sse: metrics.deliveries(&id, Transport::Sse),
            ws: metrics.deliveries(&id, Transport::WebSocket),
            metrics: Arc::clone(metrics),
            id,
        }
    }

    /// Returns an event as a WebSocket message, which the receivers of a new event share.
    pub(crate) fn ws_message(&self, event: &Event) -> Bytes {
        self.ws_messages.get_or_encode(event)
    }

    /// Drops the shared WebSocket messages, for an erasure.
    pub(crate) fn clear_ws_messages(&self) {
        self.ws_messages.clear();
    }

    /// Returns the metrics of the product's subscribers over one transport.
    pub(crate) fn deliveries(&self, transport: Transport) -> &DeliveryMetrics {
        match transport {
            Transport::Sse => &self.sse,
            Transport::WebSocket => &self.ws,
        }
    }
}
