//! Index of subscribers by scope.
//!
//! A subscriber is in one bucket for each value of its narrowest limit: its sessions, else its
//! users, else its kinds, else the bucket of unlimited subscribers. So an event looks into four
//! buckets at most, and ten thousand subscribers of other sessions or users cost it nothing.
//!
//! ```text
//!  sessions    a ─► One(7)                      most sessions have one subscriber: no table for it
//!              b ─► Many({ 3, 9: kinds [k] })
//!  users       u ─► One(6)
//!  kinds       k ─► One(4)
//!  everything  { 1, 2, 5, … }
//! ```
//!
//! Used twice: for all subscriptions of a product that the fan-out notifies itself, and for the
//! subscribers of each shard.
//!
//! May use: `event`.

#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, hash_map},
    hash::Hash,
    mem,
};

use crate::event::{Kind, NarrowestLimit, Only, Scope, ScopeKey, SessionId, UserId};

/// Subscribers by session, by user, by kind, and without limit; each is in one of the four.
#[derive(Debug)]
pub(crate) struct ScopeIndex<T> {
    sessions: Dimension<SessionId, NarrowedSubscriber<T>>,
    users: Dimension<UserId, NarrowedSubscriber<T>>,
    kinds: Dimension<Kind, T>,
    everything: SortedEntries<T>,
}

/// A subscriber in a bucket that does not express all of its limits.
#[derive(Debug)]
struct NarrowedSubscriber<T> {
    value: T,
    /// Limits that the bucket does not express; none for most subscribers.
    residue: Option<Box<Residue>>,
}

/// Limits of a subscriber that its bucket does not express.
#[derive(Debug)]
struct Residue {
    users: Only<UserId>,
    kinds: Only<Kind>,
}

/// Buckets in which to look for an event's subscribers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BucketFilter {
    pub(crate) session: bool,
    pub(crate) user: bool,
    pub(crate) kind: bool,
    pub(crate) everything: bool,
}

impl BucketFilter {
    /// All four buckets.
    pub(crate) const ALL: Self = Self { session: true, user: true, kind: true, everything: true };
}

impl<T> Default for ScopeIndex<T> {
    fn default() -> Self {
        Self {
            sessions: Dimension::default(),
            users: Dimension::default(),
            kinds: Dimension::default(),
            everything: SortedEntries(Vec::new()),
        }
    }
}

impl<T: Clone> ScopeIndex<T> {
    /// Adds a subscriber to the buckets of its scope.
    pub(crate) fn insert(&mut self, scope: &Scope, key: usize, value: &T) {
        match scope.narrowest_limit() {
            NarrowestLimit::Sessions(sessions) => {
                for session in sessions {
                    let residue = Residue::of(&scope.users, &scope.kinds);
                    self.sessions.insert(session, key, NarrowedSubscriber::new(value, residue));
                }
            }
            NarrowestLimit::Users(users) => {
                for user in users {
                    let residue = Residue::of(&Only::Everything, &scope.kinds);
                    self.users.insert(user, key, NarrowedSubscriber::new(value, residue));
                }
            }
            NarrowestLimit::Kinds(kinds) => {
                kinds.iter().for_each(|kind| self.kinds.insert(kind, key, value.clone()));
            }
            NarrowestLimit::Unlimited => {
                self.everything.insert(key, value.clone());
            }
        }
    }

    /// Removes a subscriber from the buckets of its scope: the one that it was inserted with.
    pub(crate) fn remove(&mut self, scope: &Scope, key: usize) {
        match scope.narrowest_limit() {
            NarrowestLimit::Sessions(sessions) => {
                sessions.iter().for_each(|session| self.sessions.remove(session, key));
            }
            NarrowestLimit::Users(users) => {
                users.iter().for_each(|user| self.users.remove(user, key));
            }
            NarrowestLimit::Kinds(kinds) => {
                kinds.iter().for_each(|kind| self.kinds.remove(kind, key));
            }
            NarrowestLimit::Unlimited => {
                self.everything.remove(key);
            }
        }
    }

    /// Visits the subscribers in `buckets` that may see an event with this key, each once.
    pub(crate) fn for_each_match(
        &self,
        event: ScopeKey<'_>,
        buckets: BucketFilter,
        mut visit: impl FnMut(usize, &T),
    ) {
        let mut visit_admitting = |key, subscriber: &NarrowedSubscriber<T>| {
            if subscriber.admits(event) {
                visit(key, &subscriber.value);
            }
        };
        if let Some(session) = event.session.filter(|_| buckets.session) {
            self.sessions.for_each_at(session, &mut visit_admitting);
        }
        if let Some(user) = event.user.filter(|_| buckets.user) {
            self.users.for_each_at(user, &mut visit_admitting);
        }
        if buckets.kind {
            self.kinds.for_each_at(event.kind, &mut visit);
        }
        if buckets.everything {
            self.everything.0.iter().for_each(|(key, value)| visit(*key, value));
        }
    }

