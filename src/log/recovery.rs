//! The log's progress behind its upstream: its connection, the replay after a lost one, and history.
//!
//! May use: no other module.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::time::Instant;

use super::{
    Log,
    upstream_link::{Numbering, UpstreamLink},
};

impl Log {
    /// Notes that the upstream has answered, and who gives the ids from now on. A relay begins with
    /// what came meanwhile, up to its first heartbeat.
    pub(crate) fn set_numbering(&self, numbering: Numbering) {
        let mut state = self.state();
        state.numbering = numbering;
        state.link = if numbering == Numbering::Upstream {
            UpstreamLink::Replaying
        } else {
            UpstreamLink::Live
        };
    }

    /// Notes that the connection to the upstream is lost.
    pub(crate) fn mark_upstream_disconnected(&self) {
        self.state().link = UpstreamLink::Disconnected { since: Instant::now() };
    }

    /// Whether the upstream has not answered yet.
    pub(crate) fn is_numbering_undecided(&self) -> bool {
        self.state().numbering == Numbering::Undecided
    }

    /// Notes that what comes from now on is history, until [`Log::finish_replay`] says otherwise.
    pub(crate) fn begin_recovery(&self) {
        self.history_through.store(u64::MAX, Ordering::SeqCst);
    }

    /// Notes that what the upstream repeats, history or not, has come to its end.
    pub(crate) fn finish_replay(&self) {
        self.state().link = UpstreamLink::Live;
        if self.is_recovering() {
            self.history_through.store(self.newest_position(), Ordering::SeqCst);
            self.appended.notify_one();
        }
    }

    /// Whether it has everything that it can have by now, as far as it knows: its upstream is a
    /// connector, which repeats nothing, or a relay that has come to the end of what it repeats.
    pub(crate) fn has_caught_up(&self) -> bool {
        let state = self.state();
        let is_up = match state.numbering {
            Numbering::Undecided => false,
            Numbering::Own => true,
            Numbering::Upstream => state.link == UpstreamLink::Live,
        };
        is_up && !self.is_recovering()
    }

    /// Whether a relay repeats what came while it was not connected.
    pub(crate) fn is_replaying(&self) -> bool {
        self.state().link == UpstreamLink::Replaying
    }

    /// Whether it is behind the relay that numbers it: what is ahead of it may come with the
    /// replay. From one that has been away for long, nobody knows when.
    pub(crate) fn is_behind_upstream(&self) -> bool {
        let state = self.state();
        let is_behind = match state.link {
            UpstreamLink::Disconnected { since } => since.elapsed() < UPSTREAM_OUTAGE_GRACE,
            UpstreamLink::Replaying => true,
            UpstreamLink::Live => false,
        };
        is_behind && state.numbering == Numbering::Upstream
    }

    /// Whether what comes is history.
    pub(crate) fn is_recovering(&self) -> bool {
        self.history_through() == u64::MAX
    }

    /// Entries up to this place came as history; `u64::MAX` while they still do.
    pub(crate) fn history_through(&self) -> u64 {
        self.history_through.load(Ordering::SeqCst)
    }
}

/// How long a relay may be away before clients with ids that are ahead need not wait for it: a
/// restart, or the move to another machine.
const UPSTREAM_OUTAGE_GRACE: Duration = Duration::from_secs(60);
