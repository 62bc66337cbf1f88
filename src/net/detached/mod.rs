//! A connection that was detached from hyper: its socket, and the TLS session above it.
//!
//! In: bytes to be sent. Out: how many were taken, at once or not at all: the shard that writes
//! waits for the socket itself. `stream` is the same connection for a codec, which reads and polls.
//!
//! May use: no other module.

mod stream;
#[cfg(test)]
pub(super) mod tests;

use std::io::{self, ErrorKind, IoSlice, Read, Write};

use rustls::ServerConnection;
use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream};
use tokio_rustls::server::TlsStream;

use super::{
    connection_limit::{AcceptedSocket, ConnectionPermit},
    deadline_socket::DeadlineSocket,
    tls::TlsSession,
};

/// Transport that can be taken apart once hyper has released it.
pub(super) trait Detachable {
    /// Returns the socket, without deadlines, and the session above it.
    fn into_detached(self) -> (AcceptedSocket, Option<TlsSession>);
}

impl Detachable for DeadlineSocket {
    fn into_detached(self) -> (AcceptedSocket, Option<TlsSession>) {
        (self.into_socket(), None)
    }
}

impl Detachable for TlsStream<DeadlineSocket> {
    fn into_detached(self) -> (AcceptedSocket, Option<TlsSession>) {
        let (socket, session) = self.into_inner();
        (socket.into_socket(), Some(Box::new(session)))
    }
}

/// Connection that a stream is written to.
#[derive(Debug)]
pub(crate) struct DetachedConnection {
    /// `None` while it is lent.
    socket: Option<TcpStream>,
    session: Option<TlsSession>,
    /// Counts the connection as long as its socket is open.
    _permit: ConnectionPermit,
}

/// Outcome of a write.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Written {
    /// Bytes that the caller need not offer again.
    pub(crate) accepted_bytes: usize,
    /// Bytes that the socket took: with TLS, records.
    pub(crate) sent_bytes: usize,
}

impl DetachedConnection {
    /// Creates a connection from what hyper released. The socket must belong to the runtime of this
    /// thread.
    pub(crate) fn new(
        AcceptedSocket { stream, permit }: AcceptedSocket,
        session: Option<TlsSession>,
    ) -> Self {
        Self { socket: Some(stream), session, _permit: permit }
    }

    /// Returns the socket, to wait for its readiness.
    ///
    /// # Errors
    ///
    /// `NotConnected` while the socket is lent.
    pub(crate) fn socket(&self) -> io::Result<&TcpStream> {
        borrowed(&self.socket)
    }

    /// Takes the socket out, for an owner that writes to it without this connection until it calls
    /// [`DetachedConnection::restore_socket`]. `None` with TLS, whose records only the session can
    /// write.
    ///
    /// Whatever uses the connection meanwhile gets an error. The socket's readiness still wakes the
    /// waker that was registered for it.
    pub(crate) fn lend_socket(&mut self) -> Option<TcpStream> {
        if self.session.is_some() { None } else { self.socket.take() }
    }

    /// Takes a lent socket back.
    pub(crate) fn restore_socket(&mut self, socket: TcpStream) {
        self.socket = Some(socket);
    }

