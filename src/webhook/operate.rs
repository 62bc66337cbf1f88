//! Commands of operators: registers, changes, removes, enables, disables and tests webhooks.
//!
//! In: a call of the admin API. Out: a command to one worker and its reply, or a command to the
//! store.
//!
//! May use: `config`, `event`, `store`, `webhook_delivery`.

use std::{sync::Arc, time::Duration};

use tokio::{sync::oneshot, time};
use tracing::info;

use super::{
    DeadLetterSelection, MAX_WEBHOOK_VISITORS, MAX_WEBHOOKS, WebhookError, WebhookSource,
    WebhookSummary, Webhooks, definition::Definition, registry::WorkerHandle,
    worker::WebhookCommand,
};
use crate::{
    config::WebhookConfig,
    event::{ErasedEvents, Only, ProductId},
    store::StoreUnwritable,
    webhook_delivery::Attempt,
};

impl Webhooks {
    /// Registers a webhook, which receives events published from now on.
    ///
    /// # Errors
    ///
    /// If the id is taken, the product unknown, [`MAX_WEBHOOKS`] reached, or the store cannot be
    /// written; in the last case the worker that was started is removed again.
    pub(crate) async fn create(
        &self,
        webhook: WebhookConfig,
    ) -> Result<WebhookSummary, WebhookError> {
        // Held until the store has answered, so that two calls cannot both find the id free.
        let _guard = self.changes.lock().await;
        let id = webhook.id.clone();
        if self.get(&id).is_some() {
            return Err(WebhookError::AlreadyExists);
        }
        if self.fanout(&webhook.product_id).is_none() {
            return Err(WebhookError::UnknownProduct);
        }
        if self.lock_handles().len() >= MAX_WEBHOOKS {
            return Err(WebhookError::TooMany);
        }
        self.ensure_room_for_visitors(&webhook)?;
        let (reply, stored) = oneshot::channel();
        self.spawn_worker(
            Definition::new(webhook, WebhookSource::Api),
            None,
            Vec::new(),
            Some(reply),
        );
        match stored.await {
            Ok(Ok(())) => {
                info!(webhook = id, "the webhook is registered");
                self.get(&id).ok_or(WebhookError::ShuttingDown)
            }
            Ok(Err(StoreUnwritable)) => {
                drop(self.begin_removal(&self.handle(&id)?));
                Err(WebhookError::StoreUnavailable)
            }
            Err(_) => Err(WebhookError::ShuttingDown),
        }
    }

    /// Checks that the sessions and users of all webhooks, those of `webhook` included, stay within
    /// [`MAX_WEBHOOK_VISITORS`].
    fn ensure_room_for_visitors(&self, webhook: &WebhookConfig) -> Result<(), WebhookError> {
        let handles = self.lock_handles();
        let of_others = handles.iter().filter(|(id, _)| **id != webhook.id);
        let of_others = of_others.map(|(_, it)| visitor_count(&it.shared.definition().webhook));
        let total = of_others.sum::<usize>() + visitor_count(webhook);
        if total > MAX_WEBHOOK_VISITORS { Err(WebhookError::TooManyVisitors) } else { Ok(()) }
    }

    /// Changes a webhook that was registered through the API. The webhook keeps its position; a
    /// replaced secret signs beside the new one for [`Definition::replaced_by`]'s overlap.
    ///
    /// # Errors
    ///
    /// If no webhook has this id, the file declares it, the product differs, or the store cannot be
    /// written. In the last case the worker has applied the change already, and keeps trying to
    /// write it.
    pub(crate) async fn update(
        &self,
        webhook: WebhookConfig,
    ) -> Result<WebhookSummary, WebhookError> {
        let _guard = self.changes.lock().await;
        let id = webhook.id.clone();
        let current = self.editable_handle(&id)?.shared.definition();
        if current.webhook.product_id != webhook.product_id {
            return Err(WebhookError::ProductChanged);
        }
        self.ensure_room_for_visitors(&webhook)?;
        let definition = current.replaced_by(webhook, WebhookSource::Api);
        let stored = self
            .send_command(&id, |reply| WebhookCommand::Redefine(Box::new(definition), reply))
            .await?;
        info!(webhook = id, "the webhook is changed");
        stored.map_err(|StoreUnwritable| WebhookError::StoreUnavailable)?;
        self.get(&id).ok_or(WebhookError::Unknown)
    }

