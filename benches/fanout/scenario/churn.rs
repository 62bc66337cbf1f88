//! E: some subscribers stay, many connect and disconnect.

use std::thread;

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
    visitors::Visiting,
};

/// Some subscribers that stay, many that connect and disconnect.
pub(super) struct Churn {
    steady: usize,
    per_second: u64,
    alone: u64,
    visiting: Visiting,
}

impl Churn {
    pub(super) fn new(size: Size) -> Self {
        Self {
            steady: size.choose(200, 100),
            per_second: 50,
            alone: size.choose(5, 2),
            visiting: Visiting { per_second: size.choose(500, 200), seconds: size.choose(10, 3) },
        }
    }

    pub(super) fn title(&self) -> String {
        format!(
            "E: {} subscribers stay and get {} events/s of 1 KiB; {} a second come and go, {} s",
            self.steady, self.per_second, self.visiting.per_second, self.visiting.seconds
        )
    }

    pub(super) fn run(&self, kind: Kind) -> Result<Outcome> {
        let alone = self.per_second * self.alone;
        let workload = Workload {
            subscribers: self.steady,
            own_session: false,
            series: Series {
                sessions: SESSIONS,
                events: alone + self.per_second * self.visiting.seconds,
            },
            measured_from: alone + 1,
            resume: None,
            may_miss: false,
        };
        let mut rig = Rig::start(kind, Pace::Each)?;
        let load = Load::connect(rig.endpoint(), workload)?;
        thread::sleep(SETTLE);
        let (quiet_cpu, _) =
            rig.cpu_of(|rig| rig.send(&load, workload, 1..=alone, self.per_second))?;
        let before = rig.private_kib()?;
        let visitors = self.visiting.start(rig.endpoint());
        let (cpu, visits) = rig.cpu_of(|rig| {
            rig.send(&load, workload, alone + 1..=workload.series.events, self.per_second)?;
            visitors.join().map_err(|_| "the visitors' thread panicked")?
        })?;
        thread::sleep(SETTLE);
        let growth = rig.private_kib()? - before;
        let left = rig.subscribers()?;
        let tally = load.finish()?;
        let mut outcome = Outcome::new(&tally, workload.deliveries());
        let without = quiet_cpu.mul_f64(self.visiting.seconds as f64 / self.alone as f64);
        let come = visits.connected as f64;
        outcome.compare("CPU per visitor, steady work included, µs", micros(cpu) / come);
        outcome.compare(
            "CPU per visitor, steady work taken off, µs",
            (micros(cpu) - micros(without)) / come,
        );
        outcome.latency(&tally.latency);
        outcome.compare("head p50, ms", millis(&visits.head_us, 0.5));
        outcome.compare("head p99, ms", millis(&visits.head_us, 0.99));
        outcome.note("visitors", come);
        outcome.note("of these answered", visits.answered as f64);
        outcome.note("of these saw an event", visits.saw_event as f64);
        outcome.note("memory grown meanwhile, KiB", growth);
        outcome.faults.gaps += visits.gaps;
        let words = &mut outcome.faults.words;
        words.extend(visits.failure.map(|failure| format!("a visitor failed: {failure}")));
        if let Some(left) = left.filter(|left| *left != self.steady as f64) {
            words.push(format!("{left} subscribers are counted where {} are left", self.steady));
        }
        rig.finish(&mut outcome);
        Ok(outcome)
    }
}
