//! Metrics of the upstream connections. Their label is the product.
//!
//! May use: `envelope`, `event`.

use std::time::{Duration, SystemTime};

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
};

use super::family::{FamilyBuilder, unix_seconds};
use crate::{
    envelope::Rejection,
    event::{Kind, ProductId},
};

/// Families of all upstreams.
#[derive(Debug)]
pub(super) struct UpstreamFamilies {
    connected: IntGaugeVec,
    connects: IntCounterVec,
    last_event: GaugeVec,
    last_heartbeat: GaugeVec,
    events: IntCounterVec,
    rejected: IntCounterVec,
    lag: HistogramVec,
}

impl UpstreamFamilies {
    /// Declares the families.
    ///
    /// # Errors
    ///
    /// When a family is declared twice.
    pub(super) fn declare(families: &FamilyBuilder<'_>) -> Result<Self, prometheus::Error> {
        Ok(Self {
            connected: families.gauge(
                "upstream_connected",
                "1 while the stream of the product's connector is connected, else 0.",
                &["product_id"],
            )?,
            connects: families.counter(
                "upstream_connects_total",
                "Attempts to connect to the product's connector, by outcome.",
                &["product_id", "outcome"],
            )?,
            last_event: families.timestamp(
                "upstream_last_event_timestamp_seconds",
                "When the last event came from the connector, in Unix seconds; 0 before the first.",
                "product_id",
            )?,
            last_heartbeat: families.timestamp(
                "upstream_last_heartbeat_timestamp_seconds",
                "When the last heartbeat came from the connector, in Unix seconds; \
                 0 before the first.",
                "product_id",
            )?,
            events: families.counter(
                "upstream_events_total",
                "Events received from the connector, by type.",
                &["product_id", "type"],
            )?,
            rejected: families.counter(
                "upstream_rejected_total",
                "Frames from the connector that were rejected, by reason.",
                &["product_id", "reason"],
            )?,
            lag: families.histogram(
                "upstream_lag_seconds",
                "From the connector's forwarded_at until the event was received here, in seconds.",
                &["product_id"],
                UPSTREAM_LAG_BUCKETS,
            )?,
        })
    }

    /// Returns the handles of one product's upstream.
    pub(super) fn handles(&self, product: &ProductId) -> UpstreamMetrics {
        let product = product.as_str();
        let [connected, refused, failed] =
            CONNECT_OUTCOMES.map(|outcome| self.connects.with_label_values(&[product, outcome]));
        let events = |kind: &Kind| self.events.with_label_values(&[product, kind.label()]);
        UpstreamMetrics {
            connected: self.connected.with_label_values(&[product]),
            connects_connected: connected,
            connects_refused: refused,
            connects_failed: failed,
            last_event: self.last_event.with_label_values(&[product]),
            last_heartbeat: self.last_heartbeat.with_label_values(&[product]),
            actions: events(&Kind::Actions),
            summary: events(&Kind::Summary),
            usertour_trigger: events(&Kind::UsertourTrigger),
            other: events(&Kind::Other("".into())),
            rejected: Rejection::ALL
                .map(|reason| self.rejected.with_label_values(&[product, reason.as_str()])),
            lag: self.lag.with_label_values(&[product]),
        }
    }

    /// Removes the series of one product. Series that do not exist are no error.
    pub(super) fn remove(&self, product: &str) {
        for gauges in [&self.last_event, &self.last_heartbeat] {
            let _ = gauges.remove_label_values(&[product]);
        }
        let _ = self.connected.remove_label_values(&[product]);
        let _ = self.lag.remove_label_values(&[product]);
        for outcome in CONNECT_OUTCOMES {
            let _ = self.connects.remove_label_values(&[product, outcome]);
        }
        for kind in [Kind::Actions, Kind::Summary, Kind::UsertourTrigger, Kind::Other("".into())] {
            let _ = self.events.remove_label_values(&[product, kind.label()]);
        }
        for reason in Rejection::ALL {
            let _ = self.rejected.remove_label_values(&[product, reason.as_str()]);
        }
    }
}

/// Metrics of one upstream.
#[derive(Clone, Debug)]
pub(crate) struct UpstreamMetrics {
    /// 1 while the stream is connected.
    pub(crate) connected: IntGauge,
    /// Attempts that led to a stream.
    pub(crate) connects_connected: IntCounter,
    /// Attempts answered by 400, 401, 403 or 404.
    pub(crate) connects_refused: IntCounter,
    /// Attempts that failed otherwise.
    pub(crate) connects_failed: IntCounter,
    last_event: Gauge,
    last_heartbeat: Gauge,
    actions: IntCounter,
    summary: IntCounter,
    usertour_trigger: IntCounter,
    other: IntCounter,
    rejected: [IntCounter; Rejection::ALL.len()],
    lag: Histogram,
}

impl UpstreamMetrics {
    /// Counts an event received at `now`. `lag` is none when the payload does not say when it was
    /// forwarded.
    pub(crate) fn record_event(&self, kind: &Kind, lag: Option<Duration>, now: SystemTime) {
        let counter = match kind {
            Kind::Actions => &self.actions,
            Kind::Summary => &self.summary,
            Kind::UsertourTrigger => &self.usertour_trigger,
            Kind::Other(_) => &self.other,
        };
        counter.inc();
        self.last_event.set(unix_seconds(now));
        if let Some(lag) = lag {
            self.lag.observe(lag.as_secs_f64());
        }
    }

    /// Records a heartbeat received at `now`.
    pub(crate) fn record_heartbeat(&self, now: SystemTime) {
        self.last_heartbeat.set(unix_seconds(now));
    }

    /// Counts a rejected frame.
    pub(crate) fn record_rejection(&self, reason: Rejection) {
        let counters = Rejection::ALL.iter().zip(&self.rejected);
        for (_, counter) in counters.filter(|(of, _)| **of == reason) {
            counter.inc();
        }
    }
}

/// Outcomes of attempts to connect to an upstream.
const CONNECT_OUTCOMES: [&str; 3] = ["connected", "refused", "failed"];

/// Covers a connector in the same network up to one that is minutes behind.
const UPSTREAM_LAG_BUCKETS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
