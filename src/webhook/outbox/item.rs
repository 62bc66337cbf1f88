//! One thing to deliver, and where it stands on its way.
//!
//! May use: `delivery`, `event`.

use std::sync::Arc;

use tokio::time::Instant;

use crate::{
    event::Event,
    webhook_delivery::{Attempt, DeadLetter, DeadReason, Delivery},
};

/// Attempts that are kept of one delivery. More than a policy allows between two redeliveries.
pub(super) const MOST_ATTEMPTS: usize = 100;

/// A delivery on its way.
#[derive(Debug)]
pub(super) struct Item {
    /// What is to be delivered, and what has been tried.
    pub(super) delivery: Delivery,
    /// What to send, if it is held here.
    pub(super) event: Option<Arc<Event>>,
    /// Where it stands in its lane.
    pub(super) stage: Stage,
    /// Why it is here.
    pub(super) claim: Claim,
    /// What the store has of it.
    pub(super) row: Row,
    /// Attempts that count against the policy. Those before a redelivery do not.
    pub(super) spent: u32,
}

/// Where a delivery stands in its lane.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Stage {
    /// Behind others of its session.
    Blocked,
    /// First of its lane, and not under way.
    Idle(Turn),
    /// Under way.
    Running {
        /// Whether it had been tried before.
        is_retry: bool,
    },
}

/// When the first of a lane may be sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Turn {
    /// It has not been tried: as soon as there is a slot.
    Fresh,
    /// It has been tried: not before this; none is at once.
    Retry(Option<Instant>),
}

/// Why a delivery is here, which decides what is written down when it ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Claim {
    /// It is owed.
    Owed,
    /// It is a dead letter, delivered again.
    Letter,
    /// It is a dead letter in the store since it is under way.
    Expired,
    /// It was erased since it is under way.
    Erased,
}

/// Whether the store has a row of a delivery that says it is owed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Row {
    /// It has not.
    None,
    /// The commit that was to write it failed, or so it was reported: it may have been done.
    Perhaps,
    /// It has.
    There,
}

impl Item {
    /// A delivery that has not been tried here.
    pub(super) fn new(delivery: Delivery, event: Option<Arc<Event>>, claim: Claim) -> Self {
        Self { delivery, event, stage: Stage::Blocked, claim, row: Row::None, spent: 0 }
    }

    /// When it may be sent, now that it is the first of its lane.
    pub(super) fn turn(&self) -> Turn {
        if self.spent == 0 { Turn::Fresh } else { Turn::Retry(None) }
    }

    /// Whether it is under way.
    pub(super) fn is_running(&self) -> bool {
        matches!(self.stage, Stage::Running { .. })
    }

    /// Notes an attempt, which counts against the policy.
    pub(super) fn spend(&mut self, attempt: Attempt) {
        self.spent = self.spent.saturating_add(1);
        self.note(attempt);
    }

    /// Notes an attempt.
    pub(super) fn note(&mut self, attempt: Attempt) {
        self.delivery.attempts.push(attempt);
        let beyond = self.delivery.attempts.len().saturating_sub(MOST_ATTEMPTS);
        self.delivery.attempts.drain(..beyond);
    }

    /// What remains of it when it is given up.
    pub(super) fn into_letter(self, reason: DeadReason, died_at: u64) -> DeadLetter {
        let payload = self.event.map(|event| event.payload()).unwrap_or_default();
        DeadLetter { delivery: self.delivery, reason, died_at, payload }
    }
}
