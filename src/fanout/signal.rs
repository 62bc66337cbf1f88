//! Pending position and waker of one subscription.
//!
//! Written by the fan-out's task, read by the subscription's task and by operators.
//!
//! May use: `wake_state`.

use std::{
    sync::{Arc, atomic::Ordering},
    task::Waker,
};

use crate::wake_state::WakeState;

/// Signal of one subscription, which the fan-out holds as well. A clone is the same signal.
#[derive(Clone, Debug, Default)]
pub(crate) struct SubscriberSignal(Arc<WakeState>);

impl SubscriberSignal {
    /// Returns the state in which the alarm of the subscription's task can be, too.
    pub(crate) fn wake_state(&self) -> &Arc<WakeState> {
        &self.0
    }

    /// Records that the entry at `position` is within the scope, and wakes the subscription's task
    /// unless an earlier entry has done so.
    pub(super) fn notify(&self, position: u64) {
        // Only 0 → n: the first position is the one from which the subscription must read. The
        // waker was registered before `pending` was reset to 0 (see `Subscription::poll_pending`);
        // this exchange reads that reset, so it also sees the waker. Acquire and release would do
        // for that pair; SeqCst keeps one order over `pending` and `dispatched_through`, at the
        // same price for a read-modify-write on x86-64.
        if self.0.pending.compare_exchange(0, position, Ordering::SeqCst, Ordering::SeqCst).is_ok()
        {
            self.0.waker.wake();
        }
    }

    /// Wakes the subscription's task without an entry, so that it looks at its other duties.
    pub(crate) fn wake(&self) {
        self.0.waker.wake();
    }

    /// Returns the first position that the subscription has not read for, if there is one.
    pub(crate) fn pending_position(&self) -> Option<u64> {
        Some(self.0.pending.load(Ordering::SeqCst)).filter(|position| *position > 0)
    }

    /// Replaces the waker that the next notification calls.
    pub(crate) fn register_waker(&self, waker: &Waker) {
        self.0.waker.register(waker);
    }

    /// Returns the key of this subscription in the index. No other subscription can get it
    /// meanwhile, because the index holds a reference to the allocation.
    pub(super) fn key(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    /// Resets the pending position and returns it, 0 for none.
    pub(crate) fn take_pending(&self) -> u64 {
        self.0.pending.swap(0, Ordering::SeqCst)
    }
}
