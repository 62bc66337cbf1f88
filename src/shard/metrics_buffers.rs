//! Delivery metrics of one product group, kept on the shard's thread between two flushes.
//!
//! May use: `event`, `metrics`.

use prometheus::{IntCounter, local::LocalHistogram};
use tokio::time::Instant;

use crate::{event::Event, feed::Feed, metrics::DeliveryMetrics};

/// What has been delivered in each way, until it is told to everybody.
#[derive(Debug)]
pub(crate) struct MetricsBuffers {
    pub(crate) sse: MetricsBuffer,
    pub(crate) ws: MetricsBuffer,
}

impl MetricsBuffers {
    pub(super) fn new(feed: &Feed) -> Self {
        Self { sse: MetricsBuffer::new(&feed.sse), ws: MetricsBuffer::new(&feed.ws) }
    }

    /// Tells it.
    pub(super) fn flush(&mut self) {
        self.sse.flush();
        self.ws.flush();
    }
}

/// What has been delivered in one way.
#[derive(Debug)]
pub(crate) struct MetricsBuffer {
    delivered_count: u64,
    lag: LocalHistogram,
    delivered: IntCounter,
}

impl MetricsBuffer {
    fn new(metrics: &DeliveryMetrics) -> Self {
        Self { delivered_count: 0, lag: metrics.lag.local(), delivered: metrics.delivered.clone() }
    }

    /// An event that is delivered at `now`, as soon as it has come.
    pub(crate) fn record_delivery(&mut self, event: &Event, now: Instant) {
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
