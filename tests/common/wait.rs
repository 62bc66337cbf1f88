//! Waiting for what is observed, never for time alone to pass.

use std::{
    thread,
    time::{Duration, Instant},
};

/// How long anything that must happen may take: far longer than it does, far shorter than for ever.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);

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
