//! When a worker looks without an event: when something is due, and each second while it is busy.
//!
//! An idle worker is not woken: what it waits for has a notification or a due time. Entries outside
//! the webhook's scope move its cursor, which is written; their commits are noticed once a second.
//!
//! May use: no other module.

use std::{future::pending, time::Duration};

use tokio::time::{self, Instant};

use super::Worker;
use crate::webhook::Now;

impl Worker {
    /// Begins a look: what has been committed until now is taken into account by the caller.
    pub(super) fn begin_look(&mut self, now: Now) {
        // First: a commit after this line ends the next wait.
        self.commits.mark_unchanged();
        if self.commits_due_at.is_some_and(|at| now.instant >= at) {
            self.commits_due_at = None;
        }
        self.reader.advance_over_hidden();
    }

    /// Notices a commit. The look at it waits, so that further ones gather.
    pub(super) fn notice_commit(&mut self) {
        self.commits_due_at = Some(Instant::now() + COMMIT_LOOK_INTERVAL);
    }

    /// Returns the time of the next look without an event.
    pub(super) fn wake_at(&self) -> Option<Instant> {
        let now = Now::read();
        let reload_at = Some(self.reload_at).filter(|at| *at > now.instant);
        let due = self.outbox.next_due_at().filter(|_| self.may_send());
        let busy_look_at = (!self.is_idle()).then(|| now.instant + BUSY_LOOK_INTERVAL);
        [
            due,
            reload_at,
            self.store_sync.due(&self.outbox, &self.notice),
            self.commits_due_at,
            self.shared.definition().due(now),
            busy_look_at,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Returns whether nothing is owed, in flight, or to be written, and the whole log is read.
    ///
    /// The last condition is not implied by the notifications: an entry may be committed before it
    /// is dispatched, and is not behind the reader then. The caller has advanced the reader.
    fn is_idle(&self) -> bool {
        self.attempts.is_empty()
            && self.outbox.is_empty()
            && self.notice.requeued == 0
            && self.store_sync.is_idle(&self.outbox)
            && self.reader.lag() == 0
    }
}

/// Waits until `at`, or for ever without a time.
///
/// # Cancel safety
///
/// Dropping the future changes nothing.
pub(super) async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => time::sleep_until(at).await,
        None => pending().await,
    }
}

/// Interval between looks while something is owed or under way: events are loaded some time before
/// they are due, and a store that hangs tells nothing.
const BUSY_LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Time between a commit and the look at it, where no event of the scope comes with it. The cursor
/// in the store is behind by this at most, and by the time of its own commit.
const COMMIT_LOOK_INTERVAL: Duration = Duration::from_secs(1);
