//! An open event stream, read frame by frame.
//!
//! May use: `sse`.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

use crate::sse::{Decoded, Decoder};

/// A stream that stands.
#[derive(Debug)]
pub(crate) struct EventStream {
    pub(super) is_relay: bool,
    pub(super) body: Incoming,
    pub(super) decoder: Decoder,
    pub(super) connection_task: JoinSet<()>,
    pub(super) received_at: Instant,
}

impl EventStream {
    /// What the peer sends next; none when it has been silent for `patience`: not even a comment came.
    ///
    /// # Errors
    ///
    /// When the stream has ended or the connection is lost.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing; the patience begins anew.
    pub(crate) async fn next(
        &mut self,
        idle_timeout: Duration,
    ) -> Result<Option<Decoded>, StreamError> {
        loop {
            if let Some(decoded) = self.decoder.next() {
                return Ok(Some(decoded));
            }
            let Ok(frame) = timeout(idle_timeout, self.body.frame()).await else {
                return Ok(None);
            };
            let frame = frame.ok_or(StreamError::Ended)?.map_err(StreamError::Lost)?;
            if let Ok(chunk) = frame.into_data() {
                self.received_at = Instant::now();
                self.decoder.feed(chunk);
            }
        }
    }

    /// Whether the peer is a relay: it keeps events, gives them ids, and goes on behind a `Last-Event-ID`.
    pub(crate) fn is_relay(&self) -> bool {
        self.is_relay
    }

    /// When the last bytes came.
    pub(crate) fn received_at(&self) -> Instant {
        self.received_at
    }

    /// Closes the connection, and returns when it is closed.
    pub(crate) async fn close(mut self) {
        self.connection_task.shutdown().await;
    }
}

/// Why a stream goes on no longer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    /// The peer ended it.
    #[error("the peer ended the stream")]
    Ended,
    /// The connection broke.
    #[error("the connection was lost")]
    Lost(#[source] hyper::Error),
}
