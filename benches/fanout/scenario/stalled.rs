//! S: what those cost who take nothing.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::size::{SESSIONS, SETTLE, Size};
use crate::{
    outcome::Outcome,
    reader::Reader,
    rig::Rig,
    support::{
        Result,
        payload::Series,
        process,
        target::kind::{Kind, Pace},
    },
    tally::{Ledger, Resume, Tally},
};

/// Some who listen and stall, and as many who come back and stall, each at another place of the
/// store.
pub(super) struct Stalled {
    subscribers: usize,
    events: u64,
    /// How long those who have come back are left alone.
    patience: Duration,
}

impl Stalled {
    pub(super) fn new(size: Size) -> Self {
        Self {
            subscribers: size.choose(1000, 200),
            events: size.choose(100_000, 20_000),
            patience: size.choose(A_HEARTBEAT, Duration::ZERO),
        }
    }

    pub(super) fn title(&self) -> String {
        let Self { subscribers, events, .. } = self;
        format!(
            "S: {subscribers} live subscribers take nothing while {events} events of 1 KiB pass, then {subscribers} who come back"
        )
    }

    pub(super) fn run(&self) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let mut rig = Rig::start(Kind::Durable, Pace::Each)?;
        let epoch = self.listen(&mut rig, &mut outcome)?;
        // Else they would find room in what the events before them have left of the heap.
        let (rig, _) = rig.restart(&mut outcome)?;
        thread::sleep(SETTLE);
        self.come_back(&rig, epoch, &mut outcome)?;
        rig.finish(&mut outcome);
        Ok(outcome)
    }

    /// Those who were listening stall. Returns the epoch of the events' ids.
    fn listen(&self, rig: &mut Rig, outcome: &mut Outcome) -> Result<u64> {
        self.pour(rig, 1, FILLING)?; // from now on what comes into memory replaces what was there
        let full = rig.private_kib()?;
        self.pour(rig, FILLING + 1, self.events)?;
        let (before, buffers) = (rig.private_kib()?, process::kernel_buffer_kib()?);
        outcome.note("memory before, MiB", before / 1024.0);
        outcome.note("grown by as many events without them, MiB", (before - full) / 1024.0);
        let newcomers = (0..self.subscribers).map(|number| Ledger::new(number, None, None, 0));
        let mut stalled = newcomers
            .map(|ledger| Reader::stall(rig.door(), ledger))
            .collect::<Result<Vec<_>>>()?;
        thread::sleep(SETTLE);
        outcome.note(
            "memory per subscriber before it stalls, KiB",
            self.each(rig.private_kib()? - before),
        );
        self.pour(rig, FILLING + self.events + 1, self.events)?;
        let growth = self.each(rig.private_kib()? - before);
        outcome.limit("memory per stalled live subscriber, KiB", growth, MOST_KIB);
        outcome.note(
            "kernel buffers for each, both ends, KiB",
            self.each(process::kernel_buffer_kib()? - buffers),
        );
        self.check_that_all_stay(rig, outcome)?;
        read_on(&mut stalled[0], self.events, outcome)
    }

    /// Others come back and stall, each at a place of its own.
    fn come_back(&self, rig: &Rig, epoch: u64, outcome: &mut Outcome) -> Result<()> {
        let (before, buffers) = (rig.private_kib()?, process::kernel_buffer_kib()?);
        let step = self.all() / 2 / self.subscribers as u64;
        let places = (0..self.subscribers as u64).map(|nth| nth * step);
        let resumes = places.map(|after| Resume { epoch, after, gap_behind: self.all() });
        let ledgers = resumes.map(|resume| Ledger::new(0, None, Some(resume), 0));
        let mut stalled =
            ledgers.map(|ledger| Reader::stall(rig.door(), ledger)).collect::<Result<Vec<_>>>()?;
        wait_until_stalled(rig)?;
        thread::sleep(self.patience);
        wait_until_stalled(rig)?;
        let growth = self.each(rig.private_kib()? - before);
        outcome.limit("memory per stalled returning subscriber, KiB", growth, MOST_KIB);
        outcome.note(
            "kernel buffers for each of these, KiB",
            self.each(process::kernel_buffer_kib()? - buffers),
        );
        self.check_that_all_stay(rig, outcome)?;
        let nearest = stalled.last_mut().ok_or("nobody has come back")?;
        read_on(nearest, self.all() - step * (self.subscribers as u64 - 1), outcome)?;
        Ok(())
    }

    /// None of them has been cut off meanwhile.
    fn check_that_all_stay(&self, rig: &Rig, outcome: &mut Outcome) -> Result<()> {
        let left = rig.subscribers()?.ok_or("the relay has no metrics")?;
        if left != self.subscribers as f64 {
            outcome
                .faults
                .words
                .push(format!("{left} of {} stalled subscribers are left", self.subscribers));
        }
        Ok(())
    }

    fn each(&self, kib: f64) -> f64 {
        kib / self.subscribers as f64
    }

    fn pour(&self, rig: &mut Rig, first: u64, events: u64) -> Result<()> {
        rig.pour(Series { sessions: SESSIONS, events: self.all() }, first..=first + events - 1)?;
        thread::sleep(SETTLE);
        Ok(())
    }

    /// All events.
    fn all(&self) -> u64 {
        FILLING + 2 * self.events
    }
}

/// One of them reads after all, and must find everything in its place. Returns the epoch of its
/// ids.
fn read_on(reader: &mut Reader, events: u64, outcome: &mut Outcome) -> Result<u64> {
    let mut tally = Tally::untimed();
    reader.read_until(events, &mut tally)?;
    outcome.faults.merge(&tally.faults);
    Ok(reader.epoch())
}

/// Those who come back get their turn at the store one after the other, and lose it when they do
/// not use it.
fn wait_until_stalled(rig: &Rig) -> Result<()> {
    let (mut delivered, mut since) = (0.0, Instant::now());
    while since.elapsed() < STANDSTILL {
        let now = rig
            .metrics()?
            .ok_or("the relay has no metrics")?
            .sum("autoplay_relay_delivered_events_total{");
        if now != delivered {
            (delivered, since) = (now, Instant::now());
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// More than memory holds by default.
const FILLING: u64 = 75_000;

/// What a stalled subscriber may cost: see the guarantees.
const MOST_KIB: f64 = 64.0;

/// After which each has been woken once more and may have taken more than its socket does.
const A_HEARTBEAT: Duration = Duration::from_secs(30);

/// Thrice the time after which the next has its turn.
const STANDSTILL: Duration = Duration::from_secs(3);
