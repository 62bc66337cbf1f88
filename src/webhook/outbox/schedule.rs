//! What is sent next, which events must be at hand for that, and what an answer means.
//!
//! May use: `delivery`, `event`.

use super::*;

/// What becomes of a delivery after an attempt.
#[derive(Clone, Copy, Debug)]
enum Ending {
    Accepted,
    Dead(DeadReason),
}

impl Outbox {
    /// The lowest place whose event is to be sent soon, but is not held here.
    pub(in crate::webhook) fn wants(&self) -> Option<u64> {
        let soon = self.seen.instant + SOON;
        match self.endpoint.turns_at(self.seen.instant) {
            Some(turn) if turn > soon => return None,
            None if self.endpoint.gate(self.seen.instant) == Gate::Shut => return None,
            _ if self.endpoint.is_open() => return self.heads.oldest().filter(|place| !self.is_held(*place)),
            _ => {}
        }
        let fresh = self.heads.bare_fresh().filter(|_| self.is_worth_holding(self.heads.held_fresh()));
        let retries = self.heads.held_retries(soon, MOST_AHEAD);
        let retry = self.heads.bare_retry(soon).filter(|_| self.is_worth_holding(retries));
        fresh.into_iter().chain(retry).min()
    }

    /// Whether another event is to be held when so many of its kind are held and could be sent. At least one always is.
    fn is_worth_holding(&self, ready: usize) -> bool {
        ready == 0 || ready < MOST_AHEAD && self.tally.held_bytes < MOST_HELD_BYTES
    }

    fn is_held(&self, place: u64) -> bool {
        self.items.get(&place).is_some_and(|item| item.event.is_some())
    }

    /// Holds an event, if it is owed, not held yet, and wanted or one of few.
    pub(in crate::webhook) fn load(&mut self, event: &Arc<Event>) {
        let place = event.place();
        let Some(item) = self.items.get(&place).filter(|item| item.event.is_none()) else { return };
        let soon = self.seen.instant + SOON;
        let is_wanted = match item.stage {
            Stage::Idle(Turn::Fresh) => self.is_worth_holding(self.heads.held_fresh()),
            Stage::Idle(Turn::Retry(due)) if due.is_none_or(|due| due <= soon) => {
                self.is_worth_holding(self.heads.held_retries(soon, MOST_AHEAD))
            }
            Stage::Idle(Turn::Retry(_)) | Stage::Blocked | Stage::Running { .. } => false,
        };
        if is_wanted || self.has_spare(1) || self.wants() == Some(place) {
            self.set_event(place, Some(Arc::clone(event)));
        }
    }

    /// Notes that the event at `place` cannot be read now. Until it is asked for again, others are.
    pub(in crate::webhook) fn cannot_be_read(&mut self, place: u64, now: Now) {
        self.seen = now;
        let item = self.items.get(&place).filter(|item| item.event.is_none());
        if item.is_some_and(|item| matches!(item.stage, Stage::Idle(_))) {
            self.move_to(place, Stage::Idle(Turn::Retry(Some(now.instant + UNREADABLE))));
        }
    }

    /// Notes that the event at `place` cannot be read any more, and tells whether that was owed and is lost by it.
    pub(in crate::webhook) fn is_gone(&mut self, place: u64) -> bool {
        if self.items.get(&place).is_none_or(|item| item.event.is_some()) {
            return false;
        }
        let Some(item) = self.remove(place) else { return false };
        if self.journal.row(place, item.row, item.claim) != Row::None {
            self.journal.settle(place);
        }
        true
    }

    /// What is to be sent now. It is under way until it is settled.
    pub(in crate::webhook) fn next(&mut self, now: Now) -> Option<Arc<Event>> {
        self.seen = now;
        if !self.has_slot() {
            return None;
        }
        let place = match self.endpoint.gate(now.instant) {
            Gate::Shut => None,
            Gate::Probe => self.heads.oldest(),
            Gate::Free => self.pick(),
        }?;
        let item = self.items.get(&place)?;
        let event = item.event.clone()?;
        self.was_retry = item.spent > 0;
        self.move_to(place, Stage::Running { is_retry: self.was_retry });
        self.endpoint.begin(place);
        Some(event)
    }

    /// Whether what [`Outbox::next`] gave last had been tried before.
    pub(in crate::webhook) fn last_was_retry(&self) -> bool {
        self.was_retry
    }

    fn has_slot(&self) -> bool {
        self.tally.running + self.journal.slots() < self.policy.max_in_flight
    }

    /// Retries and first attempts take turns while both wait, and retries have no more than half of the slots then.
    fn pick(&self) -> Option<u64> {
        let (fresh, retry) = (self.heads.fresh(), self.heads.retry(self.seen.instant));
        let most_retries = (self.policy.max_in_flight / 2).max(1);
        let may_retry = !self.was_retry && self.tally.running_retries < most_retries;
        if may_retry { retry.or(fresh) } else { fresh.or(retry) }
    }

    /// When to call [`Outbox::next`] and [`Outbox::wants`] although nothing else has happened: something comes due, or the
    /// endpoint's standing changes.
    pub(in crate::webhook) fn due(&self) -> Option<Instant> {
        let now = self.seen.instant;
        let turn = self.endpoint.turns_at(now);
        match self.standing().state {
            EndpointState::Disabled => None,
            EndpointState::Throttled => turn,
            _ if !self.has_slot() => None,
            EndpointState::Open => {
                let oldest = self.heads.oldest()?;
                turn.filter(|turn| *turn > now || self.is_held(oldest))
            }
            EndpointState::Active => self.heads.due(now),
        }
    }

