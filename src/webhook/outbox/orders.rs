//! What operators and the store order: enable, disable, erase, expire, deliver again.
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

    /// How many dead letters may be taken for another delivery.
    pub(in crate::webhook) fn room_for_letters(&self) -> usize {
        MOST_LETTERS.saturating_sub(self.tally.letters)
    }

    /// Takes dead letters for another delivery, as far as there is room. Those that are here, or were and are not written down
    /// yet, are left: the store does not know better. Word of an expiry comes first: else one of these may have just been accepted.
    pub(in crate::webhook) fn redeliver(&mut self, letters: Vec<DeadLetter>, now: Now) {
        self.seen = now;
        for DeadLetter { delivery, payload, .. } in letters {
            let place = delivery.place;
            let is_known = self.items.contains_key(&place) || self.journal.is_open(place);
            if is_known || self.room_for_letters() == 0 {
                continue;
            }
            let (id, kind, session) = (delivery.event_id, delivery.kind.clone(), delivery.session.clone());
            let event = Arc::new(Event::restored(id, place, kind, session.clone(), &payload));
            self.admit(Item::new(delivery, Some(event), Claim::Letter), Turn::Fresh);
            if let Some(session) = session {
                self.step_ahead(&session, place);
            }
        }
    }

    /// Lets an item go before the head of its lane, if it is older and the head has not been tried.
    fn step_ahead(&mut self, session: &SessionId, place: u64) {
        let head = self.lanes.head(session).and_then(|head| self.items.get(&head));
        let Some(head) = head.filter(|head| head.stage == Stage::Idle(Turn::Fresh)) else { return };
        let head = head.delivery.place;
        if place < head {
            self.lanes.lead(session, place);
            self.move_to(head, Stage::Blocked);
            self.move_to(place, Stage::Idle(Turn::Fresh));
        }
    }
}
