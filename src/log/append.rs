//! Appending to the log: events and gaps, under ids of the log's own or of its upstream.
//!
//! Each append takes the log's lock once, gives the next position, encodes the event, evicts what
//! exceeds the bounds, and wakes fan-out and writer. It never waits for either. The event is
//! encoded under the lock, because its frame begins with the id.
//!
//! May use: `event`.

use std::sync::Arc;

use parking_lot::MutexGuard;

use super::{Log, LogState, Numbering};
use crate::event::{Draft, Entry, Event, EventId, Gap, GapReason};

/// Position and id of an appended event.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Appended {
    /// Id, as clients see it.
    pub(crate) id: EventId,
    /// Position in the log.
    pub(crate) position: u64,
}

impl Log {
    /// Appends an event under an id of this log's own.
    pub(crate) fn append(&self, draft: Draft) -> Appended {
        self.append_with_own_id(self.state(), draft)
    }

    pub(super) fn append_with_own_id(
        &self,
        state: MutexGuard<'_, LogState>,
        draft: Draft,
    ) -> Appended {
        let id = state.next_own_id(self.epoch);
        let position = self
            .push(state, id, |position| Entry::Event(Arc::new(Event::new(id, position, draft))));
        Appended { id, position }
    }

    /// Appends an event under the id that the upstream has given it, unless the log has passed that
    /// id: a relay repeats entries after a lost connection.
    pub(crate) fn append_numbered(&self, draft: Draft, id: EventId) {
        let state = self.state();
        if !state.ids.has_passed(id, state.ring.newest_position()) {
            self.push(state, id, |position| {
                Entry::Event(Arc::new(Event::new(id, position, draft)))
            });
        }
    }

    /// Appends a gap: events may be missing at this position.
    pub(crate) fn append_gap(&self, reason: GapReason) {
        let state = self.state();
        let newest = state.ring.newest_position();
        let after = (newest > 0).then(|| state.ids.id_at(newest)).flatten();
        let id = state.next_own_id(self.epoch);
        self.push_gap(state, reason, id, after.map(|id| id.to_string().into()));
    }

    /// Appends a gap that the upstream has announced, unless the log has passed its id.
    ///
    /// A gap `unknown_id` is always new: the upstream puts it before all it keeps because it does
    /// not know the id that it was asked for. If the log has passed that id, the gap gets one of
    /// the log's own.
    pub(crate) fn append_numbered_gap(
        &self,
        reason: GapReason,
        id: Option<EventId>,
        after: Option<Box<str>>,
    ) {
        let state = self.state();
        let newest = state.ring.newest_position();
        let id = match id {
            Some(id) if !state.ids.has_passed(id, newest) => id,
            Some(_) if reason != GapReason::UnknownId => return,
            _ => state.next_own_id(self.epoch),
        };
        self.push_gap(state, reason, id, after);
    }

    fn push_gap(
        &self,
        state: MutexGuard<'_, LogState>,
        reason: GapReason,
        id: EventId,
        after: Option<Box<str>>,
    ) {
        self.metrics.record_gap(reason);
        let product = self.product.clone();
        self.push(state, id, |position| {
            Entry::Gap(Arc::new(Gap { product, reason, position, id, after, before: None }))
        });
    }

    fn push(
        &self,
        mut state: MutexGuard<'_, LogState>,
        id: EventId,
        entry: impl FnOnce(u64) -> Entry,
    ) -> u64 {
        let position = state.ring.newest_position() + 1;
        state.ids.append(position, id);
        state.ring.push(entry(position));
        self.enforce_bounds(&mut state);
        // Released first: the woken readers take the same lock.
        drop(state);
        self.appended.notify_one();
        if let Some(backing) = &self.backing {
            backing.wake_writer();
        }
        position
    }
}

impl LogState {
    /// Returns the id of the log's next own entry. Behind an upstream's entry that is the entry's
    /// id with a suffix, because the next sequence is the upstream's to give.
    fn next_own_id(&self, epoch: u64) -> EventId {
        let newest = self.ring.newest_position();
        match self.ids.id_at(newest).filter(|_| self.numbering == Numbering::Upstream && newest > 0)
        {
            Some(last) => EventId { suffix: last.suffix.saturating_add(1), ..last },
            None => EventId::new(epoch, newest + 1),
        }
    }
}
