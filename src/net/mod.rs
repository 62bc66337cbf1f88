//! Listening: sockets with bounded buffers, one accept loop for HTTP/1.1 and HTTP/2, with TLS or without, deadlines on every wait.
//!
//! In: connections. Out: requests to a router, each with a [`Connection`] among its extensions. A peer that sends no
//! request in time, or takes no bytes in time, is cut off; see `guarded` (the socket) and `patience` (an HTTP/2 stream).
//!
//! May use: `config` (the certificate), `throttle`, `wheel`.

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
    connection_limit::{Places, Spare},
    detach::{Beginning, Handover},
    detached::Release,
    http2::{Http2, Streams},
    shutdown::Stage,
    stream_deadline::PatientExecutor,
    write_coalescing::cork,
};
use crate::timer_wheel::Wheel;

pub(crate) use self::connection_limit::Place;
pub(crate) use self::deadline_socket::{Guarded, Socket};
pub(crate) use self::detached::{Session, Wire, Written};
pub(crate) use self::forced_close::Cut;
pub(crate) use self::listener::{BindError, Listener};
pub(crate) use self::stream_deadline::Patience;
pub(crate) use self::tls::Tls;

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
    /// For the first byte, for TLS, and for the rest of a request's head, each; and without a request, for the next one.
    pub(crate) head_timeout: Duration,
    /// A socket or stream that takes nothing for this long is closed.
    pub(crate) write_timeout: Duration,
    /// The timer for both.
    pub(crate) wheel: Arc<Wheel>,
    /// Connections at one time; a few more are told that there is no place.
    pub(crate) max_connections: usize,
    /// Set: nothing is spoken without TLS.
    pub(crate) tls: Option<Arc<Tls>>,
}

/// Why a connection was closed as soon as it had come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum TurnedAway {
    /// All places are taken, those beyond the limit, too.
    NoPlace,
    /// The process may open no further file.
    NoFile,
}

/// A request's connection, found among its extensions.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    /// The peer's address.
    pub(crate) peer: SocketAddr,
    /// What became of the socket.
    pub(crate) fate: Arc<Fate>,
    /// It came when there was no place any more, and is here to be told so.
    pub(crate) is_surplus: bool,
    crew: Arc<Crew>,
}

impl Connection {
    /// Takes the socket out of hyper: the answer must have the body that is returned, which begins with `first`, and `heir`
    /// writes all that follows, in chunks, and ends the connection. If the connection is lost before that, `heir` is dropped.
    pub(crate) fn hand_over(&self, first: Bytes, heir: impl FnOnce(Socket, Option<Session>) + Send + 'static) -> Body {
        self.fate.handover.promise(Box::new(heir));
        Body::new(Beginning { first: Some(first), fate: Arc::clone(&self.fate) })
    }

    /// What ends the exchange that is running if its peer takes nothing: the connection, or on HTTP/2 its stream alone.
    pub(crate) fn cut(&self, stream: Option<&Patience>) -> Arc<Cut> {
        Arc::clone(stream.map_or(&self.fate.cut, Patience::cut))
    }

    /// Goes on with this connection's socket in another protocol, once the answer to the request has been sent. What
    /// `work` returns belongs to the listener: it is waited for when that ends, and dropped if it has not ended by itself a few seconds later.
    pub(crate) fn go_on<W: Future<Output = ()> + Send + 'static>(
        &self,
        upgrade: OnUpgrade,
        work: impl FnOnce(Switched) -> W + Send + 'static,
    ) {
        let crew = Arc::clone(&self.crew);
        self.crew.tasks.spawn(async move {
            match crew.stage.run_until_aborted(upgrade).await {
                Some(Ok(socket)) => {
                    crew.stage.run_until_aborted(work(Switched::from(socket))).await;
                }
                Some(Err(error)) => debug!(%error, "connection ended"),
                None => {}
            }
        });
    }
}

/// A connection on which another protocol is spoken from now on.
#[derive(Debug)]
pub(crate) enum Switched {
    /// Its socket.
    Plain(Guarded),
    /// What its socket carries by TLS.
    Encrypted(TokioIo<Upgraded>),
}

impl From<Upgraded> for Switched {
    fn from(upgraded: Upgraded) -> Self {
        match upgraded.downcast::<TokioIo<Guarded>>() {
            Ok(Parts { io, read_buf, .. }) => {
                let mut socket = io.into_inner();
                socket.give_back(&read_buf);
                Self::Plain(socket)
            }
            Err(upgraded) => Self::Encrypted(TokioIo::new(upgraded)),
        }
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
/// `turned_away` is called for each connection that is closed as soon as it has come.
///
/// # Errors
///
/// When the socket cannot be handed to the runtime.
pub(crate) async fn serve(
    listener: Listener,
    routes: Routes,
    manners: Manners,
    stop: CancellationToken,
    turned_away: impl Fn(TurnedAway),
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener.socket)?;
    let places = Places::new(manners.max_connections);
    let mut spare = Spare::new();
    let server = Arc::new(Server { routes, manners, crew: Arc::default() });
    let Crew { stage, tasks } = &*server.crew;
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, peer)) => match places.enter() {
                Some((place, is_surplus)) => {
                    let socket = Socket { stream, place };
                    tasks.spawn(Arc::clone(&server).converse(socket, peer, is_surplus));
                }
                None => turned_away(TurnedAway::NoPlace),
            },
            // The peer was gone before it was its turn: the next one may be waiting.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => debug!(%error, "connection ended"),
            Err(error) if is_out_of_files(&error) && spare.give_up() => {
                if spare.throttle.admits() {
                    warn!(%error, "no file is left for connections; newcomers are turned away (shed_total counts them)");
                }
                if let Ok(Ok(_)) = timeout(ACCEPT_PAUSE, listener.accept()).await {
                    turned_away(TurnedAway::NoFile);
                }
                spare.take_back();
            }
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
                spare.take_back();
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

