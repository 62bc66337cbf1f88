//! The scenarios: who listens, what is sent, what is read off.

use std::{
    str::FromStr,
    thread,
    time::{Duration, Instant},
};

use crate::{
    Result,
    histogram::Histogram,
    load::{Audience, Load},
    options::USAGE,
    payload::Series,
    process,
    report::Outcome,
    rig::Rig,
    tally::Tally,
    target::{Kind, Pace},
    visitors::Visiting,
};

/// One kind of work.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Scenario {
    /// Everything to everybody, often.
    A,
    /// Everything to everybody, rarely: each event finds everything asleep.
    A5,
    /// Very many, nearly nothing.
    B,
    /// Very many, each with a session of its own.
    C,
    /// As much as there is.
    D,
    /// Coming and going.
    E,
}

/// How large.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Size {
    /// As the goals have it.
    Full,
    /// Enough to see a loss.
    Quick,
}

impl Scenario {
    /// All, in the order in which they run.
    pub(crate) const ALL: [Self; 6] = [Self::A, Self::A5, Self::B, Self::C, Self::D, Self::E];

    /// What it is, in a line.
    pub(crate) fn title(self, size: Size) -> String {
        match self {
            Self::A => Broadcast::often(size).title("A"),
            Self::A5 => Broadcast::rarely(size).title("A5"),
            Self::B => Idle::new(size).title(),
            Self::C => Sessions::new(size).title(),
            Self::D => Broadcast::full(size).title("D"),
            Self::E => Coming::new(size).title(),
        }
    }

    /// Runs it once, against a fresh process.
    ///
    /// # Errors
    ///
    /// When the target fails in a way that leaves nothing to measure.
    pub(crate) fn run(self, kind: Kind, size: Size) -> Result<Outcome> {
        let outcome = match self {
            Self::A => Broadcast::often(size).run(kind),
            Self::A5 => Broadcast::rarely(size).run(kind),
            Self::B => Idle::new(size).run(kind),
            Self::C => Sessions::new(size).run(kind),
            Self::D => Broadcast::full(size).run(kind),
            Self::E => Coming::new(size).run(kind),
        };
        outcome.map_err(|error| format!("{}, {kind}: {error}", self.title(size)).into())
    }
}

impl FromStr for Scenario {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let named = |scenario: &Self| format!("{scenario:?}") == text;
        Self::ALL
            .into_iter()
            .find(named)
            .ok_or_else(|| format!("there is no scenario {text:?}\n{USAGE}"))
    }
}

impl Size {
    fn choose<T>(self, full: T, quick: T) -> T {
        match self {
            Self::Full => full,
            Self::Quick => quick,
        }
    }
}

/// A, A5 and D: every event to all.
struct Broadcast {
    subscribers: usize,
    per_second: u64,
    seconds: u64,
    pace: Pace,
}

impl Broadcast {
    fn often(size: Size) -> Self {
        Self {
            subscribers: size.choose(1000, 200),
            per_second: 50,
            seconds: size.choose(10, 3),
            pace: Pace::Each,
        }
    }

    fn rarely(size: Size) -> Self {
        Self {
            per_second: 5,
            ..Self::often(size)
        }
    }

    /// `bare` gathers here: with one `send` for each event it would need seven times as long.
    fn full(size: Size) -> Self {
        Self {
            subscribers: 200,
            per_second: size.choose(5000, 1000),
            seconds: size.choose(5, 3),
            pace: Pace::Gather,
        }
    }

    fn title(&self, name: &str) -> String {
        let gathers = match self.pace {
            Pace::Each => "",
            Pace::Gather => "; bare gathers what is pending into one write",
        };
        format!(
            "{name}: {} subscribers, {} events/s of 1 KiB to all, {} s{gathers}",
            self.subscribers, self.per_second, self.seconds
        )
    }

