//! What one webhook is owed, in which order it is tried, and how its endpoint stands: a state machine without I/O.
//!
//! In: events as they are read, answers, orders of operators, the time. Out: what to send next, and what to write down.
//!
//! ```text
//!            take                   next                  settle
//! log ─────────────► lane ─ head ─────────► running ─┬─ accepted ──► delivered (the last 1000)
//!        one lane per  ▲                             ├─ retry ─────► waiting ──┐
//!        session       └─────────────────────────────┴─────────────────────────┘
//!                                                    └─ given up ──► dead letter (in the store)
//! ```
//!
//! Every step takes logarithmic time, however much is owed. What releases, expires or erases many at once has been paid for by
//! each of them.
//!
//! May use: `delivery`, `event`, the store's words.

mod circuit_breaker;
mod commit;
mod counts;
mod delivered;
mod item;
mod items;
mod journal;
#[cfg(test)]
mod model;
mod operator;
mod policy;
mod redelivery;
mod redelivery_scan;
mod schedule;
mod session_queues;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use fastrand::Rng;
use tokio::time::Instant;

pub(super) use self::{
    circuit_breaker::EndpointStatus,
    policy::{DeliveryPolicy, EventStorage},
};
use self::{
    circuit_breaker::{BackoffContext, CircuitBreaker, MAX_RETRY_DELAY},
    counts::OutboxCounts,
    delivered::DeliveredHistory,
    item::{DeliveryStage, ItemKind, NextAttempt, OutboxItem, RowState},
    journal::OutboxJournal,
    redelivery_scan::RedeliveryScan,
    session_queues::{QueueHeads, SessionQueues},
};
use super::Now;
use crate::{
    event::Event,
    store::OwedDelivery,
    webhook_delivery::{Delivery, EndpointState},
};

/// Deliveries that are owed to one webhook at one time where the store has their events: some 20 MiB for each webhook that is so
/// far behind. What comes behind waits in the log.
pub(super) const MAX_OWED_DELIVERIES: u64 = 65_536;
/// Events that are held although the store has them. Enough that a webhook that keeps up reads nothing again.
const MAX_LOADED_EVENTS: usize = 256;
/// Bytes of them.
const MAX_LOADED_BYTES: usize = 4 << 20;

/// What one webhook is owed.
#[derive(Debug)]
pub(super) struct Outbox {
    policy: DeliveryPolicy,
    cursor: u64,
    /// The latest moment that anybody has told.
    clock: Now,
    /// Everything to deliver, by place.
    items: BTreeMap<u64, OutboxItem>,
    /// Those of them that are dead letters, delivered again.
    redeliveries: BTreeSet<u64>,
    redelivery_scan: RedeliveryScan,
    session_queues: SessionQueues,
    queue_heads: QueueHeads,
    breaker: CircuitBreaker,
    journal: OutboxJournal,
    delivered: DeliveredHistory,
    counts: OutboxCounts,
    /// The last attempt that began was a retry.
    was_retry: bool,
    /// The store has made dead letters up to this place.
    expired_through: u64,
    random: Rng,
}

impl Outbox {
    /// The outbox of a webhook that has come to `position`, and is owed these before it.
    pub(super) fn new(
        policy: DeliveryPolicy,
        cursor: u64,
        owed: Vec<OwedDelivery>,
        now: Now,
    ) -> Self {
        let mut outbox = Self {
            policy,
            cursor,
            clock: now,
            items: BTreeMap::new(),
            redeliveries: BTreeSet::new(),
            redelivery_scan: RedeliveryScan::default(),
            session_queues: SessionQueues::default(),
            queue_heads: QueueHeads::default(),
            breaker: CircuitBreaker::default(),
            journal: OutboxJournal::new(cursor),
            delivered: DeliveredHistory::default(),
            counts: OutboxCounts::default(),
            was_retry: false,
            expired_through: 0,
            random: Rng::new(),
        };
        owed.into_iter().for_each(|owed| outbox.restore(owed));
        outbox
    }

    fn restore(&mut self, owed: OwedDelivery) {
        let next_attempt = owed
            .next_attempt_at
            .map_or(NextAttempt::Fresh, |at| NextAttempt::Retry(Some(self.instant_of(at))));
        let mut item = OutboxItem::new(owed.delivery, None, ItemKind::Owed);
        item.row = RowState::Present;
        item.attempts_spent = u32::try_from(item.delivery.attempts.len()).unwrap_or(u32::MAX);
        self.insert_item(item, next_attempt);
    }

    /// Goes on under another policy.
    pub(super) fn set_policy(&mut self, policy: DeliveryPolicy) {
        self.policy = policy;
    }

    /// Whether another event may be taken.
    pub(super) fn has_capacity(&self) -> bool {
        self.is_in_memory() || self.counts.owed < MAX_OWED_DELIVERIES
    }

