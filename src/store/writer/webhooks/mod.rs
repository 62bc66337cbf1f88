//! The registered webhooks as the writer knows them: whom to tell what, and what a file that is begun anew must have again.
//! What happens to dead letters is logged at once when it is news, and then in sums.
//!
//! May use: the outbox's words, the file.

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::{error, warn};

use crate::store::{
    sqlite::{Bound, Counts, Expired, File, FileError, Lost},
    webhook_rows::Registration,
};

/// The registered webhooks, by id.
#[derive(Debug, Default)]
pub(super) struct Registry {
    webhooks: BTreeMap<Arc<str>, Known>,
    /// Of each webhook and kind: as few as there are webhooks in the file.
    news: BTreeMap<(String, News), Sum>,
}

#[derive(Debug)]
struct Known {
    /// With the position that the file has.
    registration: Registration,
    /// What it has been told of its dead letters.
    told: Option<(u64, u64)>,
}

/// What operators are to know of a webhook's deliveries.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum News {
    /// They were owed for too long.
    Expired,
    /// They were as well, and the file never had the events.
    Unkept,
    /// They were dead letters beyond a bound.
    Lost(Bound),
}

/// How much of that has happened.
#[derive(Debug)]
struct Sum {
    /// Since it was logged last.
    deliveries: u64,
    /// When that was.
    logged: Instant,
}

impl News {
    fn log(self, webhook: &str, deliveries: u64) {
        match self {
            Self::Expired => warn!(webhook, deliveries, "owed for longer than events are kept: dead letters now"),
            Self::Unkept => {
                error!(webhook, deliveries, "owed for longer than events are kept, and never in the store: lost");
            }
            Self::Lost(bound) => {
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
            self.has_news(id, News::Expired, *letters);
            self.has_news(id, News::Unkept, *lost);
            let Some(known) = self.webhooks.get_mut(&**id) else { continue };
            known.registration.position = known.registration.position.max(through);
            known.registration.notices.tell(|notice| {
                notice.expired_through = notice.expired_through.max(through);
                notice.lost += lost;
            });
        }
    }

    /// Tells that dead letters have gone beyond their bounds.
    pub(super) fn has_lost(&mut self, lost: &[Lost]) {
        for Lost { id, letters, bound } in lost {
            self.has_news(id, News::Lost(*bound), *letters);
            if let Some(known) = self.webhooks.get(&**id) {
                known.registration.notices.tell(|notice| notice.lost += letters);
            }
        }
    }

    /// Logs what is news at once, and adds up what is not.
    fn has_news(&mut self, id: &str, news: News, deliveries: u64) {
        if deliveries == 0 {
            return;
        }
        match self.news.get_mut(&(id.to_owned(), news)) {
            Some(sum) => sum.deliveries += deliveries,
            None => {
                news.log(id, deliveries);
                self.news.insert((id.to_owned(), news), Sum { deliveries: 0, logged: Instant::now() });
            }
        }
    }

    /// Logs what has added up since it was logged last, if that is some time ago; of what has not happened since, nothing is
    /// remembered. Called every second at least.
    pub(super) fn log_sums(&mut self) {
        self.news.retain(|(id, news), sum| {
            if sum.logged.elapsed() < LOG_EVERY {
                return true;
            }
            let has_happened = sum.deliveries > 0;
            if has_happened {
                news.log(id, std::mem::take(&mut sum.deliveries));
                sum.logged = Instant::now();
            }
            has_happened
        });
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

/// Between two lines of one kind about one webhook: what goes on for hours must not fill the log.
const LOG_EVERY: Duration = Duration::from_secs(60);
