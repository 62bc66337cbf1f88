//! The handle that a request's handler has of its connection, and the tasks of a listener.
//!
//! In: a request's extensions. Out: its peer, its deadlines, and two ways out of hyper:
//! [`Connection::detach`] for a stream over HTTP/1.1, [`Connection::spawn_upgraded`] for a
//! WebSocket.
//!
//! May use: no other module.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use axum::body::Body;
use bytes::Bytes;
use hyper::upgrade::{OnUpgrade, Parts, Upgraded};
use hyper_util::rt::TokioIo;
use tokio_rustls::server::TlsStream;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::{
    connection_limit::AcceptedSocket,
    deadline_socket::DeadlineSocket,
    detach::{ConnectionState, DetachingBody},
    detached::Detachable,
    displacement::{Exemption, TableEntry},
    forced_close::ForcedClose,
    refused_head::RefusalIo,
    shutdown::ShutdownSignal,
    stream_deadline::Http2StreamState,
    tls::TlsSession,
};

/// Handle of a request's connection, found among the request's extensions.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    /// Address of the peer.
    pub(crate) peer: SocketAddr,
    /// State shared with the socket's guards.
    pub(crate) state: Arc<ConnectionState>,
    /// The connection was accepted beyond the limit, only to be answered 503.
    pub(crate) is_over_limit: bool,
    pub(super) place: Arc<TableEntry>,
    pub(super) tasks: Arc<ConnectionTasks>,
}

impl Connection {
    /// Arranges for the socket to leave hyper, and returns the body that the response must have.
    ///
    /// hyper writes the head and `first`. After that, `continuation` gets the socket, writes
    /// everything that follows, in chunks (RFC 9112, section 7.1), and ends the connection. If the
    /// connection ends before that, or the response is not sent, `continuation` is dropped without
    /// being called.
    pub(crate) fn detach(
        &self,
        first: Bytes,
        continuation: impl FnOnce(AcceptedSocket, Option<TlsSession>) + Send + 'static,
    ) -> Body {
        let exemption = self.exempt_from_displacement();
        self.state.detach.arm(Box::new(move |socket, session| {
            drop(exemption); // the connection has left hyper
            continuation(socket, session);
        }));
        Body::new(DetachingBody { first: Some(first), state: Arc::clone(&self.state) })
    }

    /// Exempts the connection from giving way to newcomers while the returned guard lives, for a
    /// stream that is to last or a body that takes long.
    ///
    /// Only for requests that were authorized: a client without a key must not hold a connection.
    pub(crate) fn exempt_from_displacement(&self) -> Exemption {
        self.place.exempt()
    }

    /// Returns the forced-close deadline of the running exchange.
    ///
    /// On HTTP/2, where `stream` is given, the deadline is that of the stream alone; on HTTP/1.1 it
    /// is that of the connection.
    pub(crate) fn forced_close(&self, stream: Option<&Http2StreamState>) -> Arc<ForcedClose> {
        Arc::clone(stream.map_or(&self.state.forced_close, Http2StreamState::forced_close))
    }

    /// Spawns `work` with the upgraded connection, once the response to the upgrade request is
    /// sent.
    ///
    /// The task belongs to the listener: its shutdown waits for the task for a few seconds and then
    /// drops it.
    pub(crate) fn spawn_upgraded<W: Future<Output = ()> + Send + 'static>(
        &self,
        upgrade: OnUpgrade,
        work: impl FnOnce(UpgradedConnection) -> W + Send + 'static,
    ) {
        // A WebSocket has its own closing handshake (RFC 6455, section 7.1.1).
        self.state.lingers.store(false, Relaxed);
        let (tasks, exemption) = (Arc::clone(&self.tasks), self.exempt_from_displacement());
        self.tasks.tracker.spawn(async move {
            // Not `run_until_graceful`: a WebSocket ends by its own closing handshake, and has the
            // grace for it.
            let upgraded = tasks.shutdown.run_until_aborted(upgrade).await;
            drop(exemption); // the connection has left hyper, or has ended
            match upgraded {
                Some(Ok(upgraded)) => {
                    let Some(connection) = UpgradedConnection::new(upgraded) else { return };
                    tasks.shutdown.run_until_aborted(work(connection)).await;
                }
                Some(Err(error)) => debug!(%error, "connection ended"),
                None => {}
            }
        });
    }
}

/// Connection after a protocol upgrade: out of hyper, as after [`Connection::detach`].
#[derive(Debug)]
pub(crate) struct UpgradedConnection {
    /// Socket, which can leave the runtime for a shard.
    pub(crate) socket: AcceptedSocket,
    /// TLS session above the socket.
    pub(crate) session: Option<TlsSession>,
    /// Bytes that hyper read beyond the head of the request.
    pub(crate) read_ahead: Bytes,
}

impl UpgradedConnection {
    /// Takes hyper's type-erased transport apart; `None` if it is none of this module's.
    fn new(upgraded: Upgraded) -> Option<Self> {
        match upgraded.downcast::<TokioIo<RefusalIo<DeadlineSocket>>>() {
            Ok(parts) => Some(Self::from_parts(parts)),
            Err(upgraded) => {
                let parts = upgraded.downcast::<TokioIo<RefusalIo<TlsStream<DeadlineSocket>>>>();
                parts.ok().map(Self::from_parts)
            }
        }
    }

    fn from_parts<I: Detachable>(parts: Parts<TokioIo<I>>) -> Self {
        let (socket, session) = parts.io.into_inner().into_detached();
        // A copy: `read_buf` is a view that would keep all of hyper's read buffer alive.
        Self { socket, session, read_ahead: Bytes::copy_from_slice(&parts.read_buf) }
    }
}

/// The tasks of one listener's connections, and the signal that ends them.
#[derive(Debug, Default)]
pub(super) struct ConnectionTasks {
    pub(super) shutdown: ShutdownSignal,
    pub(super) tracker: TaskTracker,
}

/// Reasons for which a connection was closed as soon as it was accepted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum ShedConnection {
    /// All permits are taken, those beyond the limit, too.
    MaxConnections,
    /// The process or the system has no file descriptor left.
    NoFileDescriptor,
}
