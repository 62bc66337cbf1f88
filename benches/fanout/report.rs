//! Results as a table in Markdown.

use std::fmt::{self, Display};

use crate::{
    options::Options,
    outcome::{Measure, Outcome, median},
    scenario::{Scenario, size::Size},
    support::target::kind::Kind,
    tally::Faults,
};

/// One run.
#[derive(Debug)]
pub(crate) struct Trial {
    /// The target.
    pub(crate) kind: Kind,
    /// Number of the pair, whose runs are compared with each other.
    pub(crate) pair: usize,
    /// The results.
    pub(crate) outcome: Outcome,
}

/// All runs of one scenario.
#[derive(Debug)]
pub(crate) struct Report {
    scenario: Scenario,
    size: Size,
    trials: Vec<Trial>,
}

impl Report {
    /// Returns an empty report.
    pub(crate) fn new(scenario: Scenario, options: &Options) -> Self {
        Self { scenario, size: options.size, trials: Vec::new() }
    }

    /// Adds a run.
    pub(crate) fn add(&mut self, trial: Trial) {
        self.trials.push(trial);
    }

    /// Returns true if no target that must be correct has a fault.
    pub(crate) fn is_sound(&self) -> bool {
        self.trials
            .iter()
            .all(|trial| trial.outcome.faults.is_none() || !trial.kind.must_be_correct())
    }

    fn of(&self, kind: Kind) -> impl Iterator<Item = &Trial> {
        self.trials.iter().filter(move |trial| trial.kind == kind)
    }

    /// Returns the median of one value over all runs against a target.
    fn median(&self, kind: Kind, name: &str) -> Option<f64> {
        median(self.of(kind).filter_map(|trial| trial.outcome.value(name)))
    }

    /// Returns the median of the ratios of two targets within each pair.
    fn ratio(&self, (kind, to): (Kind, Kind), name: &str) -> Option<f64> {
        let pair = |trial: &Trial| {
            let other = self.of(to).find(|other| other.pair == trial.pair)?;
            Some(trial.outcome.value(name)? / other.outcome.value(name)?)
        };
        median(self.of(kind).filter_map(pair).filter(|ratio| ratio.is_finite()))
    }

    /// Returns the targets that have run.
    fn kinds(&self) -> Vec<Kind> {
        Kind::ALL.into_iter().filter(|kind| self.of(*kind).next().is_some()).collect()
    }
}

impl Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "\n### {}\n", self.scenario.title(self.size))?;
        let kinds = self.kinds();
        let ratios =
            RATIOS.into_iter().filter(|(kind, to)| kinds.contains(kind) && kinds.contains(to));
        let ratios: Vec<(Kind, Kind)> = ratios.collect();
        let columns = kinds
            .iter()
            .map(Kind::to_string)
            .chain(ratios.iter().map(|(kind, to)| format!("{kind} / {to}")));
        let columns: Vec<String> = columns.collect();
        writeln!(
            formatter,
            "| | {} |\n|---|{}",
            columns.join(" | "),
            "---:|".repeat(columns.len())
        )?;
        let longest = self.trials.iter().max_by_key(|trial| trial.outcome.measures.len());
        let measures = longest.map_or(&[][..], |trial| &trial.outcome.measures);
        for Measure { name, is_compared, .. } in measures {
            let values = kinds.iter().map(|kind| self.median(*kind, name));
            let ratios = ratios.iter().map(|pair| self.ratio(*pair, name).filter(|_| *is_compared));
            let cells: Vec<String> = values.chain(ratios).map(shown).collect();
            writeln!(formatter, "| {name} | {} |", cells.join(" | "))?;
        }
        for kind in kinds {
            let fault = if kind.must_be_correct() { "FAULT" } else { "seen" };
            let mut faults = Faults::default();
            self.of(kind).for_each(|trial| faults.merge(&trial.outcome.faults));
            for (name, count) in faults.counts().iter().filter(|(_, count)| *count > 0) {
                writeln!(formatter, "\n{fault}, {kind}: {count} {name}")?;
            }
            for words in &faults.words {
                writeln!(formatter, "\n{fault}, {kind}: {words}")?;
            }
            for remark in self.of(kind).flat_map(|trial| &trial.outcome.remarks) {
                writeln!(formatter, "\nlogged by {kind}: {remark}")?;
            }
        }
        Ok(())
    }
}

/// The pairs of targets that are compared if both have run.
const RATIOS: [(Kind, Kind); 8] = [
    (Kind::Relay, Kind::Bare),
    (Kind::Durable, Kind::Relay),
    (Kind::Durable, Kind::Bare),
    (Kind::WebSocket, Kind::Relay),
    (Kind::Relay, Kind::Naive),
    (Kind::Http2, Kind::NaiveHttp2),
    (Kind::Tls, Kind::NaiveTls),
    (Kind::TlsHttp2, Kind::NaiveTlsHttp2),
];

/// Formats a value with about three significant digits.
fn shown(value: Option<f64>) -> String {
    match value.filter(|value| value.is_finite()) {
        None => String::new(),
        Some(value) if value.abs() >= 100.0 => grouped(value),
        Some(value) if value.abs() >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}

/// Formats a number with spaces between thousands.
fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = String::from(if value < 0.0 { "-" } else { "" });
    for (nth, digit) in digits.chars().enumerate() {
        if nth > 0 && (digits.len() - nth) % 3 == 0 {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}
