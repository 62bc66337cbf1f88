//! R: the cost of the store, and its reads.

use std::{thread, time::Instant};

use super::size::{SESSIONS, SETTLE, Size, micros};
use crate::{
    load::{Load, Workload},
    outcome::{Outcome, median},
    reader::Reader,
    rig::Rig,
    support::{
        Result,
        histogram::millis,
        payload::{PAYLOAD_BYTES, Series, session_name},
        process::{self, Peak},
        target::kind::{Kind, Pace},
    },
    tally::{Resume, SubscriberRecord, Tally},
};

/// A store that is filled, opened by a new process, and read by one reader and by very many at
/// once.
pub(super) struct Store {
    events: u64,
    /// Events that one reader replays.
    replayed: u64,
    returning: usize,
    /// Events of the store that each resuming subscriber has missed.
    missed: u64,
    steady: usize,
    per_second: u64,
    /// Seconds before the others resume.
    alone: u64,
}

impl Store {
    pub(super) fn new(size: Size) -> Self {
        Self {
            events: size.choose(1_000_000, 20_000),
            replayed: size.choose(200_000, 20_000),
            returning: size.choose(1000, 200),
            missed: 500,
            steady: size.choose(100, 20),
            per_second: 20,
            alone: size.choose(10, 2),
        }
    }

    pub(super) fn title(&self) -> String {
        format!(
            "R: a store of {} events of 1 KiB; {} resume at once and have missed {} while {} get {} events/s",
            self.events, self.returning, self.missed, self.steady, self.per_second
        )
    }

