//! Bodies of requests, read up to a limit.
//!
//! May use: no other module.

use std::{future::poll_fn, pin::Pin, task::Poll, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use http_body::Body as _;

/// Body of which no more than a number of bytes is read.
#[derive(Debug)]
pub(in crate::http) struct BoundedBody {
    body: Body,
    max_bytes: usize,
    received: usize,
}

/// Reasons for which a body is not read to its end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::http) enum BodyFault {
    /// The body has more bytes than the limit, or announces more.
    TooLarge,
    /// The body breaks off, or its chunks are malformed.
    Malformed,
}

impl BoundedBody {
    /// Reads up to `max_bytes`.
    pub(in crate::http) fn new(body: Body, max_bytes: usize) -> Self {
        Self { body, max_bytes, received: 0 }
    }

    /// Returns the next piece, [`None`] at the end of the body.
    ///
    /// # Errors
    ///
    /// [`BodyFault::TooLarge`] as soon as the body announces more than the limit, by
    /// `Content-Length` or by the size of a chunk, and [`BodyFault::Malformed`].
    ///
    /// # Cancel safety
    ///
    /// No piece is lost when the future is dropped.
    pub(in crate::http) async fn next_piece(&mut self) -> Result<Option<Bytes>, BodyFault> {
        loop {
            let Self { body, max_bytes, received } = &mut *self;
            let max_bytes = *max_bytes as u64;
            let frame = poll_fn(|context| {
                // At each poll: the size of a chunk comes before its bytes, which may never come.
                let announced = (*received as u64).saturating_add(body.size_hint().lower());
                if announced > max_bytes {
                    return Poll::Ready(Err(BodyFault::TooLarge));
                }
                Pin::new(&mut *body).poll_frame(context).map(Ok)
            });
            let Some(frame) = frame.await? else { return Ok(None) };
            // Trailers, the other kind of frame, are of no use here.
            let Ok(piece) = frame.map_err(|_| BodyFault::Malformed)?.into_data() else { continue };
            self.received = self.received.saturating_add(piece.len());
            if self.received > self.max_bytes {
                return Err(BodyFault::TooLarge);
            }
            return Ok(Some(piece));
        }
    }
}

/// Time for a body: enough for the largest one over a bad mobile link. It ends a client that sends
/// its body byte by byte.
pub(in crate::http) const BODY_TIMEOUT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, task::Context};

    use http_body::{Frame, SizeHint};

    use super::*;

    /// Body that announces some bytes with each poll, and never sends any.
    struct AnnouncingBody(u64);

    impl http_body::Body for AnnouncingBody {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.0 += 1;
            context.waker().wake_by_ref();
            Poll::Pending
        }

        fn size_hint(&self) -> SizeHint {
            let mut hint = SizeHint::new();
            hint.set_lower(self.0);
            hint
        }
    }

    #[tokio::test]
    async fn a_body_that_announces_more_than_the_limit_is_refused_before_it_comes() {
        for announced in [0, 11, u64::MAX] {
            let mut body = BoundedBody::new(Body::new(AnnouncingBody(announced)), 10);
            assert_eq!(body.next_piece().await, Err(BodyFault::TooLarge), "{announced}");
        }
    }

    #[tokio::test]
    async fn a_body_of_the_limit_is_read_and_a_byte_more_is_refused() {
        let mut body = BoundedBody::new(Body::from("0123456789"), 10);
        assert_eq!(body.next_piece().await, Ok(Some(Bytes::from("0123456789"))));
        assert_eq!(body.next_piece().await, Ok(None));
        let pieces = ["012345", "67890"].map(|piece| Ok::<_, Infallible>(Bytes::from(piece)));
        let mut body = BoundedBody::new(Body::from_stream(tokio_stream::iter(pieces)), 10);
        assert_eq!(body.next_piece().await, Ok(Some(Bytes::from("012345"))));
        assert_eq!(body.next_piece().await, Err(BodyFault::TooLarge));
    }
}
