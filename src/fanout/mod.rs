//! Who is listening to one product, and waking them.
//!
//! In: entries from the log's tail, in order. Out: wake-ups for the listeners whose scope admits an entry, and for no
//! others. Never waits for a listener: one that was not looking finds what it missed in the log. The streams of a lane are
//! not woken one by one: see `branch`.
//!
//! ```text
//! listener.pending   0 ── an entry it may see ──► its place ── the subscription looks ──► 0
//! ```
//!
//! While `pending` is set, further entries need no wake-up: a burst costs each listener one.
//!
//! May use: `event`, `log`.

#[cfg(feature = "micro")]
mod bench_support;
mod index;
#[cfg(test)]
mod model;
mod shard_queue;
mod subscription;
#[cfg(test)]
mod tests;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::Waker,
};

use atomic_waker::AtomicWaker;
use tokio_util::sync::CancellationToken;

use self::{
    index::{Index, Places},
    shard_queue::{Branch, Interests, lanes},
};
use crate::{
    event::{Entry, Scope, Start},
    log::Log,
};

pub(crate) use self::{
    shard_queue::{Arrived, Followers},
    subscription::{Item, Subscription},
};

/// The listeners of one product.
#[derive(Debug)]
pub(crate) struct Fanout {
    log: Arc<Log>,
    /// Every entry up to here has been shown to the listeners. Written by [`Fanout::run`] alone, while it holds `audience`.
    position: AtomicU64,
    audience: Mutex<Audience>,
    /// One for each lane.
    branches: Box<[Branch]>,
}

/// Everybody there is.
#[derive(Debug, Default)]
struct Audience {
    listeners: Index<Arc<Listener>>,
    interests: Interests,
}

impl Fanout {
    /// Nobody listens yet, on any of so many lanes.
    pub(crate) fn new(log: Arc<Log>, lanes: usize) -> Self {
        let position = AtomicU64::new(log.newest());
        let branches = (0..lanes).map(|_| Branch::default()).collect();
        Self { log, position, audience: Mutex::default(), branches }
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
        let audience = self.audience();
        let mut called = 0;
        if first > position + 1 {
            // Evicted before anybody was told: each listener must find out whether it was concerned.
            called = self.show_to_everybody(&audience, position + 1);
        }
        position = first - 1;
        for entry in entries {
            position += 1;
            match entry {
                Entry::Event(event) => {
                    let (session, kind) = (event.session(), event.kind());
                    audience.listeners.concerned(session, kind, Places::ALL, |_, listener| listener.show(position));
                    let concerned = audience.interests.of(event);
                    self.branches_of(concerned).for_each(|branch| branch.bring(event));
                    called |= concerned;
                }
                Entry::Gap(_) => called |= self.show_to_everybody(&audience, position),
                Entry::Erased => {}
            }
        }
        // Behind the marks: who sees this position and no mark of its own has nothing to read up to it.
        self.position.store(position, Ordering::SeqCst);
        drop(audience);
        self.branches_of(called).for_each(Branch::call);
        position
    }

    /// Marks all listeners. Returns the lanes to call.
    fn show_to_everybody(&self, audience: &Audience, place: u64) -> u64 {
        audience.listeners.everybody(|_, listener| listener.show(place));
        self.branches.iter().for_each(|branch| branch.tear(place));
        u64::MAX
    }

    fn branches_of(&self, bits: u64) -> impl Iterator<Item = &Branch> {
        lanes(bits).map_while(|lane| self.branches.get(lane))
    }

    /// Begins to listen: to what comes from now on, or first to what is behind `start` and already in the log.
    pub(crate) fn subscribe(self: &Arc<Self>, listener: Arc<Listener>, scope: Scope, start: &Start) -> Subscription {
        let mut audience = self.audience();
        audience.listeners.insert(&scope, listener.key(), &listener);
        // Under the same lock as the marks: every entry behind this position will be marked for the new listener.
        let position = self.position.load(Ordering::SeqCst);
        drop(audience);
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

    fn audience(&self) -> MutexGuard<'_, Audience> {
        // Insertions and removals are each whole: a panic elsewhere does not spoil the index.
        self.audience.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// What it is known by, as long as it is there.
    fn key(self: &Arc<Self>) -> usize {
        Arc::as_ptr(self).addr()
    }

    /// Takes the mark away and returns it.
    fn look(&self) -> u64 {
        self.pending.swap(0, Ordering::SeqCst)
    }
}

/// Entries shown under one lock of the index, so that a newcomer never waits long.
const BATCH_ENTRIES: usize = 64;
