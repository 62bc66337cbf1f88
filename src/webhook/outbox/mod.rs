//! Outbox of one webhook: owed deliveries, their order, retries, and the state of the endpoint. A
//! state machine without I/O and without a clock.
//!
//! In: events as they are read, outcomes of attempts, commands of operators, the time. Out: the
//! next event to send, and changes for the store.
//!
//! ```text
//!           enqueue                 next                  settle
//! log ──────────► session queue ─ head ──► in flight ─┬─ accepted ──► delivered (the last 1000)
//!      one queue per  ▲                               ├─ retry ─────► waiting ──┐
//!      session        └───────────────────────────────┴─────────────────────────┘
//!                                                     └─ given up ──► dead letter (in the store)
//! ```
//!
//! Every step takes logarithmic time, however much is owed. A step over many deliveries (release,
//! expiry, erasure) is linear in their number, which the steps that put them here have amortised.
//!
//! Files: `schedule.rs`, `commit.rs`, `operator.rs`, `redelivery.rs` and `items.rs` implement
//! `Outbox`; the other files are types below it, and use none of these.
//!
//! May use: `event`, `store`, `webhook_delivery`.

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

/// Owed deliveries of one webhook with a durable store, some 20 MiB for each webhook that is so far
/// behind. Beyond that the reader stops, and later events wait in the log.
pub(super) const MAX_OWED_DELIVERIES: u64 = 65_536;
/// Events in memory although the store has them: enough that a webhook that keeps up reads no event
/// a second time.
const MAX_LOADED_EVENTS: usize = 256;
/// Bytes of those events.
const MAX_LOADED_BYTES: usize = 4 << 20;

/// Owed deliveries and redelivered dead letters of one webhook, with the circuit breaker of its
/// endpoint.
#[derive(Debug)]
pub(super) struct Outbox {
    policy: DeliveryPolicy,
    cursor: u64,
    /// The latest time that a caller passed in. Functions without a `now` argument go by this one.
    clock: Now,
    /// Every delivery that is not settled, by position.
    items: BTreeMap<u64, OutboxItem>,
    /// Positions in `items` that are redelivered dead letters.
    redeliveries: BTreeSet<u64>,
    redelivery_scan: RedeliveryScan,
    session_queues: SessionQueues,
    queue_heads: QueueHeads,
    breaker: CircuitBreaker,
    journal: OutboxJournal,
    delivered: DeliveredHistory,
    counts: OutboxCounts,
    /// Whether the attempt that `next` released last was a retry: fresh deliveries have the next
    /// turn.
    was_retry: bool,
    /// The store has made dead letters of everything owed up to this position.
    expired_through: u64,
    random: Rng,
}

impl Outbox {
    /// Creates the outbox of a webhook that has read up to `cursor`, with deliveries owed at or
    /// before it.
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

    /// Inserts a delivery that the store has. Its event stays unloaded; its stored attempts count
    /// against the policy.
    fn restore(&mut self, owed: OwedDelivery) {
        let next_attempt = owed
            .next_attempt_at
            .map_or(NextAttempt::Fresh, |at| NextAttempt::Retry(Some(self.instant_of(at))));
        let mut item = OutboxItem::new(owed.delivery, None, ItemKind::Owed);
        item.row = RowState::Present;
        item.attempts_spent = u32::try_from(item.delivery.attempts.len()).unwrap_or(u32::MAX);
        self.insert_item(item, next_attempt);
    }

    /// Replaces the policy. Deliveries that already exceed a lower `max_retries` have one more
    /// attempt.
    pub(super) fn set_policy(&mut self, policy: DeliveryPolicy) {
        self.policy = policy;
    }

    /// Returns whether the outbox takes another event. In memory it always does, and drops the
    /// oldest deliveries instead.
    pub(super) fn has_capacity(&self) -> bool {
        self.is_in_memory() || self.counts.owed < MAX_OWED_DELIVERIES
    }

