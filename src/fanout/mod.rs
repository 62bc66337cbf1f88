//! Index of one product's subscriptions, and their wake-ups.
//!
//! In: entries from the log's tail, in order. Out: a wake-up for each subscription whose scope
//! admits an entry, and one event per shard that has such a subscription. Never waits for a
//! subscriber: a lagging subscription re-reads the log.
//!
//! ```text
//!  log tail ─► dispatch ─┬─ subscription: pending 0 → position, wake     signal
//!                        └─ shard: push the event once, wake once        shard_queue
//!
//!  pending   0 ── dispatch of an entry in scope ──► its position ── the subscription reads ──► 0
//! ```
//!
//! While `pending` is set, further entries need no wake-up: a burst costs each subscription one.
//!
//! A new subscription registers under the lock that dispatch holds. So for each entry it is either
//! registered before the entry's dispatch, and notified, or after it, and finds the entry in the
//! log.
//!
//! May use: `event`, `log`, `scope_index`.

#[cfg(feature = "micro")]
mod bench_support;
mod shard_bitmap;
mod shard_port;
mod shard_queue;
mod signal;
#[cfg(test)]
mod testing;

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::{Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;

use self::{
    shard_bitmap::{ShardBitmap, shards_in},
    shard_queue::ShardQueue,
};
use crate::{
    event::{Entry, Scope},
    log::Log,
    scope_index::{BucketFilter, ScopeIndex},
};

pub(crate) use self::{
    shard_port::ShardPort, shard_queue::QueueContents, signal::SubscriberSignal,
};
#[cfg(test)]
pub(crate) use self::{shard_queue::MAX_QUEUED_EVENTS, testing::FanoutHarness};

/// Fan-out of one product: its log, its subscriptions and the queues to its shards.
#[derive(Debug)]
pub(crate) struct Fanout {
    log: Arc<Log>,
    /// Position up to which every entry has been dispatched. Written by [`Fanout::run`] alone,
    /// while it holds the lock of `registry`.
    dispatched_through: AtomicU64,
    registry: Mutex<SubscriberRegistry>,
    /// One queue per shard, by the shard's number.
    shard_queues: Box<[ShardQueue]>,
}

/// Subscriptions by the way in which they learn of an entry.
#[derive(Debug, Default)]
struct SubscriberRegistry {
    /// Notified one by one: HTTP/2, pages and webhooks.
    subscribers: ScopeIndex<SubscriberSignal>,
    /// Reached through their shard's queue: SSE over HTTP/1.1, and WebSockets.
    shard_bitmap: ShardBitmap,
}

impl Fanout {
    /// Creates the fan-out of `log` for `shards` shards. Entries that the log has already count as
    /// dispatched.
    pub(crate) fn new(log: Arc<Log>, shards: usize) -> Self {
        let dispatched_through = AtomicU64::new(log.newest_position());
        let shard_queues = (0..shards).map(|_| ShardQueue::default()).collect();
        Self { log, dispatched_through, registry: Mutex::default(), shard_queues }
    }

    /// Dispatches each new entry of the log to its subscriptions, until `stop`.
    pub(crate) async fn run(&self, stop: CancellationToken) {
        let mut position = self.dispatched_through();
        // One for all batches: its place among the token's waiters costs three locks to take and to
        // give back.
        let mut stopped = pin!(stop.cancelled());
        // Asked each time, because a backlog is ready before the stop is.
        while !stop.is_cancelled() {
            // `tail` loses nothing when it is dropped: the position moves only when it has returned
            // entries.
            let (first, entries) = tokio::select! {
                biased;
                batch = self.log.tail(position, DISPATCH_BATCH_ENTRIES) => batch,
                () = &mut stopped => break,
            };
            position = self.dispatch(position, first, &entries);
            // Ingest of the product runs on the same task. A backlog that never reaches an await
            // point that is pending would keep it from appending.
            tokio::task::consume_budget().await;
        }
    }

    /// Notifies the subscriptions of `entries`, of which the first has position `first`, and
    /// returns the new position.
    fn dispatch(&self, mut position: u64, first: u64, entries: &[Entry]) -> u64 {
        // Held for the whole batch. Order of locks: the registry's, then a shard queue's; no caller
        // takes the registry's while it holds a queue's.
        let registry = self.registry();
        let mut shards_to_wake = 0;
        if first > position + 1 {
            // The ring evicted entries that were never dispatched, and their sessions and kinds
            // with them: each subscription has to find out by itself whether it has missed one.
            shards_to_wake = self.notify_all(&registry, position + 1);
        }
        position = first - 1;
        for entry in entries {
            position += 1;
            match entry {
                Entry::Event(event) => {
                    let subscribers = &registry.subscribers;
                    subscribers.for_each_match(
                        event.scope_key(),
                        BucketFilter::ALL,
                        |_, signal| {
                            signal.notify(position);
                        },
                    );
                    let interested_shards = registry.shard_bitmap.shards_for(event);
                    self.queues_of(interested_shards).for_each(|queue| queue.push(event));
                    shards_to_wake |= interested_shards;
                }
                Entry::Gap(_) => shards_to_wake |= self.notify_all(&registry, position),
                Entry::Erased => {}
            }
        }
        // After the notifications and pushes, so that a subscription that reads this position and
        // has nothing pending knows that no entry up to it is within its scope. The store releases
        // them, the load in `Fanout::dispatched_through` acquires.
        self.dispatched_through.store(position, Ordering::SeqCst);
        // Before the wake-ups: a woken shard may want this lock, to add or remove a subscriber.
        drop(registry);
        self.queues_of(shards_to_wake).for_each(ShardQueue::wake);
        position
    }

    /// Notifies every subscription of the entry at `position`. Returns the shards to wake: all.
    fn notify_all(&self, registry: &SubscriberRegistry, position: u64) -> u64 {
        registry.subscribers.for_each(|_, signal| signal.notify(position));
        self.shard_queues.iter().for_each(|queue| queue.overflow(position));
        u64::MAX
    }

    fn queues_of(&self, bits: u64) -> impl Iterator<Item = &ShardQueue> {
        shards_in(bits).map_while(|shard| self.shard_queues.get(shard))
    }

    /// Registers a subscription, by its signal and its scope. Returns the dispatched position: the
    /// signal is notified of every entry after it.
    pub(crate) fn register(&self, scope: &Scope, signal: &SubscriberSignal) -> u64 {
        let mut registry = self.registry();
        registry.subscribers.insert(scope, signal.key(), signal);
        // Under the lock that dispatch holds: no entry is dispatched between the two.
        self.dispatched_through()
    }

    /// Ends the notifications of a signal that was registered with `scope`.
    pub(crate) fn unregister(&self, scope: &Scope, signal: &SubscriberSignal) {
        self.registry().subscribers.remove(scope, signal.key());
    }

    /// Replaces the scope that a signal was registered with.
    pub(crate) fn replace_scope(
        &self,
        old_scope: &Scope,
        new_scope: &Scope,
        signal: &SubscriberSignal,
    ) {
        // Under one lock: no entry is dispatched while the signal is in the index with neither
        // scope.
        let mut registry = self.registry();
        registry.subscribers.remove(old_scope, signal.key());
        registry.subscribers.insert(new_scope, signal.key(), signal);
    }

    /// Returns the position up to which every entry has been dispatched.
    pub(crate) fn dispatched_through(&self) -> u64 {
        self.dispatched_through.load(Ordering::SeqCst)
    }

    /// Returns the log whose entries are dispatched.
    pub(crate) fn log(&self) -> &Log {
        &self.log
    }

    fn registry(&self) -> MutexGuard<'_, SubscriberRegistry> {
        // An insertion or a removal is one call, and dispatch does not change the index: a panic
        // under the lock leaves no index half changed.
        self.registry.lock()
    }
}

/// Entries dispatched under one lock of the registry: bounds how long a new subscription waits for
/// it.
const DISPATCH_BATCH_ENTRIES: usize = 64;
