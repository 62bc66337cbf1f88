//! What is sent next, which events must be at hand for that, and what an answer means.
//!
//! May use: `delivery`, `event`.

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
    webhook::{Disposition, Now},
    webhook_delivery::{Attempt, DeadLetterReason, EndpointState},
};

/// What becomes of a delivery after an attempt.
#[derive(Clone, Copy, Debug)]
enum FinalOutcome {
    Accepted,
    Dead(DeadLetterReason),
}

impl Outbox {
    /// The lowest place whose event is to be sent soon, but is not held here.
    pub(in crate::webhook) fn next_to_load(&self) -> Option<u64> {
        let soon = self.clock.instant + PRELOAD_LEAD_TIME;
        match self.breaker.next_change_at(self.clock.instant) {
            Some(change_at) if change_at > soon => return None,
            None if self.breaker.permission(self.clock.instant) == SendPermission::Denied => {
                return None;
            }
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

    /// Whether another event is to be held when so many of its kind are held and could be sent. At least one always is.
    fn is_worth_loading(&self, ready: usize) -> bool {
        ready == 0 || ready < MAX_PRELOADED_HEADS && self.counts.loaded_bytes < MAX_LOADED_BYTES
    }

    fn is_loaded(&self, position: u64) -> bool {
        self.items.get(&position).is_some_and(|item| item.event.is_some())
    }

    /// Holds an event, if it is owed, not held yet, and wanted or one of few.
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
        if is_wanted || self.has_load_budget(1) || self.next_to_load() == Some(position) {
            self.set_event(position, Some(Arc::clone(event)));
        }
    }

    /// Notes that the event at `place` cannot be read now. Until it is asked for again, others are.
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

    /// Notes that the event at `place` cannot be read any more, and tells whether that was owed and is lost by it.
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

    /// What is to be sent now. It is under way until it is settled.
    pub(in crate::webhook) fn next(&mut self, now: Now) -> Option<Arc<Event>> {
        self.clock = now;
        if !self.has_slot() {
            return None;
        }
        let position = match self.breaker.permission(now.instant) {
            SendPermission::Denied => None,
            SendPermission::Probe => self.queue_heads.oldest(),
            SendPermission::Any => self.pick_head(),
        }?;
        let item = self.items.get(&position)?;
        let event = item.event.clone()?;
        self.was_retry = item.attempts_spent > 0;
        self.set_stage(position, DeliveryStage::InFlight { is_retry: self.was_retry });
        self.breaker.begin_attempt(position);
        Some(event)
    }

    /// Whether what [`Outbox::next`] gave last had been tried before.
    pub(in crate::webhook) fn last_was_retry(&self) -> bool {
        self.was_retry
    }

    fn has_slot(&self) -> bool {
        self.counts.in_flight + self.journal.occupied_slots() < self.policy.max_in_flight
    }

    /// Retries and first attempts take turns while both wait, and retries have no more than half of the slots then.
    fn pick_head(&self) -> Option<u64> {
        let (fresh, retry) =
            (self.queue_heads.oldest_fresh(), self.queue_heads.first_due_retry(self.clock.instant));
        let max_retries_in_flight = (self.policy.max_in_flight / 2).max(1);
        let may_retry = !self.was_retry && self.counts.in_flight_retries < max_retries_in_flight;
        if may_retry { retry.or(fresh) } else { fresh.or(retry) }
    }

    /// When to call [`Outbox::next`] and [`Outbox::wants`] although nothing else has happened: something comes due, or the
    /// endpoint's standing changes.
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

    /// Notes how an attempt went.
    pub(in crate::webhook) fn settle(
        &mut self,
        position: u64,
        attempt: Attempt,
        verdict: &Disposition,
        now: Now,
    ) {
        self.clock = now;
        if !self.items.get(&position).is_some_and(OutboxItem::is_in_flight) {
            return;
        }
        self.update_breaker(position, &attempt, verdict);
        let Some(item) = self.items.get_mut(&position) else { return };
        item.spend_attempt(attempt);
        let is_exhausted = item.attempts_spent > self.policy.max_retries;
        let can_retry =
            matches!(item.item_kind, ItemKind::Owed | ItemKind::Redelivery) && !is_exhausted;
        let outcome = match verdict {
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

    /// Notes how an attempt went at an endpoint that is the webhook's no longer, or that an operator has enabled since. That
    /// says nothing of the present one, which gets what has not been accepted, without an attempt less.
    pub(in crate::webhook) fn settle_former(
        &mut self,
        position: u64,
        attempt: Attempt,
        verdict: &Disposition,
        now: Now,
    ) {
        self.clock = now;
        let Some(item) = self.items.get_mut(&position).filter(|item| item.is_in_flight()) else {
            return;
        };
        item.record_attempt(attempt);
        let (item_kind, next_attempt) = (item.item_kind, item.next_attempt());
        if *verdict == Disposition::Accepted {
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

    /// What the answer says of the endpoint.
    fn update_breaker(&mut self, position: u64, attempt: &Attempt, verdict: &Disposition) {
        let (endpoint, mut backoff) = self.breaker_with_backoff();
        match verdict {
            Disposition::Retry { after: retry_after } => {
                endpoint.record_failure(position, attempt, *retry_after, &mut backoff)
            }
            Disposition::Forbidden => endpoint.record_no_answer(position, &mut backoff),
            Disposition::Gone => endpoint.disable(&circuit_breaker::describe_problem(attempt)),
            Disposition::Accepted | Disposition::Refused if endpoint.record_answer() => {
                self.make_retries_due()
            }
            Disposition::Accepted | Disposition::Refused => {}
        }
    }

    /// Lets an item wait for its next attempt.
    fn schedule_retry(&mut self, position: u64, retry_after: Option<Duration>) {
        let Some((spent, item_kind)) =
            self.items.get(&position).map(|item| (item.attempts_spent, item.item_kind))
        else {
            return;
        };
        let delay = self
            .breaker_with_backoff()
            .1
            .delay_after(spent)
            .max(retry_after.unwrap_or_default().min(MAX_RETRY_DELAY));
        self.set_stage(
            position,
            DeliveryStage::Idle(NextAttempt::Retry(Some(self.clock.instant + delay))),
        );
        // Retries must not keep new events from being held.
        if item_kind == ItemKind::Owed && !self.is_in_memory() && !self.has_load_budget(2) {
            self.set_event(position, None);
        }
        if item_kind == ItemKind::Owed {
            self.journal.mark_dirty(position, true);
        }
        let session = self.items.get(&position).and_then(|item| item.delivery.session.clone());
        if let Some(session) = session.filter(|_| !self.redeliveries.is_empty()) {
            self.drop_blocked_redeliveries(&session);
        }
    }

    /// Lets an item go.
    fn finish(&mut self, position: u64, outcome: FinalOutcome) {
        let Some(item) = self.remove_item(position) else { return };
        self.journal.occupy_slot();
        let row = self.journal.row_state(position, item.row, item.item_kind);
        match (item.item_kind, outcome) {
            (ItemKind::Expired, FinalOutcome::Dead(_)) => {}
            (ItemKind::Erased, _) => self.journal.settle(position),
            (_, FinalOutcome::Accepted) => {
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

    /// Everything that waits for its next attempt is due at once.
    pub(super) fn make_retries_due(&mut self) {
        for position in self.queue_heads.make_retries_due() {
            if let Some(item) = self.items.get_mut(&position) {
                item.stage = DeliveryStage::Idle(NextAttempt::Retry(None));
            }
        }
    }

    /// Where events are held here alone: gives up the oldest, until the bound is kept.
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

/// A retry's event is loaded so long before it is due. Longer than a read takes.
const PRELOAD_LEAD_TIME: Duration = Duration::from_secs(1);

/// After an event could not be read. Longer than the pause after each such event, so that a few of them leave time for others.
const UNREADABLE_EVENT_DELAY: Duration = Duration::from_secs(10);

/// Heads of lanes whose events are loaded before there is a slot. A page of the store brings about as many.
pub(super) const MAX_PRELOADED_HEADS: usize = 64;