    /// Notes how an attempt went.
    pub(in crate::webhook) fn settle(&mut self, place: u64, attempt: Attempt, verdict: &Verdict, now: Now) {
        self.seen = now;
        if !self.items.get(&place).is_some_and(Item::is_running) {
            return;
        }
        self.hear(place, &attempt, verdict);
        let Some(item) = self.items.get_mut(&place) else { return };
        item.spend(attempt);
        let is_exhausted = item.spent > self.policy.max_retries;
        let goes_on = matches!(item.claim, Claim::Owed | Claim::Letter) && !is_exhausted;
        let ending = match verdict {
            Verdict::Again { after } if goes_on => return self.wait(place, *after),
            Verdict::Accepted => Ending::Accepted,
            Verdict::Again { .. } => Ending::Dead(DeadReason::Exhausted),
            Verdict::Refused | Verdict::Gone => Ending::Dead(DeadReason::Refused),
            Verdict::Forbidden => Ending::Dead(DeadReason::EgressRefused),
        };
        self.finish(place, ending);
    }

    /// Notes how an attempt went at an endpoint that is the webhook's no longer, or that an operator has enabled since. That
    /// says nothing of the present one, which gets what has not been accepted, without an attempt less.
    pub(in crate::webhook) fn settle_former(&mut self, place: u64, attempt: Attempt, verdict: &Verdict, now: Now) {
        self.seen = now;
        let Some(item) = self.items.get_mut(&place).filter(|item| item.is_running()) else { return };
        item.note(attempt);
        let (claim, turn) = (item.claim, item.turn());
        if *verdict == Verdict::Accepted {
            self.finish(place, Ending::Accepted);
        } else if matches!(claim, Claim::Owed | Claim::Letter) {
            self.move_to(place, Stage::Idle(turn));
            if claim == Claim::Owed {
                self.journal.touch(place, true);
            }
        } else {
            self.finish(place, Ending::Dead(DeadReason::Refused));
        }
    }

    /// What the answer says of the endpoint.
    fn hear(&mut self, place: u64, attempt: &Attempt, verdict: &Verdict) {
        let (endpoint, mut chance) = self.chance();
        match verdict {
            Verdict::Again { after } => endpoint.failed(place, attempt, *after, &mut chance),
            Verdict::Forbidden => endpoint.no_answer(place, &mut chance),
            Verdict::Gone => endpoint.disable(&circuit_breaker::problem_of(attempt)),
            Verdict::Accepted | Verdict::Refused if endpoint.answered() => self.release(),
            Verdict::Accepted | Verdict::Refused => {}
        }
    }

    /// Lets an item wait for its next attempt.
    fn wait(&mut self, place: u64, after: Option<Duration>) {
        let Some((spent, claim)) = self.items.get(&place).map(|item| (item.spent, item.claim)) else { return };
        let wait = self.chance().1.wait_after(spent).max(after.unwrap_or_default().min(LONGEST_WAIT));
        self.move_to(place, Stage::Idle(Turn::Retry(Some(self.seen.instant + wait))));
        // Retries must not keep new events from being held.
        if claim == Claim::Owed && !self.is_in_memory() && !self.has_spare(2) {
            self.set_event(place, None);
        }
        if claim == Claim::Owed {
            self.journal.touch(place, true);
        }
        let session = self.items.get(&place).and_then(|item| item.delivery.session.clone());
        if let Some(session) = session.filter(|_| !self.letters.is_empty()) {
            self.leave_letters(&session);
        }
    }

    /// Lets an item go.
    fn finish(&mut self, place: u64, ending: Ending) {
        let Some(item) = self.remove(place) else { return };
        self.journal.occupy();
        let row = self.journal.row(place, item.row, item.claim);
        match (item.claim, ending) {
            (Claim::Expired, Ending::Dead(_)) => {}
            (Claim::Erased, _) => self.journal.settle(place),
            (_, Ending::Accepted) => {
                if row != Row::None {
                    self.journal.settle(place);
                }
                self.delivered.push(item.delivery);
            }
            (_, Ending::Dead(reason)) => {
                self.journal.bury(item.into_letter(reason, self.seen.unix_ms), row == Row::There);
            }
        }
    }

    /// Everything that waits for its next attempt is due at once.
    pub(super) fn release(&mut self) {
        for place in self.heads.release() {
            if let Some(item) = self.items.get_mut(&place) {
                item.stage = Stage::Idle(Turn::Retry(None));
            }
        }
    }

    /// Where events are held here alone: gives up the oldest, until the bound is kept.
    pub(super) fn shed(&mut self) {
        let Keeping::InMemory { most_bytes } = self.policy.keeping else { return };
        while self.tally.held_bytes as u64 > most_bytes {
            let is_idle = |item: &&Item| item.event.is_some() && !item.is_running();
            let oldest = self.owed_items().find(is_idle).map(|item| item.delivery.place);
            let Some(item) = oldest.and_then(|place| self.remove(place)) else { return };
            let row = self.journal.row(item.delivery.place, item.row, item.claim);
            self.journal.bury(item.into_letter(DeadReason::Expired, self.seen.unix_ms), row == Row::There);
        }
    }
}
