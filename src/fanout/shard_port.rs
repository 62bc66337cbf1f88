//! Receiving end of the queue of one product to one shard.
//!
//! In: events, marks or an overflow, in the order of their dispatch. Out: the same, to the shard
//! that owns the port, as the owner of a channel's receiver takes from the channel.
//!
//! The port also says which events the shard wants: it sets and clears the shard's bits. It moves
//! a subscription from the fan-out's index to the shard in one step, because the fan-out's lock
//! must cover both.
//!
//! May use: `event`.

use std::{sync::Arc, task::Waker};

use super::{Fanout, QueueContents, ScopeIndex, SubscriberSignal, shard_queue::ShardQueue};
use crate::event::{Event, Scope};

/// Receiving end of one product's queue to one shard. Attached to the queue while it lives.
#[derive(Debug)]
pub(crate) struct ShardPort {
    fanout: Arc<Fanout>,
    shard: usize,
}

impl ShardPort {
    /// Attaches to the queue of `shard`. `waker` is called when the queue gets something, once
    /// until that is taken.
    pub(crate) fn new(fanout: &Arc<Fanout>, shard: usize, waker: Waker) -> Self {
        let port = Self { fanout: Arc::clone(fanout), shard };
        if let Some(queue) = port.queue() {
            queue.attach(waker);
        }
        port
    }

    /// Moves a subscription that was registered with `scope` to the shard: its signal is not
    /// notified any more, and events within the scope arrive through the queue from now on.
    ///
    /// Returns the dispatched position. Entries up to it may be pending in the signal; later ones
    /// arrive through the queue.
    pub(crate) fn take_over(&self, scope: &Scope, signal: &SubscriberSignal) -> u64 {
        // Under one lock: each entry is either dispatched before, and recorded as pending, or
        // after, and in the queue. No entry is in both or in neither.
        let mut registry = self.fanout.registry();
        registry.shard_bitmap.add(scope, self.shard);
        registry.subscribers.remove(scope, signal.key());
        self.fanout.dispatched_through()
    }

    /// Makes events within `scope` arrive through the queue from now on.
    pub(crate) fn add_scope(&self, scope: &Scope) {
        self.fanout.registry().shard_bitmap.add(scope, self.shard);
    }

    /// Ends what [`ShardPort::take_over`] or [`ShardPort::add_scope`] began for one subscriber.
    /// `remaining` are the shard's other subscribers of the product.
    pub(crate) fn remove_scope(&self, scope: &Scope, remaining: &ScopeIndex<()>) {
        self.fanout.registry().shard_bitmap.remove(scope, self.shard, remaining);
    }

    /// Takes the contents of the queue. `events` must be empty, and gets the events where the
    /// contents are events.
    pub(crate) fn take(&self, events: &mut Vec<Arc<Event>>) -> QueueContents {
        self.queue().map_or(QueueContents::Events, |queue| queue.take(events))
    }

    /// Returns the position up to which all entries have been taken from the queue or concern no
    /// subscriber of the shard; none while the queue is not empty.
    pub(crate) fn position(&self) -> Option<u64> {
        // In this order: an entry up to this position was pushed before the position was stored, so
        // it is either in the queue now or has been taken. With the emptiness read first, an entry
        // could be pushed and its position stored in between, and would be skipped.
        let position = self.fanout.dispatched_through();
        self.queue()?.is_empty().then_some(position)
    }

    fn queue(&self) -> Option<&ShardQueue> {
        self.fanout.shard_queues.get(self.shard)
    }
}

// The shard's bits in the registry are cleared by `remove_scope`, one subscriber at a time.
impl Drop for ShardPort {
    fn drop(&mut self) {
        if let Some(queue) = self.queue() {
            queue.detach();
        }
    }
}
