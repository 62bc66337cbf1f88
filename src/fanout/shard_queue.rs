//! Queue of one product's events to one shard: each event once, however many of the shard's
//! subscribers it is for.
//!
//! ```text
//!  fan-out ─ bits of shards ─┬─► queue of shard 0 ─┐ one wake-up until the queue is taken
//!                            └─► queue of shard 1 ─┴─► shard's task: subscribers by its index
//!
//!  events ── more than 1024, or 4 MiB ──► marks: first position per (session, user, kind)
//!  marks  ── more than 1024 ─────────┐
//!  a gap, or undispatched eviction ──┴──► overflowed at a position: every subscriber resyncs
//! ```
//!
//! A caught-up subscriber gets the queued events; a lagging one re-reads the log. On overflow the
//! queue keeps only the first position per session, user and kind, and the subscribers of those
//! re-read the log from there.
//!
//! Never blocks the fan-out, and never loses an entry: the log has all of them.
//!
//! May use: `event`.

use std::{collections::HashMap, mem, sync::Arc, task::Waker};

use parking_lot::{Mutex, MutexGuard};

use crate::event::{Event, Kind, ScopeKey, SessionId, UserId};

/// Entries of one product that wait for one shard.
#[derive(Debug, Default)]
pub(super) struct ShardQueue {
    state: Mutex<ShardQueueState>,
}

#[derive(Debug, Default)]
struct ShardQueueState {
    events: Vec<Arc<Event>>,
    bytes: usize,
    /// Instead of the events, once they exceeded a bound.
    resync_marks: Option<ResyncMarks>,
    /// Position of the first entry that is recorded here in no other form.
    overflowed_at: Option<u64>,
    /// Whether the shard has been woken since it last took the contents.
    is_woken: bool,
    /// Waker of the shard's task; none while no [`ShardPort`](super::ShardPort) is attached.
    waker: Option<Waker>,
}

impl ShardQueue {
    /// Adds an event, or the mark of it. Does not wake: the fan-out wakes once per batch.
    pub(super) fn push(&self, event: &Arc<Event>) {
        self.lock().push(event);
    }

    /// Makes every subscriber on the shard resync, from `position` or from the first entry that is
    /// queued.
    pub(super) fn overflow(&self, position: u64) {
        self.lock().overflow(position);
    }

    /// Wakes the shard's task, unless it has been woken since it last took the contents.
    pub(super) fn wake(&self) {
        let mut state = self.lock();
        if mem::replace(&mut state.is_woken, true) {
            return;
        }
        let waker = state.waker.clone();
        // The woken task takes this lock first of all.
        drop(state);
        waker.inspect(Waker::wake_by_ref);
    }

    /// Begins a shard's use of the queue: `waker` is called once something has arrived.
    pub(super) fn attach(&self, waker: Waker) {
        *self.lock() = ShardQueueState { waker: Some(waker), ..ShardQueueState::default() };
    }

    /// Ends the shard's use of the queue, and drops its contents.
    pub(super) fn detach(&self) {
        *self.lock() = ShardQueueState::default();
    }

    /// Takes the contents. `events` must be empty, and gets the events where the contents are
    /// events.
    pub(super) fn take(&self, events: &mut Vec<Arc<Event>>) -> QueueContents {
        // The two vectors are swapped on each call and keep their capacity: taking allocates
        // nothing.
        debug_assert!(events.is_empty(), "events left in the vector would return to the queue");
        let mut state = self.lock();
        mem::swap(&mut state.events, events);
        (state.bytes, state.is_woken) = (0, false);
        let (overflowed_at, marks) = (state.overflowed_at.take(), state.resync_marks.take());
        drop(state);
        match (overflowed_at, marks) {
            (Some(position), _) => QueueContents::Overflowed(position),
            (None, None) => QueueContents::Events,
            (None, Some(marks)) => {
                let mut marks: Vec<_> =
                    marks.into_iter().map(|(key, position)| ResyncMark { position, key }).collect();
                marks.sort_unstable_by_key(|mark| mark.position);
                QueueContents::Marks(marks)
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, ShardQueueState> {
        // A panic can leave an event out of the queue's contents at worst. The shard's subscribers
        // find it in the log.
        self.state.lock()
    }
}

/// First position for each session, user and kind.
type ResyncMarks = HashMap<(Option<SessionId>, Option<UserId>, Kind), u64>;

impl ShardQueueState {
    fn push(&mut self, event: &Arc<Event>) {
        // All subscribers will resync from there, which covers this event.
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
            let key = (event.session().cloned(), event.user().cloned(), event.kind().clone());
            marks.entry(key).or_insert(event.position());
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

/// Form in which the contents of a queue are returned.
#[derive(Debug, PartialEq)]
pub(crate) enum QueueContents {
    /// The events themselves.
    Events,
    /// Marks of entries that are in the log, in the order of their positions.
    Marks(Vec<ResyncMark>),
    /// Every subscriber must resync, from this position on.
    Overflowed(u64),
}

/// First of the queued entries of one session, user and kind.
#[derive(Debug, PartialEq)]
pub(crate) struct ResyncMark {
    /// Its position in the log.
    pub(crate) position: u64,
    /// Session, user and kind of the entries.
    key: (Option<SessionId>, Option<UserId>, Kind),
}

impl ResyncMark {
    /// Returns the parts of the entries that a scope judges them by.
    pub(crate) fn scope_key(&self) -> ScopeKey<'_> {
        let (session, user, kind) = &self.key;
        ScopeKey { session: session.as_ref(), user: user.as_ref(), kind }
    }
}

/// Events of one product, or marks instead of them, that wait for a shard. The shard holds as many
/// while it delivers what it took, so this is a burst of up to 2048 events that costs no re-read.
pub(crate) const MAX_QUEUED_EVENTS: usize = 1024;

/// Bytes of these events. Bounds the events that a stalled shard pins after the log has evicted
/// them.
const MAX_QUEUED_BYTES: usize = 4 << 20;