    /// Takes over an owed event and advances the cursor to it. An event at or before the cursor is
    /// ignored.
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
            // An event restored from the store has no arrival time: it counts from now.
            created_at: now.unix_ms_before(event.received().unwrap_or(now.instant)),
            attempts: Vec::new(),
        };
        // In memory the outbox has the only copy once the ring has evicted the event.
        let event = (self.is_in_memory() || self.has_load_budget(1)).then_some(event);
        self.insert_item(OutboxItem::new(delivery, event, ItemKind::Owed), NextAttempt::Fresh);
        // Not urgent: a delivery that is settled before the next batch never needs a row.
        self.journal.mark_dirty(position, false);
        self.enforce_memory_limit();
    }

    /// Records that every event up to `position` was enqueued or is outside the webhook's scope.
    pub(super) fn advance_to(&mut self, position: u64) {
        self.cursor = self.cursor.max(position);
    }

    /// Returns the position up to which every event was enqueued or is outside the scope.
    pub(super) fn cursor(&self) -> u64 {
        self.cursor
    }

    /// Returns the state of the endpoint.
    pub(super) fn endpoint_status(&self) -> EndpointStatus {
        self.breaker.status(self.clock.instant)
    }

    /// Returns whether every delivery is settled, redeliveries too.
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Returns the number of owed deliveries, without redeliveries, and the creation time of the
    /// oldest in Unix milliseconds.
    pub(super) fn owed(&self) -> (u64, Option<u64>) {
        (self.counts.owed, self.owed_items().next().map(|item| item.delivery.created_at))
    }

    /// Returns up to `limit` owed deliveries before the position `before`, newest first, each with
    /// its due time in Unix milliseconds unless it is blocked or in flight.
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

    /// Returns the delivery at `position` if it is owed or redelivered.
    #[cfg(test)]
    fn get(&self, position: u64) -> Option<&Delivery> {
        let item = self.items.get(&position)?;
        matches!(item.item_kind, ItemKind::Owed | ItemKind::Redelivery).then_some(&item.delivery)
    }

    /// Returns up to `limit` accepted deliveries before the running number `before`, newest first.
    pub(super) fn delivered(&self, before: Option<u64>, limit: usize) -> Vec<(u64, Delivery)> {
        self.delivered.list(before, limit)
    }

    /// Iterates over owed items, oldest first. The first is found soon: few items in front of it
    /// can be of another kind, namely redeliveries and what is in flight.
    fn owed_items(&self) -> impl Iterator<Item = &OutboxItem> {
        self.items.values().filter(|item| item.item_kind == ItemKind::Owed)
    }

    /// Returns the due time of an item in Unix milliseconds, if it is known.
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
            // The oldest head is the next probe; the others wait for its outcome.
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

    /// Returns whether another event may be loaded: one part in `share` of the bound is for this
    /// use.
    fn has_load_budget(&self, share: usize) -> bool {
        self.counts.loaded < MAX_LOADED_EVENTS / share
            && self.counts.loaded_bytes < MAX_LOADED_BYTES / share
    }

    /// Converts Unix milliseconds to the monotonic clock. Capped, because a wall clock that was set
    /// back while the relay was down would turn a short wait into a long one.
    fn instant_of(&self, unix_ms: u64) -> Instant {
        let wait = Duration::from_millis(unix_ms.saturating_sub(self.clock.unix_ms));
        self.clock.instant + wait.min(MAX_RETRY_DELAY)
    }

    /// Borrows the circuit breaker together with the parts of the outbox that determine a delay.
    fn breaker_with_backoff(&mut self) -> (&mut CircuitBreaker, BackoffContext<'_>) {
        let backoff = BackoffContext {
            now: self.clock.instant,
            policy: self.policy,
            random: &mut self.random,
        };
        (&mut self.breaker, backoff)
    }
}

/// Converts an instant to Unix milliseconds; an instant that has passed gives this moment.
fn unix_ms_of(instant: Instant, now: Now) -> u64 {
    let wait = instant.saturating_duration_since(now.instant);
    now.unix_ms.saturating_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX))
}
