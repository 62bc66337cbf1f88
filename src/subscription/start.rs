//! Start of a subscription: resolves its start position, and waits while the log may still learn
//! it.
//!
//! Behind a relay, an id that is not in this log may still arrive: the upstream repeats what came
//! meanwhile. So a client that moved here from another relay of the chain waits instead of getting
//! an `unknown_id` gap.
//!
//! May use: `event`, `log`.

use std::time::Duration;

use tokio::time::Instant;

use super::{AwaitedStart, Subscription};
use crate::{event::StartPosition, log::ResolvedStart};

impl Subscription {
    /// Puts the cursor where `start` is in the log, or records that it is waited for.
    pub(super) fn resolve_start(&mut self, start: &StartPosition, may_wait: bool) {
        match self.fanout.log().resolve_start(start, may_wait) {
            ResolvedStart::NotYetKnown if self.awaits_start() => return,
            ResolvedStart::NotYetKnown => {
                let until = Instant::now() + UNKNOWN_ID_WAIT;
                let awaited = AwaitedStart { start: start.clone(), until };
                self.backlog.get_or_insert_default().awaited_start = Some(awaited);
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
                self.backlog.get_or_insert_default().pending_gap = Some(Box::new(gap));
            }
        }
        if let Some(backlog) = &mut self.backlog {
            backlog.awaited_start = None;
        }
        // Entries up to `live_after` were dispatched before the subscription was in the index: no
        // notification comes for them.
        self.is_lagging = self.cursor < self.live_after || self.is_lagging;
    }

    /// Moves the cursor to a position that the caller has kept, and waits from now on for entries
    /// that the store has and cannot read. No task is woken when the store can read again: see
    /// [`Subscription::must_poll_again`].
    pub(super) fn resume_after(&mut self, position: u64) {
        (self.cursor, self.skips_history, self.is_lagging) =
            (position, false, position < self.live_after);
        self.retries_failed_reads = true;
    }

    /// Returns whether the subscription has a position in the log, and history has ended for a
    /// subscriber that asked for new entries only.
    pub(super) fn poll_located(&mut self) -> bool {
        let log = self.fanout.log();
        if let Some(awaited) = self.backlog.as_mut().and_then(|it| it.awaited_start.as_mut()) {
            if log.is_behind_upstream() {
                // The wait begins when this relay has caught up, or has given up on the upstream.
                awaited.until = Instant::now() + UNKNOWN_ID_WAIT;
            }
            let may_wait = Instant::now() < awaited.until;
            let start = awaited.start.clone();
            self.resolve_start(&start, may_wait);
            self.is_lagging = true;
            return !self.awaits_start();
        }
        if self.skips_history {
            // `u64::MAX` while the log is receiving history.
            let history_through = log.history_through();
            self.is_held_back = history_through == u64::MAX;
            if !self.is_held_back {
                self.cursor = self.cursor.max(history_through);
            }
        }
        !self.is_held_back
    }
}

/// Wait for a client's id that is ahead of a relay which has caught up with its upstream, or has
/// stopped waiting for it. The subscriber then gets a gap notice, `unknown_id`.
const UNKNOWN_ID_WAIT: Duration = Duration::from_secs(5);
