//! Telling ten thousand connections to end, at no cost to them before.
//!
//! A connection's task is woken for every event. A cancellation token would take a lock that all tasks share at each of
//! these wake-ups; here, a task registers once and then reads one number.
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
use tokio::sync::Notify;

/// How far a listener's end has come.
#[derive(Debug, Default)]
pub(super) struct Stage {
    reached: AtomicU8,
    entered: Notify,
}

impl Stage {
    /// Connections end with the exchange that is running on them.
    pub(super) const ENDING: u8 = 1;

    /// Connections end at once.
    pub(super) const ABORTED: u8 = 2;

    /// Enters a stage, and wakes everybody who waits in an earlier one.
    pub(super) fn enter(&self, stage: u8) {
        self.reached.store(stage, SeqCst);
        self.entered.notify_waiters();
    }

    /// Waits for `work`, or returns none once the listener is ending.
    pub(super) async fn run_until_ending<F: Future>(&self, work: F) -> Option<F::Output> {
        let entered = self.entered.notified();
        if self.reached.load(SeqCst) >= Self::ENDING {
            return None;
        }
        tokio::select! {
            output = work => Some(output),
            () = entered => None,
        }
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
        let mut seen = 0;
        let mut entered = pin!(self.entered.notified());
        let mut is_registered = false;
        poll_fn(move |context| {
            if !is_registered {
                // Once is enough: the task, and so its waker, stays the same. Before the number is read: whatever is
                // entered later wakes this task.
                is_registered = entered.as_mut().poll(context).is_pending();
            }
            let reached = self.reached.load(SeqCst);
            if reached >= Self::ABORTED {
                return Poll::Ready(Ok(()));
            }
            if reached > seen {
                seen = reached;
                connection.as_mut().graceful_shutdown();
                entered.set(self.entered.notified());
                is_registered = entered.as_mut().poll(context).is_pending();
                if self.reached.load(SeqCst) > seen {
                    context.waker().wake_by_ref();
                }
            }
            connection.as_mut().poll(context)
        })
        .await
    }
}
