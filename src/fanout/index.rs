//! Index of subscribers by scope.
//!
//! A subscriber is in one bucket for each value of its narrowest limit: its sessions, else its
//! kinds, else the bucket of unlimited subscribers. So an event looks into three buckets at most,
//! and ten thousand subscribers of other sessions cost it nothing.
//!
//! Used twice: for all subscriptions of a product that the fan-out notifies itself, and for the
//! subscribers of each shard.
//!
//! May use: `event`.

use std::collections::HashMap;

use crate::event::{Kind, Only, Scope, SessionId};

/// Subscribers by session, by kind, and without limit; each is in one of the three.
#[derive(Debug)]
pub(crate) struct ScopeIndex<T> {
    sessions: HashMap<SessionId, Bucket<T>>,
    kinds: HashMap<Kind, Bucket<T>>,
    everything: Bucket<T>,
}

/// Subscribers of one session, one kind, or everything. A map by key, because removal has to be as
/// fast in a bucket of ten thousand as in one of ten.
type Bucket<T> = HashMap<usize, IndexedSubscriber<T>>;

/// A subscriber in a bucket, with the limit that the bucket does not express.
#[derive(Debug)]
struct IndexedSubscriber<T> {
    value: T,
    kinds: Only<Kind>,
}

/// Buckets in which to look for an event's subscribers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BucketFilter {
    pub(crate) session: bool,
    pub(crate) kind: bool,
    pub(crate) everything: bool,
}

impl BucketFilter {
    /// All three buckets.
    pub(crate) const ALL: Self = Self { session: true, kind: true, everything: true };
}

impl<T> Default for ScopeIndex<T> {
    fn default() -> Self {
        Self { sessions: HashMap::new(), kinds: HashMap::new(), everything: HashMap::new() }
    }
}

impl<T: Clone> ScopeIndex<T> {
    /// Adds a subscriber to the buckets of its scope.
    pub(crate) fn insert(&mut self, scope: &Scope, key: usize, value: &T) {
        let indexed =
            |kinds: &Only<Kind>| IndexedSubscriber { value: value.clone(), kinds: kinds.clone() };
        match scope {
            Scope { sessions: Only::These(sessions), kinds } => {
                for session in sessions {
                    self.sessions.entry(session.clone()).or_default().insert(key, indexed(kinds));
                }
            }
            Scope { kinds: Only::These(kinds), .. } => {
                for kind in kinds {
                    self.kinds
                        .entry(kind.clone())
                        .or_default()
                        .insert(key, indexed(&Only::Everything));
                }
            }
            _ => {
                self.everything.insert(key, indexed(&Only::Everything));
            }
        }
    }

    /// Removes a subscriber from the buckets of its scope: the one that it was inserted with.
    pub(crate) fn remove(&mut self, scope: &Scope, key: usize) {
        match scope {
            Scope { sessions: Only::These(sessions), .. } => {
                sessions
                    .iter()
                    .for_each(|session| remove_from_bucket(&mut self.sessions, session, key));
            }
            Scope { kinds: Only::These(kinds), .. } => {
                kinds.iter().for_each(|kind| remove_from_bucket(&mut self.kinds, kind, key));
            }
            _ => {
                self.everything.remove(&key);
            }
        }
    }

    /// Visits the subscribers in `buckets` that may see an event of this session and kind, each
    /// once.
    pub(crate) fn for_each_match(
        &self,
        session: Option<&SessionId>,
        kind: &Kind,
        buckets: BucketFilter,
        mut visit: impl FnMut(usize, &T),
    ) {
        let of_session =
            session.filter(|_| buckets.session).and_then(|session| self.sessions.get(session));
        let of_kind = if buckets.kind { self.kinds.get(kind) } else { None };
        let of_everything = buckets.everything.then_some(&self.everything);
        for (key, indexed) in [of_session, of_kind, of_everything].into_iter().flatten().flatten() {
            if indexed.kinds.admits(kind) {
                visit(*key, &indexed.value);
            }
        }
    }

    /// Visits every subscriber; one of several sessions or kinds more than once.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(usize, &T)) {
        let buckets = self.sessions.values().chain(self.kinds.values()).chain([&self.everything]);
        buckets.flatten().for_each(|(key, indexed)| visit(*key, &indexed.value));
    }

    /// Returns whether no subscriber and no empty bucket is left.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.sessions.is_empty() && self.kinds.is_empty() && self.everything.is_empty()
    }

    /// Returns whether a subscriber asked for this session.
    pub(crate) fn has_session(&self, session: &SessionId) -> bool {
        self.sessions.contains_key(session)
    }

    /// Returns whether a subscriber asked for this kind, in all sessions.
    pub(crate) fn has_kind(&self, kind: &Kind) -> bool {
        self.kinds.contains_key(kind)
    }

    /// Returns whether a subscriber asked for everything.
    pub(crate) fn has_everything(&self) -> bool {
        !self.everything.is_empty()
    }
}

/// Removes a subscriber from a bucket, and the bucket with its last subscriber: sessions come and
/// go for as long as the process lives.
fn remove_from_bucket<K: Eq + std::hash::Hash, T>(
    buckets: &mut HashMap<K, Bucket<T>>,
    at: &K,
    key: usize,
) {
    if let Some(bucket) = buckets.get_mut(at) {
        bucket.remove(&key);
        if bucket.is_empty() {
            buckets.remove(at);
        }
    }
}