    /// Visits every subscriber; one of several sessions, users or kinds more than once.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(usize, &T)) {
        self.sessions.for_each(|key, subscriber| visit(key, &subscriber.value));
        self.users.for_each(|key, subscriber| visit(key, &subscriber.value));
        self.kinds.for_each(&mut visit);
        self.everything.0.iter().for_each(|(key, value)| visit(*key, value));
    }

    /// Returns whether no subscriber and no empty bucket is left.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.sessions.0.is_empty()
            && self.users.0.is_empty()
            && self.kinds.0.is_empty()
            && self.everything.0.is_empty()
    }

    /// Returns whether a subscriber asked for this session.
    pub(crate) fn has_session(&self, session: &SessionId) -> bool {
        self.sessions.0.contains_key(session)
    }

    /// Returns whether a subscriber asked for this user, in all sessions.
    pub(crate) fn has_user(&self, user: &UserId) -> bool {
        self.users.0.contains_key(user)
    }

    /// Returns whether a subscriber asked for this kind, in all sessions and of all users.
    pub(crate) fn has_kind(&self, kind: &Kind) -> bool {
        self.kinds.0.contains_key(kind)
    }

    /// Returns whether a subscriber asked for everything.
    pub(crate) fn has_everything(&self) -> bool {
        !self.everything.0.is_empty()
    }
}

impl<T: Clone> NarrowedSubscriber<T> {
    fn new(value: &T, residue: Option<Box<Residue>>) -> Self {
        Self { value: value.clone(), residue }
    }
}

impl<T> NarrowedSubscriber<T> {
    /// Returns whether the limits that the bucket does not express admit an event with this key.
    fn admits(&self, event: ScopeKey<'_>) -> bool {
        self.residue.as_ref().is_none_or(|residue| {
            residue.kinds.admits(event.kind) && residue.users.admits_some(event.user)
        })
    }
}

impl Residue {
    /// Returns these limits, or `None` if there is none.
    fn of(users: &Only<UserId>, kinds: &Only<Kind>) -> Option<Box<Self>> {
        match (users, kinds) {
            (Only::Everything, Only::Everything) => None,
            _ => Some(Box::new(Self { users: users.clone(), kinds: kinds.clone() })),
        }
    }
}

/// Entries by ascending key, side by side: visiting them goes through the subscribers' slots in the
/// order of their addresses, which a table or a tree would not. Adding or removing one among ten
/// thousand moves some tens of kilobytes.
#[derive(Debug)]
struct SortedEntries<T>(Vec<(usize, T)>);

impl<T> SortedEntries<T> {
    fn insert(&mut self, key: usize, value: T) {
        // A key is in the index once: its owner removes it before it inserts it anew.
        if let Err(at) = self.0.binary_search_by_key(&key, |(key, _)| *key) {
            self.0.insert(at, (key, value));
        }
    }

    fn remove(&mut self, key: usize) {
        if let Ok(at) = self.0.binary_search_by_key(&key, |(key, _)| *key) {
            self.0.remove(at);
        }
    }
}

/// Buckets of one kind of limit, by its values.
#[derive(Debug)]
struct Dimension<K, E>(HashMap<K, Bucket<E>>);

impl<K, E> Default for Dimension<K, E> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Clone + Eq + Hash, E> Dimension<K, E> {
    fn insert(&mut self, at: &K, key: usize, entry: E) {
        match self.0.entry(at.clone()) {
            hash_map::Entry::Occupied(bucket) => bucket.into_mut().insert(key, entry),
            hash_map::Entry::Vacant(free) => {
                free.insert(Bucket::One(key, entry));
            }
        }
    }

    /// Removes an entry from a bucket, and the bucket with its last entry: sessions and users come
    /// and go for as long as the process lives.
    fn remove(&mut self, at: &K, key: usize) {
        if let Some(bucket) = self.0.get_mut(at)
            && bucket.remove(key)
        {
            self.0.remove(at);
        }
    }

    fn for_each_at(&self, at: &K, visit: impl FnMut(usize, &E)) {
        if let Some(bucket) = self.0.get(at) {
            bucket.for_each(visit);
        }
    }

    fn for_each(&self, mut visit: impl FnMut(usize, &E)) {
        self.0.values().for_each(|bucket| bucket.for_each(&mut visit));
    }
}

/// Subscribers of one session, user or kind; never empty.
#[derive(Debug)]
enum Bucket<E> {
    One(usize, E),
    #[expect(
        clippy::box_collection,
        reason = "unboxed, the table would make every bucket of one subscriber 24 bytes larger"
    )]
    Many(Box<HashMap<usize, E>>),
}

impl<E> Bucket<E> {
    fn insert(&mut self, key: usize, entry: E) {
        if let Self::One(..) = self
            && let Self::One(first, of_first) = mem::replace(self, Self::Many(Box::default()))
            && let Self::Many(entries) = self
        {
            entries.insert(first, of_first);
        }
        if let Self::Many(entries) = self {
            entries.insert(key, entry);
        }
    }

    /// Removes an entry. Returns whether it was the last, which stays until the bucket is dropped.
    fn remove(&mut self, key: usize) -> bool {
        match self {
            Self::One(only, _) => *only == key,
            Self::Many(entries) => {
                entries.remove(&key);
                if entries.len() > 1 {
                    return false;
                }
                // A client that reconnects is there twice for a while: its table goes afterwards.
                let last = entries.drain().next();
                last.map(|(only, entry)| *self = Self::One(only, entry)).is_none()
            }
        }
    }

    fn for_each(&self, mut visit: impl FnMut(usize, &E)) {
        match self {
            Self::One(key, entry) => visit(*key, entry),
            Self::Many(entries) => entries.iter().for_each(|(key, entry)| visit(*key, entry)),
        }
    }
}
