//! B: very many idle subscribers, then a few events.

use std::{thread, time::Duration};

use super::size::{SESSIONS, SETTLE, Size, micros};
use crate::{
    load::{Load, Workload},
    outcome::Outcome,
    rig::Rig,
    support::{
        Result,
        histogram::millis,
        payload::Series,
        process,
        target::kind::{Kind, Pace},
    },
};

/// Very many idle subscribers, then a few events.
pub(super) struct Idle {
    subscribers: usize,
    idle: Duration,
    events: u64,
}

impl Idle {
    pub(super) fn new(size: Size) -> Self {
        Self {
            subscribers: size.choose(10_000, 1000),
            idle: Duration::from_secs(size.choose(10, 2)),
            events: size.choose(20, 4),
        }
    }

    pub(super) fn title(&self) -> String {
        let (Self { subscribers, events, .. }, idle) = (self, self.idle.as_secs());
        format!(
            "B: {subscribers} subscribers, idle for {idle} s, then {events} events of 1 KiB to all at 2 events/s"
        )
    }

    pub(super) fn run(&self, kind: Kind) -> Result<Outcome> {
        let workload = Workload {
            subscribers: self.subscribers,
            own_session: false,
            series: Series { sessions: SESSIONS, events: self.events },
            measured_from: 1,
            resume: None,
            may_miss: false,
        };
        let each = |kib: f64| kib / self.subscribers as f64;
        let mut rig = Rig::start(kind, Pace::Each)?;
        thread::sleep(SETTLE);
        let before = rig.private_kib()?;
        let (buffers, objects) = (process::kernel_buffer_kib()?, process::kernel_object_kib()?);
        let (connect_cpu, load) = rig.cpu_of(|rig| Load::connect(rig.endpoint(), workload))?;
        thread::sleep(SETTLE);
        let connected = rig.private_kib()?;
        let (buffers, objects) =
            (process::kernel_buffer_kib()? - buffers, process::kernel_object_kib()? - objects);
        let (idle_cpu, ()) = rig.cpu_of(|_| {
            thread::sleep(self.idle);
            Ok(())
        })?;
        let (cpu, _) = rig.cpu_of(|rig| rig.send_all(&load, workload, 2))?;
        let after = rig.private_kib()?;
        let tally = load.finish()?;
        let mut outcome = Outcome::new(&tally, workload.deliveries());
        outcome.compare("memory per idle subscriber, KiB", each(connected - before));
        outcome.compare("the same after the events, KiB", each(after - before));
        outcome.note("whole process, idle, MiB", connected / 1024.0);
        outcome.note("whole process, empty, MiB", before / 1024.0);
        outcome.note("kernel objects per connection, both ends, KiB", each(objects));
        outcome.note("kernel buffers per connection, both ends, KiB", each(buffers));
        outcome.note("idle CPU, % of a core", 100.0 * idle_cpu.div_duration_f64(self.idle));
        outcome.compare("CPU per connect, µs", micros(connect_cpu) / self.subscribers as f64);
        outcome.compare("CPU per delivery, µs", micros(cpu) / tally.received as f64);
        outcome.latency(&tally.latency);
        outcome.compare("last subscriber p50, ms", millis(&tally.last(), 0.5));
        outcome.compare("last subscriber p99, ms", millis(&tally.last(), 0.99));
        rig.finish(&mut outcome);
        Ok(outcome)
    }
}
