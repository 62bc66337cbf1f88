//! One webhook's side of the store: its definition, its journal, and dead letters on their way
//! back.
//!
//! At most one request or command of each kind is under way. What cannot be committed is committed
//! later. Nothing is committed for a webhook that the store does not have yet: its registration
//! comes first.
//!
//! ```text
//! outbox ── changes ──► journal ──► committed | not committed: they come again
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

/// What one webhook has out at the store.
pub(super) struct StoreSync {
    id: Arc<str>,
    product: ProductId,
    scope: Scope,
    definition: String,
    /// Where it begins in a store that does not know it: what it has come to since is still to be
    /// written down.
    initial_position: u64,
    /// The store has it, since this process runs.
    is_registered: bool,
    store: Arc<StoreHandle>,
    notices: Arc<WebhookNotices>,
    /// The definition is not in the store as it is.
    needs_registration: bool,
    registering: InFlight<Result<(), StoreUnwritable>>,
    register_at: Instant,
    registration_waiters: Vec<oneshot::Sender<Result<(), StoreUnwritable>>>,
    journal: InFlight<Result<(), WebhookChanges>>,
    journal_at: Instant,
    /// When what can wait is written, too.
    full_journal_at: Instant,
    dead_letters: InFlight<Result<Vec<DeadLetter>, StoreUnreadable>>,
    /// They have come, and wait for what else there is to know.
    received_letters: Option<Vec<DeadLetter>>,
    dead_letters_at: Instant,
}

type InFlight<T> = Option<Pin<Box<dyn Future<Output = T> + Send>>>;

