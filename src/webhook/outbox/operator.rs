//! What operators and the store order: enable, disable, erase, expire.
//!
//! May use: `delivery`, `event`.

use super::*;

impl Outbox {
    /// Makes the endpoint active; what waits is tried at once.
    pub(in crate::webhook) fn enable(&mut self) {
        self.endpoint.enable();
        self.release();
    }

    /// Sends nothing until it is enabled.
    pub(in crate::webhook) fn disable(&mut self, problem: &str) {
        self.endpoint.disable(problem);
    }

    /// Sends nothing until this time, in Unix milliseconds: the receiver has asked for that before the restart.
    pub(in crate::webhook) fn throttle(&mut self, until: u64) {
        self.endpoint.throttle(self.instant_of(until));
    }

    /// Notes that the store has made dead letters of everything owed up to `through`, also of what has not been taken yet.
    pub(in crate::webhook) fn expire(&mut self, through: u64) {
        if through <= self.expired_through {
            return;
        }
        self.position = self.position.max(through);
        // What was accepted, but not yet written down, the store has taken for owed.
        for place in self.delivered.places(self.expired_through, through) {
            self.journal.expire(place);
            self.journal.settle(place);
        }
        self.expired_through = through;
        let items = self.items.range(..=through).filter(|(_, item)| item.claim == Claim::Owed);
        for place in items.map(|(place, _)| *place).collect::<Vec<u64>>() {
            self.journal.expire(place);
            self.let_go(place, Claim::Expired);
        }
    }

    /// Takes an item out, or lets it vanish when it is settled, if it is under way.
    fn let_go(&mut self, place: u64, claim: Claim) {
        if self.items.get(&place).is_some_and(Item::is_running) {
            self.set_claim(place, claim);
        } else {
            self.remove(place);
        }
    }

    /// Forgets what is owed of a session, and what was delivered.
    pub(in crate::webhook) fn erase(&mut self, session: &SessionId) {
        self.delivered.erase(session);
        self.journal.erase(session);
        for place in self.lanes.members(session) {
            let Some(item) = self.items.get(&place) else { continue };
            if self.journal.row(place, item.row, item.claim) != Row::None {
                self.journal.settle(place);
            }
            self.journal.forget(place);
            self.let_go(place, Claim::Erased);
        }
    }
}
