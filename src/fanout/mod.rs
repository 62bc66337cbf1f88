//! Who is listening to one product, and waking them.
//!
//! In: entries from the log's tail, in order. Out: wake-ups for the listeners whose scope admits an
//! entry, and for no others. Never waits for a listener: one that was not looking finds what it
//! missed in the log. The streams of a lane are not woken one by one: see `branch`.
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
mod shard_bitmap;
mod shard_index;
mod shard_queue;
mod signal;
mod subscription;
#[cfg(test)]
mod tests;

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use tokio_util::sync::CancellationToken;

use self::{
    index::{BucketFilter, ScopeIndex},
    shard_bitmap::{ShardBitmap, shards_in},
    shard_queue::ShardQueue,
};
use crate::{
    event::{Entry, Scope, StartPosition},
    log::Log,
};

pub(crate) use self::{
    shard_index::ShardIndex,
    shard_queue::QueueContents,
    signal::SubscriberSignal,
    subscription::{Subscription, SubscriptionItem},
};

/// The listeners of one product.
#[derive(Debug)]
pub(crate) struct Fanout {
    log: Arc<Log>,
    /// Every entry up to here has been shown to the listeners. Written by [`Fanout::run`] alone,
    /// while it holds `registry`.
    dispatched_through: AtomicU64,
    registry: Mutex<SubscriberRegistry>,
    /// One for each lane.
    shard_queues: Box<[ShardQueue]>,
}

/// Everybody there is.
#[derive(Debug, Default)]
struct SubscriberRegistry {
    subscribers: ScopeIndex<Arc<SubscriberSignal>>,
    shard_bitmap: ShardBitmap,
}

impl Fanout {
    /// Nobody listens yet, on any of so many lanes.
    pub(crate) fn new(log: Arc<Log>, shards: usize) -> Self {
        let dispatched_through = AtomicU64::new(log.newest_position());
        let shard_queues = (0..shards).map(|_| ShardQueue::default()).collect();
        Self { log, dispatched_through, registry: Mutex::default(), shard_queues }
    }

    /// Shows each new entry of the log to the listeners it concerns, until `stop`.
    pub(crate) async fn run(&self, stop: CancellationToken) {
        let mut position = self.dispatched_through.load(Ordering::SeqCst);
        while let Some((first, entries)) =
            stop.run_until_cancelled(self.log.tail(position, DISPATCH_BATCH_ENTRIES)).await
        {
            position = self.dispatch(position, first, &entries);
            tokio::task::consume_budget().await;
        }
    }

    /// Marks the listeners of `entries`, which begin at place `first`, and returns the new
    /// position.
    fn dispatch(&self, mut position: u64, first: u64, entries: &[Entry]) -> u64 {
        let registry = self.registry();
        let mut shards_to_wake = 0;
        if first > position + 1 {
            // Evicted before anybody was told: each listener must find out whether it was
            // concerned.
            shards_to_wake = self.notify_all(&registry, position + 1);
        }
        position = first - 1;
        for entry in entries {
            position += 1;
            match entry {
                Entry::Event(event) => {
                    let (session, kind) = (event.session(), event.kind());
                    registry.subscribers.for_each_match(
                        session,
                        kind,
                        BucketFilter::ALL,
                        |_, signal| signal.notify(position),
                    );
                    let interested_shards = registry.shard_bitmap.shards_for(event);
                    self.queues_of(interested_shards).for_each(|queue| queue.push(event));
                    shards_to_wake |= interested_shards;
                }
                Entry::Gap(_) => shards_to_wake |= self.notify_all(&registry, position),
                Entry::Erased => {}
            }
        }
        // Behind the marks: who sees this position and no mark of its own has nothing to read up to
        // it.
        self.dispatched_through.store(position, Ordering::SeqCst);
        drop(registry);
        self.queues_of(shards_to_wake).for_each(ShardQueue::wake);
        position
    }

    /// Marks all listeners. Returns the lanes to call.
    fn notify_all(&self, registry: &SubscriberRegistry, position: u64) -> u64 {
        registry.subscribers.for_each(|_, signal| signal.notify(position));
        self.shard_queues.iter().for_each(|queue| queue.overflow(position));
        u64::MAX
    }

    fn queues_of(&self, bits: u64) -> impl Iterator<Item = &ShardQueue> {
        shards_in(bits).map_while(|shard| self.shard_queues.get(shard))
    }

    /// Begins to listen: to what comes from now on, or first to what is behind `start` and already
    /// in the log.
    pub(crate) fn subscribe(
        self: &Arc<Self>,
        signal: Arc<SubscriberSignal>,
        scope: Scope,
        start: &StartPosition,
    ) -> Subscription {
        let mut registry = self.registry();
        registry.subscribers.insert(&scope, signal.key(), &signal);
        // Under the same lock as the marks: every entry behind this position will be marked for the
        // new listener.
        let position = self.dispatched_through.load(Ordering::SeqCst);
        drop(registry);
        Subscription::new(Arc::clone(self), signal, scope, start, position)
    }

    /// Begins to listen behind a place, for a reader that knows places and needs no notice of where
    /// it stands.
    pub(crate) fn subscribe_after(
        self: &Arc<Self>,
        signal: Arc<SubscriberSignal>,
        scope: Scope,
        position: u64,
    ) -> Subscription {
        let mut subscription = self.subscribe(signal, scope, &StartPosition::Now);
        subscription.resume_after(position);
        subscription
    }

    /// The log it reads from.
    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    fn registry(&self) -> MutexGuard<'_, SubscriberRegistry> {
        // Insertions and removals are each whole: a panic elsewhere does not spoil the index.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Entries shown under one lock of the index, so that a newcomer never waits long.
const DISPATCH_BATCH_ENTRIES: usize = 64;
