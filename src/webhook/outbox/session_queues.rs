//! The head of each session's queue, and which heads may be sent.
//!
//! A delivery without a session has a queue of its own and is always its head. Every lookup takes
//! logarithmic time.
//!
//! May use: `event`.

use std::collections::{BTreeSet, HashMap};

use tokio::time::Instant;

use super::item::NextAttempt;
use crate::event::SessionId;

/// The order within sessions.
#[derive(Debug, Default)]
pub(super) struct SessionQueues {
    by_session: HashMap<SessionId, SessionQueue>,
}

/// The deliveries of one session, by place.
#[derive(Debug)]
struct SessionQueue {
    head: u64,
    behind: BTreeSet<u64>,
}

impl SessionQueues {
    /// Lines up, and tells whether that is as the first.
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

    /// The first of a session.
    pub(super) fn head(&self, session: &SessionId) -> Option<u64> {
        self.by_session.get(session).map(|queue| queue.head)
    }

    /// Puts one that is behind before the head.
    pub(super) fn move_to_front(&mut self, session: &SessionId, position: u64) {
        let Some(queue) = self.by_session.get_mut(session) else { return };
        if queue.behind.remove(&position) {
            queue.behind.insert(std::mem::replace(&mut queue.head, position));
        }
    }

    /// Leaves, and tells who is the first now if that has changed.
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
            None => {
                self.by_session.remove(session);
                None
            }
        }
    }

    /// Everyone of a session.
    pub(super) fn positions(&self, session: &SessionId) -> Vec<u64> {
        let queue = self.by_session.get(session);
        queue
            .map(|queue| std::iter::once(queue.head).chain(queue.behind.iter().copied()).collect())
            .unwrap_or_default()
    }
}

/// The first of every lane, as far as they are not under way.
#[derive(Debug, Default)]
pub(super) struct QueueHeads {
    all: BTreeSet<u64>,
    loaded: AttemptQueue,
    unloaded: AttemptQueue,
}

/// Those whose event is held, or those whose event is not.
#[derive(Debug, Default)]
struct AttemptQueue {
    fresh: BTreeSet<u64>,
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

    fn retries_due_by(&self, deadline: Instant) -> impl Iterator<Item = u64> {
        self.retries.range(..=(Some(deadline), u64::MAX)).map(|(_, position)| *position)
    }

    fn make_retries_due(&mut self) -> Vec<u64> {
        let positions: Vec<u64> = self.retries.iter().map(|(_, position)| *position).collect();
        self.retries = positions.iter().map(|position| (None, *position)).collect();
        positions
    }
}

impl QueueHeads {
    /// Another one.
    pub(super) fn insert(&mut self, position: u64, next_attempt: NextAttempt, is_loaded: bool) {
        self.all.insert(position);
        self.queue_mut(is_loaded).insert(position, next_attempt);
    }

    /// One less.
    pub(super) fn remove(&mut self, position: u64, next_attempt: NextAttempt, is_loaded: bool) {
        self.all.remove(&position);
        self.queue_mut(is_loaded).remove(position, next_attempt);
    }

    fn queue_mut(&mut self, is_loaded: bool) -> &mut AttemptQueue {
        if is_loaded { &mut self.loaded } else { &mut self.unloaded }
    }

    /// The oldest.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.all.first().copied()
    }

    /// The oldest that has not been tried and can be sent.
    pub(super) fn oldest_fresh(&self) -> Option<u64> {
        self.loaded.fresh.first().copied()
    }

    /// The retry that has been due for the longest and can be sent.
    pub(super) fn first_due_retry(&self, now: Instant) -> Option<u64> {
        self.loaded.retries_due_by(now).next()
    }

    /// How many could be sent as their first attempt.
    pub(super) fn loaded_fresh_count(&self) -> usize {
        self.loaded.fresh.len()
    }

    /// How many retries could be sent by then, as far as `most`.
    pub(super) fn loaded_retry_count(&self, deadline: Instant, limit: usize) -> usize {
        self.loaded.retries_due_by(deadline).take(limit).count()
    }

    /// The oldest that has not been tried and must be loaded first.
    pub(super) fn first_unloaded_fresh(&self) -> Option<u64> {
        self.unloaded.fresh.first().copied()
    }

    /// The retry that is due first, by then, and must be loaded first.
    pub(super) fn first_unloaded_retry(&self, deadline: Instant) -> Option<u64> {
        self.unloaded.retries_due_by(deadline).next()
    }

    /// When something comes due: what is held at any time, what must be loaded only if that is
    /// still to come.
    pub(super) fn next_due_at(&self, now: Instant) -> Option<Instant> {
        if !self.loaded.fresh.is_empty() {
            return Some(now);
        }
        let next_loaded = self.loaded.retries.first().map(|(due, _)| due.unwrap_or(now));
        let next_unloaded =
            self.unloaded.retries.range((Some(now), u64::MAX)..).find_map(|(due, _)| *due);
        next_loaded.into_iter().chain(next_unloaded).min()
    }

    /// Makes every retry due at once, and tells which there are. What each costs here, its failed
    /// attempt has paid for.
    pub(super) fn make_retries_due(&mut self) -> Vec<u64> {
        let mut positions = self.loaded.make_retries_due();
        positions.append(&mut self.unloaded.make_retries_due());
        positions
    }
}
