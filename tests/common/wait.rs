//! Waiting for what is observed, never for time alone to pass.

use std::{
    thread,
    time::{Duration, Instant},
};

/// How long anything that must happen may take: far longer than it does, far shorter than for ever.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

/// What a machine with much else to do may add to any time that a test measures. What a test has to
/// tell apart lies further apart.
pub(crate) const LATE: Duration = Duration::from_secs(5);

/// Checks that what was promised to take this long, and has begun then, is over in time.
///
/// # Panics
///
/// When it has taken longer, by more than [`LATE`].
pub(crate) fn assert_within(promised: Duration, begin: Instant) {
    let taken = begin.elapsed();
    assert!(taken < promised + LATE, "it took {taken:?} instead of {promised:?}");
}

/// Waits until `is_so`.
///
/// # Panics
///
/// When that takes longer than [`PATIENCE`].
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    value(what, || is_so().then_some(()));
}

/// Waits until `look` finds something.
///
/// # Panics
///
/// When that takes longer than [`PATIENCE`].
pub(crate) fn value<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        thread::sleep(PAUSE);
    }
}

/// Looks again and again for the whole of `time`.
///
/// # Panics
///
/// When `is_so` does not hold once.
pub(crate) fn holds(what: &str, time: Duration, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        assert!(is_so(), "no longer so: {what}");
        thread::sleep(PAUSE);
    }
}

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(5);
