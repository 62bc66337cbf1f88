//! Detaching a connection from hyper (Go: hijack), once the head of a response has been sent.
//!
//! hyper keeps two buffers and a parser's state for each connection, and passes every frame through
//! both. A stream that lasts for hours needs none of these after its head. So hyper reads the
//! request and writes the head, and then gives the socket, and the TLS session above it, to the
//! *continuation*, which writes the rest of the body.
//!
//! ```text
//! ATTACHED   hyper has not asked for the body's second piece
//! BUFFERED   it has: the head and the first piece are in its buffer
//! SENT       it has flushed: they are with the kernel, and the continuation gets the socket
//! ```
//!
//! All steps of one connection are taken by its own task: hyper polls the body and flushes the
//! socket there, and `http1::Http1Connection` looks at the step after each of its polls.
//!
//! May use: `timer_wheel`.

use std::{
    convert::Infallible,
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::Frame;
use parking_lot::Mutex;

use super::{
    activity::ConnectionActivity, connection_limit::AcceptedSocket, forced_close::ForcedClose,
    lingering_close::UnreadMark, request_framing::FramingNotes, tls::TlsSession,
};
use crate::timer_wheel::TimerWheel;

/// State that a connection's socket, its streams and its handlers share.
#[derive(Debug)]
pub(crate) struct ConnectionState {
    /// A request has been received, which ends the head deadline.
    pub(super) has_request: AtomicBool,
    /// The write deadline has closed the socket because the peer accepted nothing.
    pub(super) stalled: AtomicBool,
    /// The socket needs a lingering close if bytes of the client are unread. Set only
    /// while the connection uses HTTP/1.1.
    pub(super) lingers: AtomicBool,
    /// The last request was answered before its head or body was read to the end.
    pub(super) unread_body: UnreadMark,
    pub(super) framing: FramingNotes,
    pub(super) activity: ConnectionActivity,
    /// The listener is shutting down.
    pub(super) is_shutting_down: AtomicBool,
    pub(super) detach: DetachState,
    pub(super) forced_close: Arc<ForcedClose>,
}

impl ConnectionState {
    pub(super) fn new(wheel: &Arc<TimerWheel>) -> Self {
        Self {
            has_request: AtomicBool::default(),
            stalled: AtomicBool::default(),
            lingers: AtomicBool::default(),
            unread_body: UnreadMark::default(),
            framing: FramingNotes::default(),
            activity: ConnectionActivity::default(),
            is_shutting_down: AtomicBool::default(),
            detach: DetachState::default(),
            forced_close: ForcedClose::new(wheel),
        }
    }

    /// Returns whether the socket was closed because it took nothing for `write_timeout`.
    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled.load(Relaxed)
    }
}

/// Progress of a connection's detachment from hyper.
#[derive(Default)]
pub(super) struct DetachState {
    // Relaxed everywhere: only the connection's task reads and writes the step. The atomic is there
    // because `ConnectionState` is shared, and a task that moves to another thread is synchronised
    // by the runtime. The continuation has a lock of its own.
    step: AtomicU8,
    continuation: Mutex<Option<Continuation>>,
}

/// Receives the socket, and the TLS session above it.
type Continuation = Box<dyn FnOnce(AcceptedSocket, Option<TlsSession>) + Send>;

impl DetachState {
    /// Registers the function that receives the socket once the head of the response is sent.
    pub(super) fn arm(&self, continuation: Continuation) {
        *self.continuation.lock() = Some(continuation);
    }

    /// Records that hyper has buffered everything it will get. hyper flushes next.
    fn mark_buffered(&self) {
        if self.step.load(Relaxed) == ATTACHED {
            self.step.store(BUFFERED, Relaxed);
        }
    }

    /// Records that hyper has passed everything it had to the socket.
    ///
    /// A flush before [`DetachState::mark_buffered`] is one of the head alone, or of an earlier
    /// response, and does not count.
    pub(super) fn mark_flushed(&self) {
        if self.step.load(Relaxed) == BUFFERED {
            self.step.store(SENT, Relaxed);
        }
    }

    /// Returns the continuation if the head is sent, for the caller to call it.
    pub(super) fn take_ready(&self) -> Option<Continuation> {
        if self.step.load(Relaxed) != SENT {
            return None;
        }
        self.take()
    }

    /// Takes the continuation in any step.
    fn take(&self) -> Option<Continuation> {
        self.continuation.lock().take()
    }
}

impl fmt::Debug for DetachState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("DetachState").field("step", &self.step).finish_non_exhaustive()
    }
}

/// Body of one piece, after which it stays pending until the connection is detached.
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
        // `Pending` without a registered waker is safe here: the connection is detached at the end
        // of this very poll, or of the poll in which its socket takes the rest of the head.
        self.state.detach.mark_buffered();
        Poll::Pending
    }
}

impl Drop for DetachingBody {
    fn drop(&mut self) {
        // hyper does not send this response, or no more of it. The continuation owns what its
        // subscriber was admitted with; that is returned now and not when the connection ends.
        drop(self.state.detach.take());
    }
}

/// hyper has not asked for the second piece yet.
const ATTACHED: u8 = 0;

/// The head, and the body's first piece, are in hyper's buffer.
const BUFFERED: u8 = 1;

/// The socket has taken them.
const SENT: u8 = 2;
