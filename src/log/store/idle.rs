//! A store that does nothing by itself, for tests of those who ask it for something: the test answers, or does not.
//!
//! May use: the desk, the orders.

use std::{path::PathBuf, sync::Arc};

use tokio::sync::oneshot;

use super::{
    desk::Desk,
    orders::{Journal, Order},
    outbox::Changes,
};

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
    /// To write down changes. Refused already.
    Journal(Changes),
    /// Something else. Refused already.
    Other,
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
            _ => Asked::Other,
        });
    }
    let journal = desk.take_journals().pop()?;
    let changes = journal.changes.clone();
    Journal::refuse(journal);
    Some(Asked::Journal(changes))
}
