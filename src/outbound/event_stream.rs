//! An open event stream, read frame by frame.
//!
//! In: the chunks of a response's body. Out: decoded frames, or why there are no more.
//!
//! May use: `error_chain`, `sse`.

use std::{io, time::Duration};

use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::{
    error_chain::find_in_chain,
    sse::{Decoded, Decoder},
};

/// Open event stream and its connection, which is closed when this is dropped.
#[derive(Debug)]
pub(crate) struct EventStream {
    pub(super) is_relay: bool,
    pub(super) body: Incoming,
    pub(super) decoder: Decoder,
    pub(super) connection_task: JoinSet<()>,
    pub(super) received_at: Instant,
}

impl EventStream {
    /// Returns what the peer sends next, or `None` when not even a comment came for `idle_timeout`.
    ///
    /// # Errors
    ///
    /// When the stream has ended or the connection is lost.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses no frame; the idle time-out starts anew with the next call.
    pub(crate) async fn next(
        &mut self,
        idle_timeout: Duration,
    ) -> Result<Option<Decoded>, StreamError> {
        loop {
            // Decoded frames first: they must not wait for another chunk.
            if let Some(decoded) = self.decoder.next() {
                return Ok(Some(decoded));
            }
            let Ok(frame) = timeout(idle_timeout, self.body.frame()).await else {
                return Ok(None);
            };
            let frame = frame.ok_or(StreamError::Ended)?.map_err(StreamError::of)?;
            // Trailers are ignored.
            if let Ok(chunk) = frame.into_data() {
                self.received_at = Instant::now();
                self.decoder.feed(chunk);
            }
        }
    }

    /// Returns whether the peer is a relay: it keeps events, gives them ids, and continues behind a
    /// `Last-Event-ID`.
    pub(crate) fn is_relay(&self) -> bool {
        self.is_relay
    }

    /// Returns when the last bytes came.
    pub(crate) fn received_at(&self) -> Instant {
        self.received_at
    }

    /// Closes the connection, and returns when it is closed.
    pub(crate) async fn close(mut self) {
        self.connection_task.shutdown().await;
    }
}

/// Reasons for which an open stream has ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    /// The peer ended the body.
    #[error("the peer ended the stream")]
    Ended,
    /// The connection ended before the body, or without TLS's `close_notify`.
    #[error("the peer closed the connection in the middle of the stream")]
    Cut,
    /// The connection broke.
    #[error("the connection was lost")]
    Lost(#[source] hyper::Error),
}

impl StreamError {
    fn of(error: hyper::Error) -> Self {
        let cause = find_in_chain::<io::Error>(&error).map(io::Error::kind);
        // The text of rustls would be a link to its manual.
        if cause == Some(io::ErrorKind::UnexpectedEof) { Self::Cut } else { Self::Lost(error) }
    }
}
