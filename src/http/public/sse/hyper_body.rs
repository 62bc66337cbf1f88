//! Event stream as a body that hyper writes: over HTTP/2 and HTTP/1.0, and for operator tails.
//!
//! May use: `net`, `subscriber`.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::Frame;

use super::subscriber::SseSubscriber;
use crate::{
    net::{Connection, Exemption, ForcedClose, Http2StreamState},
    subscriber::SubscriberFault,
};

/// Body of one subscriber's response, one frame for each event.
#[derive(Debug)]
pub(super) struct EventBody {
    first: Option<Bytes>,
    subscriber: SseSubscriber,
    /// Ends a stream whose body hyper does not poll. The field stands after `subscriber`, because
    /// the subscriber's permit may schedule the close until it is dropped.
    _forced_close: ForcedCloseGuard,
    connection: Connection,
    stream_state: Option<Arc<Http2StreamState>>,
    _exemption: Exemption,
}

/// Clears a forced close when its exchange is over: the next one on the connection has its own.
#[derive(Debug)]
struct ForcedCloseGuard(Arc<ForcedClose>);

impl Drop for ForcedCloseGuard {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl EventBody {
    /// Returns a body that begins with `first`.
    pub(super) fn new(
        first: Bytes,
        subscriber: SseSubscriber,
        forced_close: Arc<ForcedClose>,
        connection: &Connection,
        stream_state: Option<Arc<Http2StreamState>>,
    ) -> Self {
        let (_exemption, connection) = (connection.exempt_from_displacement(), connection.clone());
        let _forced_close = ForcedCloseGuard(forced_close);
        Self { first: Some(first), subscriber, _forced_close, connection, stream_state, _exemption }
    }
}

impl http_body::Body for EventBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let bytes = match self.first.take() {
            Some(first) => Poll::Ready(Some(first)),
            None => self
                .subscriber
                .poll_frame(context)
                .map(|frame| frame.map(|piece| piece.into_bytes())),
        };
        // The write deadline of an HTTP/2 stream needs to know whether the body was polled and had
        // nothing: an idle stream. A stream whose body is not polled is blocked on flow control.
        if let Some(stream_state) = &self.stream_state {
            stream_state.record_body_poll(bytes.is_pending());
        }
        bytes.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

impl Drop for EventBody {
    fn drop(&mut self) {
        // hyper drops the body without a reason; the states tell whether a deadline was the reason.
        if self.connection.state.is_stalled()
            || self.stream_state.as_ref().is_some_and(|state| state.is_stalled())
        {
            self.subscriber.connected.record_fault(SubscriberFault::Stalled);
        }
    }
}
