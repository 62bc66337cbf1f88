//! One webhook's requests to the store: its definition, its journal, and dead letters to redeliver.
//!
//! At most one request of each kind is in flight. A write that fails is repeated later. A journal
//! waits for the first registration: the writer has no row to write it to before, and the
//! registration may be queued behind a long removal.
//!
//! ```text
//! outbox ── changes ──► journal ──► committed | not committed: part of the next batch
//! ```
//!
//! May use: `event`, `store`, `webhook_delivery`.

#[cfg(test)]
mod tests;

use std::{
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    sync::oneshot,
    time::{self, Instant},
};

use super::{Now, definition::Definition, outbox::Outbox};
use crate::{
    event::{ProductId, Scope},
    store::{
        StoreHandle, StoreUnreadable, StoreUnwritable, WebhookChanges, WebhookNotice,
        WebhookNotices, WebhookRegistration,
    },
    webhook_delivery::DeadLetter,
};

/// Requests of one webhook to the store, and the times of the next ones.
pub(super) struct StoreSync {
    id: Arc<str>,
    product: ProductId,
    scope: Scope,
    definition: String,
    /// Position at which the webhook starts in a store that does not know it. The journal advances
    /// it.
    initial_position: u64,
    /// The store has answered a registration of this process.
    is_registered: bool,
    store: Arc<StoreHandle>,
    notices: Arc<WebhookNotices>,
    /// The definition in the store is missing or out of date.
    needs_registration: bool,
    registering: InFlight<Result<(), StoreUnwritable>>,
    register_at: Instant,
    registration_waiters: Vec<oneshot::Sender<Result<(), StoreUnwritable>>>,
    journal: InFlight<Result<(), WebhookChanges>>,
    journal_at: Instant,
    /// Time of the next look for changes that have waited for long.
    ageing_at: Instant,
    dead_letters: InFlight<Result<Vec<DeadLetter>, StoreUnreadable>>,
    /// Received and not handed over yet: the notice of the store is applied first.
    received_dead_letters: Option<Vec<DeadLetter>>,
    dead_letters_at: Instant,
}

type InFlight<T> = Option<Pin<Box<dyn Future<Output = T> + Send>>>;

impl StoreSync {
    /// Creates the sync of a webhook at `position` whose definition is to be written; `waiter` is
    /// answered when that has succeeded or failed.
    pub(super) fn new(
        definition: &Definition,
        position: u64,
        store: Arc<StoreHandle>,
        notices: Arc<WebhookNotices>,
        waiter: Option<oneshot::Sender<Result<(), StoreUnwritable>>>,
    ) -> Self {
        let now = Instant::now();
        Self {
            id: definition.webhook.id.as_str().into(),
            product: definition.webhook.product_id.clone(),
            scope: definition.webhook.scope(),
            definition: definition.to_stored(),
            initial_position: position,
            is_registered: false,
            store,
            notices,
            needs_registration: true,
            registering: None,
            register_at: now,
            registration_waiters: waiter.into_iter().collect(),
            journal: None,
            journal_at: now,
            ageing_at: now,
            dead_letters: None,
            received_dead_letters: None,
            dead_letters_at: now,
        }
    }

    /// Replaces the definition, which is written next.
    pub(super) fn set_definition(&mut self, definition: &Definition) {
        (self.scope, self.definition) = (definition.webhook.scope(), definition.to_stored());
        (self.needs_registration, self.register_at) = (true, Instant::now());
    }

    /// Answers `reply` when the definition, as it is from now on, is in the store or could not be
    /// written.
    pub(super) fn notify_when_registered(
        &mut self,
        reply: oneshot::Sender<Result<(), StoreUnwritable>>,
    ) {
        self.registration_waiters.push(reply);
        self.needs_registration = true;
    }

