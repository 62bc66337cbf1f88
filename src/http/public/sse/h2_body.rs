//! A stream as a body that hyper writes: over HTTP/2, HTTP/1.0, and for operators.
//!
//! May use: `net`.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::Frame;

use super::subscriber::{Events, Fault};
use crate::net::{Connection, Patience};

/// What one subscriber receives, piece by piece.
#[derive(Debug)]
pub(super) struct EventBody {
    first: Option<Bytes>,
    events: Events,
    connection: Connection,
    patience: Option<Arc<Patience>>,
}

impl EventBody {
    /// A body that begins with `first`.
    pub(super) fn new(first: Bytes, events: Events, connection: &Connection, patience: Option<Arc<Patience>>) -> Self {
        Self { first: Some(first), events, connection: connection.clone(), patience }
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
            None => self.events.poll_next(context).map(|piece| piece.map(|piece| piece.frame())),
        };
        if let Some(patience) = &self.patience {
            patience.asked(bytes.is_pending());
        }
        bytes.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

impl Drop for EventBody {
    fn drop(&mut self) {
        if self.connection.fate.is_stalled() || self.patience.as_ref().is_some_and(|patience| patience.is_stalled()) {
            self.events.fails(Fault::Stalled);
        }
    }
}
