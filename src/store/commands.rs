//! Commands for the writer beside persisting the logs: erasures, products that are added or
//! removed, and everything that webhooks need.
//!
//! ```text
//! admin API, webhooks ──► commands ─► one after the other, after what has been committed by then
//! workers ──────────────► journals ─► all that wait in one transaction, with the logs' entries
//! ```
//!
//! A command is executed even if its caller no longer waits for the answer.
//!
//! May use: `event`, `log`, `metrics`, `webhook_delivery`.

use std::{collections::VecDeque, mem, sync::Arc};

use tokio::sync::oneshot;

use super::webhook_rows::{
    DeadLetterSelection, DeadLetterState, StoredWebhook, WebhookChanges, WebhookRegistration,
};
use crate::{
    event::{EventId, ProductId, SessionId},
    log::{
        Log, MemoryBounds,
        backing::{StoreHandle, StoreUnreadable, StoreUnwritable},
    },
    metrics::LogMetrics,
    webhook_delivery::DeadLetter,
};

/// Something to do for the writing thread. Who drops one refuses it.
#[derive(Debug)]
pub(crate) enum StoreCommand {
    /// Take a session's events out of the store, and tell how many there were.
    Erase { product: ProductId, session: SessionId, answer: oneshot::Sender<u64> },
    /// Keep a webhook.
    Register { webhook: Box<WebhookRegistration>, answer: oneshot::Sender<()> },
    /// Forget a webhook and all it has.
    Unregister { id: Box<str>, answer: oneshot::Sender<()> },
    /// Mark dead letters as waiting to be delivered again, and tell how many.
    Requeue { id: Box<str>, remaining: RemainingRequeue, marked: u64, answer: oneshot::Sender<u64> },
    /// List dead letters.
    ListDeadLetters {
        id: Box<str>,
        query: DeadLetterQuery,
        answer: oneshot::Sender<Vec<(u64, DeadLetter)>>,
    },
    /// List those behind this place that wait to be delivered again.
    ListRequeued {
        id: Box<str>,
        after: u64,
        limit: usize,
        answer: oneshot::Sender<Vec<DeadLetter>>,
    },
    /// Keep the log of one more product.
    AddProduct {
        product: Box<(ProductId, MemoryBounds, LogMetrics)>,
        answer: oneshot::Sender<AddedProduct>,
    },
    /// Keep a product's log no longer, once all of it is kept. What is in the file stays there
    /// until retention takes it.
    RemoveProduct { product: ProductId, answer: oneshot::Sender<()> },
}

/// A product that the store keeps from now on.
#[derive(Debug)]
pub(crate) struct AddedProduct {
    /// Its log, which goes on where the store has kept it.
    pub(crate) log: Arc<Log>,
    /// Its webhooks that were kept.
    pub(crate) webhooks: Vec<StoredWebhook>,
}

impl StoreCommand {
    /// Whether it changes anything.
    pub(crate) fn is_write(&self) -> bool {
        !matches!(self, Self::ListDeadLetters { .. } | Self::ListRequeued { .. })
    }
}

/// What is left to be requeued.
#[derive(Debug)]
pub(crate) enum RemainingRequeue {
    /// All up to this number, once it is known: what dies meanwhile stays dead.
    All { through: Option<u64> },
    /// These.
    Events(VecDeque<EventId>),
}

/// Which dead letters are asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeadLetterQuery {
    /// In which state.
    pub(super) state: DeadLetterState,
    /// Before which number.
    pub(super) before: Option<u64>,
    /// How many at the most.
    pub(super) limit: usize,
}

/// What has happened to one webhook, to be written down.
#[derive(Debug)]
pub(crate) struct WebhookJournal {
    /// Whose.
    pub(super) id: Arc<str>,
    /// What.
    pub(super) changes: WebhookChanges,
    answer: oneshot::Sender<Result<(), WebhookChanges>>,
}

impl WebhookJournal {
    /// Tells that it is written.
    pub(crate) fn confirm(self) {
        let _ = self.answer.send(Ok(())); // who asked may have left
    }

    /// Gives it back.
    pub(crate) fn reject(self) {
        let _ = self.answer.send(Err(self.changes)); // who asked may have left
    }
}

/// Everything that waits for the writing thread.
#[derive(Debug, Default)]
pub(crate) struct CommandQueue {
    commands: VecDeque<StoreCommand>,
    journals: Vec<WebhookJournal>,
}

impl CommandQueue {
    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.commands.is_empty() && self.journals.is_empty()
    }
}

impl StoreHandle {
    /// Orders that a session's events be taken out of the store, and tells how many there were.
    ///
    /// # Errors
    ///
    /// When the store cannot be written now, or is being closed.
    pub(crate) fn erase(
        &self,
        product: ProductId,
        session: SessionId,
    ) -> impl Future<Output = Result<u64, StoreUnwritable>> + use<> {
        let erased = self.submit(|answer| StoreCommand::Erase { product, session, answer });
        async { erased.await.map_err(|_| StoreUnwritable) }
    }

    /// Keeps a webhook, or changes what is kept of one but its position. On the disk when it
    /// returns.
    ///
    /// # Errors
    ///
    /// When the store cannot be written now, or is being closed.
    pub(crate) fn register(
        &self,
        webhook: WebhookRegistration,
    ) -> impl Future<Output = Result<(), StoreUnwritable>> + use<> {
        let registered =
            self.submit(|answer| StoreCommand::Register { webhook: Box::new(webhook), answer });
        async { registered.await.map_err(|_| StoreUnwritable) }
    }

