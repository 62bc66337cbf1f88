//! SSE connection on a shard: frames gathered into write batches, input, and the end of the stream.
//!
//! In: frames of an [`SseSubscriber`], readiness of the socket. Out: chunks of the HTTP/1.1 body
//! that hyper began. Queued events are written by the shard itself (`shard/delivery.rs`).
//!
//! ```text
//! poll: discard input ─► flush unwritten ─► fill batch ─► write ─┬─ all accepted: next batch
//!                                                               └─ rest: unwritten
//! ```
//!
//! May use: `admission`, `event`, `shard`, `sse`, `subscriber`.

use std::{
    io::ErrorKind,
    task::{Context, Poll},
    time::Duration,
};

use super::subscriber::SseSubscriber;
use crate::{
    admission::DisconnectReason,
    event::Scope,
    shard::{FlowState, ShardSubscriber, SubscriberParts},
    sse,
    subscriber::{SubscriberSocket, WriteBatch, WriteScratch},
};

/// An SSE subscriber and its socket.
#[derive(Debug)]
pub(crate) struct SseConnection {
    /// First: closed before the permit is returned, so that a drain waits for it.
    socket: SubscriberSocket,
    subscriber: SseSubscriber,
    flow: FlowState,
    /// Bytes of the client that have been discarded.
    ignored_bytes: u32,
    /// No waker is registered for the socket's input.
    must_register_read: bool,
    /// The last chunk is in the batch, or written.
    has_ended: bool,
}

impl SseConnection {
    /// Returns a connection whose response head has been sent.
    pub(crate) fn new(socket: SubscriberSocket, subscriber: SseSubscriber) -> Self {
        Self {
            subscriber,
            socket,
            flow: FlowState::Busy,
            ignored_bytes: 0,
            must_register_read: true,
            has_ended: false,
        }
    }

    /// Takes frames from the subscriber, within the bounds of one write, and returns whether that
    /// was all there is.
    fn fill_batch(&mut self, context: &mut Context<'_>, batch: &mut WriteBatch) -> bool {
        while !batch.is_full() {
            match self.subscriber.poll_frame(context) {
                Poll::Ready(Some(frame)) => batch.push(frame.into_chunk()),
                Poll::Ready(None) => {
                    self.has_ended = true;
                    batch.push(sse::encode_http1_chunk(b""));
                    return true;
                }
                Poll::Pending => return true,
            }
        }
        false
    }

    /// Writes the rest of an earlier write, if there is one.
    ///
    /// Returns `Ready(true)` once all of it is written, `Ready(false)` when the stream has to end,
    /// and `Pending` while the socket is full.
    fn flush_unwritten(
        &mut self,
        context: &mut Context<'_>,
        scratch: &mut WriteScratch,
    ) -> Poll<bool> {
        let connected = &mut self.subscriber.connected;
        match self.socket.poll_flush(context, scratch, connected.deadlines().wheel()) {
            Poll::Ready(Ok(())) => Poll::Ready(true),
            Poll::Ready(Err(error)) => {
                connected.record_io_error(&error);
                Poll::Ready(false)
            }
            Poll::Pending => {
                let grace = |reason: DisconnectReason| {
                    (reason == DisconnectReason::Kicked || reason.is_immediate())
                        .then_some(FINAL_WRITE_GRACE)
                };
                connected.subscription().give_back_read_ahead();
                connected.record_backlog();
                match connected.must_end_while_blocked(self.socket.write_due(), grace, context) {
                    true => Poll::Ready(false),
                    false => Poll::Pending,
                }
            }
        }
    }

    /// Returns whether the client has closed the connection.
    ///
    /// Other input is discarded. After [`MAX_IGNORED_BYTES`] the socket is not read any more, and a
    /// close shows as an error of the next write.
    fn check_peer_closed(&mut self, context: &mut Context<'_>) -> bool {
        for _ in 0..MAX_READS_PER_POLL {
            if self.ignored_bytes >= MAX_IGNORED_BYTES {
                return false;
            }
            let mut is_notified = false;
            let connection = self.socket.connection();
            match connection.try_discard_input(&mut is_notified) {
                Ok(0) => return true,
                Ok(bytes) => {
                    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
                    self.ignored_bytes = self.ignored_bytes.saturating_add(bytes);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    // tokio answered from the cached readiness without a system call: nothing has
                    // arrived since the waker was registered, so the waker is still registered.
                    if !is_notified && !self.must_register_read {
                        return false;
                    }
                    self.must_register_read = false;
                    let Ok(socket) = connection.socket() else { return true };
                    if socket.poll_read_ready(context).is_pending() {
                        return false;
                    }
                }
                Err(error) => {
                    self.subscriber.connected.record_io_error(&error);
                    return true;
                }
            }
        }
        // The bound is used up and the socket may have more: poll again, and then register, for the
        // last readiness event has used the waker up.
        context.waker().wake_by_ref();
        self.must_register_read = true;
        false
    }
}

impl ShardSubscriber for SseConnection {
    fn parts(&mut self) -> SubscriberParts<'_> {
        SubscriberParts {
            connected: &mut self.subscriber.connected,
            socket: &mut self.socket,
            flow: &mut self.flow,
        }
    }

    /// Returns `None`: an SSE subscriber sets its scope in the request only.
    fn take_requested_scope(&mut self) -> Option<Scope> {
        None
    }

    fn poll(&mut self, context: &mut Context<'_>, scratch: &mut WriteScratch) -> Poll<()> {
        self.flow = FlowState::Busy;
        if self.check_peer_closed(context) {
            return Poll::Ready(());
        }
        // Nothing is read from the log before the earlier write is complete: a stalled client pins
        // one write batch.
        for _ in 0..MAX_WRITES_PER_POLL {
            match self.flush_unwritten(context, scratch) {
                Poll::Ready(true) => {}
                Poll::Ready(false) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
            if self.has_ended {
                return Poll::Ready(());
            }
            let is_complete = self.fill_batch(context, &mut scratch.batch);
            if let Err(error) = self.socket.write(scratch) {
                self.subscriber.connected.record_io_error(&error);
                return Poll::Ready(());
            }
            if is_complete && !self.socket.has_unwritten() && !self.has_ended {
                self.flow = match self.subscriber.is_caught_up() {
                    true => FlowState::CaughtUp,
                    false => FlowState::ReadsLog,
                };
                return Poll::Pending;
            }
        }
        context.waker().wake_by_ref(); // the shard's other subscribers first
        Poll::Pending
    }
}

/// Time for a full socket to accept the last bytes of a kicked, revoked or removed subscriber,
/// which must be gone within a second.
const FINAL_WRITE_GRACE: Duration = Duration::from_millis(700);

/// Writes after which the shard's other subscribers get their turn: 128 KiB at about 32 KiB each.
const MAX_WRITES_PER_POLL: usize = 4;

/// Reads after which the shard's other subscribers get their turn.
const MAX_READS_PER_POLL: usize = 4;

/// Input that is discarded before the socket is read no more: a client has nothing to send here,
/// and with TLS each record costs a decryption.
const MAX_IGNORED_BYTES: u32 = 64 * 1024;