    /// Takes over an event that is owed, behind everything so far, and passes its place. One that has been passed is left.
    pub(super) fn enqueue(&mut self, event: Arc<Event>, now: Now) {
        self.clock = now;
        let position = event.position();
        if position <= self.cursor {
            return;
        }
        self.cursor = position;
        let delivery = Delivery {
            position,
            event_id: event.id(),
            kind: event.kind().clone(),
            session: event.session().cloned(),
            created_at: now.unix_ms_before(event.received().unwrap_or(now.instant)),
            attempts: Vec::new(),
        };
        let event = (self.is_in_memory() || self.has_load_budget(1)).then_some(event);
        self.insert_item(OutboxItem::new(delivery, event, ItemKind::Owed), NextAttempt::Fresh);
        self.journal.mark_dirty(position, false);
        self.enforce_memory_limit();
    }

    /// Notes that everything up to `place` has been taken or is not for this webhook.
    pub(super) fn advance_to(&mut self, position: u64) {
        self.cursor = self.cursor.max(position);
    }

    /// Everything up to this place has been passed.
    pub(super) fn cursor(&self) -> u64 {
        self.cursor
    }

    /// How the endpoint stands.
    pub(super) fn endpoint_status(&self) -> EndpointStatus {
        self.breaker.status(self.clock.instant)
    }

    /// How many deliveries are owed, without those of dead letters; and when the oldest of their events came, in Unix milliseconds.
    pub(super) fn owed(&self) -> (u64, Option<u64>) {
        (self.counts.owed, self.owed_items().next().map(|item| item.delivery.created_at))
    }

    /// Deliveries that are owed, newest first: at most `most` before the place `before`; with when each is due, in Unix
    /// milliseconds, unless it waits for its turn or is under way.
    pub(super) fn pending(
        &self,
        before: Option<u64>,
        limit: usize,
        now: Now,
    ) -> Vec<(Delivery, Option<u64>)> {
        let items = self.items.range(..before.unwrap_or(u64::MAX)).rev().map(|(_, item)| item);
        let owed = items.filter(|item| item.item_kind == ItemKind::Owed).take(limit);
        owed.map(|item| (item.delivery.clone(), self.due_at(item, now))).collect()
    }

    /// The delivery at `place` that is owed, or a dead letter on its way.
    #[cfg(test)]
    fn get(&self, position: u64) -> Option<&Delivery> {
        let item = self.items.get(&position)?;
        matches!(item.item_kind, ItemKind::Owed | ItemKind::Redelivery).then_some(&item.delivery)
    }

    /// Deliveries that were accepted, newest first, each with its number: at most `most` before the number `before`.
    pub(super) fn delivered(&self, before: Option<u64>, limit: usize) -> Vec<(u64, Delivery)> {
        self.delivered.list(before, limit)
    }

    /// What is owed, oldest first. Few others stand between: what is under way, and letters.
    fn owed_items(&self) -> impl Iterator<Item = &OutboxItem> {
        self.items.values().filter(|item| item.item_kind == ItemKind::Owed)
    }

    /// When an item is due, in Unix milliseconds, if that is known.
    fn due_at(&self, item: &OutboxItem, now: Now) -> Option<u64> {
        let own = match item.stage {
            DeliveryStage::Blocked | DeliveryStage::InFlight { .. } => return None,
            DeliveryStage::Idle(NextAttempt::Fresh | NextAttempt::Retry(None)) => now.instant,
            DeliveryStage::Idle(NextAttempt::Retry(Some(due))) => due.max(now.instant),
        };
        let status = self.breaker.status(now.instant);
        let due = match status.state {
            EndpointState::Active => own,
            EndpointState::Throttled => own.max(status.until?),
            EndpointState::Open if self.queue_heads.oldest() == Some(item.delivery.position) => {
                status.until?
            }
            EndpointState::Open | EndpointState::Disabled => return None,
        };
        Some(unix_ms_of(due, now))
    }

    fn is_in_memory(&self) -> bool {
        matches!(self.policy.event_storage, EventStorage::InMemory { .. })
    }

    /// Whether few enough events are held for another one: of the bound, one part in `share` is for this use.
    fn has_load_budget(&self, share: usize) -> bool {
        self.counts.loaded < MAX_LOADED_EVENTS / share
            && self.counts.loaded_bytes < MAX_LOADED_BYTES / share
    }

    fn instant_of(&self, unix_ms: u64) -> Instant {
        let wait = Duration::from_millis(unix_ms.saturating_sub(self.clock.unix_ms));
        self.clock.instant + wait.min(MAX_RETRY_DELAY)
    }

    fn breaker_with_backoff(&mut self) -> (&mut CircuitBreaker, BackoffContext<'_>) {
        let backoff = BackoffContext {
            now: self.clock.instant,
            policy: self.policy,
            random: &mut self.random,
        };
        (&mut self.breaker, backoff)
    }
}

/// An instant on the other clock. What has passed is now.
fn unix_ms_of(instant: Instant, now: Now) -> u64 {
    let wait = instant.saturating_duration_since(now.instant);
    now.unix_ms.saturating_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX))
}