    fn run(&self, kind: Kind) -> Result<Outcome> {
        let audience = Audience {
            subscribers: self.subscribers,
            own_session: false,
            series: Series {
                sessions: SESSIONS,
                events: self.per_second * self.seconds,
            },
            measured_from: 1,
        };
        let mut rig = Rig::start(kind, self.pace)?;
        let load = Load::connect(rig.address(), audience)?;
        thread::sleep(SETTLE);
        let start = Instant::now();
        let (cpu, late) = rig.cpu_of(|rig| rig.send_all(&load, audience, self.per_second))?;
        let seconds = start.elapsed().as_secs_f64();
        let tally = load.finish()?;
        let mut outcome = Outcome::new(&tally, audience.deliveries());
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

/// B: very many who hear nothing, and then a little.
struct Idle {
    subscribers: usize,
    idle: Duration,
    events: u64,
}

impl Idle {
    fn new(size: Size) -> Self {
        Self {
            subscribers: size.choose(10_000, 1000),
            idle: Duration::from_secs(size.choose(10, 2)),
            events: size.choose(20, 4),
        }
    }

    fn title(&self) -> String {
        let (
            Self {
                subscribers, events, ..
            },
            idle,
        ) = (self, self.idle.as_secs());
        format!("B: {subscribers} subscribers, idle for {idle} s, then {events} events of 1 KiB to all at 2 events/s")
    }

    fn run(&self, kind: Kind) -> Result<Outcome> {
        let audience = Audience {
            subscribers: self.subscribers,
            own_session: false,
            series: Series {
                sessions: SESSIONS,
                events: self.events,
            },
            measured_from: 1,
        };
        let each = |kib: f64| kib / self.subscribers as f64;
        let mut rig = Rig::start(kind, Pace::Each)?;
        thread::sleep(SETTLE);
        let before = rig.private_kib()?;
        let (buffers, objects) = (process::kernel_buffer_kib()?, process::kernel_object_kib()?);
        let (connect_cpu, load) = rig.cpu_of(|rig| Load::connect(rig.address(), audience))?;
        thread::sleep(SETTLE);
        let connected = rig.private_kib()?;
        let (buffers, objects) = (
            process::kernel_buffer_kib()? - buffers,
            process::kernel_object_kib()? - objects,
        );
        let (idle_cpu, ()) = rig.cpu_of(|_| {
            thread::sleep(self.idle);
            Ok(())
        })?;
        let (cpu, _) = rig.cpu_of(|rig| rig.send_all(&load, audience, 2))?;
        let after = rig.private_kib()?;
        let tally = load.finish()?;
        let mut outcome = Outcome::new(&tally, audience.deliveries());
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

/// C: each event for one among many. Once with a tenth of them, to see what those cost who get nothing.
struct Sessions {
    subscribers: usize,
    per_second: u64,
    seconds: u64,
}

impl Sessions {
    fn new(size: Size) -> Self {
        Self {
            subscribers: size.choose(10_000, 1000),
            per_second: size.choose(2000, 1000),
            seconds: size.choose(10, 3),
        }
    }

    fn title(&self) -> String {
        format!(
            "C: {} subscribers of one session each, {} events/s of 1 KiB to one of them each, {} s",
            self.subscribers, self.per_second, self.seconds
        )
    }

    fn run(&self, kind: Kind) -> Result<Outcome> {
        let (few_cpu, few_tally, _) = self.once(kind, self.subscribers / 10)?;
        let (cpu, tally, mut outcome) = self.once(kind, self.subscribers)?;
        outcome.faults.merge(&few_tally.faults);
        outcome.compare("CPU per event, µs", cpu);
        outcome.compare("CPU per event with a tenth of the subscribers, µs", few_cpu);
        outcome.compare("growth", cpu / few_cpu);
        outcome.latency(&tally.latency);
        outcome.note(
            "p99 with a tenth of the subscribers, ms",
            millis(&few_tally.latency, 0.99),
        );
        Ok(outcome)
    }

    fn once(&self, kind: Kind, subscribers: usize) -> Result<(f64, Tally, Outcome)> {
        let audience = Audience {
            subscribers,
            own_session: true,
            series: Series {
                sessions: subscribers,
                events: self.per_second * self.seconds,
            },
            measured_from: 1,
        };
        let mut rig = Rig::start(kind, Pace::Each)?;
        let load = Load::connect(rig.address(), audience)?;
        thread::sleep(SETTLE);
        let (cpu, late) = rig.cpu_of(|rig| rig.send_all(&load, audience, self.per_second))?;
        let tally = load.finish()?;
        let mut outcome = Outcome::new(&tally, audience.deliveries());
        outcome.note("upstream held up, ms", late.as_secs_f64() * 1000.0);
        rig.finish(&mut outcome);
        Ok((micros(cpu) / audience.series.events as f64, tally, outcome))
    }
}

/// E: some stay, many come and go.
struct Coming {
    steady: usize,
    per_second: u64,
    alone: u64,
    visiting: Visiting,
}

impl Coming {
    fn new(size: Size) -> Self {
        Self {
            steady: size.choose(200, 100),
            per_second: 50,
            alone: size.choose(5, 2),
            visiting: Visiting {
                per_second: size.choose(500, 200),
                seconds: size.choose(10, 3),
            },
        }
    }

    fn title(&self) -> String {
        format!(
            "E: {} subscribers stay and get {} events/s of 1 KiB; {} a second come and go, {} s",
            self.steady, self.per_second, self.visiting.per_second, self.visiting.seconds
        )
    }

    fn run(&self, kind: Kind) -> Result<Outcome> {
        let alone = self.per_second * self.alone;
        let audience = Audience {
            subscribers: self.steady,
            own_session: false,
            series: Series {
                sessions: SESSIONS,
                events: alone + self.per_second * self.visiting.seconds,
            },
            measured_from: alone + 1,
        };
        let mut rig = Rig::start(kind, Pace::Each)?;
        let load = Load::connect(rig.address(), audience)?;
        thread::sleep(SETTLE);
        let (quiet_cpu, _) = rig.cpu_of(|rig| rig.send(&load, audience, 1..=alone, self.per_second))?;
        let before = rig.private_kib()?;
        let visitors = self.visiting.start(rig.address());
        let (cpu, visits) = rig.cpu_of(|rig| {
            rig.send(&load, audience, alone + 1..=audience.series.events, self.per_second)?;
            visitors.join().map_err(|_| "the visitors' thread panicked")?
        })?;
        thread::sleep(SETTLE);
        let growth = rig.private_kib()? - before;
        let left = rig.subscribers()?;
        let tally = load.finish()?;
        let mut outcome = Outcome::new(&tally, audience.deliveries());
        let without = quiet_cpu.mul_f64(self.visiting.seconds as f64 / self.alone as f64);
        let come = visits.come as f64;
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

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

/// A part of a histogram of microseconds, in milliseconds.
pub(crate) fn millis(histogram: &Histogram, part: f64) -> f64 {
    histogram.quantile(part) as f64 / 1000.0
}

/// Sessions where nobody asks for one.
const SESSIONS: usize = 1000;

/// For what a connect leaves behind.
const SETTLE: Duration = Duration::from_secs(1);
