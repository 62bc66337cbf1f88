//! Scheduling: the next event to send, the events to load for it, and the consequence of each
//! outcome.
//!
//! May use: `event`, `log`, `webhook_delivery`.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    MAX_LOADED_BYTES, Outbox,
    circuit_breaker::{self, MAX_RETRY_DELAY, SendPermission},
    item::{DeliveryStage, ItemKind, NextAttempt, OutboxItem, RowState},
    policy::EventStorage,
};
use crate::{
    event::Event,
    log::DamagedEvent,
    webhook::{Disposition, Now},
    webhook_delivery::{Attempt, DeadLetterReason, Delivery, EndpointState},
};

/// End of a delivery.
#[derive(Clone, Copy, Debug)]
enum FinalOutcome {
    Accepted,
    Dead(DeadLetterReason),
}

impl Outbox {
    /// Returns the lowest position whose event is needed soon and is not loaded.
    pub(in crate::webhook) fn next_to_load(&self) -> Option<u64> {
        let soon = self.clock.instant + PRELOAD_LEAD_TIME;
        match self.breaker.next_change_at(self.clock.instant) {
            // Throttled, or open between probes: loaded events would only take memory meanwhile.
            Some(change_at) if change_at > soon => return None,
            // Disabled, or a probe is in flight: no time at which anything may be sent is known.
            None if self.breaker.permission(self.clock.instant) == SendPermission::Denied => {
                return None;
            }
            // The only delivery that an open circuit lets out is the probe, the oldest head.
            _ if self.breaker.is_open() => {
                return self.queue_heads.oldest().filter(|position| !self.is_loaded(*position));
            }
            _ => {}
        }
        let fresh = self
            .queue_heads
            .first_unloaded_fresh()
            .filter(|_| self.is_worth_loading(self.queue_heads.loaded_fresh_count()));
        let loaded_retries = self.queue_heads.loaded_retry_count(soon, MAX_PRELOADED_HEADS);
        let retry = self
            .queue_heads
            .first_unloaded_retry(soon)
            .filter(|_| self.is_worth_loading(loaded_retries));
        fresh.into_iter().chain(retry).min()
    }

    /// Returns whether another event of a kind should be loaded while `ready` of that kind are. The
    /// first always is: the bound on bytes must not stop delivery.
    fn is_worth_loading(&self, ready: usize) -> bool {
        ready == 0 || ready < MAX_PRELOADED_HEADS && self.counts.loaded_bytes < MAX_LOADED_BYTES
    }

    fn is_loaded(&self, position: u64) -> bool {
        self.items.get(&position).is_some_and(|item| item.event.is_some())
    }

    /// Loads an event if its delivery is owed, not loaded, and either needed soon or within the
    /// budget.
    pub(in crate::webhook) fn load(&mut self, event: &Arc<Event>) {
        let position = event.position();
        let Some(item) = self.items.get(&position).filter(|item| item.event.is_none()) else {
            return;
        };
        let soon = self.clock.instant + PRELOAD_LEAD_TIME;
        let is_wanted = match item.stage {
            DeliveryStage::Idle(NextAttempt::Fresh) => {
                self.is_worth_loading(self.queue_heads.loaded_fresh_count())
            }
            DeliveryStage::Idle(NextAttempt::Retry(due)) if due.is_none_or(|due| due <= soon) => {
                self.is_worth_loading(
                    self.queue_heads.loaded_retry_count(soon, MAX_PRELOADED_HEADS),
                )
            }
            DeliveryStage::Idle(NextAttempt::Retry(_))
            | DeliveryStage::Blocked
            | DeliveryStage::InFlight { .. } => false,
        };
        // The requested event is accepted in any case: otherwise it would be read again for ever.
        if is_wanted || self.has_load_budget(1) || self.next_to_load() == Some(position) {
            self.set_event(position, Some(Arc::clone(event)));
        }
    }

