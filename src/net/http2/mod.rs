//! HTTP/2 on one connection: an end for one on which nothing is asked.
//!
//! hyper keeps a connection without streams as long as it answers pings. Here it is told to end (GOAWAY) when there has been no stream
//! for the time that a request may take to come, and ended when it has not gone after the same time once more.
//!
//! May use: `wheel`.

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
    http1::READ_BUFFER_BYTES, listener::NOTSENT_LOWAT_BYTES, open_streams::OpenStreams,
    routes::ConnectionSettings, shutdown::GracefulConnection, stream_deadline::DeadlineExecutor,
    write_coalescing::Cork,
};
use crate::timer_wheel::Alarm;

/// Small buffers, and pings to find dead peers.
pub(super) fn builder(executor: DeadlineExecutor) -> Builder<DeadlineExecutor> {
    let mut builder = Builder::new(executor);
    builder
        .timer(TokioTimer::new())
        .max_send_buf_size(NOTSENT_LOWAT_BYTES as usize)
        .max_concurrent_streams(MAX_STREAMS_PER_CONNECTION)
        .max_header_list_size(READ_BUFFER_BYTES as u32)
        .initial_connection_window_size(REQUEST_WINDOW_BYTES)
        .initial_stream_window_size(REQUEST_WINDOW_BYTES)
        .keep_alive_interval(Some(PING_INTERVAL))
        .keep_alive_timeout(PING_INTERVAL);
    builder
}

/// A connection with an end for its idleness.
pub(super) struct Http2Connection<C, I> {
    /// In a box: it is much larger than its HTTP/1.1 sister, and rarer.
    connection: Pin<Box<C>>,
    cork: Cork<I>,
    /// It has been woken, and has let the streams that were woken with it have their say first.
    has_yielded: bool,
    streams: Arc<OpenStreams>,
    alarm: Alarm,
    head_timeout: Duration,
    /// Tick at which it has been idle for too long, while it is.
    idle_due: Option<u64>,
    is_shutting_down: bool,
}

impl<C: GracefulConnection, I: AsyncWrite + Unpin> Http2Connection<C, I> {
    /// A connection over what this is the cork of.
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

    /// Ready when it has been told to end, and has not.
    fn poll_idle(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        if self.streams.any_open(context.waker()) {
            self.idle_due = None;
            return Poll::Pending;
        }
        let due =
            *self.idle_due.get_or_insert_with(|| self.alarm.wheel().tick_after(self.head_timeout));
        if self.alarm.wheel().current_tick() < due {
            self.alarm.set(due, context.waker());
            return Poll::Pending;
        }
        if self.is_shutting_down {
            return Poll::Ready(Ok(()));
        }
        self.as_mut().start_graceful_shutdown();
        self.idle_due = None;
        context.waker().wake_by_ref(); // to send what that takes
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
            // The first of the streams that an event has woken has woken this: it goes behind the others.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.has_yielded = false;
        self.cork.set_corked(has_several);
        let ended = self.connection.as_mut().poll(context);
        let written = self.cork.poll_flush_held(context); // also at the end: to h2 all of it has been written
        if ended.is_ready() {
            return ended;
        }
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

/// Request bodies are small; this is all a peer can make the relay hold for one.
const REQUEST_WINDOW_BYTES: u32 = 64 * 1024;

/// A browser opens some fifty streams for as many tabs.
const MAX_STREAMS_PER_CONNECTION: u32 = 128;

/// Dead HTTP/2 peers are found by ping; nothing else tells on a connection without traffic.
const PING_INTERVAL: Duration = Duration::from_secs(30);