fn is_out_of_files(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(TOO_MANY_FILES_IN_PROCESS | TOO_MANY_FILES_IN_SYSTEM))
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
    async fn converse(self: Arc<Self>, socket: Socket, peer: SocketAddr, is_surplus: bool) {
        let fate = Arc::new(Fate::new(&self.manners.wheel));
        let crew = Arc::clone(&self.crew);
        let connection = Connection { peer, fate, is_surplus, crew };
        let ended = match &self.manners.tls {
            None => self.converse_plainly(socket, connection).await,
            // In a box: it is much the larger of the two, and would be so for each connection without TLS, too.
            Some(tls) => Box::pin(self.converse_over(tls, socket, connection)).await,
        };
        if let Err(error) = ended {
            debug!(%error, "connection ended");
        }
    }

    async fn converse_plainly(&self, socket: Socket, connection: Connection) -> Result<(), hyper::Error> {
        let first_bytes = timeout(self.manners.head_timeout, speaks_http2(&socket.stream));
        let Some(Ok(Ok(is_http2))) = self.crew.stage.run_until_ending(first_bytes).await else {
            return Ok(());
        };
        let io = Guarded::new(socket, &self.manners, Arc::clone(&connection.fate));
        match is_http2 {
            true => self.speak_http2(io, connection).await,
            false => self.speak_http1(io, connection).await,
        }
    }

    async fn converse_over(&self, tls: &Tls, socket: Socket, connection: Connection) -> Result<(), hyper::Error> {
        let stage = &self.crew.stage;
        // Before the first byte there is nothing in memory but the socket.
        let first_byte = timeout(self.manners.head_timeout, async { socket.stream.peek(&mut [0]).await });
        let Some(Ok(Ok(1))) = stage.run_until_ending(first_byte).await else {
            return Ok(());
        };
        let guarded = Guarded::new(socket, &self.manners, Arc::clone(&connection.fate));
        let mut io = match stage.run_until_ending(tls.accept(guarded)).await {
            Some(Ok(io)) => io,
            Some(Err(error)) => {
                debug!(%error, "no TLS on the connection");
                return Ok(());
            }
            None => return Ok(()),
        };
        io.get_mut().0.expect_request(self.manners.head_timeout);
        match tls::has_chosen_http2(&io) {
            true => self.speak_http2(io, connection).await,
            false => self.speak_http1(io, connection).await,
        }
    }

    async fn speak_http1<I>(&self, io: I, connection: Connection) -> Result<(), hyper::Error>
    where
        I: AsyncRead + AsyncWrite + Release + Unpin + Send + 'static,
    {
        let fate = Arc::clone(&connection.fate);
        let service = service_fn(move |request| answer(self.routes.current(), connection.clone(), request));
        let builder = http1::builder(self.manners.head_timeout);
        let connection = builder.serve_connection(TokioIo::new(io), service).with_upgrades();
        self.crew.stage.drive(Pin::new(&mut http1::Http1::new(connection, fate))).await
    }

    async fn speak_http2<I>(&self, io: I, connection: Connection) -> Result<(), hyper::Error>
    where
        I: AsyncRead + AsyncWrite + Unpin,
    {
        let streams = Arc::new(Streams::default());
        let executor = PatientExecutor::new(&self.crew.tasks, &self.manners, Arc::clone(&streams));
        let service = service_fn(move |request| answer(self.routes.current(), connection.clone(), request));
        let (io, cork) = cork(io);
        let connection = http2::builder(executor).serve_connection(TokioIo::new(io), service);
        self.crew.stage.drive(Pin::new(&mut Http2::new(connection, cork, streams, &self.manners))).await
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
    let is_ambiguous = has_strange_framing(request.headers());
    let mut answered = router.call(request.map(Body::new)).await;
    if let (true, Ok(response)) = (is_ambiguous, &mut answered) {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    answered
}

/// Whether a proxy in front may have understood the body's framing in another way, so that what follows on the connection may be part
/// of the body to it. hyper takes the last of several codings, and sees to a length beside one (RFC 9112, section 6.1).
fn has_strange_framing(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let is_plain = codings.next().is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    !is_plain || codings.next().is_some()
}

/// What may wait unsent before a socket counts as full: bytes beyond it would only grow old in the kernel.
const NOT_SENT_BYTES: u32 = 32 * 1024;

/// The largest request head, and what hyper gathers for one write.
const READ_BUFFER_BYTES: usize = 16 * 1024;

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