    /// Records that an event cannot be read at present. Its delivery waits, and others are loaded
    /// first.
    pub(in crate::webhook) fn defer_unreadable(&mut self, position: u64, now: Now) {
        self.clock = now;
        let item = self.items.get(&position).filter(|item| item.event.is_none());
        if item.is_some_and(|item| matches!(item.stage, DeliveryStage::Idle(_))) {
            self.set_stage(
                position,
                DeliveryStage::Idle(NextAttempt::Retry(Some(now.instant + UNREADABLE_EVENT_DELAY))),
            );
        }
    }

    /// Drops a delivery whose event no longer exists, and returns whether a delivery was lost by
    /// that.
    pub(in crate::webhook) fn discard_unreadable(&mut self, position: u64) -> bool {
        if self.items.get(&position).is_none_or(|item| item.event.is_some()) {
            return false;
        }
        let Some(item) = self.remove_item(position) else { return false };
        if self.journal.row_state(position, item.row, item.item_kind) != RowState::Absent {
            self.journal.settle(position);
        }
        true
    }

    /// Gives up a delivery whose event the store has and cannot give any more: a dead letter
    /// without a body.
    pub(in crate::webhook) fn give_up_damaged(&mut self, position: u64, now: Now) {
        self.clock = now;
        if self.items.get(&position).is_none_or(|item| item.event.is_some()) {
            return;
        }
        let Some(item) = self.remove_item(position) else { return };
        let row = self.journal.row_state(position, item.row, item.item_kind);
        self.journal.record_dead_letter(
            item.into_dead_letter(DeadLetterReason::Damaged, now.unix_ms),
            row == RowState::Present,
        );
    }

    /// Gives up an event that the reader could not read: the cursor moves past it, and it is a dead
    /// letter without a body.
    pub(in crate::webhook) fn give_up_unread(
        &mut self,
        position: u64,
        event: DamagedEvent,
        now: Now,
    ) {
        self.clock = now;
        if self.items.contains_key(&position) {
            return;
        }
        self.cursor = self.cursor.max(position);
        let DamagedEvent { id, kind, session } = event;
        let delivery = Delivery {
            position,
            event_id: id,
            kind,
            session,
            created_at: now.unix_ms,
            attempts: Vec::new(),
        };
        let item = OutboxItem::new(delivery, None, ItemKind::Owed);
        let dead_letter = item.into_dead_letter(DeadLetterReason::Damaged, now.unix_ms);
        self.journal.record_dead_letter(dead_letter, false);
    }

    /// Returns the next event to send. Its delivery is in flight until it is settled.
    pub(in crate::webhook) fn next(&mut self, now: Now) -> Option<Arc<Event>> {
        self.clock = now;
        if !self.has_slot() {
            return None;
        }
        let position = match self.breaker.permission(now.instant) {
            SendPermission::Denied => None,
            // The oldest head whether due or not: the circuit's own interval replaces its delay.
            SendPermission::Probe => self.queue_heads.oldest(),
            SendPermission::Any => self.pick_head(),
        }?;
        let item = self.items.get(&position)?;
        let event = item.event.clone()?; // a probe that is not loaded: `next_to_load` names it
        self.was_retry = item.attempts_spent > 0;
        self.set_stage(position, DeliveryStage::InFlight { is_retry: self.was_retry });
        self.breaker.begin_attempt(position);
        Some(event)
    }

    /// Returns whether the event that [`Outbox::next`] returned last had been tried before.
    pub(in crate::webhook) fn last_was_retry(&self) -> bool {
        self.was_retry
    }

    /// Returns whether a slot is free: see [`DeliveryPolicy`](super::DeliveryPolicy).
    fn has_slot(&self) -> bool {
        self.counts.in_flight + self.journal.occupied_slots() < self.policy.max_in_flight
    }

    /// Picks the next head. Retries and fresh deliveries take turns while both wait, and retries
    /// then have at most half of the slots, so that neither starves the other.
    fn pick_head(&self) -> Option<u64> {
        let (fresh, retry) =
            (self.queue_heads.oldest_fresh(), self.queue_heads.first_due_retry(self.clock.instant));
        let max_retries_in_flight = (self.policy.max_in_flight / 2).max(1);
        let may_retry = !self.was_retry && self.counts.in_flight_retries < max_retries_in_flight;
        if may_retry { retry.or(fresh) } else { fresh.or(retry) }
    }

