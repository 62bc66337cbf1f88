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
    collections::{HashMap, HashSet},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    task::Waker,
};

use super::{
    Fanout, Subscription,
    index::{BucketFilter, ScopeIndex},
};
use crate::event::{Event, Kind, Only, Scope, SessionId};

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

/// A lane's streams of one product, by what they want. Belongs to the lane's task alone.
#[derive(Debug)]
pub(crate) struct ShardIndex {
    fanout: Arc<Fanout>,
    shard: usize,
    index: ScopeIndex<()>,
}

impl ShardIndex {
    /// Nobody yet. Whenever something has arrived, `waker` is called, once until it is taken.
    pub(crate) fn new(fanout: &Arc<Fanout>, shard: usize, waker: Waker) -> Self {
        let shard_index = Self { fanout: Arc::clone(fanout), shard, index: ScopeIndex::default() };
        if let Some(queue) = shard_index.queue() {
            *queue.lock() = ShardQueueState { waker: Some(waker), ..ShardQueueState::default() };
        }
        shard_index
    }

    /// From now on, events that this one may see arrive here.
    pub(crate) fn add(&mut self, number: usize, subscription: &mut Subscription) {
        self.index.insert(subscription.scope(), number, &());
        let mut registry = self.fanout.registry();
        registry.shard_bitmap.add(subscription.scope(), self.shard);
        subscription.move_to_shard(&mut registry);
    }

    /// The end of that.
    pub(crate) fn remove(&mut self, number: usize, scope: &Scope) {
        self.index.remove(scope, number);
        self.fanout.registry().shard_bitmap.remove(scope, self.shard, &self.index);
    }

    /// From now on, it is what another scope shows that arrives for this one. It looks into the log
    /// first.
    pub(crate) fn change_scope(
        &mut self,
        number: usize,
        subscription: &mut Subscription,
        scope: Scope,
    ) {
        self.remove(number, subscription.scope());
        subscription.change_scope(scope);
        self.add(number, subscription);
    }

    /// Takes what has arrived; `events` is empty, and gets the events, if it is events.
    pub(crate) fn take_queued(&self, events: &mut Vec<Arc<Event>>) -> QueueContents {
        debug_assert!(events.is_empty(), "what is left would go back");
        let Some(queue) = self.queue() else { return QueueContents::Events };
        let mut state = queue.lock();
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

    /// The place up to which everything has been taken, or was for nobody here; none while
    /// something waits.
    pub(crate) fn position(&self) -> Option<u64> {
        // In this order: what lies before the position was left there before that was written.
        let position = self.fanout.dispatched_through.load(Ordering::SeqCst);
        self.queue()?.lock().is_empty().then_some(position)
    }

    /// Visits the numbers of those who may see something of this session and kind, for each in
    /// `news`, with which of these it is. Who has been visited for an earlier one may be left out.
    pub(crate) fn for_each_interested<'a>(
        &self,
        keys: impl ExactSizeIterator<Item = (Option<&'a SessionId>, &'a Kind)>,
        mut visit: impl FnMut(usize, usize),
    ) {
        if keys.len() == 1 {
            return keys.for_each(|(session, kind)| {
                self.index.for_each_match(session, kind, BucketFilter::ALL, |number, ()| {
                    visit(0, number);
                });
            });
        }
        // A burst for ten thousand is not to be ten million visits.
        let (mut kinds, mut pairs) = (HashSet::new(), HashSet::new());
        for (at, (session, kind)) in keys.enumerate() {
            let buckets = BucketFilter {
                session: pairs.insert((session, kind)),
                kind: kinds.insert(kind),
                everything: at == 0,
            };
            self.index.for_each_match(session, kind, buckets, |number, ()| visit(at, number));
        }
    }

    /// Visits everybody's number, some more than once.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(usize)) {
        self.index.for_each(|number, ()| visit(number));
    }

    fn queue(&self) -> Option<&ShardQueue> {
        self.fanout.shard_queues.get(self.shard)
    }
}

impl Drop for ShardIndex {
    fn drop(&mut self) {
        if let Some(queue) = self.queue() {
            *queue.lock() = ShardQueueState::default();
        }
    }
}

/// Which lanes listen to what: a bit for each.
#[derive(Debug, Default)]
pub(super) struct ShardBitmap {
    sessions: HashMap<SessionId, u64>,
    kinds: HashMap<Kind, u64>,
    everything: u64,
}

impl ShardBitmap {
    fn add(&mut self, scope: &Scope, shard: usize) {
        let bit = shard_bit(shard);
        match scope {
            Scope { sessions: Only::These(sessions), .. } => {
                sessions
                    .iter()
                    .for_each(|session| *self.sessions.entry(session.clone()).or_default() |= bit);
            }
            Scope { kinds: Only::These(kinds), .. } => {
                kinds.iter().for_each(|kind| *self.kinds.entry(kind.clone()).or_default() |= bit);
            }
            _ => self.everything |= bit,
        }
    }

    /// Forgets what nobody on the lane listens to any more.
    fn remove(&mut self, scope: &Scope, shard: usize, remaining: &ScopeIndex<()>) {
        let bit = shard_bit(shard);
        match scope {
            Scope { sessions: Only::These(sessions), .. } => {
                sessions
                    .iter()
                    .filter(|it| !remaining.has_session(it))
                    .for_each(|it| clear_bit(&mut self.sessions, it, bit));
            }
            Scope { kinds: Only::These(kinds), .. } => {
                kinds
                    .iter()
                    .filter(|it| !remaining.has_kind(it))
                    .for_each(|it| clear_bit(&mut self.kinds, it, bit));
            }
            _ if !remaining.has_everything() => self.everything &= !bit,
            _ => {}
        }
    }

    /// The lanes that somebody listens on who may see `event`.
    pub(super) fn shards_for(&self, event: &Event) -> u64 {
        let of_session = event.session().and_then(|session| self.sessions.get(session));
        let of_kind = self.kinds.get(event.kind());
        self.everything
            | of_session.copied().unwrap_or_default()
            | of_kind.copied().unwrap_or_default()
    }
}

/// Takes a bit out of a place, and the place away with the last one.
fn clear_bit<K: Eq + std::hash::Hash>(buckets: &mut HashMap<K, u64>, at: &K, bit: u64) {
    if let Some(shards) = buckets.get_mut(at) {
        *shards &= !bit;
        if *shards == 0 {
            buckets.remove(at);
        }
    }
}

fn shard_bit(shard: usize) -> u64 {
    u32::try_from(shard).ok().and_then(|shard| 1_u64.checked_shl(shard)).unwrap_or_default()
}

/// The numbers of the lanes in a set of bits.
pub(super) fn shards_in(mut bits: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let shard = (bits != 0).then_some(bits.trailing_zeros() as usize);
        bits &= bits.wrapping_sub(1);
        shard
    })
}

/// Events of one product that wait for a lane, or marks in their place. While the lane gives what
/// it has taken, it holds as many.
const MAX_QUEUED_EVENTS: usize = 1024;

/// Their bytes.
const MAX_QUEUED_BYTES: usize = 4 << 20;
