//! Waits for observable conditions, each with a deadline. No test waits for a fixed time alone.

use std::{
    thread,
    time::{Duration, Instant},
};

/// Deadline of every wait: far longer than any awaited condition takes.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(15);

/// Margin for a busy machine in a measured time. Times that a test must tell apart differ by more
/// than this.
pub(crate) const SLACK: Duration = Duration::from_secs(5);

/// Checks that the work that began at `begin` has taken no longer than `promised`.
///
/// # Panics
///
/// If the work has taken longer than `promised` and [`SLACK`].
pub(crate) fn assert_within(promised: Duration, begin: Instant) {
    let taken = begin.elapsed();
    assert!(taken < promised + SLACK, "took {taken:?} instead of {promised:?}");
}

/// Waits until `is_so` returns true.
///
/// # Panics
///
/// If that takes longer than [`TIMEOUT`].
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    value(what, || is_so().then_some(()));
}

/// Waits until `look` returns a value.
///
/// # Panics
///
/// If that takes longer than [`TIMEOUT`].
pub(crate) fn value<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "timed out: {what}");
        thread::sleep(POLL_INTERVAL);
    }
}

/// Checks `is_so` repeatedly for the whole of `time`.
///
/// # Panics
///
/// If `is_so` returns false once.
pub(crate) fn holds(what: &str, time: Duration, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        assert!(is_so(), "no longer true: {what}");
        thread::sleep(POLL_INTERVAL);
    }
}

/// Pause between two evaluations of a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
