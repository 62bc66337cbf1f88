//! One frame of an event stream, in the form that its writer needs.
//!
//! May use: `event`, `sse`.

use std::sync::Arc;

use bytes::Bytes;

use crate::{event::Event, sse};

/// Something to send.
#[derive(Debug)]
pub(super) enum SseFrame {
    /// An event.
    Event(Arc<Event>),
    /// A frame of another kind, or a line.
    Control(Bytes),
}

impl SseFrame {
    /// Its bytes.
    pub(super) fn into_bytes(self) -> Bytes {
        match self {
            Self::Event(event) => event.wire(),
            Self::Control(bytes) => bytes,
        }
    }

    /// Its bytes as a chunk of an HTTP/1.1 body.
    pub(super) fn into_chunk(self) -> Bytes {
        match self {
            Self::Event(event) => event.http1_chunk().clone(),
            Self::Control(bytes) => sse::encode_http1_chunk(&bytes),
        }
    }
}
