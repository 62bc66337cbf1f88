//! A socket with deadlines for the head of a request and for writes.
//!
//! hyper has no time-out before the first byte of a head, and none for a peer that takes nothing.
//! Both deadlines are ticks of the timer wheel: no connection has a timer of its own.
//!
//! May use: `timer_wheel`.

use std::{
    io,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{
    connection_limit::{AcceptedSocket, ConnectionPermit},
    detach::ConnectionState,
    lingering_close::{LingeringClose, discard_once},
    routes::ConnectionSettings,
};
use crate::timer_wheel::{Alarm, Deadline};

/// Socket of a connection, with deadlines.
///
/// Reads fail with `TimedOut` when no request came in time, writes when the peer took nothing for
/// `write_timeout`.
#[derive(Debug)]
pub(crate) struct DeadlineSocket {
    stream: TcpStream,
    permit: ConnectionPermit,
    alarm: Alarm,
    /// Tick at which a request must have come.
    head_due: Deadline,
    write_timeout: Duration,
    /// Tick at which the socket must have taken something; set while the socket is full.
    write_due: Option<Deadline>,
    /// Set once the write direction is closed while the client may still be sending.
    lingering: Option<Box<LingeringClose>>,
    state: Arc<ConnectionState>,
}

impl DeadlineSocket {
    pub(super) fn new(
        socket: AcceptedSocket,
        settings: &ConnectionSettings,
        state: Arc<ConnectionState>,
    ) -> Self {
        let AcceptedSocket { stream, permit } = socket;
        let alarm = Alarm::new(&settings.wheel);
        let head_due = settings.wheel.deadline_after(settings.head_timeout);
        Self {
            stream,
            permit,
            alarm,
            head_due,
            write_timeout: settings.write_timeout,
            write_due: None,
            lingering: None,
            state,
        }
    }

    /// Returns the socket without its deadlines.
    pub(super) fn into_socket(self) -> AcceptedSocket {
        AcceptedSocket { stream: self.stream, permit: self.permit }
    }

    /// Restarts the head deadline, for the first request after a TLS handshake.
    pub(super) fn restart_head_deadline(&mut self, head_timeout: Duration) {
        self.head_due = self.alarm.wheel().deadline_after(head_timeout);
    }

    /// Applies the write deadline to the outcome of a write.
    ///
    /// Progress clears the deadline, a full socket sets it, and past it the peer counts as stalled.
    /// A forced close past its own tick fails the write, too, but does not count as a stall: the
    /// relay set that end, the peer did nothing wrong.
    fn apply_write_deadline(
        &mut self,
        written: Poll<io::Result<usize>>,
        context: &Context<'_>,
    ) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(result) => {
                self.write_due = None;
                Poll::Ready(result.map_err(|error| self.record_stall(error)))
            }
            Poll::Pending => {
                // Kept across polls: hyper polls a full socket whenever its task wakes, and only
                // bytes taken by the kernel may extend the deadline.
                let due = *self
                    .write_due
                    .get_or_insert_with(|| self.alarm.wheel().deadline_after(self.write_timeout));
                if due.is_over(self.alarm.wheel()) {
                    return Poll::Ready(Err(self.record_stall(io::ErrorKind::TimedOut.into())));
                }
                // Registers the waker before it loads the deadline, so that a close scheduled from
                // now on wakes this task.
                let forced_close_due = self.state.forced_close.deadline(context.waker());
                if forced_close_due.is_over(self.alarm.wheel()) {
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
                self.alarm.set(due.min(forced_close_due), context.waker());
                Poll::Pending
            }
        }
    }

    /// Waits for the client's end of the connection where a reset would cost it the answer: see
    /// `lingering_close`.
    fn poll_linger(&mut self, context: &mut Context<'_>) -> Poll<()> {
        // Relaxed: written by the connection's own task.
        if self.lingering.is_none() {
            if !self.state.lingers.load(Ordering::Relaxed) {
                return Poll::Ready(());
            }
            // Bytes are waiting also behind a head that was refused before its end was read.
            let has_waiting = match discard_once(&mut self.stream, context) {
                Poll::Ready(0) => return Poll::Ready(()),
                Poll::Ready(_) => true,
                Poll::Pending => false,
            };
            if !has_waiting && !self.state.unread_body.is_set() {
                return Poll::Ready(());
            }
        }
        let lingering =
            self.lingering.get_or_insert_with(|| Box::new(LingeringClose::new(&self.alarm)));
        if self.state.is_shutting_down.load(Ordering::Relaxed) {
            lingering.hasten();
        }
        lingering.poll(&mut self.stream, &self.alarm, context)
    }

    /// Marks the connection as stalled if `error` is a time-out, ours or the kernel's
    /// (`TCP_USER_TIMEOUT`).
    fn record_stall(&self, error: io::Error) -> io::Error {
        if error.kind() == io::ErrorKind::TimedOut {
            // Relaxed: a flag that publishes no other memory, written before the error is returned
            // to hyper, which then drops the exchange that reads it.
            self.state.stalled.store(true, Ordering::Relaxed);
        }
        error
    }
}

impl AsyncRead for DeadlineSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        // Only before the first request: afterwards the deadlines are hyper's
        // (`header_read_timeout`) and, on HTTP/2, the idle deadline of `http2`.
        if read.is_pending() && !self.state.has_request.load(Ordering::Relaxed) {
            if self.head_due.is_over(self.alarm.wheel()) {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            self.alarm.set(self.head_due, context.waker());
        }
        Poll::Ready(ready!(read).map_err(|error| self.record_stall(error)))
    }
}

impl AsyncWrite for DeadlineSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.apply_write_deadline(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.apply_write_deadline(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // hyper flushes only once its write buffer is empty: everything that it had is with the
        // kernel.
        self.state.detach.mark_flushed();
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
        self.poll_linger(context).map(Ok)
    }
}
