//! Thread-local delivery metrics: counted on the shard's thread, flushed after each batch.
//!
//! Shared counters would be an atomic operation per delivery, on cache lines that all shards write.
//!
//! May use: `event`, `feed`, `metrics`.

use prometheus::{IntCounter, local::LocalHistogram};
use tokio::time::Instant;

use crate::{
    event::Event,
    feed::Feed,
    metrics::{DeliveryMetrics, Transport},
};

/// Delivery metrics of one product group for each transport, not yet flushed.
#[derive(Debug)]
pub(super) struct MetricsBuffers {
    sse: MetricsBuffer,
    ws: MetricsBuffer,
}

impl MetricsBuffers {
    pub(super) fn new(feed: &Feed) -> Self {
        let buffer = |transport| MetricsBuffer::new(feed.deliveries(transport));
        Self { sse: buffer(Transport::Sse), ws: buffer(Transport::WebSocket) }
    }

    /// Returns the metrics of one transport.
    pub(super) fn of(&mut self, transport: Transport) -> &mut MetricsBuffer {
        match transport {
            Transport::Sse => &mut self.sse,
            Transport::WebSocket => &mut self.ws,
        }
    }

    /// Adds the buffered values to the shared metrics.
    pub(super) fn flush(&mut self) {
        self.sse.flush();
        self.ws.flush();
    }
}

/// Delivery metrics of one transport; flushed when dropped.
#[derive(Debug)]
pub(super) struct MetricsBuffer {
    delivered_count: u64,
    lag: LocalHistogram,
    delivered: IntCounter,
}

impl MetricsBuffer {
    fn new(metrics: &DeliveryMetrics) -> Self {
        Self { delivered_count: 0, lag: metrics.lag.local(), delivered: metrics.delivered.clone() }
    }

    /// Records the delivery of a live event at `now`.
    pub(super) fn record_delivery(&mut self, event: &Event, now: Instant) {
        self.delivered_count += 1;
        if let Some(received) = event.received() {
            self.lag.observe(now.saturating_duration_since(received).as_secs_f64());
        }
    }

    fn flush(&mut self) {
        if self.delivered_count > 0 {
            self.delivered.inc_by(std::mem::take(&mut self.delivered_count));
            self.lag.flush();
        }
    }
}

impl Drop for MetricsBuffer {
    fn drop(&mut self) {
        self.flush();
    }
}
