//! A socket with deadlines: hyper has none before the first byte, and none for a peer that takes nothing.
//!
//! May use: `wheel`.

use std::{
    io,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{
    connection_limit::{AcceptedSocket, ConnectionPermit},
    detach::ConnectionState,
    routes::ConnectionSettings,
};
use crate::timer_wheel::Alarm;

/// A connection's socket with deadlines. Reading fails when no request came in time, writing when the peer takes nothing for too long.
#[derive(Debug)]
pub(crate) struct DeadlineSocket {
    stream: TcpStream,
    /// What has been read from it before, and not been looked at.
    read_ahead: Bytes,
    /// Reads that are left until somebody sets it anew; whoever owns it may have as many as there are.
    read_budget: Option<u8>,
    permit: ConnectionPermit,
    alarm: Alarm,
    /// Tick at which a request must have come.
    head_due: u64,
    write_timeout: Duration,
    /// Tick at which the socket must have taken something, while it is full.
    write_due: Option<u64>,
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
        let head_due = settings.wheel.tick_after(settings.head_timeout);
        let (read_ahead, write_timeout) = (Bytes::new(), settings.write_timeout);
        Self {
            stream,
            read_ahead,
            read_budget: None,
            permit,
            alarm,
            head_due,
            write_timeout,
            write_due: None,
            state,
        }
    }

    /// The socket, without deadlines.
    pub(super) fn into_socket(self) -> AcceptedSocket {
        AcceptedSocket { stream: self.stream, permit: self.permit }
    }

    /// Whoever reads gets this first.
    pub(super) fn unread(&mut self, read_ahead: &[u8]) {
        self.read_ahead = Bytes::copy_from_slice(read_ahead); // the rest of hyper's buffer is not kept with it
    }

    /// The socket, and what guards it again once it belongs to another runtime.
    pub(crate) fn into_parts(self) -> (AcceptedSocket, impl FnOnce(AcceptedSocket) -> Self + Send) {
        let Self {
            stream,
            permit,
            read_ahead,
            read_budget,
            alarm,
            head_due,
            write_timeout,
            write_due,
            state,
        } = self;
        let rebuild = move |AcceptedSocket { stream, permit }| Self {
            stream,
            permit,
            read_ahead,
            read_budget,
            alarm,
            head_due,
            write_timeout,
            write_due,
            state,
        };
        (AcceptedSocket { stream, permit }, rebuild)
    }

    /// Allows so many reads until it is called again: a peer that sends without end is not to keep a thread for itself.
    pub(crate) fn set_read_budget(&mut self, reads: u8) {
        self.read_budget = Some(reads);
    }

    /// From now on the peer has this time for a request: what came before, such as a TLS handshake, had its own.
    pub(super) fn restart_head_deadline(&mut self, head_timeout: Duration) {
        self.head_due = self.alarm.wheel().tick_after(head_timeout);
    }

    /// Judges a write: progress lifts the deadline, a full socket sets it, and past it the peer counts as stalled. What its
    /// exchange has been given as an end is no fault of the peer's.
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
                let due = *self
                    .write_due
                    .get_or_insert_with(|| self.alarm.wheel().tick_after(self.write_timeout));
                if self.alarm.wheel().current_tick() >= due {
                    return Poll::Ready(Err(self.record_stall(io::ErrorKind::TimedOut.into())));
                }
                let forced_close_due = self.state.forced_close.due_tick(context.waker());
                if self.alarm.wheel().current_tick() >= forced_close_due {
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
                self.alarm.set(due.min(forced_close_due), context.waker());
                Poll::Pending
            }
        }
    }

    /// The kernel's own user time-out means the same as ours.
    fn record_stall(&self, error: io::Error) -> io::Error {
        if error.kind() == io::ErrorKind::TimedOut {
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
        if !self.read_ahead.is_empty() {
            let count = self.read_ahead.len().min(buffer.remaining());
            buffer.put_slice(&self.read_ahead.split_to(count));
            return Poll::Ready(Ok(()));
        }
        match &mut self.read_budget {
            Some(0) => {
                context.waker().wake_by_ref(); // others are to have their turn
                return Poll::Pending;
            }
            Some(remaining) => *remaining -= 1,
            None => {}
        }
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_pending() && !self.state.has_request.load(Ordering::Relaxed) {
            if self.alarm.wheel().current_tick() >= self.head_due {
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
        self.state.detach.mark_flushed(); // hyper flushes when it has nothing left to write
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
