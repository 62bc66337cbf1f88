//! The number of open streams on an HTTP/2 connection.
//!
//! In: streams that begin and end, each on its own task. Out: whether the connection is idle or has
//! several, for the connection's task.
//!
//! May use: no other module.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::Waker,
};

use atomic_waker::AtomicWaker;

/// Counter of the open streams of one connection, and the waker of its task.
#[derive(Debug, Default)]
pub(super) struct OpenStreams {
    // SeqCst, though AtomicWaker would need less: the last stream counts down and then wakes,
    // `any_open` registers and then loads, so one of the two sees the other.
    count: AtomicUsize,
    waker: AtomicWaker,
}

impl OpenStreams {
    /// Counts a stream until the returned guard is dropped.
    pub(super) fn open(self: &Arc<Self>) -> OpenStreamGuard {
        self.count.fetch_add(1, SeqCst);
        OpenStreamGuard(Arc::clone(self))
    }

    /// Returns whether more than one stream is open.
    pub(super) fn has_several(&self) -> bool {
        self.count.load(SeqCst) > 1
    }

    /// Returns whether any stream is open, and wakes `waker` when the last one ends.
    pub(super) fn any_open(&self, waker: &Waker) -> bool {
        // Before the load: a stream that ends after the load then finds this waker.
        self.waker.register(waker);
        self.count.load(SeqCst) > 0
    }
}

/// Open stream, counted until dropped.
#[derive(Debug)]
pub(super) struct OpenStreamGuard(Arc<OpenStreams>);

impl Drop for OpenStreamGuard {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, SeqCst) == 1 {
            self.0.waker.wake();
        }
    }
}
