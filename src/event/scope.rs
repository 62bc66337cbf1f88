//! Filters of subscribers: sessions and kinds.
//!
//! May use: no other module.

use super::{id::SessionId, kind::Kind, value_set::ValueSet};

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

    /// Returns the limit that admits the fewest events: an index looks for the subscriber under its
    /// values.
    pub(crate) fn narrowest_limit(&self) -> NarrowestLimit<'_> {
        match (&self.sessions, &self.kinds) {
            (Only::These(sessions), _) => NarrowestLimit::Sessions(sessions),
            (Only::Everything, Only::These(kinds)) => NarrowestLimit::Kinds(kinds),
            (Only::Everything, Only::Everything) => NarrowestLimit::Unlimited,
        }
    }

    /// Returns whether every event is within the scope.
    pub(crate) fn admits_everything(&self) -> bool {
        matches!(self.narrowest_limit(), NarrowestLimit::Unlimited)
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

/// The limit of a scope that admits the fewest events.
#[derive(Clone, Copy, Debug)]
pub(crate) enum NarrowestLimit<'a> {
    /// Few sessions, and perhaps few kinds of their events.
    Sessions(&'a ValueSet<SessionId>),
    /// Few kinds, in all sessions.
    Kinds(&'a ValueSet<Kind>),
    /// There is no limit.
    Unlimited,
}

/// A limit on a set of values. In the configuration an empty list may mean everything; here the
/// variant says so.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Only<T> {
    /// No limit.
    Everything,
    /// Only these values. An empty set admits nothing.
    These(ValueSet<T>),
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
