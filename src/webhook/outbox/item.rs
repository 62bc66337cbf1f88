//! One delivery in an outbox, and its stage.
//!
//! May use: `event`, `webhook_delivery`.

use std::sync::Arc;

use tokio::time::Instant;

use crate::{
    event::Event,
    webhook_delivery::{Attempt, DeadLetter, DeadLetterReason, Delivery},
};

/// Attempts recorded per delivery: more than a policy allows between two redeliveries.
pub(super) const MAX_KEPT_ATTEMPTS: usize = 100;

/// A delivery with everything that the outbox knows of it.
#[derive(Debug)]
pub(super) struct OutboxItem {
    /// The delivery and its recorded attempts.
    pub(super) delivery: Delivery,
    /// The event, while loaded.
    pub(super) event: Option<Arc<Event>>,
    /// Stage within the session queue.
    pub(super) stage: DeliveryStage,
    /// Reason for which the item is here.
    pub(super) item_kind: ItemKind,
    /// Row of the store for this delivery.
    pub(super) row: RowState,
    /// Attempts that count against the policy; those before a redelivery or at a former endpoint do
    /// not.
    pub(super) attempts_spent: u32,
}

/// Stage of a delivery within its session queue.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum DeliveryStage {
    /// Behind another delivery of its session.
    Blocked,
    /// Head of its queue, not in flight.
    Idle(NextAttempt),
    /// An attempt is in flight.
    InFlight {
        /// Whether an earlier attempt was spent.
        is_retry: bool,
    },
}

/// Earliest time of a head's next attempt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum NextAttempt {
    /// No attempt was spent: as soon as a slot is free.
    Fresh,
    /// An attempt was spent: not before this instant; `None` is at once, and sorts before every
    /// instant.
    Retry(Option<Instant>),
}

/// Reason for which a delivery is here, which determines what is stored at its end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum ItemKind {
    /// Owed.
    Owed,
    /// A dead letter that was requeued. Never stored as owed: the store keeps the dead letter until
    /// the redelivery is settled.
    Redelivery,
    /// In flight, while the store made a dead letter of it. Stored only if accepted after all.
    Expired,
    /// In flight, while its session was erased. Any outcome deletes the row.
    Erased,
}

/// State of the row by which the store knows that the delivery is owed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum RowState {
    /// No row.
    Absent,
    /// The commit of the row was reported as failed, and may have succeeded all the same.
    Uncertain,
    /// A row.
    Present,
}

impl OutboxItem {
    /// Creates an item without spent attempts, not yet in a queue.
    pub(super) fn new(delivery: Delivery, event: Option<Arc<Event>>, item_kind: ItemKind) -> Self {
        Self {
            delivery,
            event,
            stage: DeliveryStage::Blocked,
            item_kind,
            row: RowState::Absent,
            attempts_spent: 0,
        }
    }

    /// Returns when the item may be sent once it becomes the head.
    pub(super) fn next_attempt(&self) -> NextAttempt {
        if self.attempts_spent == 0 { NextAttempt::Fresh } else { NextAttempt::Retry(None) }
    }

    /// Returns whether an attempt is in flight.
    pub(super) fn is_in_flight(&self) -> bool {
        matches!(self.stage, DeliveryStage::InFlight { .. })
    }

    /// Records an attempt that counts against the policy.
    pub(super) fn spend_attempt(&mut self, attempt: Attempt) {
        self.attempts_spent = self.attempts_spent.saturating_add(1);
        self.record_attempt(attempt);
    }

    /// Records an attempt, and drops the oldest beyond [`MAX_KEPT_ATTEMPTS`].
    pub(super) fn record_attempt(&mut self, attempt: Attempt) {
        self.delivery.attempts.push(attempt);
        let excess = self.delivery.attempts.len().saturating_sub(MAX_KEPT_ATTEMPTS);
        self.delivery.attempts.drain(..excess);
    }

    /// Converts the item to a dead letter. An event that is not loaded leaves the payload empty.
    pub(super) fn into_dead_letter(self, reason: DeadLetterReason, died_at: u64) -> DeadLetter {
        let payload = self.event.map(|event| event.payload()).unwrap_or_default();
        DeadLetter { delivery: self.delivery, reason, died_at, payload }
    }
}
