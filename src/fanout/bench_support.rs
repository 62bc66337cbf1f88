//! Single steps of the fan-out for `crate::bench_support`. Compiled for the benches alone.
//!
//! May use: `event`, the fan-out and its branches.

use std::{sync::Arc, task::Waker};

use super::{Fanout, SubscriberSignal};
use crate::event::{Entry, Event};

impl Fanout {
    /// Dispatches the entry after `position`, and returns its position.
    pub(crate) fn dispatch_next(&self, position: u64, entry: &Entry) -> u64 {
        self.dispatch(position, position + 1, std::slice::from_ref(entry))
    }

    /// Pushes an event to a shard's queue, and wakes the shard.
    pub(crate) fn push_and_wake(&self, shard: usize, event: &Arc<Event>) {
        if let Some(queue) = self.shard_queues.get(shard) {
            queue.push(event);
            queue.wake();
        }
    }
}

impl SubscriberSignal {
    /// Notifies the subscription of the entry at `position`.
    pub(crate) fn mark_pending(&self, position: u64) {
        self.notify(position);
    }

    /// Resets the pending position, and registers `waker` for the next notification.
    pub(crate) fn take_pending_and_register(&self, waker: &Waker) {
        self.take_pending();
        self.register_waker(waker);
    }
}
