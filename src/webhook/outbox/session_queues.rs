//! Queues per session, and an index over the heads of all queues.
//!
//! A delivery without a session has a queue of its own and is always a head. Every lookup takes
//! logarithmic time.
//!
//! May use: `event`.

use std::collections::{BTreeSet, HashMap};

use tokio::time::Instant;

use super::item::NextAttempt;
use crate::event::SessionId;

/// Order of deliveries within each session.
#[derive(Debug, Default)]
pub(super) struct SessionQueues {
    by_session: HashMap<SessionId, SessionQueue>,
}

/// Deliveries of one session, by position.
#[derive(Debug)]
struct SessionQueue {
    /// Not always the lowest position: a redelivery queues behind a head that was tried already.
    head: u64,
    behind: BTreeSet<u64>,
}

impl SessionQueues {
    /// Adds a delivery to its session, and returns whether the delivery is the head.
    pub(super) fn enqueue(&mut self, session: Option<&SessionId>, position: u64) -> bool {
        let Some(session) = session else { return true };
        match self.by_session.get_mut(session) {
            Some(queue) => {
                queue.behind.insert(position);
                false
            }
            None => {
                self.by_session.insert(
                    session.clone(),
                    SessionQueue { head: position, behind: BTreeSet::new() },
                );
                true
            }
        }
    }

    /// Returns the head of a session.
    pub(super) fn head(&self, session: &SessionId) -> Option<u64> {
        self.by_session.get(session).map(|queue| queue.head)
    }

    /// Makes a waiting delivery the head; the former head waits behind it.
    pub(super) fn move_to_front(&mut self, session: &SessionId, position: u64) {
        let Some(queue) = self.by_session.get_mut(session) else { return };
        if queue.behind.remove(&position) {
            queue.behind.insert(std::mem::replace(&mut queue.head, position));
        }
    }

    /// Removes a delivery, and returns the new head if the head was removed and another follows.
    pub(super) fn dequeue(&mut self, session: Option<&SessionId>, position: u64) -> Option<u64> {
        let session = session?;
        let queue = self.by_session.get_mut(session)?;
        if queue.head != position {
            queue.behind.remove(&position);
            return None;
        }
        match queue.behind.pop_first() {
            Some(next) => {
                queue.head = next;
                Some(next)
            }
            // Removed with its last delivery: the map does not grow with the sessions ever seen.
            None => {
                self.by_session.remove(session);
                None
            }
        }
    }

    /// Returns every delivery of a session, head first.
    pub(super) fn positions(&self, session: &SessionId) -> Vec<u64> {
        let queue = self.by_session.get(session);
        queue
            .map(|queue| std::iter::once(queue.head).chain(queue.behind.iter().copied()).collect())
            .unwrap_or_default()
    }
}

/// Heads of all queues that are not in flight.
#[derive(Debug, Default)]
pub(super) struct QueueHeads {
    /// By position, whether loaded or not: a probe takes the oldest.
    all: BTreeSet<u64>,
    loaded: AttemptQueue,
    unloaded: AttemptQueue,
}

/// Heads with a loaded event, or heads without.
#[derive(Debug, Default)]
struct AttemptQueue {
    fresh: BTreeSet<u64>,
    /// By due time; `None`, due at once, sorts first.
    retries: BTreeSet<(Option<Instant>, u64)>,
}

impl AttemptQueue {
    fn insert(&mut self, position: u64, next_attempt: NextAttempt) {
        match next_attempt {
            NextAttempt::Fresh => self.fresh.insert(position),
            NextAttempt::Retry(due) => self.retries.insert((due, position)),
        };
    }

    fn remove(&mut self, position: u64, next_attempt: NextAttempt) {
        match next_attempt {
            NextAttempt::Fresh => self.fresh.remove(&position),
            NextAttempt::Retry(due) => self.retries.remove(&(due, position)),
        };
    }

    /// Iterates over retries due by `deadline`, earliest first.
    fn retries_due_by(&self, deadline: Instant) -> impl Iterator<Item = u64> {
        // `u64::MAX` includes every position that is due exactly at the deadline.
        self.retries.range(..=(Some(deadline), u64::MAX)).map(|(_, position)| *position)
    }

    /// Makes every retry due at once, and returns their positions.
    fn make_retries_due(&mut self) -> Vec<u64> {
        let positions: Vec<u64> = self.retries.iter().map(|(_, position)| *position).collect();
        self.retries = positions.iter().map(|position| (None, *position)).collect();
        positions
    }
}

impl QueueHeads {
    /// Adds a head.
    pub(super) fn insert(&mut self, position: u64, next_attempt: NextAttempt, is_loaded: bool) {
        self.all.insert(position);
        self.queue_mut(is_loaded).insert(position, next_attempt);
    }

    /// Removes a head; the arguments must be those of its insertion.
    pub(super) fn remove(&mut self, position: u64, next_attempt: NextAttempt, is_loaded: bool) {
        self.all.remove(&position);
        self.queue_mut(is_loaded).remove(position, next_attempt);
    }

    fn queue_mut(&mut self, is_loaded: bool) -> &mut AttemptQueue {
        if is_loaded { &mut self.loaded } else { &mut self.unloaded }
    }

    /// Returns the head with the lowest position.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.all.first().copied()
    }

    /// Returns the oldest loaded head without a spent attempt.
    pub(super) fn oldest_fresh(&self) -> Option<u64> {
        self.loaded.fresh.first().copied()
    }

    /// Returns the loaded retry that has been due longest.
    pub(super) fn first_due_retry(&self, now: Instant) -> Option<u64> {
        self.loaded.retries_due_by(now).next()
    }

    /// Returns how many loaded heads have no spent attempt.
    pub(super) fn loaded_fresh_count(&self) -> usize {
        self.loaded.fresh.len()
    }

    /// Returns how many loaded retries are due by `deadline`, counting to `limit`.
    pub(super) fn loaded_retry_count(&self, deadline: Instant, limit: usize) -> usize {
        self.loaded.retries_due_by(deadline).take(limit).count()
    }

    /// Returns the oldest head without a spent attempt whose event must be loaded.
    pub(super) fn first_unloaded_fresh(&self) -> Option<u64> {
        self.unloaded.fresh.first().copied()
    }

    /// Returns the first retry due by `deadline` whose event must be loaded.
    pub(super) fn first_unloaded_retry(&self, deadline: Instant) -> Option<u64> {
        self.unloaded.retries_due_by(deadline).next()
    }

    /// Returns when the next head comes due. An unloaded head counts only if its due time is still
    /// ahead: an overdue one waits for its event, not for the clock.
    pub(super) fn next_due_at(&self, now: Instant) -> Option<Instant> {
        if !self.loaded.fresh.is_empty() {
            return Some(now);
        }
        let next_loaded = self.loaded.retries.first().map(|(due, _)| due.unwrap_or(now));
        let next_unloaded =
            self.unloaded.retries.range((Some(now), u64::MAX)..).find_map(|(due, _)| *due);
        next_loaded.into_iter().chain(next_unloaded).min()
    }

    /// Makes every retry due at once, and returns their positions. The cost is linear, one step for
    /// each failed attempt that has put a retry here.
    pub(super) fn make_retries_due(&mut self) -> Vec<u64> {
        let mut positions = self.loaded.make_retries_due();
        positions.append(&mut self.unloaded.make_retries_due());
        positions
    }
}
