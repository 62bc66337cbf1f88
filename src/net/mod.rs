//! Listening: sockets with bounded buffers, one accept loop for HTTP/1.1 and HTTP/2, deadlines on every wait.
//!
//! In: connections. Out: requests to a router, each with a [`Connection`] among its extensions. A peer that sends no
//! request in time, or takes no bytes in time, is cut off; see `guarded` (the socket) and `patience` (an HTTP/2 stream).
//!
//! May use: `wheel`.

mod cut;
mod guarded;
mod handover;
mod patience;
mod stage;

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
    Request, Version,
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::Service;
use tracing::{debug, warn};

use self::{
    guarded::Guarded,
    handover::{Beginning, Handover, Http1},
    patience::PatientExecutor,
    stage::Stage,
};
use crate::wheel::Wheel;

pub(crate) use cut::Cut;
pub(crate) use patience::Patience;

/// A socket that listens, not yet served. Its options are inherited by every connection.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: std::net::TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Binds `address`. A peer that acknowledges nothing for `write_timeout` is given up by the kernel, too.
    ///
    /// # Errors
    ///
    /// When the address cannot be had, naming it.
    pub(crate) fn bind(address: SocketAddr, write_timeout: Duration) -> Result<Self, BindError> {
        Self::open(address, write_timeout).map_err(|source| BindError { address, source })
    }

    fn open(address: SocketAddr, write_timeout: Duration) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
        #[cfg(target_os = "linux")]
        {
            socket.set_tcp_notsent_lowat(NOT_SENT_BYTES)?;
            socket.set_tcp_user_timeout(Some(write_timeout))?;
        }
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let socket = std::net::TcpListener::from(socket);
        let address = socket.local_addr()?;
        Ok(Self { socket, address })
    }

    /// Where it listens, the port filled in.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

/// An address that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
pub(crate) struct BindError {
    address: SocketAddr,
    source: io::Error,
}

/// What a listener answers with. Another router may take its place: requests that come from then on are answered by that one, on
/// connections that stand, too.
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
pub(crate) struct Manners {
    /// For the first byte and the rest of a request's head.
    pub(crate) head_timeout: Duration,
    /// A socket or stream that takes nothing for this long is closed.
    pub(crate) write_timeout: Duration,
    /// The timer for both.
    pub(crate) wheel: Arc<Wheel>,
}

/// A request's connection, found among its extensions.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    /// The peer's address.
    pub(crate) peer: SocketAddr,
    /// What became of the socket.
    pub(crate) fate: Arc<Fate>,
    crew: Arc<Crew>,
}

impl Connection {
    /// Whether the socket can be taken out of hyper while it answers a request of this version: on HTTP/1.0 there are no
    /// chunks, and on HTTP/2 there are other streams.
    pub(crate) fn can_hand_over(&self, version: Version) -> bool {
        version == Version::HTTP_11
    }

    /// Takes the socket out of hyper: the answer must have the body that is returned, which begins with `first`, and `heir`
    /// writes all that follows, in chunks, and ends the connection. If the connection is lost before that, `heir` is dropped.
    pub(crate) fn hand_over(&self, first: Bytes, heir: impl FnOnce(TcpStream) + Send + 'static) -> Body {
        self.fate.handover.promise(Box::new(heir));
        Body::new(Beginning { first: Some(first), fate: Arc::clone(&self.fate) })
    }

    /// What ends the exchange that is running if its peer takes nothing: the connection, or on HTTP/2 its stream alone.
    pub(crate) fn cut(&self, stream: Option<&Patience>) -> Arc<Cut> {
        Arc::clone(stream.map_or(&self.fate.cut, Patience::cut))
    }

    /// Goes on with this connection's socket in another protocol, once the answer to the request has been sent. The task belongs
    /// to the listener: it is waited for when that ends, and dropped if it has not ended by itself a few seconds later.
    pub(crate) fn go_on<W: Future<Output = ()> + Send + 'static>(
        &self,
        upgrade: OnUpgrade,
        work: impl FnOnce(TokioIo<Upgraded>) -> W + Send + 'static,
    ) {
        let crew = Arc::clone(&self.crew);
        self.crew.tasks.spawn(async move {
            match crew.stage.run_until_aborted(upgrade).await {
                Some(Ok(socket)) => {
                    crew.stage.run_until_aborted(work(TokioIo::new(socket))).await;
                }
                Some(Err(error)) => debug!(%error, "connection ended"),
                None => {}
            }
        });
    }
}

/// What a connection's socket and its streams know of each other.
#[derive(Debug)]
pub(crate) struct Fate {
    has_request: AtomicBool,
    stalled: AtomicBool,
    handover: Handover,
    cut: Arc<Cut>,
}

impl Fate {
    fn new(wheel: &Arc<Wheel>) -> Self {
        Self {
            has_request: AtomicBool::default(),
            stalled: AtomicBool::default(),
            handover: Handover::default(),
            cut: Cut::new(wheel),
        }
    }

    /// Whether the socket was closed because it took nothing for too long.
    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::Relaxed)
    }
}

