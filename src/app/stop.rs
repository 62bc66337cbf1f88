//! Which parts of the relay are told to end, and how their tasks are joined.
//!
//! May use: no other module.

use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// What is told to end, in the order in which it is.
#[derive(Clone, Debug, Default)]
pub(super) struct StopTokens {
    pub(super) ingest: CancellationToken,
    pub(super) serving: CancellationToken,
    pub(super) admin: CancellationToken,
    /// Cancelled by the admin thread when it ends.
    pub(super) admin_ended: CancellationToken,
}

/// Joins every task of a set that has been told to end.
///
/// # Errors
///
/// The first panic there was.
pub(super) async fn join_all(tasks: &mut JoinSet<()>) -> Result<(), JoinError> {
    let mut outcome = Ok(());
    while let Some(ended) = tasks.join_next().await {
        outcome = outcome.and(ended);
    }
    outcome
}
