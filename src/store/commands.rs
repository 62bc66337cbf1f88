//! Commands for the writer beside persisting the logs: erasures, products that are added or
//! removed, and everything that webhooks need.
//!
//! ```text
//! admin API, webhooks ──► commands ─► one after the other, behind the commit of the same round
//! workers ──────────────► journals ─► all that wait in one transaction, with the logs' entries
//! ```
//!
//! A command that writes is executed even if its caller no longer waits for the answer; a list is
//! not.
//!
//! May use: `event`, `log`, `metrics`, `webhook_delivery`.

use std::{collections::VecDeque, iter, sync::Arc};

use tokio::sync::{mpsc, oneshot};

use super::{
    sqlite::UserTraces,
    webhook_rows::{DeadLetterState, StoredWebhook, WebhookChanges, WebhookRegistration},
};
use crate::{
    event::{EventId, ProductId, UserId, VisitorId},
    log::{Log, MemoryBounds},
    metrics::LogMetrics,
    webhook_delivery::DeadLetter,
};

/// Command for the writer. Dropping one answers its caller with an error.
#[derive(Debug)]
pub(crate) enum StoreCommand {
    /// Erase the events of a session or a user from the store, and return their number.
    Erase { product: ProductId, visitor: VisitorId, answer: oneshot::Sender<u64> },
    /// Find what a user has left in the store.
    FindTraces { product: ProductId, user: UserId, answer: oneshot::Sender<UserTraces> },
    /// Persist a webhook.
    Register { webhook: Box<WebhookRegistration>, answer: oneshot::Sender<()> },
    /// Remove a webhook and all that is stored for it.
    Unregister { id: Box<str>, answer: oneshot::Sender<()> },
    /// Mark dead letters for redelivery, and return their number.
    Requeue { id: Box<str>, remaining: RemainingRequeue, marked: u64, answer: oneshot::Sender<u64> },
    /// List dead letters.
    ListDeadLetters {
        id: Box<str>,
        query: DeadLetterQuery,
        answer: oneshot::Sender<Vec<(u64, DeadLetter)>>,
    },
    /// List dead letters behind this position that are marked for redelivery.
    ListRequeued {
        id: Box<str>,
        after: u64,
        limit: usize,
        answer: oneshot::Sender<Vec<DeadLetter>>,
    },
    /// Persist the log of one more product.
    AddProduct {
        product: Box<(ProductId, MemoryBounds, LogMetrics)>,
        answer: oneshot::Sender<AddedProduct>,
    },
    /// Stop persisting a product's log once its backlog is committed. Its rows stay in the file
    /// until retention removes them.
    RemoveProduct { product: ProductId, answer: oneshot::Sender<()> },
}

/// Result of [`StoreCommand::AddProduct`].
#[derive(Debug)]
pub(crate) struct AddedProduct {
    /// Log of the product, continued where the file ends.
    pub(crate) log: Arc<Log>,
    /// Webhooks of the product that were persisted.
    pub(crate) webhooks: Vec<StoredWebhook>,
}

impl StoreCommand {
    /// Returns whether the command changes the file, so that it has to be synced.
    pub(crate) fn is_write(&self) -> bool {
        !matches!(
            self,
            Self::FindTraces { .. } | Self::ListDeadLetters { .. } | Self::ListRequeued { .. }
        )
    }

    /// Returns whether the command only reads, and its caller no longer waits for the answer.
    pub(crate) fn is_abandoned(&self) -> bool {
        match self {
            Self::FindTraces { answer, .. } => answer.is_closed(),
            Self::ListDeadLetters { answer, .. } => answer.is_closed(),
            Self::ListRequeued { answer, .. } => answer.is_closed(),
            _ => false,
        }
    }
}

/// Dead letters that are still to be marked for redelivery.
#[derive(Debug)]
pub(crate) enum RemainingRequeue {
    /// All up to this number, which is read when the command begins: a delivery that dies later
    /// stays dead.
    All { through: Option<u64> },
    /// The dead letters of these events.
    Events(VecDeque<EventId>),
}

