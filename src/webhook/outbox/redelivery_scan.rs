//! State of the redelivery scan: how far it has come, and which sessions it has skipped.
//!
//! May use: `event`.

use std::collections::{HashSet, VecDeque};

use tokio::time::Instant;

use crate::event::SessionId;

/// Progress of one scan over the store's requeued dead letters.
#[derive(Debug, Default)]
pub(super) struct RedeliveryScan {
    /// Position up to which the scan has examined every dead letter.
    pub(super) scanned_position: u64,
    /// Sessions of which the scan has skipped a dead letter: the later ones are skipped too, which
    /// keeps their order.
    pub(super) skipped_sessions: HashSet<SessionId>,
    /// The scan has enqueued a dead letter since it began.
    pub(super) has_enqueued: bool,
    /// Dead letters enqueued a short time ago, with the time: a reply of the store that was under
    /// way meanwhile may still name them.
    pub(super) recently_enqueued: VecDeque<(Instant, u64)>,
}
