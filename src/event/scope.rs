//! Filters of subscribers: sessions, users and kinds.
//!
//! May use: no other module.

use super::{
    id::{SessionId, UserId},
    kind::Kind,
    value_set::ValueSet,
};

/// Filter that a subscriber requested, narrowed to its grant. An event is within it if it is within
/// each of the limits.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scope {
    /// Sessions to receive. An event without a session is in none of them.
    pub(crate) sessions: Only<SessionId>,
    /// Users to receive. An event without a user is of none of them.
    pub(crate) users: Only<UserId>,
    /// Kinds to receive.
    pub(crate) kinds: Only<Kind>,
}

impl Scope {
    /// No limit.
    pub(crate) const EVERYTHING: Self =
        Self { sessions: Only::Everything, users: Only::Everything, kinds: Only::Everything };

    /// Returns the number of chains of sessions or users that a read by this scope merges.
    pub(crate) fn chain_count(&self) -> usize {
        match self.narrowest_limit() {
            NarrowestLimit::Sessions(sessions) => sessions.len(),
            NarrowestLimit::Users(users) => users.len(),
            NarrowestLimit::Kinds(_) | NarrowestLimit::Unlimited => 0,
        }
    }

    /// Returns the limit that admits the fewest events: an index looks for the subscriber under its
    /// values.
    pub(crate) fn narrowest_limit(&self) -> NarrowestLimit<'_> {
        match (&self.sessions, &self.users, &self.kinds) {
            (Only::These(sessions), _, _) => NarrowestLimit::Sessions(sessions),
            (Only::Everything, Only::These(users), _) => NarrowestLimit::Users(users),
            (Only::Everything, Only::Everything, Only::These(kinds)) => {
                NarrowestLimit::Kinds(kinds)
            }
            (Only::Everything, Only::Everything, Only::Everything) => NarrowestLimit::Unlimited,
        }
    }

    /// Returns whether every event is within the scope.
    pub(crate) fn admits_everything(&self) -> bool {
        matches!(self.narrowest_limit(), NarrowestLimit::Unlimited)
    }

    /// Returns whether an event with this key is within the scope.
    pub(crate) fn includes(&self, key: ScopeKey<'_>) -> bool {
        // Kinds first: a filter has a few of them, and may have a thousand sessions or users.
        self.kinds.admits(key.kind)
            && self.sessions.admits_some(key.session)
            && self.users.admits_some(key.user)
    }
}

/// The parts of an event that a scope judges it by.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) struct ScopeKey<'a> {
    /// The session that the event belongs to, if any.
    pub(crate) session: Option<&'a SessionId>,
    /// The user that the event belongs to, if any.
    pub(crate) user: Option<&'a UserId>,
    /// The payload's `type`.
    pub(crate) kind: &'a Kind,
}

/// The limit of a scope that admits the fewest events.
#[derive(Clone, Copy, Debug)]
pub(crate) enum NarrowestLimit<'a> {
    /// Few sessions, and perhaps few users or kinds of their events.
    Sessions(&'a ValueSet<SessionId>),
    /// Few users, in all of their sessions, and perhaps few kinds of their events.
    Users(&'a ValueSet<UserId>),
    /// Few kinds, in all sessions and of all users.
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

    /// Returns whether a value that may be absent is within the limit: an absent one is within
    /// none.
    pub(crate) fn admits_some(&self, value: Option<&T>) -> bool {
        match self {
            Self::Everything => true,
            Self::These(values) => value.is_some_and(|value| values.contains(value)),
        }
    }
}
