//! An open event stream, read frame by frame.
//!
//! In: the chunks of a response's body. Out: decoded frames, or why there are no more.
//!
//! May use: `error_chain`, `sse`.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Frame, Incoming};
use tokio::time::{Instant, Sleep, sleep_until};

use super::http_connection::HttpConnection;
use crate::{
    error_chain::find_in_chain,
    sse::{Decoded, Decoder},
};

/// Open event stream and its connection, which is closed when this is dropped.
#[derive(Debug)]
pub(crate) struct EventStream {
    is_relay: bool,
    connection: HttpConnection,
    body: Incoming,
    decoder: Decoder,
    received_at: Instant,
    /// Rings when the peer may have been silent for too long. Bytes do not move it, because most
    /// streams bring some often: it looks at their time when it rings, and is set again.
    alarm: Pin<Box<Sleep>>,
}

impl EventStream {
    /// Reads the body of the connection's response as an event stream.
    pub(super) fn new(
        connection: HttpConnection,
        body: Incoming,
        decoder: Decoder,
        is_relay: bool,
    ) -> Self {
        let received_at = Instant::now();
        let alarm = Box::pin(sleep_until(received_at));
        Self { is_relay, connection, body, decoder, received_at, alarm }
    }

    /// Returns what the peer sends next, or `None` when not even a comment has come
    /// for `idle_timeout`.
    ///
    /// # Errors
    ///
    /// When the stream has ended or the connection is lost.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses no frame.
    pub(crate) async fn next(
        &mut self,
        idle_timeout: Duration,
    ) -> Result<Option<Decoded>, StreamError> {
        loop {
            // Decoded frames first: they must not wait for another chunk.
            if let Some(decoded) = self.decoder.next() {
                return Ok(Some(decoded));
            }
            let Some(frame) = poll_fn(|context| self.poll_frame(idle_timeout, context)).await
            else {
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

    /// Returns the next frame of the body, or `None` when the peer has been silent.
    fn poll_frame(
        &mut self,
        idle_timeout: Duration,
        context: &mut Context<'_>,
    ) -> Poll<Option<BodyFrame>> {
        // First: a reader that comes late finds the bytes, not the silence before its own delay.
        if let Poll::Ready(frame) = self.connection.poll_frame(&mut self.body, context) {
            return Poll::Ready(Some(frame));
        }
        let deadline = self.received_at + idle_timeout;
        if self.alarm.deadline() > deadline {
            self.alarm.as_mut().reset(deadline);
        }
        loop {
            ready!(self.alarm.as_mut().poll(context));
            if self.alarm.deadline() >= deadline {
                return Poll::Ready(None);
            }
            self.alarm.as_mut().reset(deadline);
        }
    }
}

/// Next frame of a body: none at its end.
type BodyFrame = Option<Result<Frame<Bytes>, hyper::Error>>;

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

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::{Wake, Waker},
    };

    use http_body_util::Empty;
    use hyper::{Request, client::conn::http1};
    use hyper_util::rt::TokioIo;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        time::sleep,
    };

    use super::*;

    const TEST_IDLE_TIMEOUT: Duration = Duration::from_secs(15);

    /// Returns an open stream, and its peer, which has sent the head of its response.
    async fn open_stream() -> (EventStream, DuplexStream) {
        let (near, mut far) = duplex(64 * 1024);
        let (mut sender, connection) = http1::handshake(TokioIo::new(near)).await.unwrap();
        let mut connection = HttpConnection::new(connection);
        let request = Request::get("/").body(Empty::<Bytes>::new()).unwrap();
        let (response, ()) = tokio::join!(connection.drive(sender.send_request(request)), async {
            far.read_u8().await.unwrap();
            far.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        });
        let body = response.unwrap().into_body();
        (EventStream::new(connection, body, Decoder::new(1024), false), far)
    }

    fn is_event(next: &Result<Option<Decoded>, StreamError>, data: &str) -> bool {
        matches!(next, Ok(Some(Decoded::Frame(frame))) if frame.data == data)
    }

