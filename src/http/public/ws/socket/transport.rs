//! What the WebSocket codec reads from and writes to: a subscriber's socket.
//!
//! May use: `subscriber`.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::subscriber::SubscriberSocket;

/// Transport of the codec.
#[derive(Debug)]
pub(super) struct WsTransport {
    pub(super) socket: SubscriberSocket,
    /// Bytes that hyper read beyond the head of the upgrade request: a client may send frames
    /// without waiting for the 101.
    read_ahead: Bytes,
    /// Reads that are left in this poll.
    read_budget: u8,
}

impl WsTransport {
    /// Returns the transport of a socket that has just been upgraded.
    pub(super) fn new(socket: SubscriberSocket, read_ahead: Bytes) -> Self {
        Self { socket, read_ahead, read_budget: 0 }
    }

    /// Allows `reads` reads until the next call, so that a peer that sends without end does not
    /// keep its shard's thread: the codec reads until it has a message.
    pub(super) fn set_read_budget(&mut self, reads: u8) {
        self.read_budget = reads;
    }

    /// Ends the socket's write deadline if the socket has accepted something.
    fn record_write(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(1..)) = written {
            self.socket.record_progress();
        }
        written
    }
}

impl AsyncRead for WsTransport {
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
        let Some(remaining) = self.read_budget.checked_sub(1) else {
            // Puts this subscriber behind the others that are ready, and reads on in its next turn.
            // Without a wake-up the socket would stay readable and never be read: tokio wakes a
            // task only after a read returned `WouldBlock`.
            context.waker().wake_by_ref();
            return Poll::Pending;
        };
        self.read_budget = remaining;
        Pin::new(self.socket.connection()).poll_read(context, buffer)
    }
}

impl AsyncWrite for WsTransport {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(self.socket.connection()).poll_write(context, bytes);
        self.record_write(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(self.socket.connection()).poll_write_vectored(context, slices);
        self.record_write(written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.socket.connection()).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.socket.connection()).poll_shutdown(context)
    }
}
