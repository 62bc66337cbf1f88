//! Metrics of the logs and of the durable store.
//!
//! May use: `event`.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::family::{FamilyBuilder, metric_name};
use crate::event::{GapReason, ProductId};

/// Families of all logs.
#[derive(Debug)]
pub(super) struct LogFamilies {
    events: IntGaugeVec,
    bytes: IntGaugeVec,
    gaps: IntCounterVec,
    published: IntCounterVec,
}

impl LogFamilies {
    /// Declares the families.
    ///
    /// # Errors
    ///
    /// When a family is declared twice.
    pub(super) fn declare(families: &FamilyBuilder<'_>) -> Result<Self, prometheus::Error> {
        Ok(Self {
            events: families.gauge(
                "log_events",
                "Entries the log keeps.",
                &["product_id", "tier"],
            )?,
            bytes: families.gauge("log_bytes", "Bytes the log keeps.", &["product_id", "tier"])?,
            gaps: families.counter(
                "gaps_total",
                "Gap notices: one per gap in the log, else one per subscriber that receives it.",
                &["product_id", "reason"],
            )?,
            published: families.counter(
                "published_events_total",
                "Events that publishers have added to the product's log.",
                &["product_id"],
            )?,
        })
    }

    /// Returns the handles of one product's log.
    pub(super) fn handles(&self, product: &ProductId) -> LogMetrics {
        let product = product.as_str();
        let tiers =
            |family: &IntGaugeVec| LOG_TIERS.map(|tier| family.with_label_values(&[product, tier]));
        let ([events, events_on_disk], [bytes, bytes_on_disk]) =
            (tiers(&self.events), tiers(&self.bytes));
        LogMetrics {
            events,
            bytes,
            events_on_disk,
            bytes_on_disk,
            gaps: GapReason::ALL
                .map(|reason| self.gaps.with_label_values(&[product, reason.as_str()])),
        }
    }

    /// Returns the counter of events published for one product.
    pub(super) fn published(&self, product: &ProductId) -> IntCounter {
        self.published.with_label_values(&[product.as_str()])
    }

    /// Removes the series of one product. Series that do not exist are no error.
    pub(super) fn remove(&self, product: &str) {
        let _ = self.published.remove_label_values(&[product]);
        for reason in GapReason::ALL {
            let _ = self.gaps.remove_label_values(&[product, reason.as_str()]);
        }
        for tier in LOG_TIERS {
            let _ = self.events.remove_label_values(&[product, tier]);
            let _ = self.bytes.remove_label_values(&[product, tier]);
        }
    }
}

/// Metrics of one log.
#[derive(Clone, Debug)]
pub(crate) struct LogMetrics {
    events: IntGauge,
    bytes: IntGauge,
    events_on_disk: IntGauge,
    bytes_on_disk: IntGauge,
    gaps: [IntCounter; GapReason::ALL.len()],
}

impl LogMetrics {
    /// Sets what the log keeps in memory.
    pub(crate) fn set_memory_usage(&self, events: usize, bytes: u64) {
        self.events.set(i64::try_from(events).unwrap_or(i64::MAX));
        self.bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Sets what the log keeps in the store.
    pub(crate) fn set_store_usage(&self, events: u64, bytes: u64) {
        self.events_on_disk.set(i64::try_from(events).unwrap_or(i64::MAX));
        self.bytes_on_disk.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Counts a gap.
    pub(crate) fn record_gap(&self, reason: GapReason) {
        let counters = GapReason::ALL.iter().zip(&self.gaps);
        for (_, counter) in counters.filter(|(of, _)| **of == reason) {
            counter.inc();
        }
    }
}

/// Metrics of the durable store.
#[derive(Clone, Debug)]
pub(crate) struct StoreMetrics {
    /// Time of a commit, in seconds.
    pub(crate) commit_seconds: Histogram,
    /// 1 while the store keeps less than it promises.
    pub(crate) degraded: IntGauge,
    /// Size of the write-ahead log's file.
    pub(crate) wal_bytes: IntGauge,
    store_bytes: IntGauge,
    retention_bytes: IntGauge,
}

impl StoreMetrics {
    /// Declares the metrics.
    ///
    /// # Errors
    ///
    /// When one is declared twice.
    pub(super) fn declare(families: &FamilyBuilder<'_>) -> Result<Self, prometheus::Error> {
        let commit_options = HistogramOpts::new(
            metric_name("log_commit_seconds"),
            "Time a commit of the durable log takes, in seconds.",
        );
        let commit_seconds = Histogram::with_opts(commit_options.buckets(COMMIT_BUCKETS.to_vec()))?;
        families.registry.register(Box::new(commit_seconds.clone()))?;
        Ok(Self {
            commit_seconds,
            degraded: families.unlabelled_gauge(
                "log_degraded",
                "1 while the log keeps less than it promises, else 0.",
            )?,
            wal_bytes: families.unlabelled_gauge(
                "log_wal_bytes",
                "Bytes of the store's write-ahead log, beside log_store_bytes; 0 without log.data_dir.",
            )?,
            store_bytes: families.unlabelled_gauge(
                "log_store_bytes",
                "Bytes in use in the store's file, without dead letters; 0 without log.data_dir.",
            )?,
            retention_bytes: families.unlabelled_gauge(
                "log_retention_bytes",
                "log.retention_bytes, the bound of log_store_bytes; 0 without log.data_dir.",
            )?,
        })
    }

    /// Sets how much of the store's file is in use, and how much may be.
    pub(crate) fn set_usage(&self, bytes: u64, retention_bytes: u64) {
        self.store_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.retention_bytes.set(i64::try_from(retention_bytes).unwrap_or(i64::MAX));
    }
}

/// Tiers of a log: ring and store.
const LOG_TIERS: [&str; 2] = ["memory", "disk"];

/// Covers a commit to the page cache up to a disk that hangs.
const COMMIT_BUCKETS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
