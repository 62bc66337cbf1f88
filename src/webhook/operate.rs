//! Commands of operators: registers, changes, removes, enables, disables and tests webhooks.
//!
//! In: a call of the admin API. Out: a command to one worker and its answer, or an order to the store.
//!
//! May use: `config`, `event`, `store`, `webhook_delivery`.

use std::time::Duration;

use tokio::{sync::oneshot, time};
use tracing::info;

use super::{
    DeadLetterSelection, MAX_WEBHOOKS, WebhookError, WebhookSource, WebhookSummary, Webhooks,
    definition::Definition, registry::WorkerHandle, worker::WebhookCommand,
};
use crate::{
    config::WebhookConfig,
    event::{ProductId, SessionId},
    store::StoreUnwritable,
    webhook_delivery::Attempt,
};

impl Webhooks {
    /// Registers a webhook, which gets events from now on.
    ///
    /// # Errors
    ///
    /// When the id is taken, the product unknown, or the store cannot be written.
    pub(crate) async fn create(
        &self,
        webhook: WebhookConfig,
    ) -> Result<WebhookSummary, WebhookError> {
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

    /// Changes a webhook that the API has registered. It keeps its place. A former secret signs beside a new one for a while.
    ///
    /// # Errors
    ///
    /// When there is none of this id, the file declares it, the product is another, or the store cannot be written.
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
        let definition = current.replaced_by(webhook, WebhookSource::Api);
        let stored = self
            .send_command(&id, |reply| WebhookCommand::Redefine(Box::new(definition), reply))
            .await?;
        info!(webhook = id, "the webhook is changed");
        stored.map_err(|StoreUnwritable| WebhookError::StoreUnavailable)?;
        self.get(&id).ok_or(WebhookError::Unknown)
    }

    /// Ends a webhook that the API has registered, with all that is owed to it and its dead letters.
    ///
    /// # Errors
    ///
    /// When there is none of this id, the file declares it, or the store cannot be written; then it ends when it can. When the
    /// relay leaves before it is out of the store; then it is still there in the next life.
    ///
    /// # Cancel safety
    ///
    /// Once begun, it is carried out whether or not anybody waits.
    pub(crate) async fn remove(&self, id: &str) -> Result<(), WebhookError> {
        let _guard = self.changes.lock().await;
        let handle = self.editable_handle(id)?;
        if handle.commands.is_closed() && !handle.removed.is_cancelled() {
            return Err(WebhookError::ShuttingDown); // its worker has left already
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

    pub(super) fn begin_removal(&self, handle: &WorkerHandle) -> impl Future<Output = ()> + use<> {
        handle.removed.cancel();
        handle.ended.clone().cancelled_owned()
    }

    /// Makes a webhook active, whatever it was.
    ///
    /// # Errors
    ///
    /// When there is none of this id.
    pub(crate) async fn enable(&self, id: &str) -> Result<WebhookSummary, WebhookError> {
        self.send_command(id, WebhookCommand::Enable).await?;
        self.get(id).ok_or(WebhookError::Unknown)
    }

    /// Holds a webhook back until it is enabled.
    ///
    /// # Errors
    ///
    /// When there is none of this id.
    pub(crate) async fn disable(&self, id: &str) -> Result<WebhookSummary, WebhookError> {
        self.send_command(id, WebhookCommand::Disable).await?;
        self.get(id).ok_or(WebhookError::Unknown)
    }

    /// Sends a signed sample, whatever the state of the webhook is, and returns how it went.
    ///
    /// # Errors
    ///
    /// When there is none of this id.
    pub(crate) async fn test(&self, id: &str) -> Result<Attempt, WebhookError> {
        self.send_command(id, WebhookCommand::Test).await
    }

    /// Puts dead letters back into the queue, and returns how many.
    ///
    /// # Errors
    ///
    /// When there is none of this id, or the store cannot be written.
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

    /// Forgets what is owed to any webhook of a session's events, and what it got of them.
    pub(crate) async fn erase(&self, product: &ProductId, session: &SessionId) {
        let affected = |view: &WebhookSummary| view.webhook.product_id == *product;
        for view in self.list().into_iter().filter(affected) {
            // One that has been removed meanwhile has forgotten everything.
            let _ = self
                .send_command(&view.webhook.id, |reply| {
                    WebhookCommand::Erase(session.clone(), reply)
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

/// How long an operator waits for the store.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(5);