    /// Returns whether TLS records wait for the socket, of accepted bytes or in answer to the peer.
    ///
    /// While they do, the stream is stuck even if the caller has nothing left to write.
    pub(crate) fn has_unsent_records(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.wants_write())
    }

    /// Sends the records that are unsent, then as much of `slices` as the socket accepts.
    ///
    /// With TLS, up to a record's worth is accepted at once, and the socket may take a part of the
    /// record: the session keeps the rest, and `accepted_bytes` and `sent_bytes` differ.
    ///
    /// # Errors
    ///
    /// The socket's; `WouldBlock` when it took nothing. Accepted bytes are never lost by that.
    pub(crate) fn try_write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<Written> {
        let Self { socket, session, .. } = self;
        let socket = borrowed(socket)?;
        let Some(session) = session else {
            let sent = send(socket, slices)?;
            return Ok(Written { accepted_bytes: sent, sent_bytes: sent });
        };
        let mut sent = send_records(session, socket)?;
        if session.wants_write() {
            // The socket is full before anything of this write could be sent. Accepting more would
            // only fill the session's buffer.
            return Ok(Written { accepted_bytes: 0, sent_bytes: sent });
        }
        let taken = session.writer().write_vectored(slices)?;
        if taken == 0 && slices.iter().any(|slice| !slice.is_empty()) {
            // Nothing is unsent, so the session's buffer is empty, and it still accepts nothing: it
            // never will. Without an error the caller would retry forever.
            return Err(ErrorKind::WriteZero.into());
        }
        match send_records(session, socket) {
            Ok(bytes) => sent += bytes,
            // The bytes are accepted: reporting `WouldBlock` would make the caller offer them
            // twice.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(Written { accepted_bytes: taken, sent_bytes: sent })
    }

    /// Reads what the peer has sent and discards it. Returns the number of bytes, 0 once the peer
    /// has closed.
    ///
    /// Sets `polled_socket` if the socket itself was asked, and not only the readiness that tokio
    /// has on record.
    ///
    /// # Errors
    ///
    /// The socket's, and violations of TLS; `WouldBlock` when there is nothing.
    pub(crate) fn try_discard_input(&mut self, polled_socket: &mut bool) -> io::Result<usize> {
        let Self { socket, session, .. } = self;
        let socket = borrowed(socket)?;
        // `try_io` clears tokio's readiness when the closure returns `WouldBlock`, without which
        // the task would not be woken again.
        socket.try_io(Interest::READABLE, || {
            *polled_socket = true;
            // rustls wants `std::io::Read`, which tokio's socket does not implement.
            let mut socket = &*SockRef::from(socket);
            match session {
                None => socket.read(&mut [0; 512]),
                Some(session) => discard_records(session, &mut socket),
            }
        })
    }
}

impl Drop for DetachedConnection {
    /// Sends close_notify (RFC 8446, section 6.1) if the socket takes it.
    fn drop(&mut self) {
        if let (Some(session), Some(socket)) = (&mut self.session, &self.socket) {
            session.send_close_notify();
            // A full socket takes no more, and a drop cannot wait.
            let _ = send_records(session, socket);
        }
    }
}

/// Returns the socket of a connection, unless it is lent.
fn borrowed(socket: &Option<TcpStream>) -> io::Result<&TcpStream> {
    socket.as_ref().ok_or_else(|| ErrorKind::NotConnected.into())
}

/// Sends records until none is left or the socket is full.
///
/// # Errors
///
/// The socket's; `WouldBlock` when it took nothing.
fn send_records(session: &mut ServerConnection, socket: &TcpStream) -> io::Result<usize> {
    let mut sent = 0;
    while session.wants_write() {
        match session.write_tls(&mut TlsRecordSink(socket)) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(bytes) => sent += bytes,
            // A part was sent: that is progress, which `Err` would hide from the write deadline.
            Err(error) if error.kind() == ErrorKind::WouldBlock && sent > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}

/// Reads records and discards their plaintext.
fn discard_records(session: &mut ServerConnection, socket: &mut impl Read) -> io::Result<usize> {
    let bytes = session.read_tls(socket)?;
    // Also answers the peer: a request for new keys (RFC 8446, section 4.6.3) queues a record,
    // which `has_unsent_records` then shows.
    let state = session
        .process_new_packets()
        .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
    // Unread plaintext would count against the session's buffer until it reads no more.
    while let Ok(1..) = session.reader().read(&mut [0; 512]) {}
    Ok(if state.peer_has_closed() { 0 } else { bytes })
}

fn send(socket: &TcpStream, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    match slices {
        // `send` of one buffer costs the kernel less than a vectored one.
        [only] => socket.try_write(only),
        several => socket.try_write_vectored(several),
    }
}

/// Socket as rustls writes its records to it.
struct TlsRecordSink<'a>(&'a TcpStream);

impl Write for TlsRecordSink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        send(self.0, slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
