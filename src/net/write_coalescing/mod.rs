//! Few writes for what many streams of one HTTP/2 connection have to say.
//!
//! h2 writes each frame of data with a call of its own, and flushes behind it. An event for a
//! hundred streams of a connection would be a hundred writes, which cost more than all else that is
//! done for them. So while there is more than one stream, what h2 writes within one poll is held,
//! and written when the poll is over:
//!
//! ```text
//! event ─► streams' tasks, one after the other ─► h2: frames ─► held, 16 KiB at most ─ poll is over ─► TLS or socket
//! ```
//!
//! May use: no other module.

#[cfg(test)]
pub(super) mod tests;

use std::{
    io::{self, ErrorKind, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a connection of HTTP/2 reads from and writes to.
#[derive(Debug)]
pub(super) struct CorkedIo<I>(Arc<Mutex<CorkedTransport<I>>>);

/// The hand on the cork.
#[derive(Debug)]
pub(super) struct Cork<I>(Arc<Mutex<CorkedTransport<I>>>);

#[derive(Debug)]
struct CorkedTransport<I> {
    io: I,
    /// What is to be written before anything else; nothing between two polls, unless the socket is
    /// full.
    held: Vec<u8>,
    /// So much of it has been written.
    written_bytes: usize,
    is_corked: bool,
    /// A flush has been asked for and not been done.
    owes_flush: bool,
}

/// A transport, and who says when it writes. Until that has been said, it writes at once.
pub(super) fn cork<I>(io: I) -> (CorkedIo<I>, Cork<I>) {
    let transport = CorkedTransport {
        io,
        held: Vec::new(),
        written_bytes: 0,
        is_corked: false,
        owes_flush: false,
    };
    let transport = Arc::new(Mutex::new(transport));
    (CorkedIo(Arc::clone(&transport)), Cork(transport))
}

impl<I: AsyncWrite + Unpin> Cork<I> {
    /// Whether what is written from now on is held.
    pub(super) fn set_corked(&self, is_corked: bool) {
        lock(&self.0).is_corked = is_corked;
    }

    /// Writes what is held.
    ///
    /// # Errors
    ///
    /// The transport's own.
    pub(super) fn poll_flush_held(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut transport = lock(&self.0);
        if !transport.held.is_empty() || transport.owes_flush {
            ready!(transport.poll_flush(context))?;
        }
        transport.held = Vec::new(); // a connection that sleeps keeps no buffer
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> CorkedTransport<I> {
    fn poll_write(
        &mut self,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes = slices.iter().map(|slice| slice.len()).sum();
        let is_held = self.is_corked && bytes <= MAX_HELD_BYTES;
        if !is_held || self.held.len() + bytes > MAX_HELD_BYTES {
            ready!(self.poll_drain(context))?;
        }
        if !is_held {
            return Pin::new(&mut self.io).poll_write_vectored(context, slices);
        }
        // at once: what grows leaves holes behind
        self.held.reserve_exact(MAX_HELD_BYTES - self.held.len());
        for slice in slices {
            self.held.extend_from_slice(slice);
        }
        Poll::Ready(Ok(bytes))
    }

    fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.held.get(self.written_bytes..).filter(|rest| !rest.is_empty()) {
            match ready!(Pin::new(&mut self.io).poll_write(context, rest))? {
                0 => return Poll::Ready(Err(ErrorKind::WriteZero.into())),
                bytes => self.written_bytes += bytes,
            }
        }
        self.held.clear();
        self.written_bytes = 0;
        Poll::Ready(Ok(()))
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(context))?;
        ready!(Pin::new(&mut self.io).poll_flush(context))?;
        self.owes_flush = false;
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for CorkedIo<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut lock(&self.0).io).poll_read(context, buffer)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for CorkedIo<I> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        lock(&self.0).poll_write(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        lock(&self.0).poll_write(context, slices)
    }

    /// Both do it in one call.
    fn is_write_vectored(&self) -> bool {
        lock(&self.0).io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut transport = lock(&self.0);
        if transport.is_corked {
            transport.owes_flush = true;
            return Poll::Ready(Ok(()));
        }
        transport.poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut transport = lock(&self.0);
        ready!(transport.poll_flush(context))?;
        Pin::new(&mut transport.io).poll_shutdown(context)
    }
}

fn lock<I>(transport: &Mutex<CorkedTransport<I>>) -> MutexGuard<'_, CorkedTransport<I>> {
    transport.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One record of TLS, and half of what the kernel takes unsent.
const MAX_HELD_BYTES: usize = 16 * 1024;
