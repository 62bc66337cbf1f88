//! The writer's registry of webhooks: where to send notices, and the
//! registrations that a file that is begun anew must have again.
//!
//! Losses of deliveries are logged at once the first time, then as sums once a minute.
//!
//! May use: no other module.

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::{error, warn};

use crate::store::{
    sqlite::{
        DeadLetterBound, DeadLetterCounts, ExpiredDeliveries, FileError, RetiredDeadLetters,
        StoreFile,
    },
    webhook_rows::WebhookRegistration,
};

/// Registered webhooks, by id.
#[derive(Debug, Default)]
pub(super) struct RegisteredWebhooks {
    webhooks: BTreeMap<Arc<str>, WebhookEntry>,
    /// Tallies by webhook and kind of incident. As few as the webhooks in the file: one that stays
    /// at 0 for an interval is removed.
    incidents: BTreeMap<(String, DeliveryIncident), IncidentTally>,
}

#[derive(Debug)]
struct WebhookEntry {
    /// Registration, with the position that the file has.
    registration: WebhookRegistration,
    /// Numbers of dead and requeued letters in the last notice.
    reported_counts: Option<(u64, u64)>,
}

/// Loss of a webhook's deliveries that operators need to know of.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum DeliveryIncident {
    /// Deliveries were owed for too long.
    Expired,
    /// Deliveries were owed for too long, and the file never had the events.
    NeverPersisted,
    /// Dead letters exceeded a bound.
    DeadLettersRetired(DeadLetterBound),
    /// Rows of events do not fit their checksum: dead letters without a body.
    Damaged,
    /// Rows of dead letters do not fit their checksum.
    DamagedDeadLetters,
}

/// Tally of one kind of incident.
#[derive(Debug)]
struct IncidentTally {
    /// Number of deliveries since the last log line.
    deliveries: u64,
    /// Time of the last log line.
    logged_at: Instant,
}

impl DeliveryIncident {
    fn log(self, webhook: &str, deliveries: u64) {
        match self {
            Self::Expired => {
                warn!(
                    webhook,
                    deliveries, "owed for longer than events are kept: dead letters now"
                );
            }
            Self::NeverPersisted => {
                error!(
                    webhook,
                    deliveries, "owed for longer than events are kept, and not in the store: lost"
                );
            }
            Self::DeadLettersRetired(bound) => {
                error!(
                    webhook,
                    dead_letters = deliveries,
                    key = bound.key(),
                    "dead letters beyond their bound are lost"
                );
            }
            Self::Damaged => {
                error!(
                    webhook,
                    deliveries,
                    "rows of the store do not fit their checksum: dead letters without a body"
                );
            }
            Self::DamagedDeadLetters => {
                error!(
                    webhook,
                    dead_letters = deliveries,
                    "dead letters do not fit their checksum: they are not sent again"
                );
            }
        }
    }
}

impl RegisteredWebhooks {
    /// Returns whether no webhook is registered.
    pub(super) fn is_empty(&self) -> bool {
        self.webhooks.is_empty()
    }

    /// Returns whether the file has this webhook.
    pub(super) fn contains(&self, id: &str) -> bool {
        self.webhooks.contains_key(id)
    }

    /// Returns whether a webhook has dead letters, or may have: its numbers are not known.
    pub(super) fn has_dead_letters(&self) -> bool {
        self.webhooks
            .values()
            .any(|webhook| webhook.reported_counts.is_none_or(|counts| counts != (0, 0)))
    }

    /// Returns whether an incident has a tally, which is logged or removed in time.
    pub(super) fn has_tallies(&self) -> bool {
        !self.incidents.is_empty()
    }

    /// Stores a webhook in the file, and notifies its worker of the numbers of its dead letters.
    ///
    /// # Errors
    ///
    /// When the file cannot be written; then nothing has changed.
    pub(super) fn register(
        &mut self,
        file: &mut StoreFile,
        mut registration: WebhookRegistration,
        now: u64,
    ) -> Result<(), FileError> {
        let registered = file.register(&registration, now)?;
        if registered.forgotten > 0 {
            warn!(
                webhook = &*registration.id,
                product = %registration.product,
                deliveries = registered.forgotten,
                "the webhook is another product's now: what was owed to it and its dead letters are gone"
            );
        }
        registration.position = registered.position;
        self.webhooks.insert(
            Arc::clone(&registration.id),
            WebhookEntry { registration, reported_counts: None },
        );
        self.report_counts(file)
    }

