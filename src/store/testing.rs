//! Stores for tests of the store's callers: one without threads, and one that cannot be read.
//!
//! May use: the desk, the orders.

use std::{path::PathBuf, sync::Arc};

use tokio::sync::oneshot;

use super::{
    commands::{StoreCommand, WebhookJournal},
    webhook_rows::WebhookChanges,
};
use crate::log::backing::StoreHandle;

/// What somebody has asked for.
#[derive(Debug)]
pub(crate) enum TakenCommand {
    /// To keep a webhook, which begins at this place.
    Register {
        /// The place.
        position: u64,
        /// Who waits.
        answer: oneshot::Sender<()>,
    },
    /// For dead letters behind this place. Refused already.
    ListRequeued(u64),
    /// To write down changes. Refused already.
    Journal(WebhookChanges),
    /// Something else. Refused already.
    Other,
}

/// Has readers open the file anew while that cannot be done, or lets them again.
pub(crate) fn set_unreadable(handle: &StoreHandle, is_unreadable: bool) {
    handle.mark_replaced();
    handle.set_failed(is_unreadable);
}

/// Its desk.
pub(crate) fn idle_handle() -> Arc<StoreHandle> {
    StoreHandle::new(PathBuf::from(super::IN_MEMORY_PATH), 4)
}

/// The oldest order, or journal if there is none.
pub(crate) fn take_command(handle: &StoreHandle) -> Option<TakenCommand> {
    if let Some(command) = handle.take_command() {
        return Some(match command {
            StoreCommand::Register { webhook, answer } => {
                TakenCommand::Register { position: webhook.position, answer }
            }
            StoreCommand::ListRequeued { after, .. } => TakenCommand::ListRequeued(after),
            _ => TakenCommand::Other,
        });
    }
    let journal = handle.take_journals().pop()?;
    let changes = journal.changes.clone();
    WebhookJournal::reject(journal);
    Some(TakenCommand::Journal(changes))
}
