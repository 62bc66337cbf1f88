//! One delivery, and its state.
//!
//! May use: `event`, `webhook_delivery`.

use std::sync::Arc;

use tokio::time::Instant;

use crate::{
    event::Event,
    webhook_delivery::{Attempt, DeadLetter, DeadLetterReason, Delivery},
};

/// Attempts that are kept of one delivery. More than a policy allows between two redeliveries.
pub(super) const MAX_KEPT_ATTEMPTS: usize = 100;

/// A delivery on its way.
#[derive(Debug)]
pub(super) struct OutboxItem {
    /// What is to be delivered, and what has been tried.
    pub(super) delivery: Delivery,
    /// What to send, if it is held here.
    pub(super) event: Option<Arc<Event>>,
    /// Where it stands in its lane.
    pub(super) stage: DeliveryStage,
    /// Why it is here.
    pub(super) item_kind: ItemKind,
    /// What the store has of it.
    pub(super) row: RowState,
    /// Attempts that count against the policy. Those before a redelivery do not.
    pub(super) attempts_spent: u32,
}

/// Where a delivery stands in its lane.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum DeliveryStage {
    /// Behind others of its session.
    Blocked,
    /// First of its lane, and not under way.
    Idle(NextAttempt),
    /// Under way.
    InFlight {
        /// Whether it had been tried before.
        is_retry: bool,
    },
}

/// When the first of a lane may be sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum NextAttempt {
    /// It has not been tried: as soon as there is a slot.
    Fresh,
    /// It has been tried: not before this; none is at once.
    Retry(Option<Instant>),
}

/// Why a delivery is here, which decides what is written down when it ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum ItemKind {
    /// It is owed.
    Owed,
    /// It is a dead letter, delivered again.
    Redelivery,
    /// It is a dead letter in the store since it is under way.
    Expired,
    /// It was erased since it is under way.
    Erased,
}

/// Whether the store has a row of a delivery that says it is owed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum RowState {
    /// It has not.
    Absent,
    /// The commit that was to write it failed, or so it was reported: it may have been done.
    Uncertain,
    /// It has.
    Present,
}

impl OutboxItem {
    /// A delivery that has not been tried here.
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

    /// When it may be sent, now that it is the first of its lane.
    pub(super) fn next_attempt(&self) -> NextAttempt {
        if self.attempts_spent == 0 { NextAttempt::Fresh } else { NextAttempt::Retry(None) }
    }

    /// Whether it is under way.
    pub(super) fn is_in_flight(&self) -> bool {
        matches!(self.stage, DeliveryStage::InFlight { .. })
    }

    /// Notes an attempt, which counts against the policy.
    pub(super) fn spend_attempt(&mut self, attempt: Attempt) {
        self.attempts_spent = self.attempts_spent.saturating_add(1);
        self.record_attempt(attempt);
    }

    /// Notes an attempt.
    pub(super) fn record_attempt(&mut self, attempt: Attempt) {
        self.delivery.attempts.push(attempt);
        let excess = self.delivery.attempts.len().saturating_sub(MAX_KEPT_ATTEMPTS);
        self.delivery.attempts.drain(..excess);
    }

    /// What remains of it when it is given up.
    pub(super) fn into_dead_letter(self, reason: DeadLetterReason, died_at: u64) -> DeadLetter {
        let payload = self.event.map(|event| event.payload()).unwrap_or_default();
        DeadLetter { delivery: self.delivery, reason, died_at, payload }
    }
}
