//! The accept loop of a listener, and the protocols of each connection.
//!
//! May use: nothing.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::{Router, body::Body};
use hyper::{
    HeaderMap, Request,
    body::Incoming,
    header::{CONNECTION, HeaderValue, TRANSFER_ENCODING},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tower::Service;
use tracing::{debug, warn};

use super::{
    connection::{Connection, ConnectionTasks, ShedConnection},
    connection_limit::{AcceptedSocket, ConnectionLimit, ReserveDescriptor},
    deadline_socket::DeadlineSocket,
    detach::ConnectionState,
    detached::Detachable,
    http1,
    http2::{self, Http2Connection},
    listener::Listener,
    open_streams::OpenStreams,
    routes::{ConnectionSettings, Routes},
    stream_deadline::DeadlineExecutor,
    tls::{self, ReloadableTls},
    write_coalescing::cork,
};

/// Serves `routes` on `listener` until `stop`; then lets running exchanges end, for a few seconds at most.
///
/// `turned_away` is called for each connection that is closed as soon as it has come.
///
/// # Errors
///
/// When the socket cannot be handed to the runtime.
pub(crate) async fn serve(
    listener: Listener,
    routes: Routes,
    settings: ConnectionSettings,
    stop: CancellationToken,
    on_shed: impl Fn(ShedConnection),
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener.socket)?;
    let connection_limit = ConnectionLimit::new(settings.max_connections);
    let mut reserve = ReserveDescriptor::new();
    let server = Arc::new(ConnectionServer { routes, settings, tasks: Arc::default() });
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, peer)) => match connection_limit.try_acquire() {
                Some((permit, is_over_limit)) => {
                    let socket = AcceptedSocket { stream, permit };
                    server.tasks.tracker.spawn(Arc::clone(&server).serve_peer(
                        socket,
                        peer,
                        is_over_limit,
                    ));
                }
                None => on_shed(ShedConnection::MaxConnections),
            },
            // The peer was gone before it was its turn: the next one may be waiting.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {
                debug!(%error, "connection ended")
            }
            Err(error) if out_of_descriptors(&error) && reserve.release() => {
                if reserve.throttle.allow() {
                    warn!(%error, "no file is left for connections; newcomers are turned away (shed_total counts them)");
                }
                if let Ok(Ok(_)) = timeout(ACCEPT_RETRY_DELAY, listener.accept()).await {
                    on_shed(ShedConnection::NoFileDescriptor);
                }
                reserve.reacquire();
            }
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_RETRY_DELAY).await;
                reserve.reacquire();
            }
        }
    }
    drop(listener);
    server.tasks.shut_down().await;
    Ok(())
}

fn out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(EMFILE | ENFILE))
}

impl ConnectionTasks {
    /// Ends all connections: first gracefully, then at once.
    async fn shut_down(&self) {
        let Self { shutdown, tracker } = self;
        tracker.close();
        shutdown.begin_graceful();
        if timeout(CONNECTION_SHUTDOWN_GRACE, tracker.wait()).await.is_ok() {
            return;
        }
        shutdown.abort();
        if timeout(CONNECTION_SHUTDOWN_GRACE, tracker.wait()).await.is_ok() {
            return;
        }
        warn!(connections = tracker.len(), "connections did not end although they were told to");
    }
}

/// What every connection of one listener shares.
pub(super) struct ConnectionServer {
    pub(super) routes: Routes,
    pub(super) settings: ConnectionSettings,
    pub(super) tasks: Arc<ConnectionTasks>,
}

impl ConnectionServer {
    /// Serves one connection to its end.
    async fn serve_peer(
        self: Arc<Self>,
        socket: AcceptedSocket,
        peer: SocketAddr,
        is_over_limit: bool,
    ) {
        let state = Arc::new(ConnectionState::new(&self.settings.wheel));
        let tasks = Arc::clone(&self.tasks);
        let connection = Connection { peer, state, is_over_limit, tasks };
        let ended = match &self.settings.tls {
            None => self.serve_plain(socket, connection).await,
            // In a box: it is much the larger of the two, and would be so for each connection without TLS, too.
            Some(tls) => Box::pin(self.serve_tls(tls, socket, connection)).await,
        };
        if let Err(error) = ended {
            debug!(%error, "connection ended");
        }
    }

    async fn serve_plain(
        &self,
        socket: AcceptedSocket,
        connection: Connection,
    ) -> Result<(), hyper::Error> {
        let first_bytes = timeout(self.settings.head_timeout, speaks_http2(&socket.stream));
        let Some(Ok(Ok(is_http2))) = self.tasks.shutdown.run_until_graceful(first_bytes).await
        else {
            return Ok(());
        };
        let io = DeadlineSocket::new(socket, &self.settings, Arc::clone(&connection.state));
        match is_http2 {
            true => self.serve_http2(io, connection).await,
            false => self.serve_http1(io, connection).await,
        }
    }

