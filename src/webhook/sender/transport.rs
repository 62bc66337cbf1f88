//! HTTP client of one endpoint: its connection pool, and the bounds on each connection.
//!
//! In: a request. Out: the head of the response. HTTP/2 where TLS offers it (ALPN), HTTP/1.1
//! elsewhere.
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

use crate::outbound::{
    client::MAX_RESPONSE_HEADERS,
    egress_guard::{EgressConnector, EgressError},
};

/// Client with connections of its own, which close when the client is dropped.
pub(super) struct EndpointClient {
    client: Client<TimeoutConnector<HttpsConnector<EgressConnector>>, Full<Bytes>>,
    /// hyper-util spawns a task for each connection, which may outlive the client; the guard
    /// cancels it.
    _connection_tasks: DropGuard,
}

impl EndpointClient {
    /// Creates a client that keeps up to `max_idle` idle connections, and gives each
    /// `connect_timeout` to be established, TLS included.
    pub(super) fn new(
        connector: EgressConnector,
        tls: &ClientConfig,
        connect_timeout: Duration,
        max_idle: usize,
    ) -> Self {
        let tasks = CancellationToken::new();
        // hyper-rustls sets ALPN itself and panics on a configuration that has protocols already.
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls.clone())
            .https_or_http()
            .enable_all_versions()
            .wrap_connector(connector);
        let client = Client::builder(CancellableExecutor(tasks.clone()))
            .timer(TokioTimer::new())
            // Without a pool timer, hyper-util closes idle connections only at the next request.
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(POOL_IDLE_TIMEOUT)
            // As many as attempts run at one time: more would never be used.
            .pool_max_idle_per_host(max_idle)
            .http1_max_buf_size(MAX_RESPONSE_HEAD_BYTES)
            .http2_max_header_list_size(MAX_RESPONSE_HEAD_LIST_BYTES)
            .http1_title_case_headers(true)
            // The same as for upstreams, and for the same reasons: see `outbound::client`.
            .http1_max_headers(MAX_RESPONSE_HEADERS)
            .http1_allow_spaces_after_header_name_in_responses(true)
            .http1_allow_obsolete_multiline_headers_in_responses(true)
            .http1_ignore_invalid_headers_in_responses(true)
            .http2_initial_stream_window_size(STREAM_WINDOW_BYTES)
            .http2_keep_alive_interval(PING_INTERVAL)
            .http2_keep_alive_timeout(PING_TIMEOUT)
            .build(TimeoutConnector { connector, connect_timeout });
        Self { client, _connection_tasks: tasks.drop_guard() }
    }

    /// Sends the request, and returns when the head of the response has arrived.
    ///
    /// A pooled connection that turns out to be closed before any byte was written is replaced by a
    /// new one.
    ///
    /// # Errors
    ///
    /// If no connection can be established, or it is lost before the response.
    pub(super) async fn send(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, legacy::Error> {
        self.client.request(request).await
    }
}

impl fmt::Debug for EndpointClient {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("EndpointClient")
    }
}

/// Bounds the time for connection and TLS together.
///
/// The attempt's own deadline does not: hyper-util's pool completes a connection in the background
/// if another one becomes free first, and a receiver that never finishes TLS could collect such
/// connections.
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

/// Spawns the tasks of connections, and cancels them when the client is dropped.
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

/// Idle time of a pooled connection: common servers close after 5 s, and a request that is written
/// into a closing connection is a failed attempt, because the receiver may have got it.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// Bytes of a response head, far beyond any real one: bounds the memory that a receiver can claim.
const MAX_RESPONSE_HEAD_BYTES: usize = 64 * 1024;

/// The same for HTTP/2, where a header counts 32 bytes more than it has (RFC 9113, section 6.5.2).
const MAX_RESPONSE_HEAD_LIST_BYTES: u32 = 96 * 1024;

/// HTTP/2 window of one stream: not more than the sender reads of a response body.
const STREAM_WINDOW_BYTES: u32 = 16 * 1024;

/// Interval of HTTP/2 pings. All attempts share one HTTP/2 connection: without pings, each would
/// fail by its own time-out after the peer has gone.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// Time for a ping's answer; after that the connection is closed.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
