//! Filters of subscribers: sessions and kinds.
//!
//! May use: no other module.

use std::collections::BTreeSet;

use super::{id::SessionId, kind::Kind};

/// Filter that a subscriber requested, narrowed to its grant.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scope {
    /// Sessions to receive. An event without a session is in none of them.
    pub(crate) sessions: Only<SessionId>,
    /// Kinds to receive.
    pub(crate) kinds: Only<Kind>,
}

impl Scope {
    /// No limit.
    pub(crate) const EVERYTHING: Self =
        Self { sessions: Only::Everything, kinds: Only::Everything };

    /// Returns the number of sessions that the scope names.
    pub(crate) fn session_count(&self) -> usize {
        match &self.sessions {
            Only::Everything => 0,
            Only::These(sessions) => sessions.len(),
        }
    }

    /// Returns whether an event of this session and kind is within the scope.
    pub(crate) fn includes(&self, session: Option<&SessionId>, kind: &Kind) -> bool {
        // Kinds first: a filter has a few of them, and may have a thousand sessions.
        self.kinds.admits(kind)
            && match &self.sessions {
                Only::Everything => true,
                Only::These(sessions) => session.is_some_and(|session| sessions.contains(session)),
            }
    }
}

/// A limit on a set of values. In the configuration an empty list may mean everything; here the
/// variant says so.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Only<T> {
    /// No limit.
    Everything,
    /// Only these values. An empty set admits nothing.
    These(BTreeSet<T>),
}

impl<T: Ord> Only<T> {
    /// Returns whether `value` is within the limit.
    pub(crate) fn admits(&self, value: &T) -> bool {
        match self {
            Self::Everything => true,
            Self::These(values) => values.contains(value),
        }
    }
}
