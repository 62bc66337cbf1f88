//! What goes on for hours must not fill the log.
//!
//! In: that there is something to say. Out: whether it is said.
//!
//! May use: no other module.

use std::time::Duration;

use tokio::time::Instant;

/// Lets one line of a kind through, and no other for a minute.
#[derive(Debug, Default)]
pub(crate) struct LogRateLimit {
    last_logged: Option<Instant>,
}

impl LogRateLimit {
    /// Whether it may be said now; if so, it counts as said.
    pub(crate) fn allow(&mut self) -> bool {
        let now = Instant::now();
        let is_due = self
            .last_logged
            .is_none_or(|told| now.saturating_duration_since(told) >= REPEATED_LOG_INTERVAL);
        if is_due {
            self.last_logged = Some(now);
        }
        is_due
    }
}

/// Between two lines about the same trouble.
const REPEATED_LOG_INTERVAL: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_line_is_let_through_and_the_next_a_minute_later() {
        let mut limit = LogRateLimit::default();
        assert_eq!([limit.allow(), limit.allow()], [true, false]);
        tokio::time::advance(REPEATED_LOG_INTERVAL - Duration::from_millis(1)).await;
        assert!(!limit.allow());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!([limit.allow(), limit.allow()], [true, false]);
    }
}
