//! The tokens that stop the parts of the relay, and the joining of their tasks.
//!
//! May use: no other module.

use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// Tokens in the order in which the shutdown cancels them.
#[derive(Clone, Debug, Default)]
pub(super) struct StopTokens {
    /// Ends upstreams and ingest.
    pub(super) ingest: CancellationToken,
    /// Ends the public listener, the shards and the fan-outs.
    pub(super) serving: CancellationToken,
    /// Ends the admin and probe listeners.
    pub(super) admin: CancellationToken,
    /// Cancelled by the admin thread when it ends.
    pub(super) admin_ended: CancellationToken,
    /// Cancelled by the timer wheel's thread when it ends.
    pub(super) wheel_ended: CancellationToken,
}

/// Joins every task of a set whose stop token was cancelled.
///
/// # Errors
///
/// The first panic.
pub(super) async fn join_all(tasks: &mut JoinSet<()>) -> Result<(), JoinError> {
    let mut outcome = Ok(());
    while let Some(ended) = tasks.join_next().await {
        outcome = outcome.and(ended);
    }
    outcome
}
