//! C and Cu: each event for one subscriber among many, by session and by user.

use std::thread;

use super::size::{SETTLE, Size, micros};
use crate::{
    load::{Load, Workload},
    outcome::Outcome,
    rig::Rig,
    support::{
        Result,
        histogram::millis,
        payload::Series,
        target::kind::{Endpoint, Kind, Pace},
    },
    tally::Tally,
};

/// Each event for one subscriber. Runs once with a tenth of the subscribers, to measure the cost of
/// those that do not get the event.
pub(super) struct Sessions {
    name: &'static str,
    /// Name of the parameter by which each asks for its events, and of what it is.
    filter: (&'static str, &'static str),
    subscribers: usize,
    per_second: u64,
    seconds: u64,
}

impl Sessions {
    pub(super) fn new(size: Size) -> Self {
        Self {
            name: "C",
            filter: ("session_id", "session"),
            subscribers: size.choose(10_000, 1000),
            per_second: size.choose(2000, 1000),
            seconds: size.choose(10, 3),
        }
    }

    /// Returns the same with subscribers of one user each, whose one session it is.
    pub(super) fn of_users(self) -> Self {
        Self { name: "Cu", filter: ("user_id", "user"), ..self }
    }

    pub(super) fn title(&self) -> String {
        format!(
            "{}: {} subscribers of one {} each, {} events/s of 1 KiB to one of them each, {} s",
            self.name, self.subscribers, self.filter.1, self.per_second, self.seconds
        )
    }

    pub(super) fn run(&self, kind: Kind) -> Result<Outcome> {
        let (few_cpu, few_tally, _) = self.once(kind, self.subscribers / 10)?;
        let (cpu, tally, mut outcome) = self.once(kind, self.subscribers)?;
        outcome.faults.merge(&few_tally.faults);
        outcome.compare("CPU per event, µs", cpu);
        outcome.compare("CPU per event with a tenth of the subscribers, µs", few_cpu);
        outcome.compare("growth", cpu / few_cpu);
        outcome.latency(&tally.latency);
        outcome.note("p99 with a tenth of the subscribers, ms", millis(&few_tally.latency, 0.99));
        Ok(outcome)
    }

    fn once(&self, kind: Kind, subscribers: usize) -> Result<(f64, Tally, Outcome)> {
        let workload = Workload {
            subscribers,
            own_session: true,
            series: Series { sessions: subscribers, events: self.per_second * self.seconds },
            measured_from: 1,
            resume: None,
            may_miss: false,
        };
        let mut rig = Rig::start(kind, Pace::Each)?;
        let endpoint = Endpoint { filter: self.filter.0, ..rig.endpoint() };
        let load = Load::connect(endpoint, workload)?;
        thread::sleep(SETTLE);
        let (cpu, late) = rig.cpu_of(|rig| rig.send_all(&load, workload, self.per_second))?;
        let tally = load.finish()?;
        let mut outcome = Outcome::new(&tally, workload.deliveries());
        outcome.note("upstream held up, ms", late.as_secs_f64() * 1000.0);
        rig.finish(&mut outcome);
        Ok((micros(cpu) / workload.series.events as f64, tally, outcome))
    }
}
