//! What a subscriber asked to see: sessions and kinds.
//!
//! May use: no other module.

use std::collections::BTreeSet;

use super::{id::SessionId, kind::Kind};

/// What a subscriber asked to see, within what it may see.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scope {
    /// Of which sessions. An event without a session belongs to none of them.
    pub(crate) sessions: Only<SessionId>,
    /// Of which kinds.
    pub(crate) kinds: Only<Kind>,
}

impl Scope {
    /// No limit.
    pub(crate) const EVERYTHING: Self =
        Self { sessions: Only::Everything, kinds: Only::Everything };

    /// Whether an event of this session and kind is within.
    pub(crate) fn includes(&self, session: Option<&SessionId>, kind: &Kind) -> bool {
        let has_session = match &self.sessions {
            Only::Everything => true,
            Only::These(sessions) => session.is_some_and(|session| sessions.contains(session)),
        };
        has_session && self.kinds.admits(kind)
    }
}

/// A limit on what is seen. In the configuration an empty list may mean everything; in here it says
/// so.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Only<T> {
    /// No limit.
    Everything,
    /// These and no others.
    These(BTreeSet<T>),
}

impl<T: Ord> Only<T> {
    /// Whether `value` is within the limit.
    pub(crate) fn admits(&self, value: &T) -> bool {
        match self {
            Self::Everything => true,
            Self::These(values) => values.contains(value),
        }
    }
}
