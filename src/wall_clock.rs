//! The wall clock for times that are stored and compared later, and whether it can be trusted now.
//!
//! ```text
//!            differs from the monotonic clock by more than 10 s
//! trusted ───────────────────────────────────────────────────────► in doubt: nothing is deleted by age
//!   ▲  ▲                                                              │
//!   │  └── both agree again: the wall clock was wrong for a while ────┤
//!   └───── in doubt for a day, without a further jump for an hour: the wall clock is right
//! ```
//!
//! A time server or a resumed machine may set the wall clock days ahead for some seconds. The
//! monotonic clock does not jump, so the two disagree then. A machine that was suspended looks the
//! same, because its monotonic clock stood still, and there the wall clock is right: that is why a
//! disagreement that lasts is believed. Steps at the start of the process cannot be noticed.
//!
//! May use: `log_limit`.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use crate::log_limit::LogRateLimit;

/// A present time that may be stored.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct WallTime {
    /// Unix milliseconds. While in doubt, the later of the wall clock and of the time that the
    /// monotonic clock gives: what is stored with it is never deleted too early.
    pub(crate) unix_ms: u64,
    /// The earlier of the two: a wait whose end is stored with it is never too long.
    pub(crate) earliest_ms: u64,
    /// Whether the two clocks disagree. Then nothing may be deleted for its age.
    pub(crate) is_in_doubt: bool,
}

impl WallTime {
    /// Returns the time of a clock that is not in doubt.
    fn trusted(unix_ms: u64) -> Self {
        Self { unix_ms, earliest_ms: unix_ms, is_in_doubt: false }
    }

    /// Returns the time in the form of the standard library.
    pub(crate) fn to_system_time(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.unix_ms)
    }

    /// Returns the time before which a thing is older than `age`, or 0 while in doubt: then nothing
    /// counts as old.
    pub(crate) fn oldest_kept(self, age: Duration) -> u64 {
        if self.is_in_doubt { 0 } else { self.unix_ms.saturating_sub(milliseconds(age)) }
    }

    /// Returns the time beyond which a stored time is in the future, so that a wrong clock must
    /// have given it. `None` while in doubt: then there is no measure.
    pub(crate) fn latest_plausible(self) -> Option<u64> {
        let latest = self.unix_ms.saturating_add(milliseconds(MAX_DISAGREEMENT));
        (!self.is_in_doubt).then_some(latest)
    }
}

/// Reads the clocks, and logs when doubt begins and ends.
pub(crate) fn now() -> WallTime {
    let reading = ClockReading::take();
    let mut shared = CLOCK.lock();
    let (judgement, log_limit) = &mut *shared;
    let judgement = judgement.get_or_insert_with(|| ClockJudgement::starting_at(reading));
    let (now, change) = judgement.observe(reading);
    match change {
        Some(ClockChange::Jumped { by_ms }) if log_limit.allow() => tracing::warn!(
            by_seconds = by_ms / 1000,
            "the wall clock has jumped: nothing is deleted for its age until it agrees with the monotonic clock again, \
             or for a day; check the machine's time synchronization"
        ),
        Some(ClockChange::Returned) => tracing::info!(
            "the wall clock agrees with the monotonic clock again: what is too old is deleted again"
        ),
        Some(ClockChange::Believed { by_ms }) => tracing::info!(
            by_seconds = by_ms / 1000,
            "the wall clock has kept its new time: what is too old by that is deleted again"
        ),
        Some(ClockChange::Jumped { .. }) | None => {}
    }
    now
}

/// One reading of both clocks.
#[derive(Clone, Copy, Debug)]
struct ClockReading {
    monotonic: Instant,
    unix_ms: u64,
}

impl ClockReading {
    fn take() -> Self {
        let monotonic = Instant::now();
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { monotonic, unix_ms: milliseconds(since_1970) }
    }

    /// Returns the wall time that the monotonic clock gives at `later`.
    fn extrapolated_to(self, later: Self) -> u64 {
        let elapsed = later.monotonic.saturating_duration_since(self.monotonic);
        self.unix_ms.saturating_add(milliseconds(elapsed))
    }

    /// Returns whether the wall clock has not jumped between this reading and `later`.
    fn agrees_with(self, later: Self) -> bool {
        let difference = later.unix_ms.abs_diff(self.extrapolated_to(later));
        difference <= milliseconds(MAX_DISAGREEMENT)
    }
}

