//! The log's progress behind its upstream: connection, replay after a lost connection, and history.
//!
//! ```text
//! disconnected ── answer: connector ──────────────────────────► live
//!              └─ answer: relay ──► replaying ── heartbeat ───► live       any ── lost ──► disconnected
//! ```
//!
//! A relay that follows a relay receives, up to the first heartbeat, what it missed. The first
//! replay to an empty log is *history*: subscribers that asked for news do not get it.
//!
//! May use: no other module.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::time::Instant;

use super::{
    Log,
    upstream_link::{Numbering, UpstreamLink},
};

impl Log {
    /// Records that the upstream has answered, and which side gives the ids from now on. A relay
    /// first repeats what was appended meanwhile, up to its first heartbeat.
    pub(crate) fn set_numbering(&self, numbering: Numbering) {
        let mut state = self.state();
        state.numbering = numbering;
        state.link = if numbering == Numbering::Upstream {
            UpstreamLink::Replaying
        } else {
            UpstreamLink::Live
        };
    }

    /// Records that the connection to the upstream is lost.
    pub(crate) fn mark_upstream_disconnected(&self) {
        self.state().link = UpstreamLink::Disconnected { since: Instant::now() };
    }

    /// Returns whether the upstream has not answered yet.
    pub(crate) fn is_numbering_undecided(&self) -> bool {
        self.state().numbering == Numbering::Undecided
    }

    /// Marks all further entries as history, until [`Log::finish_replay`].
    pub(crate) fn begin_recovery(&self) {
        self.history_through.store(u64::MAX, Ordering::SeqCst);
    }

    /// Records that the upstream's replay, history or not, is at its end.
    pub(crate) fn finish_replay(&self) {
        self.state().link = UpstreamLink::Live;
        if self.is_recovering() {
            self.history_through.store(self.newest_position(), Ordering::SeqCst);
            self.appended.notify_one();
        }
    }

    /// Returns whether the log has everything that its upstream can give by now: the upstream is a
    /// connector, which repeats nothing, or a relay whose replay is at its end.
    pub(crate) fn has_caught_up(&self) -> bool {
        let state = self.state();
        let is_up = match state.numbering {
            Numbering::Undecided => false,
            Numbering::Own => true,
            Numbering::Upstream => state.link == UpstreamLink::Live,
        };
        is_up && !self.is_recovering()
    }

    /// Returns whether a relay repeats entries of the time without a connection.
    pub(crate) fn is_replaying(&self) -> bool {
        self.state().link == UpstreamLink::Replaying
    }

    /// Returns whether the log may be behind the relay that numbers it, so that an id ahead of the
    /// log may come with the replay. After [`UPSTREAM_OUTAGE_GRACE`] without a connection the
    /// answer is no: there is no telling when the relay will be back.
    pub(crate) fn is_behind_upstream(&self) -> bool {
        let state = self.state();
        let is_behind = match state.link {
            UpstreamLink::Disconnected { since } => since.elapsed() < UPSTREAM_OUTAGE_GRACE,
            UpstreamLink::Replaying => true,
            UpstreamLink::Live => false,
        };
        is_behind && state.numbering == Numbering::Upstream
    }

    /// Returns whether entries arrive as history.
    pub(crate) fn is_recovering(&self) -> bool {
        self.history_through() == u64::MAX
    }

    /// Returns the last position that arrived as history; `u64::MAX` while entries still do.
    pub(crate) fn history_through(&self) -> u64 {
        self.history_through.load(Ordering::SeqCst)
    }
}

/// Time without a connection after which clients with ids ahead of the log no longer wait. Enough
/// for a restart of the upstream relay, or its move to another machine.
const UPSTREAM_OUTAGE_GRACE: Duration = Duration::from_secs(60);