    /// Starts the writes that are due. The cursor is written only once the log is committed up to
    /// it.
    pub(super) fn start_writes(&mut self, outbox: &mut Outbox, committed: u64) {
        let now = Instant::now();
        if self.needs_registration && self.registering.is_none() && now >= self.register_at {
            // Cleared first: a change while the request is in flight sets it again.
            self.needs_registration = false;
            self.registering = Some(Box::pin(self.store.register(self.registration())));
        }
        // The reader returned uncommitted events, because the store is degraded. Writing a cursor
        // past them is wrong: after a crash, other events would have those positions, and would
        // count as delivered.
        let is_ahead = committed < outbox.cursor();
        if is_ahead || self.store.is_degraded() {
            outbox.mark_store_degraded();
        }
        if now >= self.ageing_at {
            outbox.urge_aged_changes();
            self.ageing_at = now + POSITION_WRITE_INTERVAL;
        }
        if !self.is_registered || self.journal.is_some() || now < self.journal_at {
            return;
        }
        if is_ahead {
            self.journal_at = now + JOURNAL_RETRY_DELAY;
            return;
        }
        let changes = outbox.take_urgent_changes();
        self.journal = changes.map(|changes| Box::pin(self.store.journal(&self.id, changes)) as _);
    }

    /// Returns whether a journal is in flight.
    pub(super) fn is_writing(&self) -> bool {
        self.journal.is_some()
    }

    /// Returns whether no request is in flight, and nothing waits for one.
    pub(super) fn is_idle(&self, outbox: &Outbox) -> bool {
        let has_request =
            self.registering.is_some() || self.journal.is_some() || self.dead_letters.is_some();
        !has_request
            && !self.needs_registration
            && self.received_dead_letters.is_none()
            && !outbox.has_changes()
    }

    fn registration(&self) -> WebhookRegistration {
        WebhookRegistration {
            id: Arc::clone(&self.id),
            product: self.product.clone(),
            scope: self.scope.clone(),
            definition: self.definition.clone(),
            position: self.initial_position,
            notices: Arc::clone(&self.notices),
        }
    }

    /// Hands received dead letters to the outbox, and asks for more from time to time: redeliveries
    /// come on top of owed deliveries.
    ///
    /// The caller has applied the store's notice before, so that the outbox knows of expiries that
    /// the reply already shows.
    pub(super) fn redeliver(&mut self, outbox: &mut Outbox, notice: &WebhookNotice) {
        if let Some(dead_letters) = self.received_dead_letters.take() {
            let took_any = outbox.redeliver(dead_letters, Now::read());
            self.dead_letters_at = Instant::now()
                + if took_any { REDELIVERY_INTERVAL } else { REDELIVERY_RETRY_DELAY };
        }
        // The store counts every requeued dead letter: as many as are here means no others wait.
        let is_due = notice.requeued > outbox.redelivery_count()
            && self.dead_letters.is_none()
            && Instant::now() >= self.dead_letters_at;
        if let Some(after) = outbox.next_redelivery_after().filter(|_| is_due) {
            self.dead_letters = Some(Box::pin(self.store.requeued_dead_letters(
                &self.id,
                after,
                MAX_REDELIVERY_BATCH,
            )));
        }
    }

    /// Discards dead letters on their way from the store; they are asked for again.
    pub(super) fn discard_dead_letters(&mut self) {
        (self.dead_letters, self.received_dead_letters) = (None, None);
    }

    /// Returns when a request is due although nothing else happens.
    pub(super) fn due(&self, outbox: &Outbox, notice: &WebhookNotice) -> Option<Instant> {
        let now = Instant::now();
        let dead_letters_due = (notice.requeued > outbox.redelivery_count()
            && self.dead_letters.is_none())
        .then_some(self.dead_letters_at);
        let registration_due =
            (self.needs_registration && self.registering.is_none()).then_some(self.register_at);
        let journal_due = Some(self.journal_at).filter(|at| *at > now);
        let can_write = self.is_registered && self.journal.is_none();
        // Not before `journal_at`, so that a journal that cannot be written yet is no busy loop.
        let changes_due =
            (can_write && outbox.has_changes()).then_some(self.ageing_at.max(self.journal_at));
        [dead_letters_due.filter(|at| *at > now), registration_due, journal_due, changes_due]
            .into_iter()
            .flatten()
            .min()
    }

