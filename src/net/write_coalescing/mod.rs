//! Coalescing of the writes for the streams of one HTTP/2 connection (as with `TCP_CORK`).
//!
//! h2 writes each DATA frame with a call of its own, and flushes behind it. An event for a hundred
//! streams of one connection would be a hundred writes, which cost more than everything else that
//! is done for these streams. So while a connection has more than one stream, the bytes that h2
//! writes within one poll are held, and written when the poll is over:
//!
//! ```text
//! event ─► streams' tasks, in turn ─► h2: frames ─► held, ≤ 16 KiB ─ end of poll ─► transport
//! ```
//!
//! May use: no other module.

#[cfg(test)]
pub(super) mod tests;

use std::{
    io::{self, ErrorKind, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Transport that hyper uses: reads pass through, writes may be held.
#[derive(Debug)]
pub(super) struct CorkedIo<I>(Arc<Mutex<CorkedTransport<I>>>);

/// Handle that decides when held bytes are written.
///
/// hyper owns the [`CorkedIo`], the connection's future owns this. Both are polled by the same
/// task, so the mutex is never contended.
#[derive(Debug)]
pub(super) struct Cork<I>(Arc<Mutex<CorkedTransport<I>>>);

#[derive(Debug)]
struct CorkedTransport<I> {
    io: I,
    /// Bytes that go out before all others. Empty between two polls, unless the socket is full.
    held: Vec<u8>,
    /// Number of held bytes that are written already.
    written_bytes: usize,
    is_corked: bool,
    /// A flush was reported as complete before it was.
    owes_flush: bool,
}

/// Returns the transport and the handle of its cork. Until [`Cork::set_corked`], bytes are written
/// at once.
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
    /// Sets whether bytes that are written from now on are held. Bytes that are held already stay
    /// so.
    pub(super) fn set_corked(&self, is_corked: bool) {
        self.0.lock().is_corked = is_corked;
    }

    /// Writes and flushes the held bytes.
    ///
    /// # Errors
    ///
    /// The transport's own.
    pub(super) fn poll_flush_held(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut transport = self.0.lock();
        if !transport.held.is_empty() || transport.owes_flush {
            ready!(transport.poll_flush(context))?;
        }
        // Not `clear`: a connection that sleeps keeps no buffer.
        transport.held = Vec::new();
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
        // Held bytes go first, in any case: the order of frames is the protocol.
        if !is_held || self.held.len() + bytes > MAX_HELD_BYTES {
            ready!(self.poll_drain(context))?;
        }
        if !is_held {
            // A write larger than the buffer passes uncopied. It may be partial; the caller offers
            // the rest again.
            return Pin::new(&mut self.io).poll_write_vectored(context, slices);
        }
        // All of it at once: a buffer that grows leaves holes in the allocator.
        self.held.reserve_exact(MAX_HELD_BYTES - self.held.len());
        for slice in slices {
            self.held.extend_from_slice(slice);
        }
        Poll::Ready(Ok(bytes))
    }

    fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.held.get(self.written_bytes..).filter(|rest| !rest.is_empty()) {
            // `written_bytes` survives `Pending` and is advanced with each partial write: no byte
            // is written twice when this is called again, or by another caller.
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
        Pin::new(&mut self.0.lock().io).poll_read(context, buffer)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for CorkedIo<I> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.lock().poll_write(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.lock().poll_write(context, slices)
    }

    /// Passes on what the transport can: h2 chooses its way of writing by it. Held bytes are copied
    /// either way.
    fn is_write_vectored(&self) -> bool {
        self.0.lock().io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut transport = self.0.lock();
        if transport.is_corked {
            // h2 flushes behind each frame. To h2 the flush is done; the connection's future makes
            // up for it after the poll.
            transport.owes_flush = true;
            return Poll::Ready(Ok(()));
        }
        transport.poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut transport = self.0.lock();
        ready!(transport.poll_flush(context))?;
        Pin::new(&mut transport.io).poll_shutdown(context)
    }
}

/// One TLS record, and half of what the kernel takes unsent (`NOTSENT_LOWAT_BYTES`).
const MAX_HELD_BYTES: usize = 16 * 1024;