    /// Forgets a webhook, what is owed to it and its dead letters.
    ///
    /// # Errors
    ///
    /// When the store cannot be written now, or is being closed. Some of it may be gone.
    pub(crate) fn unregister(
        &self,
        id: &str,
    ) -> impl Future<Output = Result<(), StoreUnwritable>> + use<> {
        let id = id.into();
        let removed = self.submit(|answer| StoreCommand::Unregister { id, answer });
        async { removed.await.map_err(|_| StoreUnwritable) }
    }

    /// Writes down what has happened to a webhook, in one transaction with what else there is to
    /// commit.
    ///
    /// # Errors
    ///
    /// The changes come back when the webhook is not registered, and when the store cannot be
    /// written now, or is being closed: none of them is written, or all of them are and nobody
    /// knows; they may be written again in any case. None come back from a writing thread that has
    /// died.
    pub(crate) fn journal(
        &self,
        id: &Arc<str>,
        changes: WebhookChanges,
    ) -> impl Future<Output = Result<(), WebhookChanges>> + use<> {
        let (answer, written) = oneshot::channel();
        let journal = WebhookJournal { id: Arc::clone(id), changes, answer };
        let mut queue = self.commands();
        if self.is_stopping() {
            journal.reject();
        } else {
            queue.journals.push(journal);
        }
        drop(queue);
        self.wake_writer();
        async { written.await.unwrap_or_else(|_| Err(WebhookChanges::default())) }
    }

    /// A webhook's dead letters in this state, newest first, with their numbers: `before` one of
    /// these, or the newest. At most `limit`, and about 1 MiB of payloads.
    ///
    /// # Errors
    ///
    /// When the store cannot be read now, or is being closed.
    pub(crate) fn dead_letters(
        &self,
        id: &str,
        state: DeadLetterState,
        before: Option<u64>,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<(u64, DeadLetter)>, StoreUnreadable>> + use<> {
        let (id, query) = (id.into(), DeadLetterQuery { state, before, limit });
        let found = self.submit(|answer| StoreCommand::ListDeadLetters { id, query, answer });
        async { found.await.map_err(|_| StoreUnreadable) }
    }

    /// Marks a webhook's dead letters as waiting to be delivered again, the oldest event first, and
    /// returns how many were not.
    ///
    /// # Errors
    ///
    /// When the store cannot be written now, or is being closed. Some of them may be marked.
    pub(crate) fn requeue(
        &self,
        id: &str,
        which: DeadLetterSelection,
    ) -> impl Future<Output = Result<u64, StoreUnwritable>> + use<> {
        let remaining = match which {
            DeadLetterSelection::All => RemainingRequeue::All { through: None },
            DeadLetterSelection::Events(events) => RemainingRequeue::Events(events.into()),
        };
        let id = id.into();
        let marked =
            self.submit(|answer| StoreCommand::Requeue { id, remaining, marked: 0, answer });
        async { marked.await.map_err(|_| StoreUnwritable) }
    }

    /// A webhook's dead letters behind a place that wait to be delivered again, in the order of
    /// their places. At most `limit`, and about 1 MiB of payloads, but one if there is one.
    ///
    /// # Errors
    ///
    /// When the store cannot be read now, or is being closed.
    pub(crate) fn requeued_dead_letters(
        &self,
        id: &str,
        after: u64,
        limit: usize,
    ) -> impl Future<Output = Result<Vec<DeadLetter>, StoreUnreadable>> + use<> {
        let id = id.into();
        let found = self.submit(|answer| StoreCommand::ListRequeued { id, after, limit, answer });
        async { found.await.map_err(|_| StoreUnreadable) }
    }

    /// Keeps the log of one more product: the one that is kept of it already, if there is one.
    ///
    /// # Errors
    ///
    /// When the store cannot be written now, or is being closed.
    pub(crate) fn add_product(
        &self,
        product: ProductId,
        bounds: MemoryBounds,
        metrics: LogMetrics,
    ) -> impl Future<Output = Result<AddedProduct, StoreUnwritable>> + use<> {
        let adopted = self.submit(|answer| StoreCommand::AddProduct {
            product: Box::new((product, bounds, metrics)),
            answer,
        });
        async { adopted.await.map_err(|_| StoreUnwritable) }
    }

    /// Keeps a product's log no longer, once all of it is kept.
    ///
    /// # Errors
    ///
    /// When the store cannot be written now, or is being closed: it then goes on keeping the log.
    pub(crate) fn remove_product(
        &self,
        product: ProductId,
    ) -> impl Future<Output = Result<(), StoreUnwritable>> + use<> {
        let released = self.submit(|answer| StoreCommand::RemoveProduct { product, answer });
        async { released.await.map_err(|_| StoreUnwritable) }
    }

    /// Leaves an order for the writing thread, unless the store is being closed.
    fn submit<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> StoreCommand,
    ) -> oneshot::Receiver<T> {
        let (answer, answered) = oneshot::channel();
        let mut queue = self.commands();
        // Looked at while nobody can take orders: one that comes after the last look is refused,
        // and none is forgotten.
        if !self.is_stopping() {
            queue.commands.push_back(command(answer));
        }
        drop(queue);
        self.wake_writer();
        answered
    }

    /// The oldest order.
    pub(crate) fn take_command(&self) -> Option<StoreCommand> {
        self.commands().commands.pop_front()
    }

    /// Puts back what is left of an order: the next one to be taken.
    pub(crate) fn return_command(&self, command: StoreCommand) {
        self.commands().commands.push_front(command);
    }

    /// Everything that is to be written down of webhooks.
    pub(crate) fn take_journals(&self) -> Vec<WebhookJournal> {
        mem::take(&mut self.commands().journals)
    }

    /// Refuses everything that waits.
    pub(crate) fn reject_commands(&self) {
        let refused = mem::take(&mut *self.commands());
        refused.journals.into_iter().for_each(WebhookJournal::reject);
        drop(refused.commands); // who asked is told that it cannot be done
    }
}
