//! The signal that ends ten thousand connections, at no cost to them before.
//!
//! A connection's task is woken for every event. Polling a cancellation token at each wake-up takes
//! a lock that all connections of a listener share. Here a task polls its two tokens once, which
//! registers its waker, and from then on reads one atomic.
//!
//! May use: no other module.

use std::{
    error::Error,
    future::{Future, poll_fn},
    ops::DerefMut,
    pin::{Pin, pin},
    sync::atomic::{AtomicU8, Ordering::SeqCst},
    task::Poll,
};

use http_body::Body;
use hyper::{
    body::Incoming,
    rt::{Read, Write, bounds::Http2ServerConnExec},
    server::conn::http2,
    service::HttpService,
};
use tokio_util::sync::CancellationToken;

/// Shutdown of one listener: serving, then graceful, then aborted.
#[derive(Debug, Default)]
pub(super) struct ShutdownSignal {
    // Written before the tokens are cancelled, and read after they were polled: a task either sees
    // the phase or is woken by the token. SeqCst costs the readers nothing over a plain load on
    // x86-64.
    phase: AtomicU8,
    graceful: CancellationToken,
    aborted: CancellationToken,
}

impl ShutdownSignal {
    /// Tells connections to end with the exchange that is running on them.
    pub(super) fn begin_graceful(&self) {
        self.phase.store(GRACEFUL, SeqCst);
        self.graceful.cancel();
    }

    /// Tells connections to end at once.
    pub(super) fn abort(&self) {
        self.phase.store(ABORTED, SeqCst);
        self.aborted.cancel();
    }

    /// Runs `work`, or returns `None` once connections are to end gracefully.
    pub(super) async fn run_until_graceful<F: Future>(&self, work: F) -> Option<F::Output> {
        self.graceful.run_until_cancelled(work).await
    }

    /// Runs `work`, or returns `None` once connections are to end at once.
    pub(super) async fn run_until_aborted<F: Future>(&self, work: F) -> Option<F::Output> {
        let mut work = pin!(work);
        let mut aborted = pin!(self.aborted.cancelled());
        let mut is_registered = false;
        poll_fn(move |context| {
            if !is_registered {
                // Once, as in `drive`.
                is_registered = true;
                let _ = aborted.as_mut().poll(context);
            }
            match self.phase.load(SeqCst) {
                ABORTED => Poll::Ready(None),
                _ => work.as_mut().poll(context).map(Some),
            }
        })
        .await
    }

    /// Drives a connection to its end, gracefully once the shutdown has begun.
    ///
    /// # Errors
    ///
    /// The connection's own. An aborted connection ends with `Ok`.
    pub(super) async fn drive<P>(&self, mut connection: Pin<P>) -> Result<(), hyper::Error>
    where
        P: DerefMut<Target: GracefulConnection>,
    {
        let mut graceful = pin!(self.graceful.cancelled());
        let mut aborted = pin!(self.aborted.cancelled());
        let (mut is_registered, mut is_notified) = (false, false);
        poll_fn(move |context| {
            if !is_registered {
                is_registered = true;
                // One poll is enough: the task, hence its waker, stays the same. The phase is read
                // after it, so no change is missed.
                let _ = (graceful.as_mut().poll(context), aborted.as_mut().poll(context));
            }
            let phase = self.phase.load(SeqCst);
            if phase == ABORTED {
                return Poll::Ready(Ok(()));
            }
            if phase == GRACEFUL && !is_notified {
                is_notified = true;
                connection.as_mut().start_graceful_shutdown();
            }
            connection.as_mut().poll(context)
        })
        .await
    }
}

/// Connection with a graceful shutdown: it ends after the exchange that is in progress.
///
/// hyper-util has such a trait (`GracefulConnection`), but not for connections that may be
/// upgraded.
pub(super) trait GracefulConnection: Future<Output = Result<(), hyper::Error>> {
    /// Begins the graceful end. The connection must still be polled to its end.
    fn start_graceful_shutdown(self: Pin<&mut Self>);
}

impl<I, B, S, E> GracefulConnection for http2::Connection<I, S, E>
where
    S: HttpService<Incoming, ResBody = B, Error: Into<Box<dyn Error + Send + Sync>>>,
    I: Read + Write + Unpin,
    B: Body<Error: Into<Box<dyn Error + Send + Sync>>> + 'static,
    E: Http2ServerConnExec<S::Future, B>,
{
    fn start_graceful_shutdown(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

const GRACEFUL: u8 = 1;

const ABORTED: u8 = 2;
