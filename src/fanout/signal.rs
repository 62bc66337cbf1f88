//! Pending position and waker of one subscription.
//!
//! May use: no other module.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::Waker,
};

use atomic_waker::AtomicWaker;

/// One subscription as the fan-out sees it.
#[derive(Debug, Default)]
pub(crate) struct SubscriberSignal {
    /// The first entry shown to it that it has not looked for, 0 for none.
    pending: AtomicU64,
    waker: AtomicWaker,
}

impl SubscriberSignal {
    /// Tells it that the entry at `place` is for it.
    pub(super) fn notify(&self, position: u64) {
        if self.pending.compare_exchange(0, position, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            self.waker.wake();
        }
    }

    /// Has its task look around, without a mark.
    pub(crate) fn wake(&self) {
        self.waker.wake();
    }

    /// The first entry shown to it that it has not looked for, if there is one.
    pub(crate) fn pending_position(&self) -> Option<u64> {
        Some(self.pending.load(Ordering::SeqCst)).filter(|position| *position > 0)
    }

    /// Has `waker` called at the next mark.
    pub(super) fn register_waker(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// What it is known by, as long as it is there.
    pub(super) fn key(self: &Arc<Self>) -> usize {
        Arc::as_ptr(self).addr()
    }

    /// Takes the mark away and returns it.
    pub(super) fn take_pending(&self) -> u64 {
        self.pending.swap(0, Ordering::SeqCst)
    }
}
