//! The registered webhooks as the writer knows them: where to send notices, and what a file that is
//! begun anew must hold again. Losses of deliveries are logged at once the first time, then in
//! sums.
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

/// The registered webhooks, by id.
#[derive(Debug, Default)]
pub(super) struct RegisteredWebhooks {
    webhooks: BTreeMap<Arc<str>, WebhookEntry>,
    /// Of each webhook and kind: as few as there are webhooks in the file.
    incidents: BTreeMap<(String, DeliveryIncident), IncidentTally>,
}

#[derive(Debug)]
struct WebhookEntry {
    /// With the position that the file has.
    registration: WebhookRegistration,
    /// What it has been told of its dead letters.
    reported_counts: Option<(u64, u64)>,
}

/// What operators are to know of a webhook's deliveries.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum DeliveryIncident {
    /// They were owed for too long.
    Expired,
    /// They were as well, and the file never had the events.
    NeverPersisted,
    /// They were dead letters beyond a bound.
    DeadLettersRetired(DeadLetterBound),
}

/// How much of that has happened.
#[derive(Debug)]
struct IncidentTally {
    /// Since it was logged last.
    deliveries: u64,
    /// When that was.
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
                    deliveries,
                    "owed for longer than events are kept, and never in the store: lost"
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
        }
    }
}

impl RegisteredWebhooks {
    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.webhooks.is_empty()
    }

    /// Whether the file has this one.
    pub(super) fn contains(&self, id: &str) -> bool {
        self.webhooks.contains_key(id)
    }

    /// Keeps a webhook in the file, and tells it what it has there.
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

    /// Forgets a webhook.
    pub(super) fn unregister(&mut self, id: &str) {
        self.webhooks.remove(id);
    }

    /// Notes how far a webhook has come.
    pub(super) fn advance_position(&mut self, id: &str, position: u64) {
        if let Some(webhook) = self.webhooks.get_mut(id) {
            webhook.registration.position = webhook.registration.position.max(position);
        }
    }

    /// Tells those whose dead letters are more or fewer than they know.
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

    /// Tells that what was owed up to a place is dead.
    pub(super) fn record_expired(&mut self, through: u64, expired: &[ExpiredDeliveries]) {
        for ExpiredDeliveries { id, dead_letters: letters, lost } in expired {
            self.record_incident(id, DeliveryIncident::Expired, *letters);
            self.record_incident(id, DeliveryIncident::NeverPersisted, *lost);
            let Some(webhook) = self.webhooks.get_mut(&**id) else { continue };
            webhook.registration.position = webhook.registration.position.max(through);
            webhook.registration.notices.update(|notice| {
                notice.expired_through = notice.expired_through.max(through);
                notice.lost += lost;
            });
        }
    }

    /// Tells that dead letters have gone beyond their bounds.
    pub(super) fn record_retired_dead_letters(&mut self, retired: &[RetiredDeadLetters]) {
        for RetiredDeadLetters { id, dead_letters: letters, bound } in retired {
            self.record_incident(id, DeliveryIncident::DeadLettersRetired(*bound), *letters);
            if let Some(webhook) = self.webhooks.get(&**id) {
                webhook.registration.notices.update(|notice| notice.lost += letters);
            }
        }
    }

    /// Logs what is news at once, and adds up what is not.
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

    /// Logs what has added up since it was logged last, if that is some time ago; of what has not
    /// happened since, nothing is remembered. Called every second at least.
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

    /// Has all of them in a file that may have been begun anew, or have got a commit that was
    /// reported as failed. Those that it did not know are told that everything has to be written
    /// again.
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

/// Between two lines of one kind about one webhook: what goes on for hours must not fill the log.
const INCIDENT_LOG_INTERVAL: Duration = Duration::from_secs(60);
