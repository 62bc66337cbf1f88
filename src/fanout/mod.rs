//! Who is listening to one product, and waking them.
//!
//! In: entries from the log's tail, in order. Out: wake-ups for the listeners whose scope admits an entry, and for no
//! others: ten thousand listeners to other sessions cost nothing. Never waits for a listener: one that was not looking
//! finds what it missed in the log.
//!
//! ```text
//! listener.pending   0 ── an entry it may see ──► its place ── the subscription looks ──► 0
//! ```
//!
//! While `pending` is set, further entries need no wake-up: a burst costs each listener one.
//!
//! May use: `event`, `log`.

mod subscription;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::Waker,
};

use atomic_waker::AtomicWaker;
use tokio_util::sync::CancellationToken;

use crate::{
    event::{Entry, Kind, Only, Scope, SessionId, Start},
    log::Log,
};

pub(crate) use subscription::{Item, Subscription};

/// The listeners of one product.
#[derive(Debug)]
pub(crate) struct Fanout {
    log: Arc<Log>,
    /// Every entry up to here has been shown to the listeners. Written by [`Fanout::run`] alone, while it holds `index`.
    position: AtomicU64,
    index: Mutex<Index>,
}

impl Fanout {
    /// Nobody listens yet.
    pub(crate) fn new(log: Arc<Log>) -> Self {
        let position = AtomicU64::new(log.newest());
        Self { log, position, index: Mutex::default() }
    }

    /// Shows each new entry of the log to the listeners it concerns, until `stop`.
    pub(crate) async fn run(&self, stop: CancellationToken) {
        let mut position = self.position.load(Ordering::SeqCst);
        while let Some((first, entries)) = stop.run_until_cancelled(self.log.tail(position, BATCH_ENTRIES)).await {
            position = self.show(position, first, &entries);
            tokio::task::consume_budget().await;
        }
    }

    /// Marks the listeners of `entries`, which begin at place `first`, and returns the new position.
    fn show(&self, mut position: u64, first: u64, entries: &[Entry]) -> u64 {
        let index = self.index();
        if first > position + 1 {
            // Evicted before anybody was told: each listener must find out whether it was concerned.
            index.every_listener(|listener| listener.show(position + 1));
        }
        position = first - 1;
        for entry in entries {
            position += 1;
            index.concerned(entry, |listener| listener.show(position));
        }
        // Behind the marks: who sees this position and no mark of its own has nothing to read up to it.
        self.position.store(position, Ordering::SeqCst);
        position
    }

    /// Begins to listen: to what comes from now on, or first to what is behind `start` and already in the log.
    pub(crate) fn subscribe(self: &Arc<Self>, listener: Arc<Listener>, scope: Scope, start: &Start) -> Subscription {
        let mut index = self.index();
        index.insert(&scope, &listener);
        // Under the same lock as the marks: every entry behind this position will be marked for the new listener.
        let position = self.position.load(Ordering::SeqCst);
        drop(index);
        Subscription::new(Arc::clone(self), listener, scope, start, position)
    }

    /// Begins to listen behind a place, for a reader that knows places and needs no notice of where it stands.
    pub(crate) fn subscribe_behind(
        self: &Arc<Self>,
        listener: Arc<Listener>,
        scope: Scope,
        place: u64,
    ) -> Subscription {
        let mut subscription = self.subscribe(listener, scope, &Start::Now);
        subscription.stand_behind(place);
        subscription
    }

    /// The log it reads from.
    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        // Insertions and removals are each whole: a panic elsewhere does not spoil the index.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One subscription as the fan-out sees it.
#[derive(Debug, Default)]
pub(crate) struct Listener {
    /// The first entry shown to it that it has not looked for, 0 for none.
    pending: AtomicU64,
    waker: AtomicWaker,
}

impl Listener {
    /// Tells it that the entry at `place` is for it.
    fn show(&self, place: u64) {
        if self.pending.compare_exchange(0, place, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            self.waker.wake();
        }
    }

