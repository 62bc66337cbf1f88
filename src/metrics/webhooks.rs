//! Metrics of webhooks. Their label is the webhook's id, which operators give.
//!
//! May use: `webhook_delivery`.

use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
};

use super::family::FamilyBuilder;
use crate::webhook_delivery::{EndpointState, Outcome};

/// Families of all webhooks.
#[derive(Debug)]
pub(super) struct WebhookFamilies {
    attempts: IntCounterVec,
    attempt_seconds: HistogramVec,
    pending: IntGaugeVec,
    dead: IntGaugeVec,
    oldest_pending: GaugeVec,
    lost: IntCounterVec,
    undurable: IntCounterVec,
    state: IntGaugeVec,
}

impl WebhookFamilies {
    /// Declares the families.
    ///
    /// # Errors
    ///
    /// When a family is declared twice.
    pub(super) fn declare(families: &FamilyBuilder<'_>) -> Result<Self, prometheus::Error> {
        let counter = |suffix, help| families.counter(suffix, help, &["webhook"]);
        let gauge = |suffix, help| families.gauge(suffix, help, &["webhook"]);
        Ok(Self {
            attempts: families.counter(
                "webhook_attempts_total",
                "Attempts to deliver to the webhook, by outcome.",
                &["webhook", "outcome"],
            )?,
            attempt_seconds: families.histogram(
                "webhook_attempt_duration_seconds",
                "From the beginning of an attempt to the end of the answer, in seconds.",
                &["webhook"],
                ATTEMPT_BUCKETS,
            )?,
            pending: gauge("webhook_pending", "Deliveries that are owed to the webhook.")?,
            dead: gauge("webhook_dead", "Deliveries that were given up and can be redelivered.")?,
            oldest_pending: families.timestamp(
                "webhook_oldest_pending_timestamp_seconds",
                "When the event of the oldest owed delivery came or was read back, in Unix \
                 seconds; 0 if none. Without redeliveries.",
                "webhook",
            )?,
            lost: counter(
                "webhook_lost_total",
                "Upper bound of deliveries lost for good: \
                 all count where it is unknown which were owed.",
            )?,
            undurable: counter(
                "webhook_undurable_total",
                "Deliveries that were sent while the store could not persist them.",
            )?,
            state: families.gauge(
                "webhook_state",
                "1 for the state that the webhook's endpoint is in, 0 for the others.",
                &["webhook", "state"],
            )?,
        })
    }

    /// Returns the handles of one webhook.
    pub(super) fn handles(&self, webhook: &str) -> WebhookMetrics {
        WebhookMetrics {
            attempts: Outcome::ALL
                .map(|outcome| self.attempts.with_label_values(&[webhook, outcome.as_str()])),
            attempt_seconds: self.attempt_seconds.with_label_values(&[webhook]),
            pending: self.pending.with_label_values(&[webhook]),
            dead: self.dead.with_label_values(&[webhook]),
            oldest_pending: self.oldest_pending.with_label_values(&[webhook]),
            lost: self.lost.with_label_values(&[webhook]),
            undurable: self.undurable.with_label_values(&[webhook]),
            state: EndpointState::ALL
                .map(|state| self.state.with_label_values(&[webhook, state.as_str()])),
        }
    }

    /// Removes the series of one webhook.
    pub(super) fn remove(&self, webhook: &str) {
        // Series that do not exist are no error.
        for outcome in Outcome::ALL {
            let _ = self.attempts.remove_label_values(&[webhook, outcome.as_str()]);
        }
        for state in EndpointState::ALL {
            let _ = self.state.remove_label_values(&[webhook, state.as_str()]);
        }
        for gauge in [&self.pending, &self.dead] {
            let _ = gauge.remove_label_values(&[webhook]);
        }
        for counter in [&self.lost, &self.undurable] {
            let _ = counter.remove_label_values(&[webhook]);
        }
        let _ = self.attempt_seconds.remove_label_values(&[webhook]);
        let _ = self.oldest_pending.remove_label_values(&[webhook]);
    }
}

/// Metrics of one webhook.
#[derive(Clone, Debug)]
pub(crate) struct WebhookMetrics {
    attempts: [IntCounter; Outcome::ALL.len()],
    /// Time from the beginning of an attempt to the end of the answer, in seconds.
    pub(crate) attempt_seconds: Histogram,
    pending: IntGauge,
    dead: IntGauge,
    oldest_pending: Gauge,
    /// Deliveries that are lost for good.
    pub(crate) lost: IntCounter,
    /// Deliveries that were sent while the store could not persist them.
    pub(crate) undurable: IntCounter,
    state: [IntGauge; EndpointState::ALL.len()],
}

impl WebhookMetrics {
    /// Counts an attempt.
    pub(crate) fn record_attempt(&self, outcome: Outcome) {
        let counters = Outcome::ALL.iter().zip(&self.attempts);
        for (_, counter) in counters.filter(|(of, _)| **of == outcome) {
            counter.inc();
        }
    }

    /// Sets the endpoint's state and the deliveries that are owed or dead; `oldest_pending` is in
    /// Unix milliseconds.
    pub(crate) fn record_status(
        &self,
        state: EndpointState,
        pending: u64,
        dead: u64,
        oldest_pending: Option<u64>,
    ) {
        self.pending.set(i64::try_from(pending).unwrap_or(i64::MAX));
        self.dead.set(i64::try_from(dead).unwrap_or(i64::MAX));
        self.oldest_pending.set(oldest_pending.unwrap_or_default() as f64 / 1000.0);
        for (of, gauge) in EndpointState::ALL.into_iter().zip(&self.state) {
            gauge.set((of == state).into());
        }
    }
}

/// Covers a receiver in the same network up to the longest useful time-out.
const ATTEMPT_BUCKETS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
