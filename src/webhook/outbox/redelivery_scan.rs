//! State of the redelivery scan: how far it has come, and what it has left behind.
//!
//! May use: `event`.

use std::collections::{HashSet, VecDeque};

use tokio::time::Instant;

use crate::event::SessionId;

/// Where the walk stands.
#[derive(Debug, Default)]
pub(super) struct RedeliveryScan {
    /// Everything up to here has been looked at.
    pub(super) scanned_position: u64,
    /// Sessions of which something has been left behind.
    pub(super) skipped_sessions: HashSet<SessionId>,
    /// Something has been taken since it began.
    pub(super) has_enqueued: bool,
    /// Taken not long ago, and when: an answer that was on its way meanwhile may still name them.
    pub(super) recently_enqueued: VecDeque<(Instant, u64)>,
}
