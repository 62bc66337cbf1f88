//! U: what one upstream costs, at a rate that only decoding, keeping and indexing can be the limit
//! of.

use std::{thread, time::Instant};

use super::size::{SESSIONS, SETTLE, Size};
use crate::{
    load::{Audience, Load},
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
    tally::{Ledger, Resume, Tally},
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
            "U: one upstream of {} events/s of 1 KiB, {} s, that queues 256 events; nobody listens, then one to one session of {SESSIONS}",
            self.per_second, self.seconds
        )
    }

    pub(super) fn run(&self, kind: Kind) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let mut rig = Rig::start(kind, Pace::Each)?;
        thread::sleep(SETTLE);
        let (cpu, flood) = rig.cpu_of(|rig| self.flood(rig))?;
        outcome.note("nobody listens: rate, events/s", flood.sent as f64 / flood.seconds);
        outcome.note("cores used", cpu.as_secs_f64() / flood.seconds);
        outcome.note("CPU per event, µs", cpu.as_secs_f64() * 1e6 / flood.sent as f64);
        outcome.note("dropped by the upstream's queue", flood.dropped as f64);
        outcome.note("upstream slowed by the machine, ms", flood.late.as_secs_f64() * 1000.0);
        self.check_taken(&rig, flood, &mut outcome)?;
        finish(rig, &mut outcome);
        self.with_listener(kind, &mut outcome)?;
        Ok(outcome)
    }

    fn with_listener(&self, kind: Kind, outcome: &mut Outcome) -> Result<()> {
        let audience = Audience {
            subscribers: 1,
            own_session: true,
            series: self.series(),
            measured_from: 1,
            resume: None,
            may_miss: false,
        };
        let mut rig = Rig::start(kind, Pace::Each)?;
        let load = Load::connect(rig.door(), audience)?;
        thread::sleep(SETTLE);
        let (cpu, flood) = rig.cpu_of(|rig| self.flood(rig))?;
        let due = self.series().per_session(0)[0];
        load.wait_for(due)?;
        let tally = load.finish()?;
        outcome.note("one listens: cores used", cpu.as_secs_f64() / flood.seconds);
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

    /// The relay has read whatever was sent.
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

    /// What the store has, and that it says of the rest that it is missing.
    fn read_back(&self, rig: &Rig, flood: Flood, outcome: &mut Outcome) -> Result<()> {
        let mut kept = rig.kept()?;
        loop {
            thread::sleep(SETTLE);
            let now = rig.kept()?;
            if now == kept {
                break;
            }
            kept = now;
        }
        let mut tally = Tally::untimed();
        let from_the_oldest = Resume { epoch: 0, after: 0, gap_behind: u64::MAX };
        let ledger = Ledger::new(0, None, Some(from_the_oldest), 0).at(rig.door(), true);
        Reader::ask(rig.door(), ledger)?.read_through(flood.last, &mut tally)?;
        outcome.note("events in the store afterwards", tally.received as f64);
        outcome.note("kept, events/s", tally.received as f64 / flood.seconds);
        outcome.note("ranges told as not kept", tally.gaps as f64);
        outcome.note("events told as missing", tally.missed as f64);
        // What the upstream itself dropped where the store has a gap is told with it: exact where
        // it dropped nothing.
        let untold = flood.sent.saturating_sub(tally.received + tally.missed);
        outcome.note("events missing without a word", untold as f64);
        outcome.faults.lost += untold;
        outcome.faults.merge(&tally.faults);
        Ok(())
    }

    fn series(&self) -> Series {
        Series { sessions: SESSIONS, events: self.per_second * self.seconds }
    }
}

/// A store that does not keep up says so, which is what is wanted here: once is enough.
fn finish(rig: Rig, outcome: &mut Outcome) {
    let mut own = Outcome::default();
    rig.finish(&mut own);
    own.remarks.truncate(1);
    outcome.faults.merge(&own.faults);
    outcome.remarks.append(&mut own.remarks);
}
