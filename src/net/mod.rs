//! Listening: sockets with bounded buffers, one accept loop for HTTP/1.1 and HTTP/2, with TLS or
//! without, deadlines on every wait.
//!
//! In: connections. Out: requests to a router, each with a [`Connection`] among its extensions. A
//! peer that sends no request in time, or takes no bytes in time, is cut off; see `guarded` (the
//! socket) and `patience` (an HTTP/2 stream).
//!
//! May use: `timer_wheel`.

mod connection_limit;
mod deadline_socket;
mod detach;
mod detached;
mod forced_close;
mod http1;
mod http2;
mod listener;
mod shutdown;
mod stream_deadline;
#[cfg(test)]
pub(crate) mod tests;
mod tls;
mod write_coalescing;

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body};
use bytes::Bytes;
use hyper::{
    HeaderMap, Request,
    body::Incoming,
    header::{CONNECTION, HeaderValue, TRANSFER_ENCODING},
    service::service_fn,
    upgrade::{OnUpgrade, Parts, Upgraded},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::Service;
use tracing::{debug, warn};

use self::{
    connection_limit::{ConnectionLimit, ReserveDescriptor},
    detach::{DetachState, DetachingBody},
    detached::Detachable,
    http2::{Http2Connection, OpenStreams},
    shutdown::ShutdownSignal,
    stream_deadline::DeadlineExecutor,
    write_coalescing::cork,
};
use crate::timer_wheel::TimerWheel;

pub(crate) use self::connection_limit::ConnectionPermit;
pub(crate) use self::deadline_socket::{AcceptedSocket, DeadlineSocket};
pub(crate) use self::detached::{DetachedConnection, TlsSession, Written};
pub(crate) use self::forced_close::ForcedClose;
pub(crate) use self::listener::{BindError, Listener};
pub(crate) use self::stream_deadline::Http2StreamState;
pub(crate) use self::tls::ReloadableTls;

/// What a listener answers with. Another router may take its place: requests that come from then on
/// are answered by that one, on connections that stand, too.
#[derive(Clone, Debug)]
pub(crate) struct Routes(Arc<RwLock<Router>>);

impl Routes {
    /// Routes that begin with this.
    pub(crate) fn new(router: Router) -> Self {
        Self(Arc::new(RwLock::new(router)))
    }

    /// Puts another router in its place.
    pub(crate) fn replace(&self, router: Router) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = router;
    }

    fn current(&self) -> Router {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone() // counts a reference
    }
}

/// How a listener treats its peers.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionSettings {
    /// For the first byte, for TLS, and for the rest of a request's head, each; and without a
    /// request, for the next one.
    pub(crate) head_timeout: Duration,
    /// A socket or stream that takes nothing for this long is closed.
    pub(crate) write_timeout: Duration,
    /// The timer for both.
    pub(crate) wheel: Arc<TimerWheel>,
    /// Connections at one time; a few more are told that there is no place.
    pub(crate) max_connections: usize,
    /// Set: nothing is spoken without TLS.
    pub(crate) tls: Option<Arc<ReloadableTls>>,
}

/// Why a connection was closed as soon as it had come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum ShedConnection {
    /// All places are taken, those beyond the limit, too.
    MaxConnections,
    /// The process may open no further file.
    NoFileDescriptor,
}

/// A request's connection, found among its extensions.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    /// The peer's address.
    pub(crate) peer: SocketAddr,
    /// What became of the socket.
    pub(crate) state: Arc<ConnectionState>,
    /// It came when there was no place any more, and is here to be told so.
    pub(crate) is_over_limit: bool,
    tasks: Arc<ConnectionTasks>,
}

impl Connection {
    /// Takes the socket out of hyper: the answer must have the body that is returned, which begins
    /// with `first`, and `heir` writes all that follows, in chunks, and ends the connection. If the
    /// connection is lost before that, `heir` is dropped.
    pub(crate) fn detach(
        &self,
        first: Bytes,
        continuation: impl FnOnce(AcceptedSocket, Option<TlsSession>) + Send + 'static,
    ) -> Body {
        self.state.detach.arm(Box::new(continuation));
        Body::new(DetachingBody { first: Some(first), state: Arc::clone(&self.state) })
    }

    /// What ends the exchange that is running if its peer takes nothing: the connection, or on
    /// HTTP/2 its stream alone.
    pub(crate) fn forced_close(&self, stream: Option<&Http2StreamState>) -> Arc<ForcedClose> {
        Arc::clone(stream.map_or(&self.state.forced_close, Http2StreamState::forced_close))
    }