    async fn serve_tls(
        &self,
        tls: &ReloadableTls,
        socket: AcceptedSocket,
        connection: Connection,
    ) -> Result<(), hyper::Error> {
        let shutdown = &self.tasks.shutdown;
        // Before the first byte there is nothing in memory but the socket.
        let first_byte =
            timeout(self.settings.head_timeout, async { socket.stream.peek(&mut [0]).await });
        let Some(Ok(Ok(1))) = shutdown.run_until_graceful(first_byte).await else {
            return Ok(());
        };
        let socket_io = DeadlineSocket::new(socket, &self.settings, Arc::clone(&connection.state));
        let mut io = match shutdown.run_until_graceful(tls.accept(socket_io)).await {
            Some(Ok(io)) => io,
            Some(Err(error)) => {
                debug!(%error, "no TLS on the connection");
                return Ok(());
            }
            None => return Ok(()),
        };
        io.get_mut().0.restart_head_deadline(self.settings.head_timeout);
        match tls::negotiated_http2(&io) {
            true => self.serve_http2(io, connection).await,
            false => self.serve_http1(io, connection).await,
        }
    }

    async fn serve_http1<I>(&self, io: I, connection: Connection) -> Result<(), hyper::Error>
    where
        I: AsyncRead + AsyncWrite + Detachable + Unpin + Send + 'static,
    {
        let state = Arc::clone(&connection.state);
        let service =
            service_fn(move |request| dispatch(self.routes.current(), connection.clone(), request));
        let builder = http1::builder(self.settings.head_timeout);
        let connection = builder.serve_connection(TokioIo::new(io), service).with_upgrades();
        self.tasks
            .shutdown
            .drive(Pin::new(&mut http1::Http1Connection::new(connection, state)))
            .await
    }

    pub(super) async fn serve_http2<I>(
        &self,
        io: I,
        connection: Connection,
    ) -> Result<(), hyper::Error>
    where
        I: AsyncRead + AsyncWrite + Unpin,
    {
        let streams = Arc::new(OpenStreams::default());
        let executor =
            DeadlineExecutor::new(&self.tasks.tracker, &self.settings, Arc::clone(&streams));
        let service =
            service_fn(move |request| dispatch(self.routes.current(), connection.clone(), request));
        let (io, cork) = cork(io);
        let connection = http2::builder(executor).serve_connection(TokioIo::new(io), service);
        self.tasks
            .shutdown
            .drive(Pin::new(&mut Http2Connection::new(connection, cork, streams, &self.settings)))
            .await
    }
}

/// Whether the peer begins with HTTP/2's preface (RFC 9113, section 3.4). Takes no byte off the socket: what hyper's own
/// detection has read, its HTTP/1.1 reader makes room for once more, in a second buffer of 8 KiB.
async fn speaks_http2(stream: &TcpStream) -> io::Result<bool> {
    let mut start = [0; HTTP2_PREFACE.len()];
    loop {
        let seen = stream.peek(&mut start).await?;
        if seen == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if seen == start.len() || !HTTP2_PREFACE.starts_with(start.split_at(seen).0) {
            return Ok(start == *HTTP2_PREFACE);
        }
        // Part of a preface: the socket stays readable, so there is nothing to wait for but time.
        sleep(PREFACE_PEEK_DELAY).await;
    }
}

/// Passes a request to the router, with its connection.
async fn dispatch(
    mut router: Router,
    connection: Connection,
    mut request: Request<Incoming>,
) -> Result<axum::response::Response, Infallible> {
    connection.state.has_request.store(true, Ordering::Relaxed);
    request.extensions_mut().insert(connection);
    let is_ambiguous = ambiguous_framing(request.headers());
    let mut result = router.call(request.map(Body::new)).await;
    if let (true, Ok(response)) = (is_ambiguous, &mut result) {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    result
}

/// Whether a proxy in front may have understood the body's framing in another way, so that what follows on the connection may be part
/// of the body to it. hyper takes the last of several codings, and sees to a length beside one (RFC 9112, section 6.1).
fn ambiguous_framing(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let is_plain =
        codings.next().is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    !is_plain || codings.next().is_some()
}

/// No file left: a moment for others to leave, instead of a spinning loop.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// What a connection may take to end once its streams have been told to.
const CONNECTION_SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// `EMFILE`.
const EMFILE: i32 = 24;

/// `ENFILE`.
const ENFILE: i32 = 23;

/// What an HTTP/2 client sends first.
pub(super) const HTTP2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A preface arrives in one piece; only a hand-typed or hostile one is looked at twice.
const PREFACE_PEEK_DELAY: Duration = Duration::from_millis(50);
