//! A, A5 and D: every event to all subscribers.

use std::{thread, time::Instant};

use super::size::{SESSIONS, SETTLE, Size, micros};
use crate::{
    load::{Load, Workload},
    outcome::Outcome,
    rig::Rig,
    support::{
        Result,
        histogram::millis,
        payload::Series,
        target::kind::{Kind, Pace},
    },
};

/// Every event to all subscribers.
pub(super) struct Broadcast {
    subscribers: usize,
    per_second: u64,
    seconds: u64,
    pace: Pace,
}

impl Broadcast {
    pub(super) fn often(size: Size) -> Self {
        Self {
            subscribers: size.choose(1000, 200),
            per_second: 50,
            seconds: size.choose(10, 3),
            pace: Pace::Each,
        }
    }

    pub(super) fn rarely(size: Size) -> Self {
        Self { per_second: 5, ..Self::often(size) }
    }

    /// Returns the full load. `bare` batches here: else it would take seven times as long.
    pub(super) fn full(size: Size) -> Self {
        Self {
            subscribers: 200,
            per_second: size.choose(5000, 1000),
            seconds: size.choose(5, 3),
            pace: Pace::Gather,
        }
    }

    pub(super) fn title(&self, name: &str) -> String {
        let gathers = match self.pace {
            Pace::Each => "",
            Pace::Gather => "; bare gathers what is pending into one write",
        };
        format!(
            "{name}: {} subscribers, {} events/s of 1 KiB to all, {} s{gathers}",
            self.subscribers, self.per_second, self.seconds
        )
    }

    pub(super) fn run(&self, kind: Kind) -> Result<Outcome> {
        let workload = Workload {
            subscribers: self.subscribers,
            own_session: false,
            series: Series { sessions: SESSIONS, events: self.per_second * self.seconds },
            measured_from: 1,
            resume: None,
            may_miss: false,
        };
        let mut rig = Rig::start(kind, self.pace)?;
        let load = Load::connect(rig.endpoint(), workload)?;
        thread::sleep(SETTLE);
        let start = Instant::now();
        let (cpu, late) = rig.cpu_of(|rig| rig.send_all(&load, workload, self.per_second))?;
        let seconds = start.elapsed().as_secs_f64();
        let tally = load.finish()?;
        let mut outcome = Outcome::new(&tally, workload.deliveries());
        outcome.compare("CPU per delivery, µs", micros(cpu) / tally.received as f64);
        outcome.latency(&tally.latency);
        outcome.compare("last subscriber p50, ms", millis(&tally.last(), 0.5));
        outcome.compare("last subscriber p99, ms", millis(&tally.last(), 0.99));
        outcome.note("deliveries/s", tally.received as f64 / seconds);
        outcome.note("cores used", cpu.as_secs_f64() / seconds);
        outcome.note("memory at the end, MiB", rig.private_kib()? / 1024.0);
        outcome.note("upstream held up, ms", late.as_secs_f64() * 1000.0);
        rig.finish(&mut outcome);
        Ok(outcome)
    }
}
