//! HTTP/1.1 on one connection, until the connection ends or is detached.
//!
//! May use: no other module.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use hyper::{
    body::Incoming,
    server::conn::http1::{Builder, UpgradeableConnection},
    service::HttpService,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{detach::ConnectionState, detached::Detachable, shutdown::GracefulConnection};

/// Returns a builder with small buffers and a time-out for each head.
pub(super) fn builder(head_timeout: Duration) -> Builder {
    let mut builder = Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(head_timeout)
        .max_buf_size(READ_BUFFER_BYTES);
    builder
}

/// hyper's connection, `None` once it is detached.
pub(super) struct Http1Connection<C> {
    connection: Option<C>,
    state: Arc<ConnectionState>,
}

impl<C> Http1Connection<C> {
    pub(super) fn new(connection: C, state: Arc<ConnectionState>) -> Self {
        // hyper closes the socket from now on, and does not linger: `DeadlineSocket` must.
        state.lingers.store(true, Relaxed);
        Self { connection: Some(connection), state }
    }
}

impl<I, S> Future for Http1Connection<UpgradeableConnection<TokioIo<I>, S>>
where
    I: AsyncRead + AsyncWrite + Detachable + Unpin + Send + 'static,
    S: HttpService<Incoming, ResBody = Body, Error = Infallible>,
{
    type Output = Result<(), hyper::Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(connection) = &mut self.connection else { return Poll::Ready(Ok(())) };
        if let Poll::Ready(ended) = Pin::new(connection).poll(context) {
            return Poll::Ready(ended);
        }
        // After hyper's poll, in which it flushed: see `detach`.
        let Some(continuation) = self.state.detach.take_ready() else { return Poll::Pending };
        // `parts.read_buf` is dropped: bytes that the client sent behind its request are of no use,
        // as nothing else is answered on this connection.
        if let Some(parts) = self.connection.take().and_then(UpgradeableConnection::into_parts) {
            let (socket, session) = parts.io.into_inner().into_detached();
            continuation(socket, session);
        }
        Poll::Ready(Ok(()))
    }
}

impl<I, S> GracefulConnection for Http1Connection<UpgradeableConnection<TokioIo<I>, S>>
where
    I: AsyncRead + AsyncWrite + Detachable + Unpin + Send + 'static,
    S: HttpService<Incoming, ResBody = Body, Error = Infallible>,
{
    fn start_graceful_shutdown(mut self: Pin<&mut Self>) {
        if let Some(connection) = &mut self.connection {
            Pin::new(connection).graceful_shutdown();
        }
        // Relaxed: read by this task, which polls the connection next.
        self.state.is_shutting_down.store(true, Relaxed);
    }
}

/// The largest request head, and the most that hyper gathers for one write: a target of 60 KiB and
/// fields of 16 KiB (`http::request_head` enforces both), and a margin, so that most heads that are
/// too long still reach that check. A head and its buffer are dropped after `head_timeout`.
const READ_BUFFER_BYTES: usize = 80 * 1024;
