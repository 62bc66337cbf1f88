//! The accept loop of one listener, and the protocols of each connection that it accepts.
//!
//! In: a bound listener and its routes. Out: requests to the router in force. Each connection is
//! one task, owned by the listener's tracker; the loop itself never waits for a peer.
//!
//! May use: `client_address`.

use std::{
    convert::Infallible,
    io,
    mem::MaybeUninit,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::Router;
use hyper::{
    HeaderMap, Request, StatusCode, Version,
    body::Incoming,
    header::{CONNECTION, HeaderValue, TRANSFER_ENCODING},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest},
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
    displacement::{ConnectionShares, ConnectionTable, Place},
    handshake_turns::HandshakeTurns,
    http1,
    http2::{self, Http2Connection},
    listener::Listener,
    open_streams::OpenStreams,
    refused_head::RefusalIo,
    request_body::UnreadBody,
    request_framing::AmbiguousFraming,
    routes::{ConnectionSettings, Routes},
    stream_deadline::DeadlineExecutor,
    tls::{self, ReloadableTls},
    write_coalescing::cork,
};
use crate::client_address::ClientAddress;

/// Serves `routes` on `listener` until `stop`, then shuts the connections down.
///
/// Running exchanges have [`CONNECTION_SHUTDOWN_GRACE`] to end, and are then cut off. `on_shed` is
/// called for each connection that is closed as soon as it was accepted.
///
/// # Errors
///
/// When the socket cannot be registered with the runtime.
pub(crate) async fn serve(
    listener: Listener,
    routes: Routes,
    settings: ConnectionSettings,
    stop: CancellationToken,
    on_shed: impl Fn(ShedConnection),
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener.socket)?;
    let connection_limit = ConnectionLimit::new(settings.max_connections, settings.max_over_limit);
    let table = ConnectionTable::new(settings.shares);
    // Of its own: a connection that is to be answered 503 has time to ask until others need its
    // permit for the same.
    let beyond_limit = ConnectionTable::new(ConnectionShares::UNTIL_FULL);
    let mut reserve = ReserveDescriptor::new();
    let (tasks, handshake_turns) = (Arc::default(), HandshakeTurns::new());
    let server = Arc::new(ConnectionServer { routes, settings, tasks, handshake_turns });
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, peer)) => {
                table.make_room(peer.ip(), || connection_limit.is_exhausted()).await;
                beyond_limit.make_room(peer.ip(), || connection_limit.is_exhausted_beyond()).await;
                match connection_limit.try_acquire() {
                    Some((permit, is_over_limit)) => {
                        let state = Arc::new(ConnectionState::new(&server.settings.wheel));
                        let table = if is_over_limit { &beyond_limit } else { &table };
                        let place = table.admit(peer.ip(), &state);
                        let (entry, tasks) = (Arc::clone(place.entry()), Arc::clone(&server.tasks));
                        let connection =
                            Connection { peer, state, is_over_limit, place: entry, tasks };
                        let socket = AcceptedSocket { stream, permit };
                        let serving = Arc::clone(&server).serve_peer(socket, connection, place);
                        server.tasks.tracker.spawn(serving);
                    }
                    None => on_shed(ShedConnection::MaxConnections),
                }
            }
            // ECONNABORTED: the peer reset the connection while it was in the accept queue. That is
            // no fault of this process, and the next connection may be waiting, so the loop does
            // not sleep.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {
                debug!(%error, "connection ended");
            }
            // Without a descriptor `accept` fails and the connection stays in the queue, where the
            // peer waits for an answer that may never come. With the reserve released, it is
            // accepted and closed.
            Err(error) if out_of_descriptors(&error) && reserve.release() => {
                if reserve.throttle.allow() {
                    warn!(
                        %error,
                        "no file is left for connections; newcomers are turned away \
                         (shed_total counts them)"
                    );
                }
                // With a limit: another thread may have taken the released descriptor, or the peer
                // may be gone.
                if let Ok(Ok(_)) = timeout(ACCEPT_RETRY_DELAY, listener.accept()).await {
                    on_shed(ShedConnection::NoFileDescriptor);
                }
                reserve.reacquire();
            }
            Err(error) => {
                // Peers may cause this as often as they connect.
                if reserve.throttle.allow() {
                    warn!(%error, "cannot accept a connection");
                }
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
    /// Ends all connections: gracefully, and after [`CONNECTION_SHUTDOWN_GRACE`] at once.
    ///
    /// Aborted tasks get the same time once more. A task that does not end even then is only
    /// reported, so that a shutdown always comes to its end.
    async fn shut_down(&self) {
        let Self { shutdown, tracker } = self;
        // `wait` returns only once the tracker is closed and empty. A closed tracker still accepts
        // tasks: an HTTP/2 connection in its graceful end may open streams that were on their way.
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

/// State that all connections of one listener share.
pub(super) struct ConnectionServer {
    pub(super) routes: Routes,
    pub(super) settings: ConnectionSettings,
    pub(super) tasks: Arc<ConnectionTasks>,
    pub(super) handshake_turns: HandshakeTurns,
}

impl ConnectionServer {
    /// Serves one connection until it ends or gives way.
    async fn serve_peer(
        self: Arc<Self>,
        socket: AcceptedSocket,
        connection: Connection,
        place: Place,
    ) {
        // Boxed: a task has the size of its largest branch.
        let ended = match &self.settings.tls {
            None => place.run(Box::pin(self.serve_plain(socket, connection))).await,
            Some(tls) => place.run(Box::pin(self.serve_tls(tls, socket, connection))).await,
        };
        if let Some(Err(error)) = ended {
            debug!(%error, "connection ended");
        }
    }

    /// Serves a connection without TLS, after a look at its first bytes.
    async fn serve_plain(
        &self,
        socket: AcceptedSocket,
        connection: Connection,
    ) -> Result<(), hyper::Error> {
        let first_bytes = timeout(self.settings.first_byte_timeout, speaks_http2(&socket.stream));
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

    /// Serves a connection with TLS, after its handshake.
    async fn serve_tls(
        &self,
        tls: &ReloadableTls,
        socket: AcceptedSocket,
        connection: Connection,
    ) -> Result<(), hyper::Error> {
        let shutdown = &self.tasks.shutdown;
        // Before the first byte a connection costs its socket and no TLS session.
        let first_byte =
            timeout(self.settings.first_byte_timeout, async { socket.stream.peek(&mut [0]).await });
        let Some(Ok(Ok(1))) = shutdown.run_until_graceful(first_byte).await else {
            return Ok(());
        };
        // The handshake is limited by the head deadline of this socket: no request has come yet, so
        // its reads fail with `TimedOut` once `head_timeout` is over.
        let socket_io = DeadlineSocket::new(socket, &self.settings, Arc::clone(&connection.state));
        let block = ClientAddress::new(connection.peer.ip()).block();
        let handshake = self.handshake_turns.run(block, tls.accept(socket_io));
        let mut io = match shutdown.run_until_graceful(handshake).await {
            Some(Ok(io)) => io,
            Some(Err(error)) => {
                debug!(%error, "no TLS on the connection");
                return Ok(());
            }
            None => return Ok(()),
        };
        // The handshake must not use up the time of the first request.
        io.get_mut().0.restart_head_deadline(self.settings.head_timeout);
        match tls::negotiated_http2(&io) {
            true => self.serve_http2(io, connection).await,
            false => self.serve_http1(io, connection).await,
        }
    }

    /// Serves HTTP/1.1 until the connection ends or is detached.
    async fn serve_http1<I>(&self, io: I, connection: Connection) -> Result<(), hyper::Error>
    where
        I: AsyncRead + AsyncWrite + Detachable + Unpin + Send + 'static,
    {
        let state = Arc::clone(&connection.state);
        let service =
            service_fn(move |request| dispatch(self.routes.current(), connection.clone(), request));
        let builder = http1::builder(self.settings.head_timeout);
        let io = TokioIo::new(RefusalIo::new(io, Arc::clone(&state)));
        let connection = builder.serve_connection(io, service).with_upgrades();
        self.tasks
            .shutdown
            .drive(Pin::new(&mut http1::Http1Connection::new(connection, state)))
            .await
    }

    /// Serves HTTP/2 until the connection ends.
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

/// Returns whether the peer begins with the HTTP/2 connection preface (RFC 9113, section 3.4).
///
/// Peeks and takes no byte off the socket. hyper-util's own detection reads the bytes and replays
/// them, and hyper's HTTP/1.1 reader then allocates a second buffer of 8 KiB.
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
        // The bytes seen so far are a part of the preface. They stay in the socket, so it stays
        // readable and `peek` would return at once.
        wait_for_more_than(stream, seen).await?;
    }
}

/// Waits until more than `seen` bytes can be peeked at, or the peer has closed its side.
///
/// # Errors
///
/// When the connection is closed or reset, and no more bytes can come.
async fn wait_for_more_than(stream: &TcpStream, seen: usize) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); HTTP2_PREFACE.len()];
    loop {
        let ready = stream.ready(Interest::READABLE).await?;
        let more = stream.try_io(Interest::READABLE, || {
            match SockRef::from(stream).peek(&mut space)? {
                bytes if bytes > seen => Ok(()),
                // Clears the readiness, although the socket has bytes: the next ones, or the end of
                // the connection, set it again, because epoll and kqueue are used edge-triggered.
                // Readiness that was set after the look of `try_io` at it stays.
                _ => Err(io::ErrorKind::WouldBlock.into()),
            }
        });
        match more {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            more => return more,
        }
        // Read before the look at the bytes: behind those nothing more comes.
        if ready.is_read_closed() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Passes a request to the router in force, with its connection among the extensions, and with
/// [`AmbiguousFraming`] where that holds: the router refuses such a request.
async fn dispatch(
    mut router: Router,
    connection: Connection,
    request: Request<Incoming>,
) -> Result<axum::response::Response, Infallible> {
    // Relaxed: a flag that publishes no other memory. A reader that sees it late checks again at
    // its next alarm.
    connection.state.has_request.store(true, Ordering::Relaxed);
    let (number, is_contradictory) = match request.version() < Version::HTTP_2 {
        true => connection.state.framing.begin_request(),
        false => (0, false),
    };
    let is_ambiguous = is_contradictory || ambiguous_coding(request.headers());
    let (mut request, unread) = UnreadBody::observe(request, &connection, number);
    if is_ambiguous {
        request.extensions_mut().insert(AmbiguousFraming);
    }
    let state = Arc::clone(&connection.state);
    let running = state.activity.begin_request(state.forced_close.wheel());
    request.extensions_mut().insert(connection);
    let mut result = router.call(request).await;
    drop(running);
    let is_unread = unread.is_some_and(UnreadBody::settle);
    // Later bytes on this connection are neither trusted nor read.
    if let Ok(response) = &mut result {
        // `Connection: upgrade` belongs to the 101.
        let is_upgrade = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if is_ambiguous || (is_unread && !is_upgrade) {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
    }
    result
}

/// Returns whether a request has other transfer codings than one `chunked`, by which a proxy in
/// front may have framed the body differently (RFC 9112, section 6.1).
///
/// Such a proxy may take what follows on the connection as part of the body. hyper looks at the
/// last of several transfer codings alone.
fn ambiguous_coding(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let is_plain =
        codings.next().is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    !is_plain || codings.next().is_some()
}

/// Pause after `accept` failed for lack of descriptors: other connections may end meanwhile, and
/// the loop does not spin.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Time for the connections to end after each of the two steps of a shutdown; their
/// streams got a disconnect reason earlier, during the drain.
const CONNECTION_SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// `EMFILE`: the process has no descriptor left. The standard library has no stable `ErrorKind` for
/// it.
const EMFILE: i32 = 24;

/// `ENFILE`: the system has no descriptor left.
const ENFILE: i32 = 23;

/// Client connection preface of HTTP/2 (RFC 9113, section 3.4).
pub(super) const HTTP2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
