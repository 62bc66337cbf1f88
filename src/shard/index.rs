//! One shard's subscribers of one product, by scope.
//!
//! In: the product's queue to this shard. Out: for each queued event, the slot keys
//! of the subscribers that may see it. Owned by the shard's task, so looking up takes no lock.
//!
//! May use: `event`, `fanout`, `scope_index`, `subscription`.

use std::{collections::HashSet, sync::Arc, task::Waker};

use crate::{
    event::{Event, Scope, ScopeKey},
    fanout::{Fanout, QueueContents, ShardPort},
    scope_index::{BucketFilter, ScopeIndex},
    subscription::Subscription,
};

/// Subscribers of one product on one shard, by the keys of their slots in the scheduler.
#[derive(Debug)]
pub(crate) struct ShardIndex {
    port: ShardPort,
    index: ScopeIndex<()>,
}

impl ShardIndex {
    /// Creates an empty index and attaches to the shard's queue. `waker` is called when the queue
    /// gets something, once until that is taken.
    pub(crate) fn new(fanout: &Arc<Fanout>, shard: usize, waker: Waker) -> Self {
        Self { port: ShardPort::new(fanout, shard, waker), index: ScopeIndex::default() }
    }

    /// Adds a subscriber: events within its scope arrive through the shard's queue from now on.
    pub(crate) fn add(&mut self, key: usize, subscription: &mut Subscription) {
        self.index.insert(subscription.scope(), key, &());
        subscription.move_to_shard(&self.port);
    }

    /// Adds a subscriber of another shard, which must have been removed there. It reads the log
    /// first: events between the two shards' queues are in neither.
    pub(crate) fn add_moved(&mut self, key: usize, subscription: &mut Subscription) {
        self.index.insert(subscription.scope(), key, &());
        self.port.add_scope(subscription.scope());
        subscription.resync_from(0);
    }

    /// Removes a subscriber. An event that is queued for it already finds no subscriber and is
    /// dropped.
    pub(crate) fn remove(&mut self, key: usize, scope: &Scope) {
        self.index.remove(scope, key);
        self.port.remove_scope(scope, &self.index);
    }

    /// Replaces a subscriber's scope. The subscriber reads the log first, because queued events
    /// were selected by its old scope.
    pub(crate) fn change_scope(
        &mut self,
        key: usize,
        subscription: &mut Subscription,
        scope: Scope,
    ) {
        self.remove(key, subscription.scope());
        subscription.change_scope(scope);
        self.index.insert(subscription.scope(), key, &());
        self.port.add_scope(subscription.scope());
    }

    /// Takes the contents of the queue. `events` must be empty, and gets the events where the
    /// contents are events.
    pub(crate) fn take_queued(&self, events: &mut Vec<Arc<Event>>) -> QueueContents {
        self.port.take(events)
    }

    /// Returns the position up to which all entries have been taken from the queue or concern no
    /// subscriber here; none while the queue is not empty.
    pub(crate) fn position(&self) -> Option<u64> {
        self.port.position()
    }

    /// Visits the keys of the subscribers that may see an event with a key in `targets`, together
    /// with the target's index. A subscriber that was visited for an earlier target may be left out
    /// for a later one.
    pub(crate) fn for_each_interested<'a>(
        &self,
        targets: impl ExactSizeIterator<Item = ScopeKey<'a>>,
        mut visit: impl FnMut(usize, usize),
    ) {
        if targets.len() == 1 {
            return targets.for_each(|target| {
                self.index.for_each_match(target, BucketFilter::ALL, |key, ()| visit(0, key));
            });
        }
        // A burst for ten thousand subscribers must not become ten million visits: each bucket is
        // visited for the first target that names it, and the subscriber then goes through the rest
        // of the burst itself.
        // A bucket of a session or a user narrows by what is in the key behind it, so it is another
        // bucket for each.
        let (mut kinds, mut users, mut whole) = (HashSet::new(), HashSet::new(), HashSet::new());
        for (at, target) in targets.enumerate() {
            let buckets = BucketFilter {
                session: whole.insert(target),
                user: users.insert((target.user, target.kind)),
                kind: kinds.insert(target.kind),
                everything: at == 0,
            };
            self.index.for_each_match(target, buckets, |key, ()| visit(at, key));
        }
    }

    /// Visits the key of every subscriber, some more than once.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(usize)) {
        self.index.for_each(|key, ()| visit(key));
    }
}
