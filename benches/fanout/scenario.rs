//! The scenarios: subscribers, events, measured values.

mod broadcast;
mod churn;
mod counted;
mod decode;
mod idle;
mod sessions;
pub(crate) mod size;
mod stalled;
mod steps;
mod store;

use std::str::FromStr;

use self::{
    broadcast::Broadcast, churn::Churn, counted::Counted, decode::Decode, idle::Idle,
    sessions::Sessions, size::Size, stalled::Stalled, steps::Steps, store::Store,
};
use crate::{
    outcome::Outcome,
    support::{Result, target::kind::Kind},
};

/// One kind of work.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Scenario {
    /// Every event to all subscribers, at a high rate.
    A,
    /// Every event to all subscribers, at a low rate: each event finds every thread asleep.
    A5,
    /// Very many idle subscribers.
    B,
    /// Very many subscribers of one session each.
    C,
    /// As C, by users.
    Cu,
    /// The maximum rate of deliveries.
    D,
    /// Increasing rates, up to one that is too high.
    L,
    /// Subscribers that connect and disconnect.
    E,
    /// One upstream at a very high rate.
    U,
    /// The store: filling it, opening it again, reading it.
    R,
    /// Stalled subscribers.
    S,
    /// A small load, to count instructions and system calls.
    K,
    /// The same with more events.
    K2,
    /// As C, with a small load, to count instructions and system calls.
    Kc,
    /// The same with more events.
    Kc2,
}

impl Scenario {
    /// All scenarios that measure, in the order in which they run.
    pub(crate) const ALL: [Self; 10] =
        [Self::A, Self::A5, Self::B, Self::C, Self::D, Self::L, Self::E, Self::U, Self::R, Self::S];

    /// Returns the targets that the scenario runs against. Scenarios of the store run against the
    /// target with one; TLS and HTTP/2 are measured where every subscriber stays from beginning to
    /// end. Only the relay's instructions are counted.
    pub(crate) fn kinds(self, wanted: &[Kind]) -> Vec<Kind> {
        match self {
            Self::R | Self::S => vec![Kind::Durable],
            Self::U => vec![Kind::Relay, Kind::Durable],
            // No other target knows users.
            Self::Cu => {
                let ours = [Kind::Relay, Kind::Durable];
                wanted.iter().copied().filter(|kind| ours.contains(kind)).collect()
            }
            Self::K | Self::K2 | Self::Kc | Self::Kc2 => vec![Kind::Relay],
            Self::A | Self::A5 | Self::B => wanted.to_vec(),
            _ => wanted.iter().copied().filter(|kind| !kind.is_layered()).collect(),
        }
    }

    /// Returns a description of one line.
    pub(crate) fn title(self, size: Size) -> String {
        match self {
            Self::A => Broadcast::often(size).title("A"),
            Self::A5 => Broadcast::rarely(size).title("A5"),
            Self::B => Idle::new(size).title(),
            Self::C => Sessions::new(size).title(),
            Self::Cu => Sessions::new(size).of_users().title(),
            Self::D => Broadcast::full(size).title("D"),
            Self::L => Steps::new(size).title(),
            Self::E => Churn::new(size).title(),
            Self::U => Decode::new(size).title(),
            Self::R => Store::new(size).title(),
            Self::S => Stalled::new(size).title(),
            Self::K => Counted::to_all().title(),
            Self::K2 => Counted::to_all().with_more().title(),
            Self::Kc => Counted::to_one().title(),
            Self::Kc2 => Counted::to_one().with_more().title(),
        }
    }

    /// Runs the scenario once, against a fresh process.
    ///
    /// # Errors
    ///
    /// If the target fails so that no value can be measured.
    pub(crate) fn run(self, kind: Kind, size: Size) -> Result<Outcome> {
        let outcome = match self {
            Self::A => Broadcast::often(size).run(kind),
            Self::A5 => Broadcast::rarely(size).run(kind),
            Self::B => Idle::new(size).run(kind),
            Self::C => Sessions::new(size).run(kind),
            Self::Cu => Sessions::new(size).of_users().run(kind),
            Self::D => Broadcast::full(size).run(kind),
            Self::L => Steps::new(size).run(kind),
            Self::E => Churn::new(size).run(kind),
            Self::U => Decode::new(size).run(kind),
            Self::R => Store::new(size).run(),
            Self::S => Stalled::new(size).run(),
            Self::K => Counted::to_all().run(),
            Self::K2 => Counted::to_all().with_more().run(),
            Self::Kc => Counted::to_one().run(),
            Self::Kc2 => Counted::to_one().with_more().run(),
        };
        outcome.map_err(|error| format!("{}, {kind}: {error}", self.title(size)).into())
    }
}

impl FromStr for Scenario {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let named = |scenario: &Self| format!("{scenario:?}") == text;
        Self::ALL
            .into_iter()
            .chain([Self::Cu, Self::K, Self::K2, Self::Kc, Self::Kc2])
            .find(named)
            .ok_or_else(|| format!("there is no scenario {text:?}"))
    }
}
