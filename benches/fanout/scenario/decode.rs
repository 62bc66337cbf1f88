//! U: the cost of one upstream, at a rate that only decoding, persisting and indexing can limit.

use std::{thread, time::Instant};

use super::size::{SESSIONS, SETTLE, Size};
use crate::{
    load::{Load, Workload},
    outcome::Outcome,
    reader::Reader,
    rig::Rig,
    support::{
        Result,
        histogram::millis,
        payload::Series,
        target::kind::{Kind, Pace},
        upstream::Flood,
    },
    tally::{Resume, SubscriberRecord, Tally},
};

/// One upstream, and at most one subscriber, of one session among a thousand.
pub(super) struct Decode {
    per_second: u64,
    seconds: u64,
}

impl Decode {
    pub(super) fn new(size: Size) -> Self {
        Self { per_second: size.choose(100_000, 20_000), seconds: size.choose(5, 1) }
    }

    pub(super) fn title(&self) -> String {
        format!(
            "U: one upstream of {} events/s of 1 KiB, {} s, that queues 256 events; no subscriber, then one of one session among {SESSIONS}",
            self.per_second, self.seconds
        )
    }

    pub(super) fn run(&self, kind: Kind) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let mut rig = Rig::start(kind, Pace::Each)?;
        thread::sleep(SETTLE);
        let (cpu, flood) = rig.cpu_of(|rig| self.flood(rig))?;
        outcome.note("no subscriber: rate, events/s", flood.sent as f64 / flood.seconds);
        outcome.note("cores used", cpu.as_secs_f64() / flood.seconds);
        outcome.note("CPU per event, µs", cpu.as_secs_f64() * 1e6 / flood.sent as f64);
        outcome.note("dropped by the upstream's queue", flood.dropped as f64);
        outcome.note("upstream slowed by the machine, ms", flood.late.as_secs_f64() * 1000.0);
        self.check_taken(&rig, flood, &mut outcome)?;
        finish(rig, &mut outcome);
        self.with_subscriber(kind, &mut outcome)?;
        Ok(outcome)
    }

    fn with_subscriber(&self, kind: Kind, outcome: &mut Outcome) -> Result<()> {
        let workload = Workload {
            subscribers: 1,
            own_session: true,
            series: self.series(),
            measured_from: 1,
            resume: None,
            may_miss: false,
        };
        let mut rig = Rig::start(kind, Pace::Each)?;
        let load = Load::connect(rig.endpoint(), workload)?;
        thread::sleep(SETTLE);
        let (cpu, flood) = rig.cpu_of(|rig| self.flood(rig))?;
        let due = self.series().per_session(0)[0];
        load.wait_for(due)?;
        let tally = load.finish()?;
        outcome.note("one subscriber: cores used", cpu.as_secs_f64() / flood.seconds);
        outcome.note("its events", tally.received as f64);
        outcome.note("its latency p50, ms", millis(&tally.latency, 0.5));
        outcome.note("its latency p99, ms", millis(&tally.latency, 0.99));
        outcome.note("dropped by the upstream's queue then", flood.dropped as f64);
        self.check_taken(&rig, flood, outcome)?;
        if flood.dropped == 0 {
            outcome.faults.merge(&tally.faults);
        }
        if kind == Kind::Durable {
            self.read_back(&rig, flood, outcome)?;
        }
        finish(rig, outcome);
        Ok(())
    }

    fn flood(&self, rig: &mut Rig) -> Result<Flood> {
        rig.flood(self.series(), 1..=self.series().events, self.per_second as f64)
    }

    /// Checks that the relay has read every sent event.
    fn check_taken(&self, rig: &Rig, flood: Flood, outcome: &mut Outcome) -> Result<()> {
        let deadline = Instant::now() + 10 * SETTLE;
        loop {
            let metrics = rig.metrics()?.ok_or("the relay has no metrics")?;
            let taken = metrics.sum("autoplay_relay_upstream_events_total{");
            if taken == flood.sent as f64 {
                return Ok(());
            }
            if Instant::now() > deadline {
                outcome
                    .faults
                    .words
                    .push(format!("{taken} events were taken of {} that were sent", flood.sent));
                return Ok(());
            }
            thread::sleep(SETTLE / 10);
        }
    }

    /// Reads the store, and checks that every missing event is announced.
    fn read_back(&self, rig: &Rig, flood: Flood, outcome: &mut Outcome) -> Result<()> {
        let mut kept = rig.stored()?;
        loop {
            thread::sleep(SETTLE);
            let now = rig.stored()?;
            if now == kept {
                break;
            }
            kept = now;
        }
        let mut tally = Tally::untimed();
        let from_the_oldest = Resume { epoch: 0, after: 0, gap_behind: u64::MAX };
        let record =
            SubscriberRecord::new(0, None, Some(from_the_oldest), 0).at(rig.endpoint(), true);
        Reader::ask(rig.endpoint(), record)?.read_through(flood.last, &mut tally)?;
        outcome.note("events in the store afterwards", tally.received as f64);
        outcome.note("kept, events/s", tally.received as f64 / flood.seconds);
        outcome.note("ranges announced as not kept", tally.gaps as f64);
        outcome.note("events announced as missing", tally.missed as f64);
        // Events dropped by the upstream within a gap are announced with it, so the count is exact
        // where the upstream dropped none.
        let unannounced = flood.sent.saturating_sub(tally.received + tally.missed);
        outcome.note("events missing unannounced", unannounced as f64);
        outcome.faults.lost += unannounced;
        outcome.faults.merge(&tally.faults);
        Ok(())
    }

    fn series(&self) -> Series {
        Series { sessions: SESSIONS, events: self.per_second * self.seconds }
    }
}

/// Keeps one remark of the target: a store that falls behind logs that, as intended.
fn finish(rig: Rig, outcome: &mut Outcome) {
    let mut own = Outcome::default();
    rig.finish(&mut own);
    own.remarks.truncate(1);
    outcome.faults.merge(&own.faults);
    outcome.remarks.append(&mut own.remarks);
}
