//! S: the memory of stalled subscribers.

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
    tally::{Resume, SubscriberRecord, Tally},
};

/// Live subscribers that stall, and as many that resume at different positions of the store and
/// stall.
pub(super) struct Stalled {
    subscribers: usize,
    events: u64,
    /// Pause after the resumed subscribers have stalled.
    pause: Duration,
}

impl Stalled {
    pub(super) fn new(size: Size) -> Self {
        Self {
            subscribers: size.choose(1000, 200),
            events: size.choose(100_000, 20_000),
            pause: size.choose(A_HEARTBEAT, Duration::ZERO),
        }
    }

    pub(super) fn title(&self) -> String {
        let Self { subscribers, events, .. } = self;
        format!(
            "S: {subscribers} live subscribers read nothing while {events} events of 1 KiB pass, then {subscribers} that resume"
        )
    }

    pub(super) fn run(&self) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let mut rig = Rig::start(Kind::Durable, Pace::Each)?;
        let epoch = self.stall_live(&mut rig, &mut outcome)?;
        // Otherwise the free heap of earlier events would hide their memory.
        let (rig, _) = rig.restart(&mut outcome)?;
        thread::sleep(SETTLE);
        self.stall_resumed(&rig, epoch, &mut outcome)?;
        rig.finish(&mut outcome);
        Ok(outcome)
    }

    /// Stalls live subscribers. Returns the epoch of the events' ids.
    fn stall_live(&self, rig: &mut Rig, outcome: &mut Outcome) -> Result<u64> {
        self.pour(rig, 1, FILLING)?; // from now on each event in memory replaces another
        let full = rig.private_kib()?;
        self.pour(rig, FILLING + 1, self.events)?;
        let (before, buffers) = (rig.private_kib()?, process::kernel_buffer_kib()?);
        outcome.note("memory before, MiB", before / 1024.0);
        outcome.note("grown by as many events without them, MiB", (before - full) / 1024.0);
        let newcomers =
            (0..self.subscribers).map(|number| SubscriberRecord::new(number, None, None, 0));
        let mut stalled = newcomers
            .map(|record| Reader::stall(rig.endpoint(), record))
            .collect::<Result<Vec<_>>>()?;
        thread::sleep(SETTLE);
        outcome.note(
            "memory per subscriber before it stalls, KiB",
            self.each(rig.private_kib()? - before),
        );
        self.pour(rig, FILLING + self.events + 1, self.events)?;
        let growth = self.each(rig.private_kib()? - before);
        outcome.limit("memory per stalled live subscriber, KiB", growth, MAX_KIB);
        outcome.note(
            "kernel buffers for each, both ends, KiB",
            self.each(process::kernel_buffer_kib()? - buffers),
        );
        self.check_that_all_stay(rig, outcome)?;
        read_on(&mut stalled[0], self.events, outcome)
    }

    /// Stalls subscribers that resume at different positions.
    fn stall_resumed(&self, rig: &Rig, epoch: u64, outcome: &mut Outcome) -> Result<()> {
        let (before, buffers) = (rig.private_kib()?, process::kernel_buffer_kib()?);
        let step = self.all() / 2 / self.subscribers as u64;
        let positions = (0..self.subscribers as u64).map(|nth| nth * step);
        let resumes = positions.map(|after| Resume { epoch, after, gap_behind: self.all() });
        let records = resumes.map(|resume| SubscriberRecord::new(0, None, Some(resume), 0));
        let mut stalled = records
            .map(|record| Reader::stall(rig.endpoint(), record))
            .collect::<Result<Vec<_>>>()?;
        wait_until_stalled(rig)?;
        thread::sleep(self.pause);
        wait_until_stalled(rig)?;
        let growth = self.each(rig.private_kib()? - before);
        outcome.limit("memory per stalled returning subscriber, KiB", growth, MAX_KIB);
        outcome.note(
            "kernel buffers for each of these, KiB",
            self.each(process::kernel_buffer_kib()? - buffers),
        );
        self.check_that_all_stay(rig, outcome)?;
        let nearest = stalled.last_mut().ok_or("no subscriber has resumed")?;
        read_on(nearest, self.all() - step * (self.subscribers as u64 - 1), outcome)?;
        Ok(())
    }

    /// Checks that no subscriber has been disconnected.
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
        rig.fill_store(
            Series { sessions: SESSIONS, events: self.all() },
            first..=first + events - 1,
        )?;
        thread::sleep(SETTLE);
        Ok(())
    }

    /// Returns the number of all events.
    fn all(&self) -> u64 {
        FILLING + 2 * self.events
    }
}

/// Reads one stalled subscriber to the end, and checks its events. Returns the epoch of its ids.
fn read_on(reader: &mut Reader, events: u64, outcome: &mut Outcome) -> Result<u64> {
    let mut tally = Tally::untimed();
    reader.read_until(events, &mut tally)?;
    outcome.faults.merge(&tally.faults);
    Ok(reader.epoch())
}

/// Waits until all resumed subscribers have stalled. They get their replay permits one after the
/// other, and lose them when they do not use them.
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

/// More events than memory holds by default.
const FILLING: u64 = 75_000;

/// Guaranteed maximum of a stalled subscriber's memory.
const MAX_KIB: f64 = 64.0;

/// After a heartbeat, each subscriber has been woken once more and may have taken more than its
/// socket does.
const A_HEARTBEAT: Duration = Duration::from_secs(30);

/// Three times the time after which the next subscriber gets the permit.
const STANDSTILL: Duration = Duration::from_secs(3);
