//! Results of one run.

use crate::{
    support::histogram::{Histogram, millis},
    tally::{Faults, Tally},
};

/// Results of one run against one target.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// The numbers, in the order of the table's rows.
    pub(crate) measures: Vec<Measure>,
    /// The faults that were found.
    pub(crate) faults: Faults,
    /// Warnings and errors in the target's log.
    pub(crate) remarks: Vec<String>,
}

/// One measured value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measure {
    /// What was measured, with its unit.
    pub(crate) name: &'static str,
    /// Its value.
    pub(crate) value: f64,
    /// Whether the ratio of two targets is meaningful.
    pub(crate) is_compared: bool,
}

impl Outcome {
    /// Starts with the tally of a run in which `deliveries` were expected.
    pub(crate) fn new(tally: &Tally, deliveries: u64) -> Self {
        let mut outcome = Self { faults: tally.faults.clone(), ..Self::default() };
        outcome.note("deliveries offered", deliveries as f64);
        outcome.note("received", tally.received as f64);
        outcome
    }

    /// Returns the outcome of a run that failed.
    pub(crate) fn failed(error: &(dyn std::error::Error + Send + Sync)) -> Self {
        Self { remarks: vec![format!("no result: {error}")], ..Self::default() }
    }

    /// Adds a value that is compared.
    pub(crate) fn compare(&mut self, name: &'static str, value: f64) {
        self.add(name, value, true);
    }

    /// Adds a value for information.
    pub(crate) fn note(&mut self, name: &'static str, value: f64) {
        self.add(name, value, false);
    }

    /// Adds a value for information, and a fault if it exceeds `max`.
    pub(crate) fn limit(&mut self, name: &'static str, value: f64, max: f64) {
        self.note(name, value);
        if value > max {
            self.faults.words.push(format!("{name}: {value:.1}, the guarantee is {max}"));
        }
    }

    /// Adds the latency of deliveries.
    pub(crate) fn latency(&mut self, latency: &Histogram) {
        self.compare("latency p50, ms", millis(latency, 0.5));
        self.compare("latency p99, ms", millis(latency, 0.99));
    }

    fn add(&mut self, name: &'static str, value: f64, is_compared: bool) {
        self.measures.push(Measure { name, value, is_compared });
    }

    /// Returns the value of this name.
    pub(crate) fn value(&self, name: &str) -> Option<f64> {
        let measure = self.measures.iter().find(|measure| measure.name == name)?;
        Some(measure.value)
    }
}

/// Returns the middle value, or the mean of the middle two; `None` for no values.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let (lower, upper) = (values.len().checked_sub(1)? / 2, values.len() / 2);
    Some((values.get(lower)? + values.get(upper)?) / 2.0)
}