    /// Removes a webhook.
    pub(super) fn unregister(&mut self, id: &str) {
        self.webhooks.remove(id);
    }

    /// Records the position that a webhook's journal has committed.
    pub(super) fn advance_position(&mut self, id: &str, position: u64) {
        if let Some(webhook) = self.webhooks.get_mut(id) {
            webhook.registration.position = webhook.registration.position.max(position);
        }
    }

    /// Notifies the workers whose webhooks have other numbers of dead letters than reported last.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub(super) fn report_counts(&mut self, file: &StoreFile) -> Result<(), FileError> {
        for DeadLetterCounts { id, dead, requeued } in file.dead_letter_counts()? {
            let Some(webhook) = self.webhooks.get_mut(&*id) else { continue };
            if webhook.reported_counts.replace((dead, requeued)) != Some((dead, requeued)) {
                webhook
                    .registration
                    .notices
                    .update(|notice| (notice.dead, notice.requeued) = (dead, requeued));
            }
        }
        Ok(())
    }

    /// Notifies the workers that deliveries owed up to a position are dead.
    pub(super) fn record_expired(&mut self, through: u64, expired: &[ExpiredDeliveries]) {
        for ExpiredDeliveries { id, dead_letters, damaged, lost } in expired {
            self.record_incident(id, DeliveryIncident::Expired, *dead_letters);
            self.record_incident(id, DeliveryIncident::Damaged, *damaged);
            self.record_incident(id, DeliveryIncident::NeverPersisted, *lost);
            let Some(webhook) = self.webhooks.get_mut(&**id) else { continue };
            webhook.registration.position = webhook.registration.position.max(through);
            webhook.registration.notices.update(|notice| {
                notice.expired_through = notice.expired_through.max(through);
                notice.lost += lost;
            });
        }
    }

    /// Notifies the workers that dead letters beyond their bounds are lost.
    pub(super) fn record_retired_dead_letters(&mut self, retired: &[RetiredDeadLetters]) {
        for RetiredDeadLetters { id, dead_letters, bound } in retired {
            self.record_incident(id, DeliveryIncident::DeadLettersRetired(*bound), *dead_letters);
            if let Some(webhook) = self.webhooks.get(&**id) {
                webhook.registration.notices.update(|notice| notice.lost += dead_letters);
            }
        }
    }

    /// Logs dead letters that were found damaged while they were listed.
    pub(super) fn record_damaged_dead_letters(&mut self, id: &str, dead_letters: u64) {
        self.record_incident(id, DeliveryIncident::DamagedDeadLetters, dead_letters);
    }

    /// Logs the first incident of a kind at once, and adds later ones to its tally.
    fn record_incident(&mut self, id: &str, incident: DeliveryIncident, deliveries: u64) {
        if deliveries == 0 {
            return;
        }
        match self.incidents.get_mut(&(id.to_owned(), incident)) {
            Some(tally) => tally.deliveries += deliveries,
            None => {
                incident.log(id, deliveries);
                self.incidents.insert(
                    (id.to_owned(), incident),
                    IncidentTally { deliveries: 0, logged_at: Instant::now() },
                );
            }
        }
    }

    /// Logs the tallies whose last log line is [`INCIDENT_LOG_INTERVAL`] old, and removes those
    /// that are 0. The writer calls this every second at least while there are tallies.
    pub(super) fn log_tallies(&mut self) {
        self.incidents.retain(|(id, incident), tally| {
            if tally.logged_at.elapsed() < INCIDENT_LOG_INTERVAL {
                return true;
            }
            let has_happened = tally.deliveries > 0;
            if has_happened {
                incident.log(id, std::mem::take(&mut tally.deliveries));
                tally.logged_at = Instant::now();
            }
            has_happened
        });
    }

    /// Stores all webhooks in a file that may have been begun anew, or may have a commit that was
    /// reported as failed. Workers whose webhook the file did not have are notified that everything
    /// has to be written again.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub(super) fn restore(&mut self, file: &mut StoreFile, now: u64) -> Result<(), FileError> {
        for webhook in self.webhooks.values_mut() {
            let registered = file.register(&webhook.registration, now)?;
            webhook.registration.position = webhook.registration.position.max(registered.position);
            webhook.reported_counts = None;
            if registered.is_new {
                webhook.registration.notices.update(|notice| notice.is_replaced = true);
            }
        }
        self.report_counts(file)
    }
}

/// Interval between two lines of one kind about one webhook: an incident that lasts for hours
/// must not fill the log.
const INCIDENT_LOG_INTERVAL: Duration = Duration::from_secs(60);