    /// Waits for a reply of the store and handles it.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing: requests are polled in place, and a reply is handled in
    /// the same poll that receives it.
    pub(super) async fn handle_reply(&mut self, outbox: &mut Outbox) {
        let now = Instant::now();
        match poll_fn(|context| self.poll_reply(context)).await {
            StoreReply::Journal(Ok(())) => outbox.record_commit(),
            StoreReply::Journal(Err(changes)) => {
                outbox.record_commit_failure(changes);
                self.journal_at = now + JOURNAL_RETRY_DELAY;
            }
            StoreReply::Registered(registered) => self.handle_registered(registered),
            // An error counts as no dead letters: the scan ends and asks again a second later.
            StoreReply::DeadLetters(dead_letters) => {
                self.received_dead_letters = Some(dead_letters.unwrap_or_default());
            }
        }
    }

    fn poll_reply(&mut self, context: &mut Context<'_>) -> Poll<StoreReply> {
        // The journal first: its reply frees slots. Each pending request registers the waker.
        if let Poll::Ready(written) = poll_in_flight(&mut self.journal, context) {
            return Poll::Ready(StoreReply::Journal(written));
        }
        if let Poll::Ready(registered) = poll_in_flight(&mut self.registering, context) {
            return Poll::Ready(StoreReply::Registered(registered));
        }
        poll_in_flight(&mut self.dead_letters, context).map(StoreReply::DeadLetters)
    }

    fn handle_registered(&mut self, registered: Result<(), StoreUnwritable>) {
        self.is_registered |= registered.is_ok();
        if registered.is_err() {
            (self.needs_registration, self.register_at) =
                (true, Instant::now() + REGISTER_RETRY_DELAY);
        }
        // After a change in the meantime, the waiters wait for the next registration.
        if registered.is_err() || !self.needs_registration {
            for waiter in self.registration_waiters.drain(..) {
                let _ = waiter.send(registered); // the caller may have dropped its future
            }
        }
    }

    /// Writes every change, within [`FINAL_FLUSH_TIMEOUT`] and unless the store cannot be written.
    pub(super) async fn flush(&mut self, outbox: &mut Outbox, committed: u64) {
        let now = Instant::now();
        (self.register_at, self.journal_at) = (now, now);
        outbox.urge_changes();
        let write = async {
            loop {
                self.start_writes(outbox, committed);
                if self.journal.is_none() && self.registering.is_none() {
                    return; // settlements that could not be written are delivered twice
                }
                self.handle_reply(outbox).await;
            }
        };
        let _ = time::timeout(FINAL_FLUSH_TIMEOUT, write).await;
    }
}

impl fmt::Debug for StoreSync {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreSync").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Reply of the store.
enum StoreReply {
    Journal(Result<(), WebhookChanges>),
    Registered(Result<(), StoreUnwritable>),
    DeadLetters(Result<Vec<DeadLetter>, StoreUnreadable>),
}

/// Polls a request and clears it when it is complete.
fn poll_in_flight<T>(in_flight: &mut InFlight<T>, context: &mut Context<'_>) -> Poll<T> {
    let Some(future) = in_flight else { return Poll::Pending };
    let polled = future.as_mut().poll(context);
    if polled.is_ready() {
        *in_flight = None;
    }
    polled
}

/// Interval between looks for changes that are not urgent: the second look after a change has it
/// written, so that a delivery that is settled within a second needs no row.
const POSITION_WRITE_INTERVAL: Duration = Duration::from_secs(1);

/// Pause after a journal that could not be written.
const JOURNAL_RETRY_DELAY: Duration = Duration::from_millis(50);

/// Pause after a definition that could not be written.
const REGISTER_RETRY_DELAY: Duration = Duration::from_secs(1);

/// Pause between requests for dead letters: with 16 redeliveries active at one time, some sixty a
/// second.
const REDELIVERY_INTERVAL: Duration = Duration::from_millis(250);

/// Pause after a scan in which no dead letter could be enqueued, because those before them fail.
const REDELIVERY_RETRY_DELAY: Duration = Duration::from_secs(1);

/// Dead letters per request: more than the outbox takes at one time, because it skips some.
const MAX_REDELIVERY_BATCH: usize = 48;

/// Time for the last journal at shutdown.
const FINAL_FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
