//! Requests to the writer: each queues a command or a journal and returns a future of the answer.
//!
//! A request is queued when the method is called, not when its future is polled, and dropping the
//! future does not withdraw it.
//!
//! May use: `event`, `log`, `metrics`, `webhook_delivery`.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::{
    commands::{
        AddedProduct, DeadLetterQuery, RemainingRequeue, StoreCommand, StoreUnwritable,
        WebhookJournal,
    },
    handle::StoreHandle,
    sqlite::UserTraces,
    webhook_rows::{DeadLetterSelection, DeadLetterState, WebhookChanges, WebhookRegistration},
};
use crate::{
    event::{ProductId, UserId, VisitorId},
    log::{MemoryBounds, backing::StoreUnreadable},
    metrics::LogMetrics,
    webhook_delivery::DeadLetter,
};

impl StoreHandle {
    /// Erases the events of a session or a user from the store, and returns their number.
    ///
    /// # Errors
    ///
    /// When the store cannot be written now, or is stopping.
    pub(crate) fn erase(
        &self,
        product: ProductId,
        visitor: VisitorId,
    ) -> impl Future<Output = Result<u64, StoreUnwritable>> + use<> {
        let erased = self.submit(|answer| StoreCommand::Erase { product, visitor, answer });
        async { erased.await.map_err(|_| StoreUnwritable) }
    }

    /// Returns the sessions in which a user acted, and the positions of the user's events without a
    /// session, as far as the store's events and dead letters tell.
    ///
    /// # Errors
    ///
    /// When the store cannot be written now, or is stopping: it could not erase them either.
    pub(crate) fn find_traces(
        &self,
        product: ProductId,
        user: UserId,
    ) -> impl Future<Output = Result<UserTraces, StoreUnwritable>> + use<> {
        let found = self.submit(|answer| StoreCommand::FindTraces { product, user, answer });
        async { found.await.map_err(|_| StoreUnwritable) }
    }

    /// Persists a webhook, or changes all of it but its position. The change is committed when the
    /// future completes.
    ///
    /// # Errors
    ///
    /// When the store cannot be written now, or is stopping.
    pub(crate) fn register(
        &self,
        webhook: WebhookRegistration,
    ) -> impl Future<Output = Result<(), StoreUnwritable>> + use<> {
        let registered =
            self.submit(|answer| StoreCommand::Register { webhook: Box::new(webhook), answer });
        async { registered.await.map_err(|_| StoreUnwritable) }
    }

    /// Removes a webhook, its owed deliveries and its dead letters.
    ///
    /// # Errors
    ///
    /// When the store cannot be written now, or is stopping. A part may be removed by then.
    pub(crate) fn unregister(
        &self,
        id: &str,
    ) -> impl Future<Output = Result<(), StoreUnwritable>> + use<> {
        let id = id.into();
        let removed = self.submit(|answer| StoreCommand::Unregister { id, answer });
        async { removed.await.map_err(|_| StoreUnwritable) }
    }

    /// Commits changes of a webhook, in one transaction with all else that waits.
    ///
    /// # Errors
    ///
    /// Returns the changes when the webhook is not registered, when the store cannot be written
    /// now, and when it is stopping. Then none of them is committed, or all are although the commit
    /// was reported as failed; submitting them again is right in both cases. A writer that has
    /// panicked returns no changes.
    pub(crate) fn journal(
        &self,
        id: &Arc<str>,
        changes: WebhookChanges,
    ) -> impl Future<Output = Result<(), WebhookChanges>> + use<> {
        let (answer, written) = oneshot::channel();
        let journal = WebhookJournal { id: Arc::clone(id), changes, answer };
        match self.is_stopping() {
            true => journal.reject(),
            false => {
                if let Err(error) = self.writer().journals.try_send(journal) {
                    error.into_inner().reject();
                }
            }
        }
        self.backing().wake_writer();
        async { written.await.unwrap_or_else(|_| Err(WebhookChanges::default())) }
    }

    /// Returns a webhook's dead letters in this state, newest first, with their numbers; `before`
    /// is a number to continue behind, if any. At most `limit`, and about 1 MiB of payloads.
    ///
    /// # Errors
    ///
    /// When the store cannot be read now, or is stopping.
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

    /// Marks a webhook's dead letters for redelivery, oldest event first, and returns how many were
    /// not marked before.
    ///
    /// # Errors
    ///
    /// When the store cannot be written now, or is stopping. Some of them may be marked by then.
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

