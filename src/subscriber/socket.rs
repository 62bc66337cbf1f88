//! Socket of one subscriber, with the rest of a partial write and its deadline.
//!
//! ```text
//! write ─┬─ all accepted
//!        └─ rest: unwritten ─► poll_flush, when the socket is writable ─┬─ written
//!                                                                      └─ write_timeout: stalled
//! ```
//!
//! May use: `net`, `timer_wheel`.

use std::{
    io::{self, ErrorKind, IoSlice},
    task::{Context, Poll, ready},
    time::Duration,
};

use super::write_batch::{WriteBatch, WriteScratch};
use crate::{
    net::{DetachedConnection, Written},
    timer_wheel::{Deadline, TimerWheel},
};

/// A detached connection, and what it has not taken yet.
#[derive(Debug)]
pub(crate) struct SubscriberSocket {
    connection: DetachedConnection,
    /// Boxed: few sockets are full at any time.
    unwritten: Option<Box<UnwrittenBatch>>,
}

/// State of a full socket.
#[derive(Debug)]
struct UnwrittenBatch {
    /// Rest of the write. Empty where only TLS records wait, or the output of a codec above.
    batch: WriteBatch,
    /// When the socket must have taken more.
    write_due: Deadline,
}

impl Default for UnwrittenBatch {
    fn default() -> Self {
        Self { batch: WriteBatch::default(), write_due: Deadline::NEVER }
    }
}

impl SubscriberSocket {
    /// Returns the socket of a connection whose response head has been sent.
    pub(crate) fn new(connection: DetachedConnection) -> Self {
        Self { connection, unwritten: None }
    }

    /// Returns the connection, for reading and for a codec. Bytes that are written to it directly
    /// come before unwritten ones.
    pub(crate) fn connection(&mut self) -> &mut DetachedConnection {
        &mut self.connection
    }

    /// Returns whether bytes wait for the socket.
    pub(crate) fn has_unwritten(&self) -> bool {
        self.unwritten.as_ref().is_some_and(|it| !it.batch.is_empty())
            || self.connection.has_unsent_records()
    }

    /// Returns when a full socket must have taken more.
    pub(crate) fn write_due(&self) -> Deadline {
        self.unwritten.as_ref().map_or(Deadline::NEVER, |unwritten| unwritten.write_due)
    }

    /// Writes the buffers of `scratch`, and keeps what the socket does not accept.
    ///
    /// # Errors
    ///
    /// The socket's, except `WouldBlock`.
    pub(crate) fn write(&mut self, scratch: &mut WriteScratch) -> io::Result<()> {
        scratch.written_bytes += write_batch(&mut self.connection, &mut scratch.batch)?;
        if !scratch.batch.is_empty() {
            self.keep_unwritten(&mut scratch.batch);
        }
        Ok(())
    }

    /// Writes slices once. A full socket accepts nothing of them.
    ///
    /// # Errors
    ///
    /// The socket's, except `WouldBlock`.
    pub(crate) fn write_slices(&mut self, slices: &[IoSlice<'_>]) -> io::Result<Written> {
        match self.connection.try_write(slices) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Written::default()),
            written => written,
        }
    }

    /// Takes the rest of a write, to be written by [`SubscriberSocket::poll_flush`].
    pub(crate) fn keep_unwritten(&mut self, rest: &mut WriteBatch) {
        self.unwritten.get_or_insert_default().batch.append(rest);
    }

    /// Writes the rest of an earlier write, if there is one. `context` is woken when a full socket
    /// is writable again; the caller wakes itself at [`SubscriberSocket::write_due`].
    ///
    /// # Errors
    ///
    /// The socket's, and `TimedOut` if it has accepted nothing for `write_timeout`.
    ///
    /// # Cancel safety
    ///
    /// What is unwritten always begins with the first byte that the socket has not accepted.
    pub(crate) fn poll_flush(
        &mut self,
        context: &mut Context<'_>,
        scratch: &mut WriteScratch,
        wheel: &TimerWheel,
    ) -> Poll<io::Result<()>> {
        // With TLS the session accepts bytes before the socket does, so an empty batch is not
        // enough: records may still wait for the socket.
        while self.has_unwritten() {
            let unwritten = self.unwritten.get_or_insert_default();
            let sent = write_batch(&mut self.connection, &mut unwritten.batch)?;
            scratch.written_bytes += sent;
            if unwritten.batch.is_empty() && !self.connection.has_unsent_records() {
                self.unwritten = None;
                break;
            }
            // Progress restarts the deadline: a slow reader is not a stalled one.
            if sent > 0 {
                unwritten.write_due = Deadline::NEVER;
            }
            self.check_write_deadline(wheel, scratch.write_timeout)?;
            // A write that fails registers no waker. If the socket has become writable in between,
            // this is ready, and the loop writes again.
            ready!(self.connection.socket()?.poll_write_ready(context))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Starts the deadline of a full socket, or checks the one that runs.
    ///
    /// # Errors
    ///
    /// `TimedOut` if it is over.
    pub(crate) fn check_write_deadline(
        &mut self,
        wheel: &TimerWheel,
        write_timeout: Duration,
    ) -> io::Result<()> {
        let due = &mut self.unwritten.get_or_insert_default().write_due;
        if due.is_over(wheel) {
            return Err(ErrorKind::TimedOut.into());
        }
        if *due == Deadline::NEVER {
            *due = wheel.deadline_after(write_timeout);
        }
        Ok(())
    }

    /// Ends the deadline: the socket has accepted bytes of a codec above.
    pub(crate) fn record_progress(&mut self) {
        self.unwritten.take_if(|it| it.batch.is_empty());
    }
}

/// Writes until all is written or the socket is full, and returns the bytes that the socket
/// accepted. With TLS, records that the session owes are sent even if the batch is empty.
///
/// # Errors
///
/// The socket's, except `WouldBlock`.
fn write_batch(connection: &mut DetachedConnection, batch: &mut WriteBatch) -> io::Result<usize> {
    let mut total = 0;
    while !batch.is_empty() || connection.has_unsent_records() {
        let (slices, used) = batch.slices();
        match connection.try_write(slices.split_at(used).0) {
            Ok(Written { accepted_bytes, sent_bytes }) => {
                batch.advance(accepted_bytes);
                total += sent_bytes;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(total)
}
