//! Who listens to what, found by what an event is.
//!
//! Each stands in one place for each value of the narrowest limit it has: of sessions, else of kinds, else among those who want
//! everything. Ten thousand who listen to other sessions cost nothing.
//!
//! May use: `event`.

use std::collections::HashMap;

use crate::event::{Kind, Only, Scope, SessionId};

/// Listeners by what they want.
#[derive(Debug)]
pub(crate) struct Index<T> {
    sessions: HashMap<SessionId, Place<T>>,
    kinds: HashMap<Kind, Place<T>>,
    everything: Place<T>,
}

/// Those in one place, each under a key of its own: the last of ten thousand leaves as quickly as the first.
type Place<T> = HashMap<usize, Registered<T>>;

/// Somebody in a place, with the limit that the place does not express.
#[derive(Debug)]
struct Registered<T> {
    who: T,
    kinds: Only<Kind>,
}

/// Where to look for those whom an event concerns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    pub(super) session: bool,
    pub(super) kind: bool,
    pub(super) everything: bool,
}

impl Places {
    /// Wherever they may be.
    pub(super) const ALL: Self = Self { session: true, kind: true, everything: true };
}

impl<T> Default for Index<T> {
    fn default() -> Self {
        Self { sessions: HashMap::new(), kinds: HashMap::new(), everything: HashMap::new() }
    }
}

impl<T: Clone> Index<T> {
    /// Puts somebody into the places of a scope.
    pub(super) fn insert(&mut self, scope: &Scope, key: usize, who: &T) {
        let registered = |kinds: &Only<Kind>| Registered { who: who.clone(), kinds: kinds.clone() };
        match scope {
            Scope { sessions: Only::These(sessions), kinds } => {
                for session in sessions {
                    self.sessions.entry(session.clone()).or_default().insert(key, registered(kinds));
                }
            }
            Scope { kinds: Only::These(kinds), .. } => {
                for kind in kinds {
                    self.kinds.entry(kind.clone()).or_default().insert(key, registered(&Only::Everything));
                }
            }
            _ => {
                self.everything.insert(key, registered(&Only::Everything));
            }
        }
    }

    /// Takes somebody out of the places of a scope.
    pub(super) fn remove(&mut self, scope: &Scope, key: usize) {
        match scope {
            Scope { sessions: Only::These(sessions), .. } => {
                sessions.iter().for_each(|session| leave(&mut self.sessions, session, key));
            }
            Scope { kinds: Only::These(kinds), .. } => {
                kinds.iter().for_each(|kind| leave(&mut self.kinds, kind, key));
            }
            _ => {
                self.everything.remove(&key);
            }
        }
    }

    /// Visits those in `places` who may see an event of this session and kind, each once.
    pub(super) fn concerned(
        &self,
        session: Option<&SessionId>,
        kind: &Kind,
        places: Places,
        mut visit: impl FnMut(usize, &T),
    ) {
        let of_session = session.filter(|_| places.session).and_then(|session| self.sessions.get(session));
        let of_kind = if places.kind { self.kinds.get(kind) } else { None };
        let of_everything = places.everything.then_some(&self.everything);
        for (key, registered) in [of_session, of_kind, of_everything].into_iter().flatten().flatten() {
            if registered.kinds.admits(kind) {
                visit(*key, &registered.who);
            }
        }
    }

    /// Visits everybody, some more than once.
    pub(super) fn everybody(&self, mut visit: impl FnMut(usize, &T)) {
        let places = self.sessions.values().chain(self.kinds.values()).chain([&self.everything]);
        places.flatten().for_each(|(key, registered)| visit(*key, &registered.who));
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
fn leave<K: Eq + std::hash::Hash, T>(places: &mut HashMap<K, Place<T>>, at: &K, key: usize) {
    if let Some(place) = places.get_mut(at) {
        place.remove(&key);
        if place.is_empty() {
            places.remove(at);
        }
    }
}
