//! What webhooks exchange with the store: registrations, positions, owed deliveries and dead
//! letters.
//!
//! A webhook is a reader with a durable position. Every event up to the position is settled, except
//! deliveries that are owed or dead; every event behind it is owed if the webhook's scope admits
//! it. Position and exceptions change in one transaction.
//!
//! ```text
//! worker ── changes ──► store handle ──► writer ──► file      every few milliseconds, one transaction
//! worker ◄── notices ─────────────────── writer               expired, lost and dead deliveries
//! ```
//!
//! May use: `event`, `webhook_delivery`.

#[cfg(test)]
pub(super) mod tests;

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{
    event::{EventId, ProductId, Scope},
    webhook_delivery::{DeadLetter, Delivery},
};

/// Registration of a webhook, new or changed.
#[derive(Clone, Debug)]
pub(crate) struct WebhookRegistration {
    /// Id of the webhook.
    pub(crate) id: Arc<str>,
    /// Product whose events the webhook receives.
    pub(crate) product: ProductId,
    /// Events that the webhook receives. Kept in memory for retention, which must know what is
    /// owed; supplied again after each start.
    pub(crate) scope: Scope,
    /// Settings that the webhooks' module restores after a start, as text in a format of its own.
    pub(crate) definition: String,
    /// Position at which a new webhook begins; a known one keeps its position.
    pub(crate) position: u64,
    /// Channel to the webhook's worker.
    pub(crate) notices: Arc<WebhookNotices>,
}

/// Webhook as it is found after a start.
#[derive(Debug)]
pub(crate) struct StoredWebhook {
    /// Id of the webhook.
    pub(crate) id: String,
    /// Product whose events the webhook receives.
    pub(crate) product: ProductId,
    /// Definition of its last registration.
    pub(crate) definition: String,
    /// Position up to which every event is settled, owed or dead.
    pub(crate) position: u64,
    /// Deliveries owed up to that position, by position.
    pub(crate) owed: Vec<OwedDelivery>,
}

/// Delivery that is owed although the webhook's position is behind it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OwedDelivery {
    /// Current state of the delivery.
    pub(crate) delivery: Delivery,
    /// Earliest time of the next attempt in Unix milliseconds; `None` before the first.
    pub(crate) next_attempt_at: Option<u64>,
}

/// Outcome of a delivery.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum DeliveryChange {
    /// The delivery is still owed.
    Owed(OwedDelivery),
    /// The delivery is settled: accepted, erased, or gone. A dead letter of the same position is
    /// removed with it, requeued or not.
    Settled,
    /// The delivery was given up.
    Dead(DeadLetter),
}

/// Changes of one webhook since its last journal.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct WebhookChanges {
    /// Position that the webhook has passed.
    pub(crate) position: u64,
    /// Changes, by position.
    pub(crate) deliveries: BTreeMap<u64, DeliveryChange>,
}

/// Selection of dead letters for redelivery.
#[derive(Clone, Debug)]
pub(crate) enum DeadLetterSelection {
    /// All there are.
    All,
    /// The dead letters of these events.
    Events(Vec<EventId>),
}

/// State of dead letters to list.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum DeadLetterState {
    /// Given up.
    Dead,
    /// Marked for redelivery.
    Requeued,
}

/// Channel from the store to one webhook's worker. Holds one merged notice, so it is bounded
/// however long the worker does not take it.
#[derive(Debug, Default)]
pub(crate) struct WebhookNotices {
    pending: Mutex<WebhookNotice>,
    notify: Notify,
}

/// Changes of one webhook's part of the store. Counts are those of the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct WebhookNotice {
    /// Owed deliveries up to this position are dead: they were owed for longer than events are
    /// kept.
    pub(crate) expired_through: u64,
    /// Dead letters that are not marked for redelivery.
    pub(crate) dead: u64,
    /// Dead letters that are marked for redelivery.
    pub(crate) requeued: u64,
    /// Deliveries lost since the last look: dead letters beyond their bounds, and deliveries owed
    /// for too long whose event the store never had.
    pub(crate) lost: u64,
    /// The file was lost since the last notice, so that all rows must be written again.
    pub(crate) is_replaced: bool,
}

impl WebhookNotices {
    /// Changes the pending notice and wakes the worker.
    pub(super) fn update(&self, change: impl FnOnce(&mut WebhookNotice)) {
        change(&mut self.pending.lock());
        self.notify.notify_one();
    }

    /// Returns the pending notice, and resets what is counted since the last look.
    pub(crate) fn take(&self) -> WebhookNotice {
        let mut pending = self.pending.lock();
        let notice = *pending;
        (pending.lost, pending.is_replaced) = (0, false);
        notice
    }

    /// Returns how many dead letters are marked for redelivery, taken by the worker or not.
    pub(crate) fn requeued(&self) -> u64 {
        self.pending.lock().requeued
    }

    /// Waits for a notice that the worker has not been woken for.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub(crate) async fn changed(&self) {
        self.notify.notified().await;
    }
}
