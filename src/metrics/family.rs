//! Declaration of metric families under the common prefix.
//!
//! May use: no other module.

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

/// Declares families, and registers each.
pub(super) struct FamilyBuilder<'a> {
    pub(super) registry: &'a Registry,
}

impl FamilyBuilder<'_> {
    pub(super) fn counter(
        &self,
        suffix: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntCounterVec, prometheus::Error> {
        let family = IntCounterVec::new(Opts::new(metric_name(suffix), help), labels)?;
        self.registry.register(Box::new(family.clone()))?;
        Ok(family)
    }

    pub(super) fn gauge(
        &self,
        suffix: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntGaugeVec, prometheus::Error> {
        let family = IntGaugeVec::new(Opts::new(metric_name(suffix), help), labels)?;
        self.registry.register(Box::new(family.clone()))?;
        Ok(family)
    }

    pub(super) fn unlabelled_gauge(
        &self,
        suffix: &str,
        help: &str,
    ) -> Result<IntGauge, prometheus::Error> {
        let family = IntGauge::new(metric_name(suffix), help)?;
        self.registry.register(Box::new(family.clone()))?;
        Ok(family)
    }

    pub(super) fn timestamp(
        &self,
        suffix: &str,
        help: &str,
        label: &str,
    ) -> Result<GaugeVec, prometheus::Error> {
        let family = GaugeVec::new(Opts::new(metric_name(suffix), help), &[label])?;
        self.registry.register(Box::new(family.clone()))?;
        Ok(family)
    }

    pub(super) fn histogram(
        &self,
        suffix: &str,
        help: &str,
        labels: &[&str],
        buckets: &[f64],
    ) -> Result<HistogramVec, prometheus::Error> {
        let options = HistogramOpts::new(metric_name(suffix), help).buckets(buckets.to_vec());
        let family = HistogramVec::new(options, labels)?;
        self.registry.register(Box::new(family.clone()))?;
        Ok(family)
    }
}

pub(super) fn metric_name(suffix: &str) -> String {
    format!("autoplay_relay_{suffix}")
}

pub(super) fn unix_seconds(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
