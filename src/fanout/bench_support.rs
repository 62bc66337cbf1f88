//! The steps of the fan-out that `crate::bench_support` takes one by one. Compiled for that alone.
//!
//! May use: `event`, the fan-out and its branches.

use std::{sync::Arc, task::Waker};

use super::{Fanout, SubscriberSignal};
use crate::event::{Entry, Event};

impl Fanout {
    /// Shows the entry behind `position`, and returns its place.
    pub(crate) fn dispatch_next(&self, position: u64, entry: &Entry) -> u64 {
        self.dispatch(position, position + 1, std::slice::from_ref(entry))
    }

    /// Leaves an event for a lane, and calls that.
    pub(crate) fn push_and_wake(&self, shard: usize, event: &Arc<Event>) {
        if let Some(queue) = self.shard_queues.get(shard) {
            queue.push(event);
            queue.wake();
        }
    }
}

impl SubscriberSignal {
    /// Marks it.
    pub(crate) fn mark_pending(&self, position: u64) {
        self.notify(position);
    }

    /// Takes the mark away, and has `waker` called at the next one.
    pub(crate) fn take_pending_and_register(&self, waker: &Waker) {
        self.take_pending();
        self.register_waker(waker);
    }
}
