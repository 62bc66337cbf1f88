//! Requests to the writer: each queues a command or a journal and returns a future of the answer.
//!
//! May use: `event`, `log`, `metrics`, `webhook_delivery`.

use std::{mem, sync::Arc};

use tokio::sync::oneshot;

use super::{
    commands::{
        AddedProduct, DeadLetterQuery, RemainingRequeue, StoreCommand, StoreUnwritable,
        WebhookJournal,
    },
    handle::StoreHandle,
    webhook_rows::{DeadLetterSelection, DeadLetterState, WebhookChanges, WebhookRegistration},
};
use crate::{
    event::{ProductId, SessionId},
    log::{MemoryBounds, backing::StoreUnreadable},
    metrics::LogMetrics,
    webhook_delivery::DeadLetter,
};

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
        self.backing().wake_writer();
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
        self.backing().wake_writer();
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
