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

use std::{collections::VecDeque, sync::Arc};

use tokio::sync::oneshot;

use super::webhook_rows::{DeadLetterState, StoredWebhook, WebhookChanges, WebhookRegistration};
use crate::{
    event::{EventId, ProductId, SessionId},
    log::{Log, MemoryBounds},
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
    pub(super) answer: oneshot::Sender<Result<(), WebhookChanges>>,
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
    pub(super) commands: VecDeque<StoreCommand>,
    pub(super) journals: Vec<WebhookJournal>,
}

impl CommandQueue {
    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.commands.is_empty() && self.journals.is_empty()
    }
}

/// The store could not be written.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the store cannot be written")]
pub(crate) struct StoreUnwritable;
