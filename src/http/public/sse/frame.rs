//! One frame of an event stream, in the form that its writer needs.
//!
//! May use: `event`, `sse`.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use crate::{event::Event, sse};

/// One frame to send.
#[derive(Debug)]
pub(super) enum SseFrame {
    /// An event.
    Event(Arc<Event>),
    /// An encoded gap, heartbeat or `retry:` line.
    Control(Bytes),
}

impl SseFrame {
    /// Returns the frame's bytes, for hyper.
    pub(super) fn into_bytes(self) -> Bytes {
        match self {
            Self::Event(event) => event.sse_frame(),
            Self::Control(bytes) => bytes,
        }
    }

    /// Returns the frame as a chunk of an HTTP/1.1 body (RFC 9112, section 7.1).
    ///
    /// An event's buffer already includes the chunk framing, so this copies nothing.
    pub(super) fn into_chunk(self) -> Bytes {
        match self {
            Self::Event(event) => event.http1_chunk().clone(),
            Self::Control(bytes) => sse::encode_http1_chunk(&bytes),
        }
    }
}

/// Reconnection delay that subscribers are given, before jitter: a restarted relay is back within
/// seconds.
pub(super) const SSE_RETRY_DELAY: Duration = Duration::from_secs(2);
