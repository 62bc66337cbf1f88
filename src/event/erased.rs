//! What an erasure has taken from a log.
//!
//! May use: no other module.

use std::collections::BTreeSet;

use super::id::SessionId;

/// Events that have been erased: all of these sessions, and those at these positions.
#[derive(Debug, Default)]
pub(crate) struct ErasedEvents {
    /// Sessions of which every event is erased.
    pub(crate) sessions: BTreeSet<SessionId>,
    /// Positions of erased events, among them those without a session.
    pub(crate) positions: BTreeSet<u64>,
}

impl ErasedEvents {
    /// Returns whether the event at this position, and of this session, is erased.
    pub(crate) fn contains(&self, position: u64, session: Option<&SessionId>) -> bool {
        self.positions.contains(&position)
            || session.is_some_and(|session| self.sessions.contains(session))
    }
}
