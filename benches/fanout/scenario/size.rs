//! Size of a scenario, and constants of all scenarios.

use std::time::Duration;

/// Size of a scenario.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Size {
    /// The size of the goals.
    Full,
    /// Large enough to notice a loss.
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

/// Number of sessions where no subscriber has a filter.
pub(super) const SESSIONS: usize = 1000;

/// Time for the work after a connect to end.
pub(super) const SETTLE: Duration = Duration::from_secs(1);

/// Returns a time in microseconds.
pub(super) fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
