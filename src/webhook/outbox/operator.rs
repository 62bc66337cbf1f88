//! What operators and the store order: enable, disable, erase, expire.
//!
//! May use: `delivery`, `event`.

use super::{
    Outbox,
    item::{ItemKind, OutboxItem, RowState},
};
use crate::event::SessionId;

impl Outbox {
    /// Makes the endpoint active; what waits is tried at once.
    pub(in crate::webhook) fn enable(&mut self) {
        self.breaker.enable();
        self.make_retries_due();
    }

    /// Sends nothing until it is enabled.
    pub(in crate::webhook) fn disable(&mut self, problem: &str) {
        self.breaker.disable(problem);
    }

    /// Sends nothing until this time, in Unix milliseconds: the receiver has asked for that before the restart.
    pub(in crate::webhook) fn throttle(&mut self, until: u64) {
        self.breaker.throttle(self.instant_of(until));
    }

    /// Notes that the store has made dead letters of everything owed up to `through`, also of what has not been taken yet.
    pub(in crate::webhook) fn expire_through(&mut self, expired_through: u64) {
        if expired_through <= self.expired_through {
            return;
        }
        self.cursor = self.cursor.max(expired_through);
        // What was accepted, but not yet written down, the store has taken for owed.
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

    /// Takes an item out, or lets it vanish when it is settled, if it is under way.
    fn remove_unless_in_flight(&mut self, position: u64, item_kind: ItemKind) {
        if self.items.get(&position).is_some_and(OutboxItem::is_in_flight) {
            self.set_item_kind(position, item_kind);
        } else {
            self.remove_item(position);
        }
    }

    /// Forgets what is owed of a session, and what was delivered.
    pub(in crate::webhook) fn erase(&mut self, session: &SessionId) {
        self.delivered.erase(session);
        self.journal.erase(session);
        for position in self.session_queues.positions(session) {
            let Some(item) = self.items.get(&position) else { continue };
            if self.journal.row_state(position, item.row, item.item_kind) != RowState::Absent {
                self.journal.settle(position);
            }
            self.journal.clear_dirty(position);
            self.remove_unless_in_flight(position, ItemKind::Erased);
        }
    }
}