    /// Goes on with this connection's socket in another protocol, once the answer to the request
    /// has been sent. What `work` returns belongs to the listener: it is waited for when that ends,
    /// and dropped if it has not ended by itself a few seconds later.
    pub(crate) fn spawn_upgraded<W: Future<Output = ()> + Send + 'static>(
        &self,
        upgrade: OnUpgrade,
        work: impl FnOnce(UpgradedConnection) -> W + Send + 'static,
    ) {
        let tasks = Arc::clone(&self.tasks);
        self.tasks.tracker.spawn(async move {
            match tasks.shutdown.run_until_aborted(upgrade).await {
                Some(Ok(socket)) => {
                    tasks.shutdown.run_until_aborted(work(UpgradedConnection::from(socket))).await;
                }
                Some(Err(error)) => debug!(%error, "connection ended"),
                None => {}
            }
        });
    }
}

/// A connection on which another protocol is spoken from now on.
#[derive(Debug)]
pub(crate) enum UpgradedConnection {
    /// Its socket.
    Plain(DeadlineSocket),
    /// What its socket carries by TLS.
    Encrypted(TokioIo<Upgraded>),
}

impl From<Upgraded> for UpgradedConnection {
    fn from(upgraded: Upgraded) -> Self {
        match upgraded.downcast::<TokioIo<DeadlineSocket>>() {
            Ok(Parts { io, read_buf, .. }) => {
                let mut socket = io.into_inner();
                socket.unread(&read_buf);
                Self::Plain(socket)
            }
            Err(upgraded) => Self::Encrypted(TokioIo::new(upgraded)),
        }
    }
}

/// What a connection's socket and its streams know of each other.
#[derive(Debug)]
pub(crate) struct ConnectionState {
    has_request: AtomicBool,
    stalled: AtomicBool,
    detach: DetachState,
    forced_close: Arc<ForcedClose>,
}

impl ConnectionState {
    fn new(wheel: &Arc<TimerWheel>) -> Self {
        Self {
            has_request: AtomicBool::default(),
            stalled: AtomicBool::default(),
            detach: DetachState::default(),
            forced_close: ForcedClose::new(wheel),
        }
    }

    /// Whether the socket was closed because it took nothing for too long.
    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::Relaxed)
    }
}

/// Serves `routes` on `listener` until `stop`; then lets running exchanges end, for a few seconds
/// at most.
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
    let ConnectionTasks { shutdown, tracker } = &*server.tasks;
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, peer)) => match connection_limit.try_acquire() {
                Some((permit, is_over_limit)) => {
                    let socket = AcceptedSocket { stream, permit };
                    tracker.spawn(Arc::clone(&server).serve_peer(socket, peer, is_over_limit));
                }
                None => on_shed(ShedConnection::MaxConnections),
            },
            // The peer was gone before it was its turn: the next one may be waiting.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {
                debug!(%error, "connection ended");
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
    tracker.close();
    shutdown.begin_graceful();
    if timeout(CONNECTION_SHUTDOWN_GRACE, tracker.wait()).await.is_ok() {
        return Ok(());
    }
    shutdown.abort();
    if timeout(CONNECTION_SHUTDOWN_GRACE, tracker.wait()).await.is_ok() {
        return Ok(());
    }
    warn!(connections = tracker.len(), "connections did not end although they were told to");
    Ok(())
}

fn out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(EMFILE | ENFILE))
}

/// What every connection of one listener shares.
struct ConnectionServer {
    routes: Routes,
    settings: ConnectionSettings,
    tasks: Arc<ConnectionTasks>,
}

/// The tasks of one listener, and what tells them to end.
#[derive(Debug, Default)]
struct ConnectionTasks {
    shutdown: ShutdownSignal,
    tracker: TaskTracker,
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
            // In a box: it is much the larger of the two, and would be so for each connection
            // without TLS, too.
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

    async fn serve_http2<I>(&self, io: I, connection: Connection) -> Result<(), hyper::Error>
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

/// Whether the peer begins with HTTP/2's preface (RFC 9113, section 3.4). Takes no byte off the
/// socket: what hyper's own detection has read, its HTTP/1.1 reader makes room for once more, in a
/// second buffer of 8 KiB.
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

/// Whether a proxy in front may have understood the body's framing in another way, so that what
/// follows on the connection may be part of the body to it. hyper takes the last of several
/// codings, and sees to a length beside one (RFC 9112, section 6.1).
fn ambiguous_framing(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let is_plain =
        codings.next().is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    !is_plain || codings.next().is_some()
}

/// What may wait unsent before a socket counts as full: bytes beyond it would only grow old in the
/// kernel.
const NOTSENT_LOWAT_BYTES: u32 = 32 * 1024;

/// The largest request head, and what hyper gathers for one write.
const READ_BUFFER_BYTES: usize = 16 * 1024;

/// No file left: a moment for others to leave, instead of a spinning loop.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// What a connection may take to end once its streams have been told to.
const CONNECTION_SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// `EMFILE`.
const EMFILE: i32 = 24;

/// `ENFILE`.
const ENFILE: i32 = 23;

/// What an HTTP/2 client sends first.
const HTTP2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A preface arrives in one piece; only a hand-typed or hostile one is looked at twice.
const PREFACE_PEEK_DELAY: Duration = Duration::from_millis(50);
