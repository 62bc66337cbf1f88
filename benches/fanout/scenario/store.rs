//! R: what the store costs, and what it gives back.

use std::{thread, time::Instant};

use super::size::{SESSIONS, SETTLE, Size, micros};
use crate::{
    load::{Audience, Load},
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
    tally::{Ledger, Resume, Tally},
};

/// A store that is filled, found again by a new process, and read: by one, and by very many at
/// once.
pub(super) struct Store {
    events: u64,
    /// Of these, what one reader reads.
    replayed: u64,
    returning: usize,
    /// Of the store's events, what each of those has missed.
    missed: u64,
    steady: usize,
    per_second: u64,
    /// Seconds before the others come back.
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
            "R: a store of {} events of 1 KiB; {} come back at once and have missed {} while {} get {} events/s",
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
        let epoch = self.look(&rig, &mut outcome)?;
        self.replay(&mut rig, epoch, &mut outcome)?;
        self.rush(&mut rig, epoch, &mut outcome)?;
        rig.finish(&mut outcome);
        Ok(outcome)
    }

    /// Everything into the store.
    fn fill(&self, rig: &mut Rig, outcome: &mut Outcome) -> Result<()> {
        let (start, written) = (Instant::now(), process::written_bytes(rig.pid())?);
        let (cpu, ()) = rig.cpu_of(|rig| rig.pour(self.series(), 1..=self.events))?;
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

    /// When the first event comes to somebody who asks for old ones. Returns the epoch of their
    /// ids.
    fn look(&self, rig: &Rig, outcome: &mut Outcome) -> Result<u64> {
        let (_, epoch) = first_event(rig, self.back(0, 0, None), outcome)?;
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
                for _ in 0..LOOKS {
                    if is_cold {
                        drop_from_cache(rig)?;
                    }
                    times.push(first_event(rig, self.back(epoch, after, session), outcome)?.0);
                }
                outcome.note(name, median(times.into_iter()).unwrap_or(f64::NAN));
            }
        }
        Ok(epoch)
    }

    /// How fast one reader reads.
    fn replay(&self, rig: &mut Rig, epoch: u64, outcome: &mut Outcome) -> Result<()> {
        let after = self.events - self.replayed;
        drop_from_cache(rig)?;
        let seconds = read(rig, self.back(epoch, after, None), self.replayed, outcome)?;
        outcome.note("replayed to one reader, cold, /s", self.replayed as f64 / seconds);
        let (cpu, seconds) =
            rig.cpu_of(|rig| read(rig, self.back(epoch, after, None), self.replayed, outcome))?;
        let per_second = self.replayed as f64 / seconds;
        outcome.note("the same, warm, /s", per_second);
        outcome.note("the same, warm, MB/s of payload", per_second * PAYLOAD_BYTES as f64 / 1e6);
        outcome.note("CPU per event replayed to one, µs", micros(cpu) / self.replayed as f64);
        let events = self.series().per_session(0)[SESSION];
        outcome.note("events of one session", events as f64);
        drop_from_cache(rig)?;
        for name in ["replayed of one session, cold, /s", "replayed of one session, warm, /s"] {
            let seconds = read(rig, self.back(epoch, 0, Some(SESSION)), events, outcome)?;
            outcome.note(name, events as f64 / seconds);
        }
        Ok(())
    }

    /// Very many come back at once, while some listen.
    fn rush(&self, rig: &mut Rig, epoch: u64, outcome: &mut Outcome) -> Result<()> {
        let begins = self.events + self.per_second * self.alone;
        let steady = Audience {
            subscribers: self.steady,
            own_session: false,
            series: Series {
                events: begins + self.per_second * LONGEST_RUSH_SECONDS,
                ..self.series()
            },
            measured_from: begins + 1,
            resume: Some(Resume { epoch, after: self.events, gap_behind: self.events }),
            may_miss: false,
        };
        let after = self.events - self.missed;
        let returning = Audience {
            subscribers: self.returning,
            resume: Some(Resume { epoch, after, gap_behind: self.events }),
            ..steady
        };
        let mut listening = Load::connect(rig.door(), steady)?;
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
        for (load, audience) in [(&mut listening, steady), (&mut back, returning)] {
            load.ended_with(last);
            load.wait_for(audience.deliveries_through(last))?;
        }
        let (listening, back) = (listening.finish()?, back.finish()?);
        let replayed = (begins - after) * self.returning as u64;
        outcome.note("deliveries to those who come back", replayed as f64);
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
        outcome
            .note("the same for each who comes back, KiB", (peak - idle) / self.returning as f64);
        outcome.faults.merge(&listening.faults);
        outcome.faults.merge(&back.faults);
        Ok(())
    }

    fn series(&self) -> Series {
        Series { sessions: SESSIONS, events: self.events }
    }

    /// Somebody who comes back behind an event of the store.
    fn back(&self, epoch: u64, after: u64, session: Option<usize>) -> Ledger {
        let is_shown =
            |event: &u64| session.is_none_or(|session| self.series().session(*event) == session);
        let gap_behind = (1..=self.events).rev().find(is_shown).unwrap_or(0);
        Ledger::new(0, session.map(session_name), Some(Resume { epoch, after, gap_behind }), 0)
    }
}

/// So that the next who reads the store waits for the disk.
fn drop_from_cache(rig: &Rig) -> Result<()> {
    rig.files()?.iter().try_for_each(|file| process::drop_from_cache(file))
}

/// How many milliseconds somebody waits for an event, and the epoch of its id.
fn first_event(rig: &Rig, ledger: Ledger, outcome: &mut Outcome) -> Result<(f64, u64)> {
    let mut tally = Tally::untimed();
    let mut reader = Reader::ask(rig.door(), ledger)?;
    let time = reader.read_until(1, &mut tally)?;
    outcome.faults.merge(&tally.faults);
    Ok((time.as_secs_f64() * 1000.0, reader.epoch()))
}

/// How many seconds somebody needs for so many events.
fn read(rig: &Rig, ledger: Ledger, events: u64, outcome: &mut Outcome) -> Result<f64> {
    let mut tally = Tally::untimed();
    let time = Reader::ask(rig.door(), ledger)?.read_until(events, &mut tally)?;
    outcome.faults.merge(&tally.faults);
    Ok(time.as_secs_f64())
}

const COMMIT: &str = "autoplay_relay_log_commit_seconds";

/// One as good as any other.
const SESSION: usize = 7;

/// Of each kind; the median counts.
const LOOKS: usize = 7;

/// More than it can take.
const LONGEST_RUSH_SECONDS: u64 = 600;
