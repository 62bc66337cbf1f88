//! How many streams are open on an HTTP/2 connection.
//!
//! May use: nothing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::Waker,
};

use atomic_waker::AtomicWaker;

/// How many streams are open on a connection.
#[derive(Debug, Default)]
pub(super) struct OpenStreams {
    count: AtomicUsize,
    waker: AtomicWaker,
}

impl OpenStreams {
    /// One more, until what is returned is dropped.
    pub(super) fn open(self: &Arc<Self>) -> OpenStreamGuard {
        self.count.fetch_add(1, SeqCst);
        OpenStreamGuard(Arc::clone(self))
    }

    /// Whether there is more than one.
    pub(super) fn has_several(&self) -> bool {
        self.count.load(SeqCst) > 1
    }

    /// Whether there are any; `waker` is woken when the last one ends.
    pub(super) fn any_open(&self, waker: &Waker) -> bool {
        self.waker.register(waker); // before the look: no end goes unseen
        self.count.load(SeqCst) > 0
    }
}

/// An open stream.
#[derive(Debug)]
pub(super) struct OpenStreamGuard(Arc<OpenStreams>);

impl Drop for OpenStreamGuard {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, SeqCst) == 1 {
            self.0.waker.wake();
        }
    }
}
