//! What came out of one run.

use crate::{
    support::histogram::{Histogram, millis},
    tally::{Faults, Tally},
};

/// The outcome of one run against one target.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// The numbers, in the order of the table's rows.
    pub(crate) measures: Vec<Measure>,
    /// What should not have happened.
    pub(crate) faults: Faults,
    /// Warnings and errors in the target's log.
    pub(crate) remarks: Vec<String>,
}

/// One number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measure {
    /// What was measured, with its unit.
    pub(crate) name: &'static str,
    /// How much.
    pub(crate) value: f64,
    /// Whether the ratio of two targets means something.
    pub(crate) is_compared: bool,
}

impl Outcome {
    /// What the books say, when `deliveries` was what should be.
    pub(crate) fn new(tally: &Tally, deliveries: u64) -> Self {
        let mut outcome = Self { faults: tally.faults.clone(), ..Self::default() };
        outcome.note("deliveries offered", deliveries as f64);
        outcome.note("received", tally.received as f64);
        outcome
    }

    /// Nothing to measure.
    pub(crate) fn failed(error: &(dyn std::error::Error + Send + Sync)) -> Self {
        Self { remarks: vec![format!("no result: {error}")], ..Self::default() }
    }

    /// Adds a number that is compared.
    pub(crate) fn compare(&mut self, name: &'static str, value: f64) {
        self.add(name, value, true);
    }

    /// Adds a number for information.
    pub(crate) fn note(&mut self, name: &'static str, value: f64) {
        self.add(name, value, false);
    }

    /// Adds a number for information, and a fault if it is higher than it may be.
    pub(crate) fn limit(&mut self, name: &'static str, value: f64, most: f64) {
        self.note(name, value);
        if value > most {
            self.faults
                .words
                .push(format!("{name}: {value:.1}, and {most} at the most is promised"));
        }
    }

    /// Adds how late deliveries were.
    pub(crate) fn latency(&mut self, latency: &Histogram) {
        self.compare("latency p50, ms", millis(latency, 0.5));
        self.compare("latency p99, ms", millis(latency, 0.99));
    }

    fn add(&mut self, name: &'static str, value: f64, is_compared: bool) {
        self.measures.push(Measure { name, value, is_compared });
    }

    /// The number of this name.
    pub(crate) fn value(&self, name: &str) -> Option<f64> {
        let measure = self.measures.iter().find(|measure| measure.name == name)?;
        Some(measure.value)
    }
}

/// The middle one, or the middle of the middle two; none of none.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let (lower, upper) = (values.len().checked_sub(1)? / 2, values.len() / 2);
    Some((values.get(lower)? + values.get(upper)?) / 2.0)
}
