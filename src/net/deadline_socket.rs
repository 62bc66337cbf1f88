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

use super::{Fate, Manners, Place};
use crate::timer_wheel::Alarm;

/// A connection's socket, and its place among those of the listener.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) stream: TcpStream,
    pub(crate) place: Place,
}

/// A connection's socket with deadlines. Reading fails when no request came in time, writing when the peer takes nothing for too long.
#[derive(Debug)]
pub(crate) struct Guarded {
    stream: TcpStream,
    /// What has been read from it before, and not been looked at.
    early: Bytes,
    /// Reads that are left until somebody sets it anew; whoever owns it may have as many as there are.
    ration: Option<u8>,
    place: Place,
    alarm: Alarm,
    /// Tick at which a request must have come.
    head_due: u64,
    write_timeout: Duration,
    /// Tick at which the socket must have taken something, while it is full.
    write_due: Option<u64>,
    fate: Arc<Fate>,
}

impl Guarded {
    pub(super) fn new(socket: Socket, manners: &Manners, fate: Arc<Fate>) -> Self {
        let Socket { stream, place } = socket;
        let alarm = Alarm::new(&manners.wheel);
        let head_due = manners.wheel.after(manners.head_timeout);
        let (early, write_timeout) = (Bytes::new(), manners.write_timeout);
        Self { stream, early, ration: None, place, alarm, head_due, write_timeout, write_due: None, fate }
    }

    /// The socket, without deadlines.
    pub(super) fn into_socket(self) -> Socket {
        Socket { stream: self.stream, place: self.place }
    }

    /// Whoever reads gets this first.
    pub(super) fn give_back(&mut self, early: &[u8]) {
        self.early = Bytes::copy_from_slice(early); // the rest of hyper's buffer is not kept with it
    }

    /// The socket, and what guards it again once it belongs to another runtime.
    pub(crate) fn part(self) -> (Socket, impl FnOnce(Socket) -> Self + Send) {
        let Self { stream, place, early, ration, alarm, head_due, write_timeout, write_due, fate } = self;
        let guard = move |Socket { stream, place }| Self {
            stream,
            place,
            early,
            ration,
            alarm,
            head_due,
            write_timeout,
            write_due,
            fate,
        };
        (Socket { stream, place }, guard)
    }

    /// Allows so many reads until it is called again: a peer that sends without end is not to keep a thread for itself.
    pub(crate) fn ration(&mut self, reads: u8) {
        self.ration = Some(reads);
    }

    /// From now on the peer has this time for a request: what came before, such as a TLS handshake, had its own.
    pub(super) fn expect_request(&mut self, head_timeout: Duration) {
        self.head_due = self.alarm.wheel().after(head_timeout);
    }

    /// Judges a write: progress lifts the deadline, a full socket sets it, and past it the peer counts as stalled. What its
    /// exchange has been given as an end is no fault of the peer's.
    fn judge(&mut self, written: Poll<io::Result<usize>>, context: &Context<'_>) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(result) => {
                self.write_due = None;
                Poll::Ready(result.map_err(|error| self.note(error)))
            }
            Poll::Pending => {
                let due = *self.write_due.get_or_insert_with(|| self.alarm.wheel().after(self.write_timeout));
                if self.alarm.wheel().now() >= due {
                    return Poll::Ready(Err(self.note(io::ErrorKind::TimedOut.into())));
                }
                let cut = self.fate.cut.due(context.waker());
                if self.alarm.wheel().now() >= cut {
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
                self.alarm.set(due.min(cut), context.waker());
                Poll::Pending
            }
        }
    }

    /// The kernel's own user time-out means the same as ours.
    fn note(&self, error: io::Error) -> io::Error {
        if error.kind() == io::ErrorKind::TimedOut {
            self.fate.stalled.store(true, Ordering::Relaxed);
        }
        error
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.early.is_empty() {
            let most = self.early.len().min(buffer.remaining());
            buffer.put_slice(&self.early.split_to(most));
            return Poll::Ready(Ok(()));
        }
        match &mut self.ration {
            Some(0) => {
                context.waker().wake_by_ref(); // others are to have their turn
                return Poll::Pending;
            }
            Some(left) => *left -= 1,
            None => {}
        }
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_pending() && !self.fate.has_request.load(Ordering::Relaxed) {
            if self.alarm.wheel().now() >= self.head_due {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            self.alarm.set(self.head_due, context.waker());
        }
        Poll::Ready(ready!(read).map_err(|error| self.note(error)))
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.judge(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.fate.handover.flushed(); // hyper flushes when it has nothing left to write
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
