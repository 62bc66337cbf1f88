//! One shard's subscribers of one product, by scope.
//!
//! May use: `event`.

use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering},
    task::Waker,
};

use super::{
    Fanout, Subscription,
    index::{BucketFilter, ScopeIndex},
    shard_queue::{QueueContents, ShardQueue},
};
use crate::event::{Event, Kind, Scope, SessionId};

/// A lane's streams of one product, by what they want. Belongs to the lane's task alone.
#[derive(Debug)]
pub(crate) struct ShardIndex {
    fanout: Arc<Fanout>,
    shard: usize,
    index: ScopeIndex<()>,
}

impl ShardIndex {
    /// Nobody yet. Whenever something has arrived, `waker` is called, once until it is taken.
    pub(crate) fn new(fanout: &Arc<Fanout>, shard: usize, waker: Waker) -> Self {
        let shard_index = Self { fanout: Arc::clone(fanout), shard, index: ScopeIndex::default() };
        if let Some(queue) = shard_index.queue() {
            queue.attach(waker);
        }
        shard_index
    }

    /// From now on, events that this one may see arrive here.
    pub(crate) fn add(&mut self, number: usize, subscription: &mut Subscription) {
        self.index.insert(subscription.scope(), number, &());
        let mut registry = self.fanout.registry();
        registry.shard_bitmap.add(subscription.scope(), self.shard);
        subscription.move_to_shard(&mut registry);
    }

    /// The end of that.
    pub(crate) fn remove(&mut self, number: usize, scope: &Scope) {
        self.index.remove(scope, number);
        self.fanout.registry().shard_bitmap.remove(scope, self.shard, &self.index);
    }

    /// From now on, it is what another scope shows that arrives for this one. It looks into the log
    /// first.
    pub(crate) fn change_scope(
        &mut self,
        number: usize,
        subscription: &mut Subscription,
        scope: Scope,
    ) {
        self.remove(number, subscription.scope());
        subscription.change_scope(scope);
        self.add(number, subscription);
    }

    /// Takes what has arrived; `events` is empty, and gets the events, if it is events.
    pub(crate) fn take_queued(&self, events: &mut Vec<Arc<Event>>) -> QueueContents {
        self.queue().map_or(QueueContents::Events, |queue| queue.take(events))
    }

    /// The place up to which everything has been taken, or was for nobody here; none while
    /// something waits.
    pub(crate) fn position(&self) -> Option<u64> {
        // In this order: what lies before the position was left there before that was written.
        let position = self.fanout.dispatched_through.load(Ordering::SeqCst);
        self.queue()?.is_empty().then_some(position)
    }

    /// Visits the numbers of those who may see something of this session and kind, for each in
    /// `news`, with which of these it is. Who has been visited for an earlier one may be left out.
    pub(crate) fn for_each_interested<'a>(
        &self,
        keys: impl ExactSizeIterator<Item = (Option<&'a SessionId>, &'a Kind)>,
        mut visit: impl FnMut(usize, usize),
    ) {
        if keys.len() == 1 {
            return keys.for_each(|(session, kind)| {
                self.index.for_each_match(session, kind, BucketFilter::ALL, |number, ()| {
                    visit(0, number);
                });
            });
        }
        // A burst for ten thousand is not to be ten million visits.
        let (mut kinds, mut pairs) = (HashSet::new(), HashSet::new());
        for (at, (session, kind)) in keys.enumerate() {
            let buckets = BucketFilter {
                session: pairs.insert((session, kind)),
                kind: kinds.insert(kind),
                everything: at == 0,
            };
            self.index.for_each_match(session, kind, buckets, |number, ()| visit(at, number));
        }
    }

    /// Visits everybody's number, some more than once.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(usize)) {
        self.index.for_each(|number, ()| visit(number));
    }

    fn queue(&self) -> Option<&ShardQueue> {
        self.fanout.shard_queues.get(self.shard)
    }
}

impl Drop for ShardIndex {
    fn drop(&mut self) {
        if let Some(queue) = self.queue() {
            queue.detach();
        }
    }
}
