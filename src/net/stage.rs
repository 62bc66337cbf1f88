//! Telling ten thousand connections to end, at no cost to them before.
//!
//! A connection's task is woken for every event. Polling a cancellation token takes a lock that all tasks share, at each of
//! these wake-ups; here, a task polls its two once, to be woken by them, and then reads one number.
//!
//! May use: nothing.

use std::{
    future::{Future, poll_fn},
    ops::DerefMut,
    pin::{Pin, pin},
    sync::atomic::{AtomicU8, Ordering::SeqCst},
    task::Poll,
};

use hyper_util::server::graceful::GracefulConnection;
use tokio_util::sync::CancellationToken;

/// How far a listener's end has come.
#[derive(Debug, Default)]
pub(super) struct Stage {
    reached: AtomicU8,
    ending: CancellationToken,
    aborted: CancellationToken,
}

impl Stage {
    /// From now on connections end with the exchange that is running on them.
    pub(super) fn end(&self) {
        self.reached.store(ENDING, SeqCst);
        self.ending.cancel();
    }

    /// From now on connections end at once.
    pub(super) fn abort(&self) {
        self.reached.store(ABORTED, SeqCst);
        self.aborted.cancel();
    }

    /// Waits for `work`, or returns none once the listener is ending.
    pub(super) async fn run_until_ending<F: Future>(&self, work: F) -> Option<F::Output> {
        self.ending.run_until_cancelled(work).await
    }

    /// Drives a connection to its end, by way of a graceful one once the listener is ending.
    ///
    /// # Errors
    ///
    /// The connection's own.
    pub(super) async fn drive<P>(&self, mut connection: Pin<P>) -> Result<(), hyper::Error>
    where
        P: DerefMut<Target: GracefulConnection<Error = hyper::Error>>,
    {
        let mut ending = pin!(self.ending.cancelled());
        let mut aborted = pin!(self.aborted.cancelled());
        let (mut is_registered, mut is_told) = (false, false);
        poll_fn(move |context| {
            if !is_registered {
                // Once is enough: the task, and so its waker, stays the same. The number is read after this, and written
                // before the tokens are cancelled: no change goes unseen.
                is_registered = true;
                let _ = (ending.as_mut().poll(context), aborted.as_mut().poll(context));
            }
            let reached = self.reached.load(SeqCst);
            if reached == ABORTED {
                return Poll::Ready(Ok(()));
            }
            if reached == ENDING && !is_told {
                is_told = true;
                connection.as_mut().graceful_shutdown();
            }
            connection.as_mut().poll(context)
        })
        .await
    }
}

const ENDING: u8 = 1;

const ABORTED: u8 = 2;