    #[tokio::test]
    async fn an_event_that_has_arrived_is_returned_by_the_next_poll() {
        let (mut stream, mut far) = open_stream().await;
        for number in ["1", "2"] {
            far.write_all(format!("data: {number}\n\n").as_bytes()).await.unwrap();
            let mut next = pin!(stream.next(TEST_IDLE_TIMEOUT));
            let polled = next.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert!(matches!(&polled, Poll::Ready(next) if is_event(next, number)), "{polled:?}");
        }
    }

    #[derive(Debug, Default)]
    struct WakeCount(AtomicUsize);

    impl Wake for WakeCount {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[tokio::test]
    async fn each_chunk_wakes_its_reader_once() {
        let (mut stream, mut far) = open_stream().await;
        let wakes = Arc::new(WakeCount::default());
        let waker = Waker::from(Arc::clone(&wakes));
        let mut context = Context::from_waker(&waker);
        for chunks in 1..=3 {
            // The reader has all there is, and waits.
            let mut next = pin!(stream.next(TEST_IDLE_TIMEOUT));
            assert!(next.as_mut().poll(&mut context).is_pending());
            assert_eq!(wakes.0.load(Ordering::SeqCst), chunks - 1);
            far.write_all(b"data: 1\n\n").await.unwrap();
            assert_eq!(wakes.0.load(Ordering::SeqCst), chunks);
            assert!(next.as_mut().poll(&mut context).is_ready());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_counted_from_the_last_bytes() {
        let (mut stream, mut far) = open_stream().await;
        let began = Instant::now();
        let peer = tokio::spawn(async move {
            for part in [":\n", "da", "ta: 1"] {
                sleep(Duration::from_secs(10)).await;
                far.write_all(part.as_bytes()).await.unwrap();
            }
            far
        });
        assert!(matches!(stream.next(TEST_IDLE_TIMEOUT).await, Ok(None)));
        assert_eq!(began.elapsed().as_secs(), 30 + 15);
        peer.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_shorter_time_out_applies_to_a_wait_that_has_begun() {
        let (mut stream, _far) = open_stream().await;
        let began = Instant::now();
        let waited =
            tokio::time::timeout(Duration::from_secs(1), stream.next(Duration::from_secs(600)));
        assert!(waited.await.is_err());
        assert!(matches!(stream.next(TEST_IDLE_TIMEOUT).await, Ok(None)));
        assert_eq!(began.elapsed().as_secs(), 15);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_comes_late_finds_the_bytes_and_no_silence() {
        let (mut stream, mut far) = open_stream().await;
        far.write_all(b"data: 1\n\n").await.unwrap();
        sleep(10 * TEST_IDLE_TIMEOUT).await;
        assert!(is_event(&stream.next(TEST_IDLE_TIMEOUT).await, "1"));
        let began = Instant::now();
        assert!(matches!(stream.next(TEST_IDLE_TIMEOUT).await, Ok(None)));
        assert_eq!(began.elapsed().as_secs(), 15);
    }

    #[tokio::test]
    async fn dropping_a_stream_closes_its_connection() {
        let (stream, mut far) = open_stream().await;
        drop(stream);
        let mut rest = Vec::new();
        far.read_to_end(&mut rest).await.unwrap();
        assert!(far.write_all(b"data: 1\n\n").await.is_err());
    }

    #[tokio::test]
    async fn a_peer_that_closes_ends_the_stream_behind_its_last_event() {
        let (mut stream, mut far) = open_stream().await;
        far.write_all(b"data: 1\n\ndata: 2\n\n").await.unwrap();
        drop(far);
        assert!(is_event(&stream.next(TEST_IDLE_TIMEOUT).await, "1"));
        assert!(is_event(&stream.next(TEST_IDLE_TIMEOUT).await, "2"));
        let end = stream.next(TEST_IDLE_TIMEOUT).await;
        assert!(matches!(end, Err(StreamError::Ended)), "{end:?}");
    }
}
