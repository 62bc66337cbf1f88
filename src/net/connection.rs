//! What a request's handler sees of its connection, and the tasks of a listener's connections.
//!
//! May use: nothing.

use std::{net::SocketAddr, sync::Arc};

use axum::body::Body;
use bytes::Bytes;
use hyper::upgrade::{OnUpgrade, Parts, Upgraded};
use hyper_util::rt::TokioIo;
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::{
    connection_limit::AcceptedSocket,
    deadline_socket::DeadlineSocket,
    detach::{ConnectionState, DetachingBody},
    forced_close::ForcedClose,
    shutdown::ShutdownSignal,
    stream_deadline::Http2StreamState,
    tls::TlsSession,
};

/// A request's connection, found among its extensions.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    /// The peer's address.
    pub(crate) peer: SocketAddr,
    /// What became of the socket.
    pub(crate) state: Arc<ConnectionState>,
    /// It came when there was no place any more, and is here to be told so.
    pub(crate) is_over_limit: bool,
    pub(super) tasks: Arc<ConnectionTasks>,
}

impl Connection {
    /// Takes the socket out of hyper: the answer must have the body that is returned, which begins with `first`, and `heir`
    /// writes all that follows, in chunks, and ends the connection. If the connection is lost before that, `heir` is dropped.
    pub(crate) fn detach(
        &self,
        first: Bytes,
        continuation: impl FnOnce(AcceptedSocket, Option<TlsSession>) + Send + 'static,
    ) -> Body {
        self.state.detach.arm(Box::new(continuation));
        Body::new(DetachingBody { first: Some(first), state: Arc::clone(&self.state) })
    }

    /// What ends the exchange that is running if its peer takes nothing: the connection, or on HTTP/2 its stream alone.
    pub(crate) fn forced_close(&self, stream: Option<&Http2StreamState>) -> Arc<ForcedClose> {
        Arc::clone(stream.map_or(&self.state.forced_close, Http2StreamState::forced_close))
    }

    /// Goes on with this connection's socket in another protocol, once the answer to the request has been sent. What
    /// `work` returns belongs to the listener: it is waited for when that ends, and dropped if it has not ended by itself a few seconds later.
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

/// The tasks of one listener, and what tells them to end.
#[derive(Debug, Default)]
pub(super) struct ConnectionTasks {
    pub(super) shutdown: ShutdownSignal,
    pub(super) tracker: TaskTracker,
}

/// Why a connection was closed as soon as it had come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum ShedConnection {
    /// All places are taken, those beyond the limit, too.
    MaxConnections,
    /// The process may open no further file.
    NoFileDescriptor,
}