impl StoreSync {
    /// The records of a webhook that begins at `position`, and whose definition is still to be
    /// written; `registration_waiters` is told when it is.
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
            full_journal_at: now,
            dead_letters: None,
            received_letters: None,
            dead_letters_at: now,
        }
    }

    /// Notes that the definition is another.
    pub(super) fn set_definition(&mut self, definition: &Definition) {
        (self.scope, self.definition) = (definition.webhook.scope(), definition.to_stored());
        (self.needs_registration, self.register_at) = (true, Instant::now());
    }

    /// Has `answer` told when the definition is in the store as it is from now on.
    pub(super) fn notify_when_registered(
        &mut self,
        reply: oneshot::Sender<Result<(), StoreUnwritable>>,
    ) {
        self.registration_waiters.push(reply);
        self.needs_registration = true;
    }

    /// Begins to write down what is to be written. Nothing that has not been committed is called
    /// passed.
    pub(super) fn start_writes(&mut self, outbox: &mut Outbox, committed: u64) {
        let now = Instant::now();
        if self.needs_registration && self.registering.is_none() && now >= self.register_at {
            self.needs_registration = false;
            self.registering = Some(Box::pin(self.store.register(self.registration())));
        }
        // The store is degraded. What is not committed is not called passed: after a crash, other
        // events would stand there.
        let is_ahead = committed < outbox.cursor();
        if is_ahead || self.store.is_degraded() {
            outbox.mark_store_degraded();
        }
        if !self.is_registered || self.journal.is_some() || now < self.journal_at {
            return;
        }
        if is_ahead {
            self.journal_at = now + JOURNAL_RETRY_DELAY;
            return;
        }
        let changes = if now >= self.full_journal_at {
            outbox.take_all_changes()
        } else {
            outbox.take_urgent_changes()
        };
        self.full_journal_at = if now >= self.full_journal_at {
            now + POSITION_WRITE_INTERVAL
        } else {
            self.full_journal_at
        };
        self.journal = changes.map(|changes| Box::pin(self.store.journal(&self.id, changes)) as _);
    }

    /// Whether a journal is on its way.
    pub(super) fn is_writing(&self) -> bool {
        self.journal.is_some()
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

    /// Hands over dead letters that have come to be delivered again, and asks for others, now and
    /// then: they come on top of what is owed. The outbox has heard before what the store had to
    /// tell by then.
    pub(super) fn redeliver(&mut self, outbox: &mut Outbox, notice: &WebhookNotice) {
        if let Some(dead_letters) = self.received_letters.take() {
            let took_any = outbox.redeliver(dead_letters, Now::read());
            self.dead_letters_at = Instant::now()
                + if took_any { REDELIVERY_INTERVAL } else { REDELIVERY_RETRY_DELAY };
        }
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

    /// Forgets the dead letters that are on their way: they are asked for again.
    pub(super) fn discard_dead_letters(&mut self) {
        (self.dead_letters, self.received_letters) = (None, None);
    }

    /// When there is something to ask for or to write, though nothing else happens.
    pub(super) fn due(&self, outbox: &Outbox, notice: &WebhookNotice) -> Option<Instant> {
        let now = Instant::now();
        let dead_letters_due = (notice.requeued > outbox.redelivery_count()
            && self.dead_letters.is_none())
        .then_some(self.dead_letters_at);
        let registration_due =
            (self.needs_registration && self.registering.is_none()).then_some(self.register_at);
        let journal_due = Some(self.journal_at).filter(|at| *at > now);
        [dead_letters_due.filter(|at| *at > now), registration_due, journal_due]
            .into_iter()
            .flatten()
            .min()
    }

    /// Waits for an answer of the store, and deals with it.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub(super) async fn handle_reply(&mut self, outbox: &mut Outbox) {
        let now = Instant::now();
        match poll_fn(|context| self.poll_reply(context)).await {
            StoreReply::Journal(Ok(())) => outbox.record_commit(),
            StoreReply::Journal(Err(changes)) => {
                outbox.record_commit_failure(changes);
                self.journal_at = now + JOURNAL_RETRY_DELAY;
            }
            StoreReply::Registered(registered) => self.handle_registered(registered),
            StoreReply::DeadLetters(dead_letters) => {
                self.received_letters = Some(dead_letters.unwrap_or_default());
            }
        }
    }

    fn poll_reply(&mut self, context: &mut Context<'_>) -> Poll<StoreReply> {
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
        // What was redefined meanwhile is still on its way.
        if registered.is_err() || !self.needs_registration {
            for waiter in self.registration_waiters.drain(..) {
                let _ = waiter.send(registered); // who asked may have left
            }
        }
    }

    /// Writes down everything there is, unless the store is not to be had.
    pub(super) async fn flush(&mut self, outbox: &mut Outbox, committed: u64) {
        let now = Instant::now();
        (self.register_at, self.journal_at, self.full_journal_at) = (now, now, now);
        let write = async {
            loop {
                self.start_writes(outbox, committed);
                if self.journal.is_none() && self.registering.is_none() {
                    return; // what could not be written is delivered twice
                }
                self.handle_reply(outbox).await;
            }
        };
        let _ = time::timeout(FINAL_FLUSH_TIMEOUT, write).await;
    }
}

impl fmt::Debug for StoreSync {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Records").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What the store has to say.
enum StoreReply {
    Journal(Result<(), WebhookChanges>),
    Registered(Result<(), StoreUnwritable>),
    DeadLetters(Result<Vec<DeadLetter>, StoreUnreadable>),
}

/// Polls what is out, which is then no longer.
fn poll_in_flight<T>(in_flight: &mut InFlight<T>, context: &mut Context<'_>) -> Poll<T> {
    let Some(future) = in_flight else { return Poll::Pending };
    let polled = future.as_mut().poll(context);
    if polled.is_ready() {
        *in_flight = None;
    }
    polled
}

/// How long the position may wait to be written when nothing else is.
const POSITION_WRITE_INTERVAL: Duration = Duration::from_secs(1);

/// After a journal that could not be written.
const JOURNAL_RETRY_DELAY: Duration = Duration::from_millis(50);

/// After a definition that could not be written.
const REGISTER_RETRY_DELAY: Duration = Duration::from_secs(1);

/// Between two helpings of dead letters: with the number that is under way at one time, some sixty
/// a second.
const REDELIVERY_INTERVAL: Duration = Duration::from_millis(250);

/// After all that wait have been looked at, and none could be taken: those before them fail.
const REDELIVERY_RETRY_DELAY: Duration = Duration::from_secs(1);

/// More than the outbox takes at one time, as it leaves some.
const MAX_REDELIVERY_BATCH: usize = 48;

/// For the last journal.
const FINAL_FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
