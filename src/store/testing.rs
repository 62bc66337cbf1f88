//! For tests of those who ask the store for something: one that does nothing by itself, and one that cannot be read.
//!
//! May use: the desk, the orders.

use std::{path::PathBuf, sync::Arc};

use tokio::sync::oneshot;

use super::{
    commands::{Journal, Order},
    webhook_rows::Changes,
};
use crate::log::backing::Desk;

/// What somebody has asked for.
#[derive(Debug)]
pub(crate) enum Asked {
    /// To keep a webhook, which begins at this place.
    Register {
        /// The place.
        position: u64,
        /// Who waits.
        answer: oneshot::Sender<()>,
    },
    /// For dead letters behind this place. Refused already.
    Letters(u64),
    /// To write down changes. Refused already.
    Journal(Changes),
    /// Something else. Refused already.
    Other,
}

/// Has readers open the file anew while that cannot be done, or lets them again.
pub(crate) fn cannot_be_read(desk: &Desk, is_so: bool) {
    desk.is_replaced();
    desk.has_failed(is_so);
}

/// Its desk.
pub(crate) fn desk() -> Arc<Desk> {
    Desk::new(PathBuf::from(super::IN_MEMORY), 4)
}

/// The oldest order, or journal if there is none.
pub(crate) fn take(desk: &Desk) -> Option<Asked> {
    if let Some(order) = desk.take_order() {
        return Some(match order {
            Order::Register { webhook, answer } => Asked::Register { position: webhook.position, answer },
            Order::Requeued { after, .. } => Asked::Letters(after),
            _ => Asked::Other,
        });
    }
    let journal = desk.take_journals().pop()?;
    let changes = journal.changes.clone();
    Journal::refuse(journal);
    Some(Asked::Journal(changes))
}
