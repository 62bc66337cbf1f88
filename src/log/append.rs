//! Appending to the log: events and gaps under ids of the log's own or of its upstream.
//!
//! May use: `event`.

use std::sync::{Arc, MutexGuard};

use super::{Log, LogState};
use crate::event::{Draft, Entry, Event, EventId, Gap, GapReason};

/// Where an event stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Appended {
    /// Its name for clients.
    pub(crate) id: EventId,
    /// Its place in the log.
    pub(crate) position: u64,
}

impl Log {
    /// Writes an event behind everything so far, under an id of this log's, and says where it
    /// stands. Never waits for a disk or a reader.
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

    /// Writes an event under the id that the upstream has given it, unless it is here already.
    pub(crate) fn append_numbered(&self, draft: Draft, id: EventId) {
        let state = self.state();
        if !state.ids.has_passed(id, state.ring.newest_position()) {
            self.push(state, id, |position| {
                Entry::Event(Arc::new(Event::new(id, position, draft)))
            });
        }
    }

    /// Writes down that events may be missing here.
    pub(crate) fn append_gap(&self, reason: GapReason) {
        let state = self.state();
        let newest = state.ring.newest_position();
        let after = (newest > 0).then(|| state.ids.id_at(newest)).flatten();
        let id = state.next_own_id(self.epoch);
        self.push_gap(state, reason, id, after.map(|id| id.to_string().into()));
    }

    /// Writes down a gap that the upstream has announced, unless it is here already. One of which
    /// the upstream says that it stands before everything, because it does not know the id that it
    /// was asked for, is new wherever it stands: it gets an id of this log's if need be.
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
        drop(state);
        self.appended.notify_one();
        if let Some(backing) = &self.backing {
            backing.wake_writer();
        }
        position
    }
}
