//! How large a scenario is, and what all of them have in common.

use std::time::Duration;

/// How large.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Size {
    /// As the goals have it.
    Full,
    /// Enough to see a loss.
    Quick,
}

impl Size {
    pub(super) fn choose<T>(self, full: T, quick: T) -> T {
        match self {
            Self::Full => full,
            Self::Quick => quick,
        }
    }
}

/// Sessions where nobody asks for one.
pub(super) const SESSIONS: usize = 1000;

/// For what a connect leaves behind.
pub(super) const SETTLE: Duration = Duration::from_secs(1);

/// A time as a number of microseconds.
pub(super) fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
