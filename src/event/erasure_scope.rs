//! What an erasure takes from a log, from webhooks and from the store.
//!
//! May use: no other module.

use std::collections::BTreeSet;

use super::id::SessionId;

/// Events that are to be erased: all of these sessions, and those at these positions.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct ErasureScope {
    /// Sessions of which every event is taken.
    pub(crate) sessions: BTreeSet<SessionId>,
    /// Positions of events that are taken, among them those without a session.
    pub(crate) positions: BTreeSet<u64>,
}

impl ErasureScope {
    /// Returns whether the erasure takes the event at this position, which is of this session.
    pub(crate) fn contains(&self, position: u64, session: Option<&SessionId>) -> bool {
        self.positions.contains(&position)
            || session.is_some_and(|session| self.sessions.contains(session))
    }

    /// Adds what another scope takes.
    pub(crate) fn append(&mut self, mut other: Self) {
        self.sessions.append(&mut other.sessions);
        self.positions.append(&mut other.positions);
    }
}