/// Serves `routes` on `listener` until `stop`; then lets running exchanges end, for a few seconds at most.
///
/// `out_of_files` is called whenever a connection cannot be accepted because the process has no file descriptor left.
///
/// # Errors
///
/// When the socket cannot be handed to the runtime.
pub(crate) async fn serve(
    listener: Listener,
    routes: Routes,
    manners: Manners,
    stop: CancellationToken,
    out_of_files: impl Fn(),
) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener.socket)?;
    let server = Arc::new(Server { routes, manners, crew: Arc::default() });
    let Crew { stage, tasks } = &*server.crew;
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, peer)) => {
                tasks.spawn(Arc::clone(&server).converse(stream, peer));
            }
            // The peer was gone before it was its turn: the next one may be waiting.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => debug!(%error, "connection ended"),
            Err(error) => {
                if matches!(error.raw_os_error(), Some(TOO_MANY_FILES_IN_PROCESS | TOO_MANY_FILES_IN_SYSTEM)) {
                    out_of_files();
                }
                warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    tasks.close();
    stage.end();
    if timeout(END_GRACE, tasks.wait()).await.is_ok() {
        return Ok(());
    }
    stage.abort();
    if timeout(END_GRACE, tasks.wait()).await.is_ok() {
        return Ok(());
    }
    warn!(connections = tasks.len(), "connections did not end although they were told to");
    Ok(())
}

/// What every connection of one listener shares.
struct Server {
    routes: Routes,
    manners: Manners,
    crew: Arc<Crew>,
}

/// The tasks of one listener, and what tells them to end.
#[derive(Debug, Default)]
struct Crew {
    stage: Stage,
    tasks: TaskTracker,
}

impl Server {
    /// Serves one connection to its end.
    async fn converse(self: Arc<Self>, stream: TcpStream, peer: SocketAddr) {
        let first_bytes = timeout(self.manners.head_timeout, speaks_http2(&stream));
        let stage = &self.crew.stage;
        let Some(Ok(Ok(is_http2))) = stage.run_until_ending(first_bytes).await else {
            return;
        };
        let fate = Arc::new(Fate::new(&self.manners.wheel));
        let connection = Connection { peer, fate: Arc::clone(&fate), crew: Arc::clone(&self.crew) };
        let on_its_way = Arc::clone(&fate);
        let io = TokioIo::new(Guarded::new(stream, &self.manners, fate));
        let routes = self.routes.clone();
        let service = service_fn(move |request| answer(routes.current(), connection.clone(), request));
        let result = if is_http2 {
            let executor = PatientExecutor::new(&self.crew.tasks, &self.manners);
            // In a box: it is much the larger of the two, and the rarer.
            stage.drive(Box::pin(http2(executor).serve_connection(io, service))).await
        } else {
            let connection = http1(self.manners.head_timeout).serve_connection(io, service).with_upgrades();
            stage.drive(Pin::new(&mut Http1::new(connection, on_its_way))).await
        };
        if let Err(error) = result {
            debug!(%error, "connection ended");
        }
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
        sleep(PEEK_PAUSE).await;
    }
}

/// Passes a request to the router, with its connection.
async fn answer(
    mut router: Router,
    connection: Connection,
    mut request: Request<Incoming>,
) -> Result<axum::response::Response, Infallible> {
    connection.fate.has_request.store(true, Ordering::Relaxed);
    request.extensions_mut().insert(connection);
    router.call(request.map(Body::new)).await
}

/// HTTP/1.1 with small buffers and a time-out for each head.
fn http1(head_timeout: Duration) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(head_timeout).max_buf_size(READ_BUFFER_BYTES);
    builder
}

/// HTTP/2 with small buffers, and pings to find dead peers.
fn http2(executor: PatientExecutor) -> http2::Builder<PatientExecutor> {
    let mut builder = http2::Builder::new(executor);
    builder
        .timer(TokioTimer::new())
        .max_send_buf_size(NOT_SENT_BYTES as usize)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(READ_BUFFER_BYTES as u32)
        .initial_connection_window_size(REQUEST_WINDOW_BYTES)
        .initial_stream_window_size(REQUEST_WINDOW_BYTES)
        .keep_alive_interval(Some(PING_INTERVAL))
        .keep_alive_timeout(PING_INTERVAL);
    builder
}

/// What the kernel may hold for a stalled peer; it doubles the number for its own bookkeeping.
const SEND_BUFFER_BYTES: usize = 64 * 1024;

/// What may wait unsent before a socket counts as full: bytes beyond it would only grow old in the kernel.
const NOT_SENT_BYTES: u32 = 32 * 1024;

/// The largest request head, and what hyper gathers for one write.
const READ_BUFFER_BYTES: usize = 16 * 1024;

/// Request bodies are small; this is all a peer can make the relay hold for one.
const REQUEST_WINDOW_BYTES: u32 = 64 * 1024;

/// A browser opens some fifty streams for as many tabs.
const MAX_STREAMS: u32 = 128;

/// Dead HTTP/2 peers are found by ping; nothing else tells on a connection without traffic.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// A rollout makes all subscribers of another replica come at once.
const BACKLOG: i32 = 4096;

/// No file left: a moment for others to leave, instead of a spinning loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a connection may take to end once its streams have been told to.
const END_GRACE: Duration = Duration::from_secs(5);

/// `EMFILE`.
const TOO_MANY_FILES_IN_PROCESS: i32 = 24;

/// `ENFILE`.
const TOO_MANY_FILES_IN_SYSTEM: i32 = 23;

/// What an HTTP/2 client sends first.
const HTTP2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A preface arrives in one piece; only a hand-typed or hostile one is looked at twice.
const PEEK_PAUSE: Duration = Duration::from_millis(50);
