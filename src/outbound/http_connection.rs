//! An HTTP/1.1 connection that the reader of its response drives.
//!
//! In: hyper's connection future. Out: the response, and then the frames of its body. hyper expects
//! a task for the connection, which hands each chunk to the reader's task: a chunk then costs two
//! wake-ups and several polls. Here both are one future of one task: a chunk is read and taken in
//! one poll, and the connection is closed as soon as its owner is dropped.
//!
//! May use: no other module.

use std::{
    fmt,
    future::poll_fn,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use atomic_waker::AtomicWaker;
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming};

/// Connection of one exchange, which is closed when this is dropped.
pub(super) struct HttpConnection {
    /// None once the connection has ended: a future must not be polled after that.
    connection: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    signal: Arc<ConnectionSignal>,
    /// Wakes by `signal`.
    waker: Waker,
}

impl HttpConnection {
    /// Takes over hyper's connection. Its errors show to the reader of the response.
    pub(super) fn new<C: Future + Send + 'static>(connection: C) -> Self {
        let connection = async move { drop(connection.await) };
        let signal = Arc::new(ConnectionSignal::default());
        let waker = Waker::from(Arc::clone(&signal));
        Self { connection: Some(Box::pin(connection)), signal, waker }
    }

    /// Runs `exchange`, which waits for something that the connection brings.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future drops `exchange`, and leaves the connection as it is.
    pub(super) async fn drive<E: Future>(&mut self, exchange: E) -> E::Output {
        let mut exchange = pin!(exchange);
        poll_fn(|context| {
            self.signal.reader.register(context.waker());
            // First: the exchange then finds what the connection has brought.
            self.poll_connection();
            exchange.as_mut().poll(context)
        })
        .await
    }

    /// Returns the next frame of `body`, which is the body of this connection's response.
    pub(super) fn poll_frame(
        &mut self,
        body: &mut Incoming,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.signal.reader.register(context.waker());
        let mut has_polled_connection = false;
        loop {
            self.signal.hold();
            // Without a waker: nothing but a poll of the connection brings a frame, and each of
            // those is followed by a poll of the body.
            let frame = Pin::new(&mut *body).poll_frame(&mut Context::from_waker(Waker::noop()));
            let was_woken = self.signal.release();
            if frame.is_ready() {
                // That the connection may go on is no news: the next call polls it in any case.
                return frame;
            }
            if has_polled_connection && !was_woken {
                return Poll::Pending;
            }
            self.poll_connection();
            has_polled_connection = true;
        }
    }

    fn poll_connection(&mut self) {
        if let Some(connection) = &mut self.connection
            && connection.as_mut().poll(&mut Context::from_waker(&self.waker)).is_ready()
        {
            self.connection = None;
        }
    }
}

impl fmt::Debug for HttpConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpConnection")
            .field("has_ended", &self.connection.is_none())
            .finish_non_exhaustive()
    }
}

/// Wake-ups of a connection, on their way to its reader.
///
/// A body that is read wakes its connection, which the same task polls before it waits: the task
/// would be polled once more for nothing. So wake-ups are held back while the body is polled.
#[derive(Debug, Default)]
struct ConnectionSignal {
    reader: AtomicWaker,
    /// [`PASSING`], [`HELD`], or [`HELD_AND_WOKEN`]. One word, so that a wake-up from another
    /// thread is either seen by [`ConnectionSignal::release`] or reaches the reader.
    state: AtomicU8,
}

impl ConnectionSignal {
    /// Holds wake-ups back from now on.
    fn hold(&self) {
        self.state.store(HELD, Ordering::SeqCst);
    }

    /// Passes wake-ups on from now on. Returns whether one was held back.
    fn release(&self) -> bool {
        self.state.swap(PASSING, Ordering::SeqCst) == HELD_AND_WOKEN
    }
}

impl Wake for ConnectionSignal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let held =
            self.state.compare_exchange(HELD, HELD_AND_WOKEN, Ordering::SeqCst, Ordering::SeqCst);
        if held == Err(PASSING) {
            self.reader.wake();
        }
    }
}

/// Wake-ups reach the reader.
const PASSING: u8 = 0;

/// Wake-ups are held back.
const HELD: u8 = 1;

/// Wake-ups are held back, and there was one.
const HELD_AND_WOKEN: u8 = 2;