/// Query for a page of dead letters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeadLetterQuery {
    /// State of the letters to list.
    pub(super) state: DeadLetterState,
    /// Number before which the page begins, newest first.
    pub(super) before: Option<u64>,
    /// Maximum number of letters.
    pub(super) limit: usize,
}

/// Changes of one webhook that are to be committed.
#[derive(Debug)]
pub(crate) struct WebhookJournal {
    /// Webhook.
    pub(super) id: Arc<str>,
    /// Changes to write.
    pub(super) changes: WebhookChanges,
    pub(super) answer: oneshot::Sender<Result<(), WebhookChanges>>,
}

impl WebhookJournal {
    /// Answers the caller that the changes are committed.
    pub(crate) fn confirm(self) {
        let _ = self.answer.send(Ok(())); // the caller may have dropped the future
    }

    /// Returns the changes to the caller, which may submit them again.
    pub(crate) fn reject(self) {
        let _ = self.answer.send(Err(self.changes)); // the caller may have dropped the future
    }
}

/// Sending ends of the two channels to the writer.
#[derive(Debug)]
pub(super) struct WriterSenders {
    pub(super) commands: mpsc::Sender<StoreCommand>,
    pub(super) journals: mpsc::Sender<WebhookJournal>,
}

/// Commands and journals that wait for the writer, which alone holds it.
///
/// A webhook has one journal under way. Commands are bounded by [`MAX_QUEUED_COMMANDS`]: a caller
/// that gives up and repeats its request while the disk hangs leaves its old command in the
/// channel.
#[derive(Debug)]
pub(crate) struct WriterInbox {
    commands: mpsc::Receiver<StoreCommand>,
    journals: mpsc::Receiver<WebhookJournal>,
    /// Rest of a long command, which continues before the next one.
    unfinished: Option<StoreCommand>,
}

/// Returns both ends of the channels to the writer.
pub(super) fn channels() -> (WriterSenders, WriterInbox) {
    let (commands, command_receiver) = mpsc::channel(MAX_QUEUED_COMMANDS);
    let (journals, journal_receiver) = mpsc::channel(MAX_QUEUED_COMMANDS);
    let inbox =
        WriterInbox { commands: command_receiver, journals: journal_receiver, unfinished: None };
    (WriterSenders { commands, journals }, inbox)
}

impl WriterInbox {
    /// Returns whether neither a command nor a journal waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.unfinished.is_none() && self.commands.is_empty() && self.journals.is_empty()
    }

    /// Takes the oldest command.
    pub(crate) fn take_command(&mut self) -> Option<StoreCommand> {
        self.unfinished.take().or_else(|| self.commands.try_recv().ok())
    }

    /// Keeps the rest of a command, to be taken before all others.
    pub(crate) fn return_command(&mut self, command: StoreCommand) {
        self.unfinished = Some(command);
    }

    /// Takes all journals.
    pub(crate) fn take_journals(&mut self) -> Vec<WebhookJournal> {
        iter::from_fn(|| self.journals.try_recv().ok()).collect()
    }

    /// Rejects all commands and journals that wait.
    pub(crate) fn reject_all(&mut self) {
        self.take_journals().into_iter().for_each(WebhookJournal::reject);
        // Dropping a command answers its caller with an error.
        while self.take_command().is_some() {}
    }

    /// Rejects what waits and all that comes.
    pub(crate) fn close(&mut self) {
        self.commands.close();
        self.journals.close();
        self.reject_all();
    }
}

/// Maximum number of commands that wait; further ones are refused as if the store could not be
/// written. Far above the three that each of 1000 webhooks may have under way.
pub(super) const MAX_QUEUED_COMMANDS: usize = 16_384;

/// The store could not be written, or was stopped before it executed the command.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the store cannot be written")]
pub(crate) struct StoreUnwritable;
