//! Who listens to what, found by what an event is.
//!
//! Each stands in one place for each value of the narrowest limit it has: of sessions, else of
//! kinds, else among those who want everything. Ten thousand who listen to other sessions cost
//! nothing.
//!
//! May use: `event`.

use std::collections::HashMap;

use crate::event::{Kind, Only, Scope, SessionId};

/// Listeners by what they want.
#[derive(Debug)]
pub(crate) struct ScopeIndex<T> {
    sessions: HashMap<SessionId, Bucket<T>>,
    kinds: HashMap<Kind, Bucket<T>>,
    everything: Bucket<T>,
}

/// Those in one place, each under a key of its own: the last of ten thousand leaves as quickly as
/// the first.
type Bucket<T> = HashMap<usize, IndexedSubscriber<T>>;

/// Somebody in a place, with the limit that the place does not express.
#[derive(Debug)]
struct IndexedSubscriber<T> {
    value: T,
    kinds: Only<Kind>,
}

/// Where to look for those whom an event concerns.
#[derive(Clone, Copy, Debug)]
pub(super) struct BucketFilter {
    pub(super) session: bool,
    pub(super) kind: bool,
    pub(super) everything: bool,
}

impl BucketFilter {
    /// Wherever they may be.
    pub(super) const ALL: Self = Self { session: true, kind: true, everything: true };
}

impl<T> Default for ScopeIndex<T> {
    fn default() -> Self {
        Self { sessions: HashMap::new(), kinds: HashMap::new(), everything: HashMap::new() }
    }
}

impl<T: Clone> ScopeIndex<T> {
    /// Puts somebody into the places of a scope.
    pub(super) fn insert(&mut self, scope: &Scope, key: usize, value: &T) {
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

    /// Takes somebody out of the places of a scope.
    pub(super) fn remove(&mut self, scope: &Scope, key: usize) {
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

    /// Visits those in `places` who may see an event of this session and kind, each once.
    pub(super) fn for_each_match(
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

    /// Visits everybody, some more than once.
    pub(super) fn for_each(&self, mut visit: impl FnMut(usize, &T)) {
        let buckets = self.sessions.values().chain(self.kinds.values()).chain([&self.everything]);
        buckets.flatten().for_each(|(key, indexed)| visit(*key, &indexed.value));
    }

    /// Whether nobody is left, and no place of anybody.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.sessions.is_empty() && self.kinds.is_empty() && self.everything.is_empty()
    }

    /// Whether anybody listens to this session.
    pub(super) fn has_session(&self, session: &SessionId) -> bool {
        self.sessions.contains_key(session)
    }

    /// Whether anybody listens to this kind, in all sessions.
    pub(super) fn has_kind(&self, kind: &Kind) -> bool {
        self.kinds.contains_key(kind)
    }

    /// Whether anybody listens to everything.
    pub(super) fn has_everything(&self) -> bool {
        !self.everything.is_empty()
    }
}

/// Takes somebody out of a place, and the place away with the last one.
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
