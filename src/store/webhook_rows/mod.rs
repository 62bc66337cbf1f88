//! What webhooks exchange with the store: registrations, positions, owed deliveries and dead
//! letters.
//!
//! A webhook is a reader with a durable position. Every event up to the position is settled, except
//! what is owed or dead; every event behind it is owed if the webhook's scope admits it. Position
//! and exceptions change in one transaction.
//!
//! ```text
//! worker ── changes ──► store handle ──► writer ──► file      every few milliseconds, one transaction
//! worker ◄── notices ─────────────────── writer               what retention has done meanwhile
//! ```
//!
//! May use: `event`, `webhook_delivery`.

#[cfg(test)]
pub(super) mod tests;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::Notify;

use crate::{
    event::{EventId, ProductId, Scope},
    webhook_delivery::{DeadLetter, Delivery},
};

/// A webhook that is to be kept, or changed.
#[derive(Clone, Debug)]
pub(crate) struct WebhookRegistration {
    /// Its id.
    pub(crate) id: Arc<str>,
    /// Whose events it gets.
    pub(crate) product: ProductId,
    /// Which of them. Kept for retention alone, which must know what is owed before anybody has
    /// registered: told again after a start.
    pub(crate) scope: Scope,
    /// What its owner wants to find again after a start. A text of its own format.
    pub(crate) definition: String,
    /// Where it begins if it is new; one that is known keeps its place.
    pub(crate) position: u64,
    /// Where it is told what happens to what is owed to it.
    pub(crate) notices: Arc<WebhookNotices>,
}

/// A webhook as it is found after a start.
#[derive(Debug)]
pub(crate) struct StoredWebhook {
    /// Its id.
    pub(crate) id: String,
    /// Whose events it gets.
    pub(crate) product: ProductId,
    /// What its owner wrote.
    pub(crate) definition: String,
    /// Everything up to this place is settled, owed or dead.
    pub(crate) position: u64,
    /// What is owed up to there, by place.
    pub(crate) owed: Vec<OwedDelivery>,
}

/// A delivery that is owed although the webhook has passed its place.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OwedDelivery {
    /// What is owed.
    pub(crate) delivery: Delivery,
    /// Not to be tried before this, in Unix milliseconds; none if it has not been tried.
    pub(crate) next_attempt_at: Option<u64>,
}

/// What has become of a delivery.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum DeliveryChange {
    /// It is owed still.
    Owed(OwedDelivery),
    /// It is settled for good: accepted, erased, or gone. A dead letter of the same place goes with
    /// it, requeued or not.
    Settled,
    /// It has been given up.
    Dead(DeadLetter),
}

/// What has happened to one webhook since the last time it was written down.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct WebhookChanges {
    /// It has passed everything up to this place.
    pub(crate) position: u64,
    /// By place.
    pub(crate) deliveries: BTreeMap<u64, DeliveryChange>,
}

/// Which dead letters are to be delivered again.
#[derive(Clone, Debug)]
pub(crate) enum DeadLetterSelection {
    /// All there are.
    All,
    /// These, as far as they are dead letters.
    Events(Vec<EventId>),
}

/// Which of the dead letters are listed: those that stay, or those that are to be delivered again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum DeadLetterState {
    /// Dead.
    Dead,
    /// Waiting to be delivered again.
    Requeued,
}

/// Where the store leaves word for one webhook's worker.
#[derive(Debug, Default)]
pub(crate) struct WebhookNotices {
    pending: Mutex<WebhookNotice>,
    notify: Notify,
}

/// What has happened to one webhook's part of the store. Counts are those of the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct WebhookNotice {
    /// What was owed up to this place is dead: it has been owed for longer than events are kept.
    pub(crate) expired_through: u64,
    /// Dead letters, those that wait to be delivered again not among them.
    pub(crate) dead: u64,
    /// Dead letters that wait to be delivered again.
    pub(crate) requeued: u64,
    /// Dead letters that went beyond their bounds since the last look, and what was owed for too
    /// long although the store never had the event: lost.
    pub(crate) lost: u64,
    /// The file was lost since the last look: everything has to be written again.
    pub(crate) is_replaced: bool,
}

impl WebhookNotices {
    /// Leaves word.
    pub(super) fn update(&self, change: impl FnOnce(&mut WebhookNotice)) {
        change(&mut self.pending.lock().unwrap_or_else(PoisonError::into_inner));
        self.notify.notify_one();
    }

    /// What there is to know. What is counted since the last look begins anew.
    pub(crate) fn take(&self) -> WebhookNotice {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let notice = *pending;
        (pending.lost, pending.is_replaced) = (0, false);
        notice
    }

    /// Waits until something is told that has not been looked at.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub(crate) async fn changed(&self) {
        self.notify.notified().await;
    }
}