    /// Has its task look around, without a mark.
    pub(crate) fn wake(&self) {
        self.waker.wake();
    }

    /// The first entry shown to it that it has not looked for, if there is one.
    pub(crate) fn shown(&self) -> Option<u64> {
        Some(self.pending.load(Ordering::SeqCst)).filter(|place| *place > 0)
    }

    /// Has `waker` called at the next mark.
    fn wake_later(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// Takes the mark away and returns it.
    fn look(&self) -> u64 {
        self.pending.swap(0, Ordering::SeqCst)
    }
}

/// Listeners by what they want. Each stands in one place for each value of the narrowest limit it has.
#[derive(Debug, Default)]
struct Index {
    sessions: HashMap<SessionId, Listeners>,
    kinds: HashMap<Kind, Listeners>,
    everything: Listeners,
}

/// The listeners in one place, by the address of each: the last of ten thousand leaves as quickly as the first.
type Listeners = HashMap<usize, Registered>;

/// A listener in its place, with the limit that the place does not express.
#[derive(Debug)]
struct Registered {
    listener: Arc<Listener>,
    kinds: Only<Kind>,
}

impl Index {
    fn insert(&mut self, scope: &Scope, listener: &Arc<Listener>) {
        self.places(scope, |place, kinds| {
            let (listener, kinds) = (Arc::clone(listener), kinds.clone());
            place.insert(Arc::as_ptr(&listener).addr(), Registered { listener, kinds });
        });
    }

    fn remove(&mut self, scope: &Scope, listener: &Arc<Listener>) {
        self.places(scope, |place, _| {
            place.remove(&Arc::as_ptr(listener).addr());
        });
        match scope {
            Scope { sessions: Only::These(sessions), .. } => {
                for session in sessions {
                    if self.sessions.get(session).is_some_and(Listeners::is_empty) {
                        self.sessions.remove(session);
                    }
                }
            }
            Scope { kinds: Only::These(kinds), .. } => {
                for kind in kinds {
                    if self.kinds.get(kind).is_some_and(Listeners::is_empty) {
                        self.kinds.remove(kind);
                    }
                }
            }
            _ => {}
        }
    }

    /// Under one lock: no entry is marked by neither scope.
    fn move_listener(&mut self, listener: &Arc<Listener>, from: &Scope, to: &Scope) {
        self.remove(from, listener);
        self.insert(to, listener);
    }

    /// Visits the places of a scope, each with the limit that is left to check there.
    fn places(&mut self, scope: &Scope, mut visit: impl FnMut(&mut Listeners, &Only<Kind>)) {
        match scope {
            Scope { sessions: Only::These(sessions), kinds } => {
                for session in sessions {
                    visit(self.sessions.entry(session.clone()).or_default(), kinds);
                }
            }
            Scope { kinds: Only::These(kinds), .. } => {
                for kind in kinds {
                    visit(self.kinds.entry(kind.clone()).or_default(), &Only::Everything);
                }
            }
            _ => visit(&mut self.everything, &Only::Everything),
        }
    }

    /// Visits the listeners that may see `entry`.
    fn concerned(&self, entry: &Entry, mut visit: impl FnMut(&Listener)) {
        let event = match entry {
            Entry::Event(event) => event,
            Entry::Gap(_) => return self.every_listener(visit),
            Entry::Erased => return,
        };
        let of_session = event.session().and_then(|session| self.sessions.get(session));
        let of_kind = self.kinds.get(event.kind());
        for registered in
            [of_session, of_kind, Some(&self.everything)].into_iter().flatten().flat_map(Listeners::values)
        {
            if registered.kinds.admits(event.kind()) {
                visit(&registered.listener);
            }
        }
    }

    fn every_listener(&self, mut visit: impl FnMut(&Listener)) {
        let places = self.sessions.values().chain(self.kinds.values()).chain([&self.everything]);
        for registered in places.flat_map(Listeners::values) {
            visit(&registered.listener);
        }
    }
}

/// Entries shown under one lock of the index, so that a newcomer never waits long.
const BATCH_ENTRIES: usize = 64;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