    /// Returns when to call [`Outbox::next`] and [`Outbox::next_to_load`] although nothing else has
    /// happened: a delivery comes due, or the state of the endpoint changes.
    pub(in crate::webhook) fn next_due_at(&self) -> Option<Instant> {
        let now = self.clock.instant;
        let next_change = self.breaker.next_change_at(now);
        match self.endpoint_status().state {
            EndpointState::Disabled => None,
            EndpointState::Throttled => next_change,
            _ if !self.has_slot() => None,
            EndpointState::Open => {
                let oldest = self.queue_heads.oldest()?;
                next_change.filter(|turn| *turn > now || self.is_loaded(oldest))
            }
            EndpointState::Active => self.queue_heads.next_due_at(now),
        }
    }

    /// Records the outcome of an attempt at the current endpoint.
    pub(in crate::webhook) fn settle(
        &mut self,
        position: u64,
        attempt: Attempt,
        disposition: &Disposition,
        now: Now,
    ) {
        self.clock = now;
        if !self.items.get(&position).is_some_and(OutboxItem::is_in_flight) {
            return;
        }
        self.update_breaker(position, &attempt, disposition);
        let Some(item) = self.items.get_mut(&position) else { return };
        item.spend_attempt(attempt);
        // Expired and erased deliveries have no retry: the store has settled them already.
        let is_exhausted = item.attempts_spent > self.policy.max_retries;
        let can_retry =
            matches!(item.item_kind, ItemKind::Owed | ItemKind::Redelivery) && !is_exhausted;
        let outcome = match disposition {
            Disposition::Retry { after: retry_after } if can_retry => {
                return self.schedule_retry(position, *retry_after);
            }
            Disposition::Accepted => FinalOutcome::Accepted,
            Disposition::Retry { .. } => FinalOutcome::Dead(DeadLetterReason::Exhausted),
            Disposition::Refused | Disposition::Gone => {
                FinalOutcome::Dead(DeadLetterReason::Refused)
            }
            Disposition::Forbidden => FinalOutcome::Dead(DeadLetterReason::EgressRefused),
        };
        self.finish(position, outcome);
    }

    /// Records the outcome of an attempt at a former endpoint: the URL has changed, or an operator
    /// has enabled the endpoint since.
    ///
    /// The outcome says nothing about the current endpoint, so the circuit breaker is not involved,
    /// and a delivery that was not accepted keeps its remaining attempts.
    pub(in crate::webhook) fn settle_former(
        &mut self,
        position: u64,
        attempt: Attempt,
        disposition: &Disposition,
        now: Now,
    ) {
        self.clock = now;
        let Some(item) = self.items.get_mut(&position).filter(|item| item.is_in_flight()) else {
            return;
        };
        item.record_attempt(attempt);
        let (item_kind, next_attempt) = (item.item_kind, item.next_attempt());
        if *disposition == Disposition::Accepted {
            self.finish(position, FinalOutcome::Accepted);
        } else if matches!(item_kind, ItemKind::Owed | ItemKind::Redelivery) {
            self.set_stage(position, DeliveryStage::Idle(next_attempt));
            if item_kind == ItemKind::Owed {
                self.journal.mark_dirty(position, true);
            }
        } else {
            self.finish(position, FinalOutcome::Dead(DeadLetterReason::Refused));
        }
    }

    /// Updates the circuit breaker by an outcome. Only an answer closes an open circuit; a refused
    /// address is neither answer nor failure.
    fn update_breaker(&mut self, position: u64, attempt: &Attempt, disposition: &Disposition) {
        let (endpoint, mut backoff) = self.breaker_with_backoff();
        match disposition {
            Disposition::Retry { after: retry_after } => {
                endpoint.record_failure(position, attempt, *retry_after, &mut backoff);
            }
            Disposition::Forbidden => endpoint.record_no_answer(position, &mut backoff),
            Disposition::Gone => endpoint.disable(&circuit_breaker::describe_problem(attempt)),
            Disposition::Accepted | Disposition::Refused if endpoint.record_answer() => {
                self.make_retries_due();
            }
            Disposition::Accepted | Disposition::Refused => {}
        }
    }