    /// Removes a webhook that was registered through the API, with its owed deliveries and dead
    /// letters.
    ///
    /// # Errors
    ///
    /// If no webhook has this id, or the file declares it. [`WebhookError::StoreUnavailable`] if
    /// the store could not be written within [`REMOVE_TIMEOUT`]: the removal continues in the
    /// background. [`WebhookError::ShuttingDown`] if the relay shuts down before the webhook is out
    /// of the store: the webhook is still there after the restart.
    ///
    /// # Cancel safety
    ///
    /// Once begun, the removal runs on the worker's task, whether or not the caller waits.
    pub(crate) async fn remove(&self, id: &str) -> Result<(), WebhookError> {
        let _guard = self.changes.lock().await;
        let handle = self.editable_handle(id)?;
        if handle.commands.is_closed() && !handle.removed.is_cancelled() {
            return Err(WebhookError::ShuttingDown); // the worker has ended and will not unregister
        }
        let ended = time::timeout(REMOVE_TIMEOUT, self.begin_removal(&handle)).await;
        let unfinished = if self.stop.is_cancelled() {
            WebhookError::ShuttingDown
        } else {
            WebhookError::StoreUnavailable
        };
        ended.map_err(|_| unfinished)?;
        info!(webhook = id, "the webhook is removed, with what it is owed and its dead letters");
        Ok(())
    }

    /// Ends a worker for good, and returns a future that waits until the webhook is out of the
    /// store.
    pub(super) fn begin_removal(&self, handle: &WorkerHandle) -> impl Future<Output = ()> + use<> {
        handle.removed.cancel();
        handle.ended.clone().cancelled_owned()
    }

    /// Makes a webhook's endpoint active from any state, and its waiting deliveries due.
    ///
    /// # Errors
    ///
    /// If no webhook has this id.
    pub(crate) async fn enable(&self, id: &str) -> Result<WebhookSummary, WebhookError> {
        self.send_command(id, WebhookCommand::Enable).await?;
        self.get(id).ok_or(WebhookError::Unknown)
    }

    /// Stops all sending until the webhook is enabled again.
    ///
    /// # Errors
    ///
    /// If no webhook has this id.
    pub(crate) async fn disable(&self, id: &str) -> Result<WebhookSummary, WebhookError> {
        self.send_command(id, WebhookCommand::Disable).await?;
        self.get(id).ok_or(WebhookError::Unknown)
    }

    /// Sends a signed sample event in any state of the webhook, and returns the attempt.
    ///
    /// # Errors
    ///
    /// If no webhook has this id.
    pub(crate) async fn test(&self, id: &str) -> Result<Attempt, WebhookError> {
        self.send_command(id, WebhookCommand::Test).await
    }

    /// Requeues dead letters and returns how many.
    ///
    /// # Errors
    ///
    /// If no webhook has this id, or the store cannot be written.
    pub(crate) async fn redeliver(
        &self,
        id: &str,
        which: DeadLetterSelection,
    ) -> Result<u64, WebhookError> {
        self.handle(id)?;
        let requeued = self
            .context
            .store
            .requeue(id, which)
            .await
            .map_err(|StoreUnwritable| WebhookError::StoreUnavailable)?;
        info!(webhook = id, deliveries = requeued, "dead letters are to be delivered again");
        Ok(requeued)
    }

    /// Erases events from every outbox of the product: owed deliveries, listed deliveries, dead
    /// letters that are not written yet. The caller erases the store afterwards.
    pub(crate) async fn erase(&self, product: &ProductId, erased: &Arc<ErasedEvents>) {
        let affected = |view: &WebhookSummary| view.webhook.product_id == *product;
        for view in self.list().into_iter().filter(affected) {
            // A webhook that was removed meanwhile has no deliveries left, so its error is no loss.
            let _ = self
                .send_command(&view.webhook.id, |reply| {
                    WebhookCommand::Erase(Arc::clone(erased), reply)
                })
                .await;
        }
    }

    fn editable_handle(&self, id: &str) -> Result<WorkerHandle, WebhookError> {
        let handle = self.handle(id)?;
        match handle.shared.definition().source {
            WebhookSource::Api => Ok(handle),
            WebhookSource::File => Err(WebhookError::DeclaredInFile),
        }
    }
}

/// Returns the number of sessions and users that a webhook names.
fn visitor_count(webhook: &WebhookConfig) -> usize {
    fn count<T>(only: &Only<T>) -> usize {
        match only {
            Only::Everything => 0,
            Only::These(values) => values.len(),
        }
    }
    count(&webhook.session_ids) + count(&webhook.user_ids)
}

/// Bound on an operator's wait for the store. The removal itself is not bounded.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(5);
