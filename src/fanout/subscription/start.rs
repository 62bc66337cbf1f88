//! Where a subscription begins: resolves its start position, and waits while the log may still
//! learn it.
//!
//! May use: `event`, `log`.

use std::time::Duration;

use tokio::time::Instant;

use super::{AwaitedStart, ReadFailurePolicy, Subscription};
use crate::{event::StartPosition, log::ResolvedStart};

impl Subscription {
    /// Puts the cursor where `start` stands in the log.
    pub(super) fn resolve_start(&mut self, start: &StartPosition, may_wait: bool) {
        match self.fanout.log().resolve_start(start, may_wait) {
            ResolvedStart::NotYetKnown if self.awaited_start.is_some() => return,
            ResolvedStart::NotYetKnown => {
                self.awaited_start = Some(Box::new(AwaitedStart {
                    start: start.clone(),
                    until: Instant::now() + UNKNOWN_ID_WAIT,
                }));
                return;
            }
            ResolvedStart::Now => self.skips_history = true,
            ResolvedStart::After(position) => {
                self.cursor = position;
                if let StartPosition::After(id) = start {
                    self.last_delivered = Some((position, *id));
                }
            }
            ResolvedStart::BeforeOldest(position) => {
                self.cursor = position;
                self.wants_oldest = true;
            }
            ResolvedStart::Lost(gap) => {
                self.cursor = gap.position;
                self.pending_gap = Some(Box::new(gap));
            }
        }
        self.awaited_start = None;
        self.is_lagging = self.cursor < self.live_after || self.is_lagging;
    }

    /// Moves the cursor to a place that its owner has kept, and waits from now on for whatever the
    /// store has behind it. Nobody tells it when that can be read again: see
    /// [`Subscription::must_poll_again`].
    pub(in crate::fanout) fn resume_after(&mut self, position: u64) {
        (self.cursor, self.skips_history, self.is_lagging) =
            (position, false, position < self.live_after);
        self.read_failure_policy = ReadFailurePolicy::RetryLater { not_before: None };
    }

    /// Whether it stands anywhere in the log, and nothing but news is to come to who asked for
    /// news.
    pub(super) fn poll_located(&mut self) -> bool {
        let log = self.fanout.log();
        if let Some(awaited) = &mut self.awaited_start {
            if log.is_behind_upstream() {
                awaited.until = Instant::now() + UNKNOWN_ID_WAIT;
            }
            let may_wait = Instant::now() < awaited.until;
            let start = awaited.start.clone();
            self.resolve_start(&start, may_wait);
            self.is_lagging = true;
            return self.awaited_start.is_none();
        }
        if self.skips_history {
            let history_through = log.history_through();
            self.is_held_back = history_through == u64::MAX;
            if !self.is_held_back {
                self.cursor = self.cursor.max(history_through);
            }
        }
        !self.is_held_back
    }
}

/// How long a client's id may be ahead of a relay that has caught up with the relay before it, or
/// has given up waiting for it.
const UNKNOWN_ID_WAIT: Duration = Duration::from_secs(5);