    pub(super) fn run(&self) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        let mut rig = Rig::start(Kind::Durable, Pace::Each)?;
        self.fill(&mut rig, &mut outcome)?;
        let (mut rig, restart) = rig.restart(&mut outcome)?;
        thread::sleep(SETTLE);
        outcome.note("stopping, ms", restart.stopping.as_secs_f64() * 1000.0);
        outcome.note("starting, ms", restart.starting.as_secs_f64() * 1000.0);
        outcome.note("memory after the start, MiB", rig.private_kib()? / 1024.0);
        let epoch = self.measure_first_event(&rig, &mut outcome)?;
        self.replay(&mut rig, epoch, &mut outcome)?;
        self.measure_rush(&mut rig, epoch, &mut outcome)?;
        rig.finish(&mut outcome);
        Ok(outcome)
    }

    /// Fills the store.
    fn fill(&self, rig: &mut Rig, outcome: &mut Outcome) -> Result<()> {
        let (start, written) = (Instant::now(), process::written_bytes(rig.pid())?);
        let (cpu, ()) = rig.cpu_of(|rig| rig.fill_store(self.series(), 1..=self.events))?;
        let per_second = self.events as f64 / start.elapsed().as_secs_f64();
        let metrics = rig.metrics()?.ok_or("the relay has no metrics")?;
        outcome.note("events into the store, /s", per_second);
        outcome.note("CPU per kept event, µs", micros(cpu) / self.events as f64);
        let commits = metrics.sum(&format!("{COMMIT}_count"));
        outcome.note("events per commit", self.events as f64 / commits);
        outcome.note("commit mean, ms", 1000.0 * metrics.mean(COMMIT));
        outcome.note("commit p99 by its histogram, ms", 1000.0 * metrics.quantile(COMMIT, 0.99));
        let sizes = rig
            .files()?
            .iter()
            .map(|file| Ok(file.metadata()?.len()))
            .collect::<Result<Vec<u64>>>()?;
        let written = process::written_bytes(rig.pid())? - written;
        outcome.note("bytes written per event", written / self.events as f64);
        outcome.note(
            "bytes of files per event",
            sizes.iter().sum::<u64>() as f64 / self.events as f64,
        );
        Ok(())
    }

    /// Measures the time to the first replayed event. Returns the epoch of the ids.
    fn measure_first_event(&self, rig: &Rig, outcome: &mut Outcome) -> Result<u64> {
        let (_, epoch) = first_event(rig, self.resuming(0, 0, None), outcome)?;
        let middle = self.events / 2;
        for (names, after, session) in [
            (["first event from the oldest, cold, ms", "from the oldest, warm, ms"], 0, None),
            (["from the middle, cold, ms", "from the middle, warm, ms"], middle, None),
            (["of one session, cold, ms", "of one session, warm, ms"], 0, Some(SESSION)),
            (
                ["of one session from the middle, cold, ms", "the same, warm, ms"],
                middle,
                Some(SESSION),
            ),
        ] {
            for (name, is_cold) in names.into_iter().zip([true, false]) {
                let mut times = Vec::new();
                for _ in 0..ATTEMPTS {
                    if is_cold {
                        drop_from_cache(rig)?;
                    }
                    times.push(first_event(rig, self.resuming(epoch, after, session), outcome)?.0);
                }
                outcome.note(name, median(times.into_iter()).unwrap_or(f64::NAN));
            }
        }
        Ok(epoch)
    }

    /// Measures the replay rate of one reader.
    fn replay(&self, rig: &mut Rig, epoch: u64, outcome: &mut Outcome) -> Result<()> {
        let after = self.events - self.replayed;
        drop_from_cache(rig)?;
        let seconds = read(rig, self.resuming(epoch, after, None), self.replayed, outcome)?;
        outcome.note("replayed to one reader, cold, /s", self.replayed as f64 / seconds);
        let (cpu, seconds) =
            rig.cpu_of(|rig| read(rig, self.resuming(epoch, after, None), self.replayed, outcome))?;
        let per_second = self.replayed as f64 / seconds;
        outcome.note("the same, warm, /s", per_second);
        outcome.note("the same, warm, MB/s of payload", per_second * PAYLOAD_BYTES as f64 / 1e6);
        outcome.note("CPU per event replayed to one, µs", micros(cpu) / self.replayed as f64);
        let events = self.series().per_session(0)[SESSION];
        outcome.note("events of one session", events as f64);
        drop_from_cache(rig)?;
        for name in ["replayed of one session, cold, /s", "replayed of one session, warm, /s"] {
            let seconds = read(rig, self.resuming(epoch, 0, Some(SESSION)), events, outcome)?;
            outcome.note(name, events as f64 / seconds);
        }
        Ok(())
    }

    /// Measures very many subscribers that resume at once while some are live.
    fn measure_rush(&self, rig: &mut Rig, epoch: u64, outcome: &mut Outcome) -> Result<()> {
        let begins = self.events + self.per_second * self.alone;
        let steady = Workload {
            subscribers: self.steady,
            own_session: false,
            series: Series { events: begins + self.per_second * MAX_RUSH_SECONDS, ..self.series() },
            measured_from: begins + 1,
            resume: Some(Resume { epoch, after: self.events, gap_behind: self.events }),
            may_miss: false,
        };
        let after = self.events - self.missed;
        let returning = Workload {
            subscribers: self.returning,
            resume: Some(Resume { epoch, after, gap_behind: self.events }),
            ..steady
        };
        let mut listening = Load::connect(rig.endpoint(), steady)?;
        rig.send(&listening, steady, self.events + 1..=begins, self.per_second)?;
        let idle = rig.private_kib()?;
        let peak = Peak::watch(rig.pid());
        let (cpu, (last, (seconds, mut back))) = rig.cpu_of(|rig| {
            rig.send_while(steady.series, begins + 1, self.per_second, |target| {
                let start = Instant::now();
                let back = Load::connect(target, returning)?;
                back.wait_for_caught_up()?;
                Ok((start.elapsed().as_secs_f64(), back))
            })
        })?;
        let peak = peak.kib()?;
        for (load, workload) in [(&mut listening, steady), (&mut back, returning)] {
            load.ended_with(last);
            load.wait_for(workload.deliveries_through(last))?;
        }
        let (listening, back) = (listening.finish()?, back.finish()?);
        let replayed = (begins - after) * self.returning as u64;
        outcome.note("deliveries to resumed subscribers", replayed as f64);
        outcome.note("of these at once, /s", replayed as f64 / seconds);
        outcome
            .note("CPU per delivery, the steady ones' included, µs", micros(cpu) / replayed as f64);
        outcome.note("caught up p50, ms", millis(&back.caught_up_us, 0.5));
        outcome.note("caught up, the last, ms", millis(&back.caught_up_us, 1.0));
        outcome.note("live latency before p50, ms", millis(&listening.latency_before, 0.5));
        outcome.note("live latency before p99, ms", millis(&listening.latency_before, 0.99));
        outcome.note("live latency meanwhile p50, ms", millis(&listening.latency, 0.5));
        outcome.note("live latency meanwhile p99, ms", millis(&listening.latency, 0.99));
        outcome.note("peak of memory over idle, MiB", (peak - idle) / 1024.0);
        outcome.note("the same per resumed subscriber, KiB", (peak - idle) / self.returning as f64);
        outcome.faults.merge(&listening.faults);
        outcome.faults.merge(&back.faults);
        Ok(())
    }

    fn series(&self) -> Series {
        Series { sessions: SESSIONS, events: self.events }
    }

    /// Returns the record of a subscriber that resumes after an event of the store.
    fn resuming(&self, epoch: u64, after: u64, session: Option<usize>) -> SubscriberRecord {
        let is_shown =
            |event: &u64| session.is_none_or(|session| self.series().session(*event) == session);
        let gap_behind = (1..=self.events).rev().find(is_shown).unwrap_or(0);
        SubscriberRecord::new(
            0,
            session.map(session_name),
            Some(Resume { epoch, after, gap_behind }),
            0,
        )
    }
}

/// Drops the store from the page cache, so that the next reader waits for the disk.
fn drop_from_cache(rig: &Rig) -> Result<()> {
    rig.files()?.iter().try_for_each(|file| process::drop_from_cache(file))
}

/// Returns the milliseconds until a reader's first event, and the epoch of its id.
fn first_event(rig: &Rig, record: SubscriberRecord, outcome: &mut Outcome) -> Result<(f64, u64)> {
    let mut tally = Tally::untimed();
    let mut reader = Reader::ask(rig.endpoint(), record)?;
    let time = reader.read_until(1, &mut tally)?;
    outcome.faults.merge(&tally.faults);
    Ok((time.as_secs_f64() * 1000.0, reader.epoch()))
}

/// Returns the seconds that a reader needs for this many events.
fn read(rig: &Rig, record: SubscriberRecord, events: u64, outcome: &mut Outcome) -> Result<f64> {
    let mut tally = Tally::untimed();
    let time = Reader::ask(rig.endpoint(), record)?.read_until(events, &mut tally)?;
    outcome.faults.merge(&tally.faults);
    Ok(time.as_secs_f64())
}

const COMMIT: &str = "autoplay_relay_log_commit_seconds";

/// An arbitrary session.
const SESSION: usize = 7;

/// Measurements of each kind, of which the median counts.
const ATTEMPTS: usize = 7;

/// More than the rush can take.
const MAX_RUSH_SECONDS: u64 = 600;
