//! The steps of the fan-out that `crate::bench_support` takes one by one. Compiled for that alone.
//!
//! May use: `event`, the fan-out and its branches.

use std::{sync::Arc, task::Waker};

use super::{Fanout, Listener};
use crate::event::{Entry, Event};

impl Fanout {
    /// Shows the entry behind `position`, and returns its place.
    pub(crate) fn show_next(&self, position: u64, entry: &Entry) -> u64 {
        self.show(position, position + 1, std::slice::from_ref(entry))
    }

    /// Leaves an event for a lane, and calls that.
    pub(crate) fn leave_and_call(&self, lane: usize, event: &Arc<Event>) {
        if let Some(branch) = self.branches.get(lane) {
            branch.bring(event);
            branch.call();
        }
    }
}

impl Listener {
    /// Marks it.
    pub(crate) fn mark(&self, place: u64) {
        self.show(place);
    }

    /// Takes the mark away, and has `waker` called at the next one.
    pub(crate) fn await_mark(&self, waker: &Waker) {
        self.look();
        self.wake_later(waker);
    }
}
