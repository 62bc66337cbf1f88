//! How far a reader has read, as callers outside the worker's task see it.
//!
//! A worker that waits is not polled: what it has published knows nothing of later events. Here a
//! caller finds out whether the log has events that the reader has not taken, and wakes no worker.
//!
//! ```text
//!                      poll begins                        nothing left to read
//!  caught up ──────────────────────────► reading ──────────────────────────────► caught up
//!  the signal tells what is unread       everything after the published position may be unread
//! ```
//!
//! May use: `fanout`.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::fanout::{Fanout, SubscriberSignal};

/// Progress of one webhook's reader, shared by the reader and all callers.
#[derive(Debug)]
pub(in crate::webhook) struct ReadProgress {
    fanout: Arc<Fanout>,
    state: Mutex<ProgressState>,
}

#[derive(Debug, Default)]
struct ProgressState {
    /// Signal of the present subscription.
    signal: SubscriberSignal,
    /// Whether the last poll of the subscription found nothing left to read, and no other poll has
    /// begun since.
    is_caught_up: bool,
}

/// Newest position of the log, and what of the log is known to be read.
#[derive(Clone, Copy, Debug)]
pub(in crate::webhook) struct ReadExtent {
    newest: u64,
    /// Every event of the scope up to here has been returned by the reader; 0 while it reads.
    read_through: u64,
}

impl ReadProgress {
    /// Creates the progress of a reader that has not begun.
    pub(in crate::webhook) fn new(fanout: Arc<Fanout>) -> Self {
        Self { fanout, state: Mutex::default() }
    }

    /// Returns the fan-out of the product that is read.
    pub(super) fn fanout(&self) -> &Arc<Fanout> {
        &self.fanout
    }

    /// Begins anew with a subscription that has this signal.
    pub(super) fn restart(&self, signal: SubscriberSignal) {
        *self.state.lock() = ProgressState { signal, is_caught_up: false };
    }

    /// Notes that the subscription is polled next, which may take the pending position.
    pub(super) fn begin_poll(&self) {
        self.state.lock().is_caught_up = false;
    }

    /// Notes that a poll has found nothing left to read.
    ///
    /// The worker publishes what the reader has returned before it polls the reader again. So
    /// everything that a reader has returned by now is part of the published status.
    pub(super) fn mark_caught_up(&self) {
        self.state.lock().is_caught_up = true;
    }

    /// Returns how far the log goes and how much of it is read. The caller reads the published
    /// status after this call, not before.
    pub(in crate::webhook) fn extent(&self) -> ReadExtent {
        // In this order. An event up to `newest` that is not dispatched is after `dispatched`. An
        // event up to `dispatched` has set the pending position; if that is 0 while the reader is
        // caught up, an earlier poll has taken it and the event is returned and published.
        let newest = self.fanout.log().newest_position();
        let dispatched = self.fanout.dispatched_through();
        // Under the lock: no poll begins between the two reads.
        let state = self.state.lock();
        let read_through = match (state.is_caught_up, state.signal.pending_position()) {
            (true, Some(first)) => first - 1,
            (true, None) => dispatched,
            (false, _) => 0,
        };
        ReadExtent { newest, read_through }
    }
}

impl ReadExtent {
    /// Returns an upper bound of the unread events, given the position up to which the published
    /// status knows them. Some of them may be outside the scope.
    pub(in crate::webhook) fn unread_after(self, published_through: u64) -> u64 {
        self.newest.saturating_sub(self.read_through.max(published_through))
    }
}
