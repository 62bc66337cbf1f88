//! The HTTP client of one endpoint: its pool of connections, and the bounds on each.
//!
//! In: a request. Out: the head of the answer. HTTP/2 where TLS offers it, HTTP/1.1 elsewhere.
//!
//! May use: `outbound`.

use std::{
    error::Error,
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, Uri, body::Incoming, rt::Executor};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{self, Client},
    rt::TokioTimer,
};
use rustls::ClientConfig;
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::Service;

use crate::outbound::egress_guard::{EgressConnector, EgressError};

/// A client with connections of its own, which close when it is dropped.
pub(super) struct EndpointClient {
    client: Client<TimeoutConnector<HttpsConnector<EgressConnector>>, Full<Bytes>>,
    _connection_tasks: DropGuard,
}

impl EndpointClient {
    /// A client that keeps up to `connections` idle ones, and gives each `connect_timeout` to be
    /// made.
    pub(super) fn new(
        connector: EgressConnector,
        tls: &ClientConfig,
        connect_timeout: Duration,
        max_idle: usize,
    ) -> Self {
        let tasks = CancellationToken::new();
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls.clone())
            .https_or_http()
            .enable_all_versions()
            .wrap_connector(connector);
        let client = Client::builder(CancellableExecutor(tasks.clone()))
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            .pool_max_idle_per_host(max_idle)
            .http1_max_buf_size(MAX_RESPONSE_HEAD_BYTES)
            .http2_initial_stream_window_size(STREAM_WINDOW_BYTES)
            .http2_keep_alive_interval(PING_INTERVAL)
            .http2_keep_alive_timeout(PING_TIMEOUT)
            .build(TimeoutConnector { connector, connect_timeout });
        Self { client, _connection_tasks: tasks.drop_guard() }
    }

    /// Sends the request, and returns when the head of the answer is there.
    ///
    /// A pooled connection that turns out to be closed before anything was written is replaced
    /// without a word.
    ///
    /// # Errors
    ///
    /// When there is no connection, or it is lost before the answer.
    pub(super) async fn send(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, legacy::Error> {
        self.client.request(request).await
    }
}

impl fmt::Debug for EndpointClient {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Transport")
    }
}

/// Bounds connection and TLS together. The attempt's own deadline does not: the pool goes on with a
/// connection that it has begun when another one gets free first, and a receiver that hangs in TLS
/// could collect those.
#[derive(Clone)]
struct TimeoutConnector<C> {
    connector: C,
    connect_timeout: Duration,
}

impl<C> Service<Uri> for TimeoutConnector<C>
where
    C: Service<Uri, Error = BoxError>,
    C::Future: Send + 'static,
{
    type Response = C::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<C::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.connector.poll_ready(context)
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        let connected = timeout(self.connect_timeout, self.connector.call(url));
        Box::pin(
            async move { connected.await.unwrap_or_else(|_| Err(EgressError::Timeout.into())) },
        )
    }
}

/// Runs the tasks of connections until their client is dropped.
#[derive(Clone)]
struct CancellableExecutor(CancellationToken);

impl<F> Executor<F> for CancellableExecutor
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        tokio::spawn(self.0.clone().run_until_cancelled_owned(task));
    }
}

type BoxError = Box<dyn Error + Send + Sync>;

/// Common servers close what has been idle for 5 s, and a request that is written into a closing
/// connection is a failed attempt: whether the receiver has got it cannot be known.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// Far beyond any head. Bounds what a receiver can make us keep.
const MAX_RESPONSE_HEAD_BYTES: usize = 64 * 1024;

/// No more of an answer is read than this, so no more needs to be under way.
const STREAM_WINDOW_BYTES: u32 = 16 * 1024;

/// A connection that all attempts share must not fail one after the other when its far side is
/// gone.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(5);