/// Judgement of the wall clock by the readings so far.
#[derive(Debug)]
struct ClockJudgement {
    /// Latest reading at which the wall clock was trusted. It follows the clock, so that small
    /// steps do not add up to a doubt.
    trusted: ClockReading,
    doubt: Option<ClockDoubt>,
}

/// A disagreement of the two clocks.
#[derive(Debug)]
struct ClockDoubt {
    began: Instant,
    /// Time of the last jump.
    steady_since: Instant,
    latest: ClockReading,
}

/// A change of the judgement.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum ClockChange {
    /// Doubt begins.
    Jumped { by_ms: i64 },
    /// Doubt ends: the wall clock is back.
    Returned,
    /// Doubt ends: the wall clock has kept its new time.
    Believed { by_ms: i64 },
}

impl ClockJudgement {
    fn starting_at(reading: ClockReading) -> Self {
        Self { trusted: reading, doubt: None }
    }

    /// Takes a reading, and returns the time to store and what has changed.
    fn observe(&mut self, reading: ClockReading) -> (WallTime, Option<ClockChange>) {
        let expected = self.trusted.extrapolated_to(reading);
        let by_ms = reading.unix_ms.cast_signed().saturating_sub(expected.cast_signed());
        if self.trusted.agrees_with(reading) {
            self.trusted = reading;
            let change = self.doubt.take().map(|_| ClockChange::Returned);
            return (WallTime::trusted(reading.unix_ms), change);
        }
        let now = reading.monotonic;
        let change = match &mut self.doubt {
            None => {
                self.doubt = Some(ClockDoubt { began: now, steady_since: now, latest: reading });
                Some(ClockChange::Jumped { by_ms })
            }
            Some(doubt) => {
                if !doubt.latest.agrees_with(reading) {
                    doubt.steady_since = now;
                }
                doubt.latest = reading;
                if doubt.is_believable(now) {
                    *self = Self::starting_at(reading);
                    let change = Some(ClockChange::Believed { by_ms });
                    return (WallTime::trusted(reading.unix_ms), change);
                }
                None
            }
        };
        let (unix_ms, earliest_ms) = (reading.unix_ms.max(expected), reading.unix_ms.min(expected));
        (WallTime { unix_ms, earliest_ms, is_in_doubt: true }, change)
    }
}

