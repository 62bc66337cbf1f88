//! Commands of operators and of the store: enable, disable, throttle, erase, expire.
//!
//! May use: `event`.

use std::collections::BTreeSet;

use super::{
    Outbox,
    item::{ItemKind, OutboxItem, RowState},
};
use crate::event::ErasedEvents;

impl Outbox {
    /// Makes the endpoint active and every retry due at once.
    pub(in crate::webhook) fn enable(&mut self) {
        self.breaker.enable();
        self.make_retries_due();
    }

    /// Disables the endpoint until it is enabled.
    pub(in crate::webhook) fn disable(&mut self, problem: &str) {
        self.breaker.disable(problem);
    }

    /// Restores a throttle from before the restart, in Unix milliseconds.
    pub(in crate::webhook) fn throttle(&mut self, until: u64) {
        self.breaker.throttle(self.instant_of(until));
    }

    /// Records that the store has made dead letters of everything owed up to `expired_through`,
    /// also of events that the reader has not returned yet.
    pub(in crate::webhook) fn expire_through(&mut self, expired_through: u64) {
        if expired_through <= self.expired_through {
            return;
        }
        // The reader may still return events up to here: `enqueue` ignores them from now on.
        self.cursor = self.cursor.max(expired_through);
        // A delivery that was accepted without a committed settlement was owed in the store's view,
        // and is a dead letter there now: settle it.
        for position in self.delivered.positions_between(self.expired_through, expired_through) {
            self.journal.expire(position);
            self.journal.settle(position);
        }
        self.expired_through = expired_through;
        let items = self
            .items
            .range(..=expired_through)
            .filter(|(_, item)| item.item_kind == ItemKind::Owed);
        for position in items.map(|(position, _)| *position).collect::<Vec<u64>>() {
            self.journal.expire(position);
            self.remove_unless_in_flight(position, ItemKind::Expired);
        }
    }

    /// Removes an item, or, if it is in flight, changes its kind so that its outcome removes it.
    fn remove_unless_in_flight(&mut self, position: u64, item_kind: ItemKind) {
        if self.items.get(&position).is_some_and(OutboxItem::is_in_flight) {
            self.set_item_kind(position, item_kind);
        } else {
            self.remove_item(position);
        }
    }

    /// Erases events: owed deliveries, redeliveries, the history, and unwritten dead letters.
    pub(in crate::webhook) fn erase(&mut self, erased: &ErasedEvents) {
        self.delivered.erase(erased);
        self.journal.erase(erased);
        let of_sessions =
            erased.sessions.iter().flat_map(|session| self.session_queues.positions(session));
        let mut positions: BTreeSet<u64> = of_sessions.collect();
        positions.extend(&erased.positions);
        for position in positions {
            let Some(item) = self.items.get(&position) else { continue };
            // A row in the batch in flight must go as well, not only one that is committed.
            if self.journal.row_state(position, item.row, item.item_kind) != RowState::Absent {
                self.journal.settle(position);
            }
            self.journal.clear_dirty(position);
            self.remove_unless_in_flight(position, ItemKind::Erased);
        }
    }
}
