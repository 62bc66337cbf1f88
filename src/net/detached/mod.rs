//! A connection that has left hyper: its socket, and the TLS session above it if there is one.
//!
//! In: bytes to be sent. Out: how many were taken, at once or not at all: whoever writes waits for the socket himself.
//!
//! May use: nothing.

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

/// What can be taken apart once hyper has let go of it.
pub(super) trait Detachable {
    /// The socket, without deadlines, and the session above it.
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

/// What a stream is written to.
#[derive(Debug)]
pub(crate) struct DetachedConnection {
    socket: TcpStream,
    session: Option<TlsSession>,
    /// Among the connections of the listener, as long as the socket is open.
    _permit: ConnectionPermit,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Written {
    /// Bytes of the caller's that need not be offered again.
    pub(crate) accepted_bytes: usize,
    /// Bytes that the socket took; with TLS, records.
    pub(crate) sent_bytes: usize,
}

impl DetachedConnection {
    /// What hyper has let go of, once the socket belongs to the runtime of this thread.
    pub(crate) fn new(
        AcceptedSocket { stream, permit }: AcceptedSocket,
        session: Option<TlsSession>,
    ) -> Self {
        Self { socket: stream, session, _permit: permit }
    }

    /// The socket, to wait for.
    pub(crate) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Whether records wait for the socket that are made of what was taken, or answer the peer.
    pub(crate) fn has_unsent_records(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.wants_write())
    }

    /// Sends what is owed, then as much of this as there is room for.
    ///
    /// # Errors
    ///
    /// The socket's; `WouldBlock` when it took nothing.
    pub(crate) fn try_write(&mut self, slices: &[IoSlice<'_>]) -> io::Result<Written> {
        let Some(session) = &mut self.session else {
            let sent = send(&self.socket, slices)?;
            return Ok(Written { accepted_bytes: sent, sent_bytes: sent });
        };
        let mut sent = send_records(session, &self.socket)?;
        if session.wants_write() {
            return Ok(Written { accepted_bytes: 0, sent_bytes: sent });
        }
        let taken = session.writer().write_vectored(slices)?;
        if taken == 0 && slices.iter().any(|slice| !slice.is_empty()) {
            return Err(ErrorKind::WriteZero.into()); // a session that takes nothing with nothing owed never will
        }
        match send_records(session, &self.socket) {
            Ok(bytes) => sent += bytes,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(Written { accepted_bytes: taken, sent_bytes: sent })
    }

    /// Takes from the socket what the peer has sent, and forgets it: so many bytes, none when it has hung up. `was_asked` tells
    /// whether the socket was looked at, and not only what is known of it.
    ///
    /// # Errors
    ///
    /// The socket's, and what breaks TLS; `WouldBlock` when there is nothing.
    pub(crate) fn try_discard_input(&mut self, polled_socket: &mut bool) -> io::Result<usize> {
        let Self { socket, session, .. } = self;
        socket.try_io(Interest::READABLE, || {
            *polled_socket = true;
            let mut socket = &*SockRef::from(&*socket);
            match session {
                None => socket.read(&mut [0; 512]),
                Some(session) => discard_records(session, &mut socket),
            }
        })
    }
}

impl Drop for DetachedConnection {
    /// Whoever ends a TLS connection says so (RFC 8446, section 6.1), if the socket takes it.
    fn drop(&mut self) {
        if let Some(session) = &mut self.session {
            session.send_close_notify();
            let _ = send_records(session, &self.socket);
        }
    }
}

/// Sends records until there are none or the socket is full.
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
            Err(error) if error.kind() == ErrorKind::WouldBlock && sent > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}

/// Reads records and forgets what they say.
fn discard_records(session: &mut ServerConnection, socket: &mut impl Read) -> io::Result<usize> {
    let bytes = session.read_tls(socket)?;
    let state = session
        .process_new_packets()
        .map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
    while let Ok(1..) = session.reader().read(&mut [0; 512]) {}
    Ok(if state.peer_has_closed() { 0 } else { bytes })
}

fn send(socket: &TcpStream, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    match slices {
        [only] => socket.try_write(only), // one call in the kernel that costs less
        several => socket.try_write_vectored(several),
    }
}

/// Where rustls writes its records to.
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