impl ClockDoubt {
    /// Returns whether the disagreement has lasted so long that the wall clock must be right. The
    /// hour without a jump is the shorter of the two: a machine that is suspended each night jumps
    /// each morning, and would never have a steady day.
    fn is_believable(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.began) >= MAX_DOUBT
            && now.saturating_duration_since(self.steady_since) >= STEADY_TIME
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The judgement of this process: its two clocks exist once, too.
static CLOCK: Mutex<(Option<ClockJudgement>, LogRateLimit)> =
    Mutex::new((None, LogRateLimit::new()));

/// Disagreement that is no jump. Longer than a thread may pause between the readings of the two
/// clocks, and than the steps of a time server in service, which are below a second; shorter than
/// any time for which it is worthwhile to keep events.
const MAX_DISAGREEMENT: Duration = Duration::from_secs(10);

/// Time in doubt after which the wall clock is believed: an operator sees the warning within a day.
/// The bounds on bytes hold meanwhile.
const MAX_DOUBT: Duration = Duration::from_secs(24 * 60 * 60);

/// Time without a jump before the wall clock is believed.
const STEADY_TIME: Duration = Duration::from_secs(60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;
    const DAY: u64 = 24 * HOUR;
    const START: u64 = 1_800_000_000_000;

    /// A judgement whose clocks stand where the test says: both in milliseconds since its start.
    struct Bench {
        judgement: ClockJudgement,
        start: Instant,
    }

    impl Bench {
        fn new() -> Self {
            let start = Instant::now();
            let reading = ClockReading { monotonic: start, unix_ms: START };
            Self { judgement: ClockJudgement::starting_at(reading), start }
        }

        fn at(&mut self, monotonic: u64, wall: i64) -> (WallTime, Option<ClockChange>) {
            self.judgement.observe(ClockReading {
                monotonic: self.start + Duration::from_millis(monotonic),
                unix_ms: START.saturating_add_signed(wall),
            })
        }

        /// Reads each minute from `from` to `to`, with the wall clock ahead by `by`, and returns
        /// the changes.
        fn run(&mut self, from: u64, to: u64, by: i64) -> Vec<ClockChange> {
            let times = (from..=to).step_by(60_000);
            times.filter_map(|at| self.at(at, at.cast_signed() + by).1).collect()
        }
    }

    fn jumped(by_ms: i64) -> ClockChange {
        ClockChange::Jumped { by_ms }
    }

    #[test]
    fn a_jump_ahead_for_seconds_makes_nothing_old() {
        let mut bench = Bench::new();
        let by = 2 * DAY.cast_signed();
        let (now, change) = bench.at(1000, 1000 + by);
        assert_eq!(change, Some(jumped(by)));
        assert!(now.is_in_doubt);
        assert_eq!(now.oldest_kept(Duration::from_secs(1)), 0);
        assert_eq!(now.latest_plausible(), None);
        assert_eq!(now.earliest_ms, START + 1000, "no wait is longer for it");
        assert_eq!(bench.at(8000, 8000 + by).1, None, "one warning");
        let (now, change) = bench.at(9000, 9000);
        assert_eq!(change, Some(ClockChange::Returned));
        assert_eq!(now, WallTime::trusted(START + 9000));
        assert_eq!(now.oldest_kept(Duration::from_secs(1)), START + 8000);
    }

    #[test]
    fn a_jump_back_gives_no_time_that_is_old_later() {
        let mut bench = Bench::new();
        let by = -2 * DAY.cast_signed();
        let (now, change) = bench.at(1000, 1000 + by);
        assert_eq!(change, Some(jumped(by)));
        assert_eq!((now.unix_ms, now.is_in_doubt), (START + 1000, true));
        assert_eq!(bench.at(9000, 9000).1, Some(ClockChange::Returned));
    }

    #[test]
    fn days_that_pass_and_small_steps_are_no_jump() {
        let mut bench = Bench::new();
        assert_eq!(bench.at(30 * DAY, 30 * DAY.cast_signed()).1, None, "no reading for a month");
        let bound = 10_000;
        for step in 1..=10_i64 {
            let at = 30 * DAY + step.unsigned_abs() * 1000;
            let (now, change) = bench.at(at, at.cast_signed() + step * bound);
            assert_eq!((change, now.is_in_doubt), (None, false), "small steps do not add up");
        }
        let at = 31 * DAY;
        assert_eq!(bench.at(at, at.cast_signed() + 11 * bound + 1).1, Some(jumped(bound + 1)));
    }

    #[test]
    fn a_step_that_stays_is_believed_after_a_day() {
        for by in [2 * DAY.cast_signed(), -2 * DAY.cast_signed()] {
            let mut bench = Bench::new();
            assert_eq!(bench.run(60_000, DAY, by), [jumped(by)]);
            assert!(bench.judgement.doubt.is_some());
            assert_eq!(bench.run(DAY + 60_000, 2 * DAY, by), [ClockChange::Believed { by_ms: by }]);
            assert_eq!(bench.run(2 * DAY, 3 * DAY, by), []);
        }
    }

    #[test]
    fn a_machine_that_is_suspended_each_night_is_believed_after_a_day_awake() {
        let mut bench = Bench::new();
        let mut changes = Vec::new();
        for night in 1..=4 {
            let (from, to) = (night * 10 * HOUR, (night + 1) * 10 * HOUR - 60_000);
            changes.extend(bench.run(from, to, (night * 14 * HOUR).cast_signed()));
        }
        let night = 14 * HOUR.cast_signed();
        assert_eq!(changes.first(), Some(&jumped(night)));
        assert_eq!(changes.get(1), Some(&ClockChange::Believed { by_ms: 3 * night }));
    }

    #[test]
    fn a_clock_that_jumps_on_and_on_is_not_believed() {
        let mut bench = Bench::new();
        let mut changes = Vec::new();
        for turn in 0..72 {
            let (from, by) = ((turn + 1) * HOUR / 2, ((turn % 2 + 1) * DAY).cast_signed());
            changes.extend(bench.run(from, from + HOUR / 2 - 60_000, by));
        }
        assert_eq!(changes, [jumped(DAY.cast_signed())]);
    }
}
