//! Unread rest of a request's body when the request is answered, over HTTP/1.1.
//!
//! A refusal comes before the body is read. A small rest is read and dropped, and the connection
//! serves the next request. With a large rest, one of unknown length, or a malformed body, the
//! answer says `Connection: close`, and the socket is closed by `lingering_close`. Over HTTP/2, h2
//! itself ends the stream with `RST_STREAM` and `NO_ERROR` behind the answer (RFC 9113, section
//! 8.1).
//!
//! May use: no other module.

use std::{
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::{Request, Version, body::Incoming, header::EXPECT};
use parking_lot::Mutex;
use tokio::time::timeout;

use super::{connection::Connection, detach::ConnectionState};

/// Body of a request that passes its unread rest to [`UnreadBody`] when it is dropped.
struct ObservedBody {
    /// `None` once the end, or an error, was seen.
    incoming: Option<Incoming>,
    outcome: BodyOutcome,
    shared_outcome: Arc<Mutex<BodyOutcome>>,
    state: Arc<ConnectionState>,
    /// Number of the request on its connection.
    request: u32,
    /// Bytes of the body that were passed on.
    received: u64,
}

impl http_body::Body for ObservedBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(incoming) = &mut self.incoming else { return Poll::Ready(None) };
        let polled = Pin::new(incoming).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            self.received += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        match &polled {
            Poll::Ready(None) => self.incoming = None,
            Poll::Ready(Some(Err(_))) => {
                (self.incoming, self.outcome) = (None, BodyOutcome::Broken);
            }
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Incoming::is_end_stream)
    }

    /// Returns what `Content-Length` says; of a body in chunks, the rest of the chunks that have
    /// begun is the lower bound. It grows with each chunk.
    fn size_hint(&self) -> SizeHint {
        let Some(incoming) = &self.incoming else { return SizeHint::with_exact(0) };
        let mut hint = incoming.size_hint();
        if hint.upper().is_none() {
            let announced = self.state.framing.announced_bytes(self.request);
            hint.set_lower(hint.lower().max(announced.saturating_sub(self.received)));
        }
        hint
    }
}

impl Drop for ObservedBody {
    fn drop(&mut self) {
        let rest = self.incoming.take().filter(|incoming| !incoming.is_end_stream());
        let outcome = match rest {
            Some(rest) => BodyOutcome::Unread(rest),
            None => mem::take(&mut self.outcome),
        };
        *self.shared_outcome.lock() = outcome;
    }
}

/// Outcome of reading one request's body.
#[derive(Default)]
enum BodyOutcome {
    #[default]
    Complete,
    /// The body breaks off, or its framing is malformed: hyper reads no more on the connection.
    Broken,
    Unread(Incoming),
}

/// The rest of one request's body, for the time after its answer.
pub(super) struct UnreadBody {
    outcome: Arc<Mutex<BodyOutcome>>,
    expects_continue: bool,
    connection: Connection,
}

impl UnreadBody {
    /// Returns the request with a body that is observed, unless it has none or comes over HTTP/2.
    /// `number` is that of the request on its connection.
    pub(super) fn observe(
        request: Request<Incoming>,
        connection: &Connection,
        number: u32,
    ) -> (Request<Body>, Option<Self>) {
        connection.state.unread_body.reset();
        if request.version() >= Version::HTTP_2 || request.body().is_end_stream() {
            return (request.map(Body::new), None);
        }
        let outcome = Arc::default();
        let unread = Self {
            outcome: Arc::clone(&outcome),
            expects_continue: request.headers().contains_key(EXPECT),
            connection: connection.clone(),
        };
        let state = Arc::clone(&connection.state);
        let observed = |incoming| ObservedBody {
            incoming: Some(incoming),
            outcome: BodyOutcome::Complete,
            shared_outcome: outcome,
            state,
            request: number,
            received: 0,
        };
        (request.map(|incoming| Body::new(observed(incoming))), Some(unread))
    }

    /// Drains a small rest once the answer is known. Returns whether the connection must close
    /// after the answer.
    pub(super) fn settle(self) -> bool {
        let outcome = mem::take(&mut *self.outcome.lock());
        let state = Arc::clone(&self.connection.state);
        let rest = match outcome {
            BodyOutcome::Complete => return false,
            BodyOutcome::Broken => {
                state.unread_body.set();
                return true;
            }
            BodyOutcome::Unread(rest) => rest,
        };
        let mark = state.unread_body.set();
        // To read from a client that waits for "100 Continue" (RFC 9110, section 10.1.1) would make
        // hyper ask for the body.
        let is_small = rest.size_hint().upper().is_some_and(|bytes| bytes <= MAX_DRAINED_BYTES);
        if self.expects_continue || !is_small {
            return true;
        }
        let tasks = Arc::clone(&self.connection.tasks);
        self.connection.tasks.tracker.spawn(async move {
            let drained = tasks.shutdown.run_until_graceful(timeout(DRAIN_TIMEOUT, drain(rest)));
            if let Some(Ok(true)) = drained.await {
                state.unread_body.remove(mark);
            }
        });
        false
    }
}

/// Reads a body to its end, and drops it. Returns false if it breaks off.
async fn drain(mut body: Incoming) -> bool {
    while let Some(frame) = body.frame().await {
        if frame.is_err() {
            return false;
        }
    }
    true
}

/// Larger rests cost more than a new connection.
const MAX_DRAINED_BYTES: u64 = 64 * 1024;

/// Time for a small rest, whose client has usually sent all of it already.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