    /// Makes a delivery wait for its next attempt.
    fn schedule_retry(&mut self, position: u64, retry_after: Option<Duration>) {
        let Some((spent, item_kind)) =
            self.items.get(&position).map(|item| (item.attempts_spent, item.item_kind))
        else {
            return;
        };
        // `Retry-After` is a lower bound (RFC 9110 §10.2.3): a longer delay of the policy stays.
        let delay = self
            .breaker_with_backoff()
            .1
            .delay_after(spent)
            .max(retry_after.unwrap_or_default().min(MAX_RETRY_DELAY));
        self.set_stage(
            position,
            DeliveryStage::Idle(NextAttempt::Retry(Some(self.clock.instant + delay))),
        );
        // Waiting retries may use half of the load budget: new events need the rest.
        if item_kind == ItemKind::Owed && !self.is_in_memory() && !self.has_load_budget(2) {
            self.set_event(position, None);
        }
        if item_kind == ItemKind::Owed {
            self.journal.mark_dirty(position, true);
        }
        // The session's head waits now, so its other redeliveries go back to the store.
        let session = self.items.get(&position).and_then(|item| item.delivery.session.clone());
        if let Some(session) = session.filter(|_| !self.redeliveries.is_empty()) {
            self.drop_blocked_redeliveries(&session);
        }
    }

    /// Removes a settled delivery and records its outcome for the store.
    fn finish(&mut self, position: u64, outcome: FinalOutcome) {
        let Some(item) = self.remove_item(position) else { return };
        // The attempt's slot passes on to the settlement until that is committed.
        self.journal.occupy_slot(position);
        let row = self.journal.row_state(position, item.row, item.item_kind);
        match (item.item_kind, outcome) {
            // The store has the dead letter already.
            (ItemKind::Expired, FinalOutcome::Dead(_)) => {}
            (ItemKind::Erased, _) => self.journal.settle(position),
            (_, FinalOutcome::Accepted) => {
                // Without a row, the cursor alone records the settlement.
                if row != RowState::Absent {
                    self.journal.settle(position);
                }
                self.delivered.push(item.delivery);
            }
            (_, FinalOutcome::Dead(reason)) => {
                self.journal.record_dead_letter(
                    item.into_dead_letter(reason, self.clock.unix_ms),
                    row == RowState::Present,
                );
            }
        }
    }

    /// Makes every waiting retry due at once.
    pub(super) fn make_retries_due(&mut self) {
        // The index has moved them already, so the stage is set directly: `set_stage` would look
        // for them under their old due time.
        for position in self.queue_heads.make_retries_due() {
            if let Some(item) = self.items.get_mut(&position) {
                item.stage = DeliveryStage::Idle(NextAttempt::Retry(None));
            }
        }
    }

    /// Drops the oldest deliveries until the bound on bytes is kept, if events are in memory only.
    /// Deliveries in flight are kept.
    pub(super) fn enforce_memory_limit(&mut self) {
        let EventStorage::InMemory { max_bytes } = self.policy.event_storage else { return };
        while self.counts.loaded_bytes as u64 > max_bytes {
            let is_evictable = |item: &&OutboxItem| item.event.is_some() && !item.is_in_flight();
            let oldest = self.owed_items().find(is_evictable).map(|item| item.delivery.position);
            let Some(item) = oldest.and_then(|position| self.remove_item(position)) else { return };
            let row = self.journal.row_state(item.delivery.position, item.row, item.item_kind);
            self.journal.record_dead_letter(
                item.into_dead_letter(DeadLetterReason::Expired, self.clock.unix_ms),
                row == RowState::Present,
            );
        }
    }
}

/// An event is loaded this long before its retry is due: longer than a read takes.
const PRELOAD_LEAD_TIME: Duration = Duration::from_secs(1);

/// Delay of a delivery whose event could not be read: longer than the worker's pause after each
/// failed read, so that a few such events leave time for others.
const UNREADABLE_EVENT_DELAY: Duration = Duration::from_secs(10);

/// Heads whose events are loaded before a slot is free: about as many as one page of the store has.
pub(super) const MAX_PRELOADED_HEADS: usize = 64;
