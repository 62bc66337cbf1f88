//! HTTP/2 on one connection: coalesced writes, and an end for an idle connection.
//!
//! hyper keeps a connection without streams as long as it answers pings. Here a connection that has
//! had no stream for `head_timeout` gets a GOAWAY (RFC 9113, section 6.8), and is dropped if it has
//! not ended after the same time once more.
//!
//! May use: `timer_wheel`.

#[cfg(test)]
mod tests;

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use hyper::server::conn::http2::Builder;
use hyper_util::rt::TokioTimer;
use tokio::io::AsyncWrite;
use tracing::debug;

use super::{
    listener::NOTSENT_LOWAT_BYTES, open_streams::OpenStreams, routes::ConnectionSettings,
    shutdown::GracefulConnection, stream_deadline::DeadlineExecutor, write_coalescing::Cork,
};
use crate::timer_wheel::{Alarm, Deadline};

/// Returns a builder with small buffers, and pings that find dead peers.
pub(super) fn builder(executor: DeadlineExecutor) -> Builder<DeadlineExecutor> {
    let mut builder = Builder::new(executor);
    builder
        .timer(TokioTimer::new())
        // For each stream: more would wait here instead of in the log, where a slow subscriber
        // costs nothing.
        .max_send_buf_size(NOTSENT_LOWAT_BYTES as usize)
        .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
        .max_header_list_size(MAX_HEADER_LIST_BYTES)
        .initial_connection_window_size(REQUEST_WINDOW_BYTES)
        .initial_stream_window_size(REQUEST_WINDOW_BYTES)
        .keep_alive_interval(Some(PING_INTERVAL))
        .keep_alive_timeout(PING_INTERVAL);
    builder
}

/// hyper's connection, with its cork and its idle deadline.
pub(super) struct Http2Connection<C, I> {
    /// Boxed: the connection is much larger than that of HTTP/1.1, and rarer.
    connection: Pin<Box<C>>,
    cork: Cork<I>,
    /// The task has yielded once since it was woken, to the streams that were woken with it.
    has_yielded: bool,
    streams: Arc<OpenStreams>,
    alarm: Alarm,
    head_timeout: Duration,
    /// Tick at which the connection has been idle for too long; set while it has no stream.
    idle_due: Option<Deadline>,
    is_shutting_down: bool,
}

impl<C: GracefulConnection, I: AsyncWrite + Unpin> Http2Connection<C, I> {
    /// Creates a connection over the transport that `cork` belongs to.
    pub(super) fn new(
        connection: C,
        cork: Cork<I>,
        streams: Arc<OpenStreams>,
        settings: &ConnectionSettings,
    ) -> Self {
        Self {
            connection: Box::pin(connection),
            cork,
            has_yielded: false,
            streams,
            alarm: Alarm::new(&settings.wheel),
            head_timeout: settings.head_timeout,
            idle_due: None,
            is_shutting_down: false,
        }
    }

    /// Applies the idle deadline. Ready when the connection did not end after its GOAWAY.
    fn poll_idle(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        // Registers the waker: the end of the last stream starts the deadline.
        if self.streams.any_open(context.waker()) {
            self.idle_due = None;
            return Poll::Pending;
        }
        let due = *self
            .idle_due
            .get_or_insert_with(|| self.alarm.wheel().deadline_after(self.head_timeout));
        if !due.is_over(self.alarm.wheel()) {
            self.alarm.set(due, context.waker());
            return Poll::Pending;
        }
        if self.is_shutting_down {
            return Poll::Ready(Ok(()));
        }
        self.as_mut().start_graceful_shutdown();
        self.idle_due = None;
        // hyper must be polled once more to send the GOAWAY.
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn as_mut(&mut self) -> Pin<&mut Self> {
        Pin::new(self)
    }
}

impl<C: GracefulConnection, I: AsyncWrite + Unpin> Future for Http2Connection<C, I> {
    type Output = Result<(), hyper::Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let has_several = self.streams.has_several();
        if has_several && !std::mem::replace(&mut self.has_yielded, true) {
            // An event wakes many streams, and the first of them wakes this task. On a tokio worker
            // the task woken last runs first, so it would write for one stream alone. Yielding once
            // puts it behind the other streams. One stream alone is written for at once.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.has_yielded = false;
        self.cork.set_corked(has_several);
        let ended = self.connection.as_mut().poll(context);
        // Also when the connection has ended: h2 counts the held bytes as written.
        let written = self.cork.poll_flush_held(context);
        if ended.is_ready() {
            return ended;
        }
        // h2 cannot see this failure before its next write, and the peer may never cause one.
        if let Poll::Ready(Err(error)) = written {
            debug!(%error, "connection ended");
            return Poll::Ready(Ok(()));
        }
        self.poll_idle(context)
    }
}

impl<C: GracefulConnection, I: AsyncWrite + Unpin> GracefulConnection for Http2Connection<C, I> {
    fn start_graceful_shutdown(mut self: Pin<&mut Self>) {
        self.is_shutting_down = true;
        self.connection.as_mut().start_graceful_shutdown();
    }
}

/// The most that a peer can make the relay hold of its requests, for each stream and for the
/// connection: request bodies are small.
const REQUEST_WINDOW_BYTES: u32 = 64 * 1024;

/// Room for every head that `http/request_head.rs` accepts, 60 KiB of target and 16 KiB of fields,
/// and for most heads that it refuses with a problem. Beyond it h2 refuses the stream without a
/// body, and so it does for a path that `http::Uri` cannot hold (65 535 bytes).
const MAX_HEADER_LIST_BYTES: u32 = 128 * 1024;

/// A browser opens some fifty streams for as many tabs.
const MAX_STREAMS_PER_CONNECTION: u32 = 128;

/// Interval and time-out of pings. Dead peers are found by them, as a connection without traffic
/// gives the kernel's user time-out nothing to wait for.
const PING_INTERVAL: Duration = Duration::from_secs(30);
