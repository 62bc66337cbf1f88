//! Rate limit of repeated log lines: a fault that lasts for hours must not fill the log.
//!
//! In: an occasion to log. Out: whether to log.
//!
//! May use: no other module.

use std::time::Duration;

use tokio::time::Instant;

/// Admits one line of a kind per minute.
#[derive(Debug, Default)]
pub(crate) struct LogRateLimit {
    last_logged: Option<Instant>,
}

impl LogRateLimit {
    /// Returns a limit that admits the next line.
    pub(crate) const fn new() -> Self {
        Self { last_logged: None }
    }

    /// Returns whether to log now. If so, the next minute's lines are suppressed.
    pub(crate) fn allow(&mut self) -> bool {
        let now = Instant::now();
        let is_due = self
            .last_logged
            .is_none_or(|logged| now.saturating_duration_since(logged) >= REPEATED_LOG_INTERVAL);
        if is_due {
            self.last_logged = Some(now);
        }
        is_due
    }
}

/// Time between two lines about the same fault.
const REPEATED_LOG_INTERVAL: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_line_is_admitted_and_the_next_a_minute_later() {
        let mut limit = LogRateLimit::default();
        assert_eq!([limit.allow(), limit.allow()], [true, false]);
        tokio::time::advance(REPEATED_LOG_INTERVAL - Duration::from_millis(1)).await;
        assert!(!limit.allow());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!([limit.allow(), limit.allow()], [true, false]);
    }
}
