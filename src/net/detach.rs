//! Taking a connection's socket out of hyper, once the head of an answer has been sent.
//!
//! hyper keeps two buffers and the state of a parser for each connection, and passes every frame through both. A stream that
//! lasts for hours needs none of that after its head. So hyper reads the request and writes the head, and from then on the body
//! is written by whoever has taken the socket, and the TLS session above it.
//!
//! ```text
//! nobody asks ─► hyper asks for the body's second piece: the head and the first are in its buffer ─► hyper flushes: they are sent
//! ```
//!
//! May use: nothing.

use std::{
    convert::Infallible,
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::Frame;

use super::{connection_limit::AcceptedSocket, forced_close::ForcedClose, tls::TlsSession};
use crate::timer_wheel::TimerWheel;

/// What a connection's socket and its streams know of each other.
#[derive(Debug)]
pub(crate) struct ConnectionState {
    pub(super) has_request: AtomicBool,
    pub(super) stalled: AtomicBool,
    pub(super) detach: DetachState,
    pub(super) forced_close: Arc<ForcedClose>,
}

impl ConnectionState {
    pub(super) fn new(wheel: &Arc<TimerWheel>) -> Self {
        Self {
            has_request: AtomicBool::default(),
            stalled: AtomicBool::default(),
            detach: DetachState::default(),
            forced_close: ForcedClose::new(wheel),
        }
    }

    /// Whether the socket was closed because it took nothing for too long.
    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled.load(Relaxed)
    }
}

/// Where a connection is on the way out of hyper.
#[derive(Default)]
pub(super) struct DetachState {
    step: AtomicU8,
    continuation: Mutex<Option<Continuation>>,
}

/// Who goes on with the socket, and with the TLS session above it.
type Continuation = Box<dyn FnOnce(AcceptedSocket, Option<TlsSession>) + Send>;

impl DetachState {
    /// The socket is to be given to `heir` once the answer's head has been sent.
    pub(super) fn arm(&self, continuation: Continuation) {
        *self.continuation.lock().unwrap_or_else(PoisonError::into_inner) = Some(continuation);
    }

    /// hyper has all that it gets. It asks again after it has flushed.
    fn mark_buffered(&self) {
        if self.step.load(Relaxed) == ATTACHED {
            self.step.store(BUFFERED, Relaxed);
        }
    }

    /// hyper has handed everything it had to the socket.
    pub(super) fn mark_flushed(&self) {
        if self.step.load(Relaxed) == BUFFERED {
            self.step.store(SENT, Relaxed);
        }
    }

    /// Who gets the socket now, if it is time.
    pub(super) fn take_ready(&self) -> Option<Continuation> {
        if self.step.load(Relaxed) != SENT {
            return None;
        }
        self.take()
    }

    /// Who will not get it: the connection has ended, or the answer is not sent.
    fn take(&self) -> Option<Continuation> {
        self.continuation.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl fmt::Debug for DetachState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Handover").field("step", &self.step).finish_non_exhaustive()
    }
}

/// A body that begins with one piece, and whose rest somebody else writes.
#[derive(Debug)]
pub(super) struct DetachingBody {
    pub(super) first: Option<Bytes>,
    pub(super) state: Arc<ConnectionState>,
}

impl http_body::Body for DetachingBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        // Nobody is woken: the connection is taken apart within the same poll, or the next in which its socket takes the head.
        self.state.detach.mark_buffered();
        Poll::Pending
    }
}

impl Drop for DetachingBody {
    fn drop(&mut self) {
        // hyper does not send it, or no more of it: whoever waits for the socket is to give back what it holds.
        drop(self.state.detach.take());
    }
}

/// hyper is still to ask for more.
const ATTACHED: u8 = 0;

/// The head, and the body's first piece, are in hyper's buffer.
const BUFFERED: u8 = 1;

/// The socket has taken them.
const SENT: u8 = 2;