    /// Returns a webhook's dead letters behind a position that are marked for redelivery, by
    /// position. At most `limit`, and about 1 MiB of payloads, but one if there is one.
    ///
    /// # Errors
    ///
    /// When the store cannot be read now, or is stopping.
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

    /// Persists the log of one more product, and continues the log that the file has of it, if any.
    ///
    /// # Errors
    ///
    /// When the store cannot be written now, or is stopping.
    pub(crate) fn add_product(
        &self,
        product: ProductId,
        bounds: MemoryBounds,
        metrics: LogMetrics,
    ) -> impl Future<Output = Result<AddedProduct, StoreUnwritable>> + use<> {
        let added = self.submit(|answer| StoreCommand::AddProduct {
            product: Box::new((product, bounds, metrics)),
            answer,
        });
        async { added.await.map_err(|_| StoreUnwritable) }
    }

    /// Stops persisting a product's log once its backlog is committed.
    ///
    /// # Errors
    ///
    /// Fails if the store cannot be written now, or is stopping. The store then still persists the
    /// product's log.
    pub(crate) fn remove_product(
        &self,
        product: ProductId,
    ) -> impl Future<Output = Result<(), StoreUnwritable>> + use<> {
        let removed = self.submit(|answer| StoreCommand::RemoveProduct { product, answer });
        async { removed.await.map_err(|_| StoreUnwritable) }
    }

    /// Queues a command, unless the store is stopping or the channel is full.
    fn submit<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> StoreCommand,
    ) -> oneshot::Receiver<T> {
        let (answer, answered) = oneshot::channel();
        if !self.is_stopping() {
            // A command that is refused is dropped, which answers its caller with an error.
            let _ = self.writer().commands.try_send(command(answer));
        }
        self.backing().wake_writer();
        answered
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::{event::SessionId, store::commands::MAX_QUEUED_COMMANDS};

    fn erase(handle: &StoreHandle) -> impl Future<Output = Result<u64, StoreUnwritable>> + use<> {
        handle.erase(ProductId::new("p").unwrap(), VisitorId::Session(SessionId::new("s").unwrap()))
    }

    #[tokio::test]
    async fn a_command_beyond_the_bound_of_the_queue_is_refused() {
        let (handle, mut inbox) = StoreHandle::new(PathBuf::new(), 1);
        let queued: Vec<_> = (0..MAX_QUEUED_COMMANDS).map(|_| erase(&handle)).collect();
        erase(&handle).await.unwrap_err();
        drop(queued);
        erase(&handle).await.unwrap_err(); // an erasure is executed although its caller has gone
        assert!(inbox.take_command().is_some());
        drop(erase(&handle));
        let waiting = std::iter::from_fn(|| inbox.take_command()).count();
        assert_eq!(waiting, MAX_QUEUED_COMMANDS);
    }

    #[tokio::test]
    async fn a_journal_that_comes_too_late_is_returned_and_a_command_is_refused() {
        let (handle, mut inbox) = StoreHandle::new(PathBuf::new(), 1);
        let changes = WebhookChanges { position: 7, ..WebhookChanges::default() };
        let (waiting, command) = (handle.journal(&"w".into(), changes.clone()), erase(&handle));
        let begun = inbox.take_command().unwrap();
        inbox.return_command(begun);
        inbox.close();
        assert_eq!(waiting.await, Err(changes.clone()));
        command.await.unwrap_err();
        assert_eq!(handle.journal(&"w".into(), changes.clone()).await, Err(changes));
        erase(&handle).await.unwrap_err();
    }

    #[test]
    fn a_list_is_abandoned_once_its_caller_has_gone_and_a_write_is_not() {
        let (handle, mut inbox) = StoreHandle::new(PathBuf::new(), 1);
        let awaited = handle.requeued_dead_letters("w", 0, 1);
        drop(handle.requeued_dead_letters("w", 0, 1));
        drop(handle.dead_letters("w", DeadLetterState::Dead, None, 1));
        drop(erase(&handle));
        let abandoned = std::iter::from_fn(|| inbox.take_command());
        let abandoned: Vec<_> = abandoned.map(|command| command.is_abandoned()).collect();
        assert_eq!(abandoned, [false, true, true, false]);
        drop(awaited);
    }
}
