//! The registered webhooks as the writer knows them: whom to tell what, and what a file that is begun anew must have again.
//!
//! May use: the outbox's words, the file.

use std::{collections::BTreeMap, sync::Arc};

use tracing::{error, warn};

use super::super::{
    file::{Counts, Expired, File, FileError, Lost},
    outbox::Registration,
};

/// The registered webhooks, by id.
#[derive(Debug, Default)]
pub(super) struct Registry {
    webhooks: BTreeMap<Arc<str>, Known>,
}

#[derive(Debug)]
struct Known {
    /// With the position that the file has.
    registration: Registration,
    /// What it has been told of its dead letters.
    told: Option<(u64, u64)>,
}

impl Registry {
    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.webhooks.is_empty()
    }

    /// Whether the file has this one.
    pub(super) fn has(&self, id: &str) -> bool {
        self.webhooks.contains_key(id)
    }

    /// Keeps a webhook in the file, and tells it what it has there.
    ///
    /// # Errors
    ///
    /// When the file cannot be written; then nothing has changed.
    pub(super) fn register(
        &mut self,
        file: &mut File,
        mut registration: Registration,
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
        self.webhooks.insert(Arc::clone(&registration.id), Known { registration, told: None });
        self.tell_counts(file)
    }

    /// Forgets a webhook.
    pub(super) fn unregister(&mut self, id: &str) {
        self.webhooks.remove(id);
    }

    /// Notes how far a webhook has come.
    pub(super) fn has_passed(&mut self, id: &str, position: u64) {
        if let Some(known) = self.webhooks.get_mut(id) {
            known.registration.position = known.registration.position.max(position);
        }
    }

    /// Tells those whose dead letters are more or fewer than they know.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub(super) fn tell_counts(&mut self, file: &File) -> Result<(), FileError> {
        for Counts { id, dead, requeued } in file.counts()? {
            let Some(known) = self.webhooks.get_mut(&*id) else { continue };
            if known.told.replace((dead, requeued)) != Some((dead, requeued)) {
                known.registration.notices.tell(|notice| (notice.dead, notice.requeued) = (dead, requeued));
            }
        }
        Ok(())
    }

    /// Tells that what was owed up to a place is dead.
    pub(super) fn has_expired(&mut self, through: u64, expired: &[Expired]) {
        for Expired { id, letters, lost } in expired {
            if *letters > 0 {
                warn!(webhook = id, deliveries = letters, "owed for longer than events are kept: dead letters now");
            }
            if *lost > 0 {
                error!(
                    webhook = id,
                    deliveries = lost,
                    "owed for longer than events are kept, and never in the store: lost"
                );
            }
            let Some(known) = self.webhooks.get_mut(&**id) else { continue };
            known.registration.position = known.registration.position.max(through);
            known.registration.notices.tell(|notice| {
                notice.expired_through = notice.expired_through.max(through);
                notice.lost += lost;
            });
        }
    }

    /// Tells that dead letters have gone beyond their bounds.
    pub(super) fn has_lost(&self, lost: &[Lost]) {
        for Lost { id, letters, bound } in lost {
            error!(webhook = id, dead_letters = letters, key = bound.key(), "dead letters beyond their bound are lost");
            if let Some(known) = self.webhooks.get(&**id) {
                known.registration.notices.tell(|notice| notice.lost += letters);
            }
        }
    }

    /// Has all of them in a file that may have been begun anew, or have got a commit that was reported as failed. Those that it
    /// did not know are told that everything has to be written again.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub(super) fn restore(&mut self, file: &mut File, now: u64) -> Result<(), FileError> {
        for known in self.webhooks.values_mut() {
            let registered = file.register(&known.registration, now)?;
            known.registration.position = known.registration.position.max(registered.position);
            known.told = None;
            if registered.is_new {
                known.registration.notices.tell(|notice| notice.is_replaced = true);
            }
        }
        self.tell_counts(file)
    }
}
