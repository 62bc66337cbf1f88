//! A detached connection as a stream of bytes, for a codec above it.
//!
//! May use: no other module.

use std::{
    io::{self, ErrorKind, IoSlice, Read},
    pin::Pin,
    task::{Context, Poll, ready},
};

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

use super::{DetachedConnection, borrowed, send_records};

impl AsyncRead for DetachedConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { socket, session, .. } = &mut *self;
        let Some(session) = session else {
            return match socket {
                Some(socket) => Pin::new(socket).poll_read(context, buffer),
                None => Poll::Ready(Err(ErrorKind::NotConnected.into())),
            };
        };
        let socket = borrowed(socket)?;
        for _ in 0..MAX_RECORD_READS {
            // First: plaintext may have come with the handshake, or with the record before.
            let room = buffer.remaining().min(MAX_READ_BYTES);
            match session.reader().read(buffer.initialize_unfilled_to(room)) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read.map(|count| buffer.advance(count))),
            }
            // `try_io` clears tokio's readiness when the closure returns `WouldBlock`, without
            // which the task would not be woken again.
            let received = socket
                .try_io(Interest::READABLE, || session.read_tls(&mut &*SockRef::from(socket)));
            match received {
                Ok(_) => {
                    let processed = session.process_new_packets();
                    if let Err(error) = processed {
                        // The peer learns why (RFC 8446, section 6), if its socket takes it now.
                        let _ = send_records(session, socket);
                        return Poll::Ready(Err(io::Error::new(ErrorKind::InvalidData, error)));
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    ready!(socket.poll_read_ready(context))?;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        // A peer may send records without plaintext for as long as it likes.
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl AsyncWrite for DetachedConnection {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            match self.try_write(slices) {
                Ok(written) if written.accepted_bytes > 0 || !self.has_unsent_records() => {
                    return Poll::Ready(Ok(written.accepted_bytes));
                }
                Err(error) if error.kind() != ErrorKind::WouldBlock => {
                    return Poll::Ready(Err(error));
                }
                // Full: of bytes, or of records that come first.
                _ => ready!(self.socket()?.poll_write_ready(context))?,
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Sends the records of what was written.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { socket, session, .. } = &mut *self;
        let Some(session) = session else { return Poll::Ready(Ok(())) };
        let socket = borrowed(socket)?;
        while session.wants_write() {
            match send_records(session, socket) {
                Err(error) if error.kind() != ErrorKind::WouldBlock => {
                    return Poll::Ready(Err(error));
                }
                _ if session.wants_write() => ready!(socket.poll_write_ready(context))?,
                _ => {}
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Sends what is left and close_notify, and closes the direction of writing.
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(session) = &mut self.session {
            session.send_close_notify();
        }
        ready!(self.as_mut().poll_flush(context))?;
        match &mut self.socket {
            Some(socket) => Pin::new(socket).poll_shutdown(context),
            None => Poll::Ready(Err(ErrorKind::NotConnected.into())),
        }
    }
}

/// Reads of the socket without plaintext before other tasks of the thread get their turn: a record
/// of 16 KiB that comes in pieces of 4 KiB fits.
const MAX_RECORD_READS: usize = 8;

/// Bytes of one read: less than a record, so that the buffer above is not filled with zeros for
/// nothing.
const MAX_READ_BYTES: usize = 4 * 1024;
