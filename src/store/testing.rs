//! Stores for tests of the store's callers: one without threads, and one that cannot be read.
//!
//! May use: no other module.

use std::{path::PathBuf, sync::Arc};

use tokio::sync::oneshot;

pub(crate) use super::commands::WriterInbox;
use super::{
    commands::{StoreCommand, WebhookJournal},
    handle::StoreHandle,
    webhook_rows::{WebhookChanges, WebhookNotices},
};

/// A command that a test has taken out of the queue.
#[derive(Debug)]
pub(crate) enum TakenCommand {
    /// A registration of a webhook that begins at this position.
    Register {
        /// Position at which the webhook begins.
        position: u64,
        /// Sender that the registration waits for.
        answer: oneshot::Sender<()>,
    },
    /// A list of dead letters behind this position; rejected already.
    ListRequeued(u64),
    /// A journal with these changes; rejected already.
    Journal(WebhookChanges),
    /// Another command; rejected already.
    Other,
}

/// Makes the store unreadable, or readable again.
pub(crate) fn set_unreadable(handle: &StoreHandle, is_unreadable: bool) {
    handle.mark_replaced();
    handle.set_failed(is_unreadable);
}

/// Returns the handle of a store without threads, and what is sent to its writer.
pub(crate) fn idle_handle() -> (Arc<StoreHandle>, WriterInbox) {
    StoreHandle::new(PathBuf::from(super::IN_MEMORY_PATH), 4)
}

/// Tells a worker how many dead letters are marked for redelivery.
pub(crate) fn report_requeued(notices: &WebhookNotices, requeued: u64) {
    notices.update(|notice| notice.requeued = requeued);
}

/// Answers registrations and journals as a store that works, rejects other commands, and returns
/// the journals' changes.
pub(crate) fn confirm_all(inbox: &mut WriterInbox) -> Vec<WebhookChanges> {
    while let Some(command) = inbox.take_command() {
        if let StoreCommand::Register { answer, .. } = command {
            let _ = answer.send(()); // the worker may have ended
        }
    }
    let confirm = |journal: WebhookJournal| {
        let changes = journal.changes.clone();
        journal.confirm();
        changes
    };
    inbox.take_journals().into_iter().map(confirm).collect()
}

/// Takes the oldest command, or a journal if there is none.
pub(crate) fn take_command(inbox: &mut WriterInbox) -> Option<TakenCommand> {
    if let Some(command) = inbox.take_command() {
        return Some(match command {
            StoreCommand::Register { webhook, answer } => {
                TakenCommand::Register { position: webhook.position, answer }
            }
            StoreCommand::ListRequeued { after, .. } => TakenCommand::ListRequeued(after),
            _ => TakenCommand::Other,
        });
    }
    let journal = inbox.take_journals().pop()?;
    let changes = journal.changes.clone();
    WebhookJournal::reject(journal);
    Some(TakenCommand::Journal(changes))
}
