//! A fan-out's way to one lane: events are left there once, however many of the lane's streams they
//! are for.
//!
//! ```text
//! fan-out ─ which lanes listen? ─► arrivals of lane 0 ─┐ one wake-up, until they are taken
//!                               └► arrivals of lane 1 ─┴─► the lane's task: followers, found in an index of its own
//! ```
//!
//! A follower that has everything is given what has arrived; one that has not is told to look into
//! the log, and so are those concerned when more has arrived than is kept here: then only the first
//! place for each session and kind is, as a mark.
//!
//! May use: `event`.

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
};

use crate::event::{Event, Kind, SessionId};

/// What is left for one lane.
#[derive(Debug, Default)]
pub(super) struct ShardQueue {
    state: Mutex<ShardQueueState>,
}

#[derive(Debug, Default)]
struct ShardQueueState {
    events: Vec<Arc<Event>>,
    bytes: usize,
    /// In place of the events, when there were too many.
    resync_marks: Option<ResyncMarks>,
    /// Place of the first entry that is not kept here in any form.
    overflowed_at: Option<u64>,
    is_woken: bool,
    /// Of whoever takes them; none while nobody does.
    waker: Option<Waker>,
}

impl ShardQueue {
    /// Leaves an event.
    pub(super) fn push(&self, event: &Arc<Event>) {
        self.lock().push(event);
    }

    /// Has everybody on the lane look into the log for what is there from `position` on.
    pub(super) fn overflow(&self, position: u64) {
        self.lock().overflow(position);
    }

    /// Tells the lane that something has arrived, unless it has been told.
    pub(super) fn wake(&self) {
        let mut state = self.lock();
        if mem::replace(&mut state.is_woken, true) {
            return;
        }
        let waker = state.waker.clone();
        drop(state);
        waker.inspect(Waker::wake_by_ref);
    }

    /// Begins a shard's use of the queue: `waker` is called once something has arrived.
    pub(super) fn attach(&self, waker: Waker) {
        *self.lock() = ShardQueueState { waker: Some(waker), ..ShardQueueState::default() };
    }

    /// Ends it.
    pub(super) fn detach(&self) {
        *self.lock() = ShardQueueState::default();
    }

    /// Takes what has arrived; `events` is empty, and gets the events, if it is events.
    pub(super) fn take(&self, events: &mut Vec<Arc<Event>>) -> QueueContents {
        debug_assert!(events.is_empty(), "what is left would go back");
        let mut state = self.lock();
        mem::swap(&mut state.events, events);
        (state.bytes, state.is_woken) = (0, false);
        let (overflowed_at, marks) = (state.overflowed_at.take(), state.resync_marks.take());
        drop(state);
        match (overflowed_at, marks) {
            (Some(position), _) => QueueContents::Overflowed(position),
            (None, None) => QueueContents::Events,
            (None, Some(marks)) => {
                let mark = |((session, kind), position)| ResyncMark { position, session, kind };
                let mut marks: Vec<_> = marks.into_iter().map(mark).collect();
                marks.sort_unstable_by_key(|mark| mark.position);
                QueueContents::Marks(marks)
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, ShardQueueState> {
        // Whatever a panic leaves undone here, the worst is an event that is looked for in the log.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first place for each session and kind.
type ResyncMarks = HashMap<(Option<SessionId>, Kind), u64>;

impl ShardQueueState {
    fn push(&mut self, event: &Arc<Event>) {
        if self.overflowed_at.is_some() {
            return;
        }
        self.bytes += event.http1_chunk().len();
        let is_full = self.events.len() == MAX_QUEUED_EVENTS || self.bytes > MAX_QUEUED_BYTES;
        if self.resync_marks.is_none() && !is_full {
            return self.events.push(Arc::clone(event));
        }
        let marks = self.resync_marks.get_or_insert_default();
        for event in self.events.drain(..).chain([Arc::clone(event)]) {
            marks
                .entry((event.session().cloned(), event.kind().clone()))
                .or_insert(event.position());
        }
        if marks.len() > MAX_QUEUED_EVENTS {
            self.overflow(event.position());
        }
    }

    fn overflow(&mut self, position: u64) {
        let first_event = self.events.drain(..).map(|event| event.position()).next();
        let first_mark = self.resync_marks.take().and_then(|marks| marks.into_values().min());
        self.overflowed_at.get_or_insert(first_event.or(first_mark).unwrap_or(position));
    }

    fn is_empty(&self) -> bool {
        self.events.is_empty() && self.resync_marks.is_none() && self.overflowed_at.is_none()
    }
}

/// In which form something has arrived.
#[derive(Debug, PartialEq)]
pub(crate) enum QueueContents {
    /// The events themselves.
    Events,
    /// Marks of what is in the log, in the order of their places.
    Marks(Vec<ResyncMark>),
    /// Everybody must look into the log, from this place on.
    Overflowed(u64),
}

/// The first of the entries of one session and kind that have arrived.
#[derive(Debug, PartialEq)]
pub(crate) struct ResyncMark {
    /// Where it is in the log.
    pub(crate) position: u64,
    /// Whose it is.
    pub(crate) session: Option<SessionId>,
    /// Of what kind.
    pub(crate) kind: Kind,
}

/// Events of one product that wait for a lane, or marks in their place. While the lane gives what
/// it has taken, it holds as many.
const MAX_QUEUED_EVENTS: usize = 1024;

/// Their bytes.
const MAX_QUEUED_BYTES: usize = 4 << 20;
