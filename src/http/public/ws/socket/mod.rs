//! WebSocket connection: one subscriber's socket, codec, unwritten frames and phase.
//!
//! ```text
//! flush ─► read one message ─► write up to 32 KiB ─► flush …     nothing to do: heartbeat, or wait
//!
//! Open ─ close sent or received ─► Closing ─► closed
//!   └─── protocol violation ─────► Lingering ─► closed
//! ```
//!
//! Nothing is read, from the log or from the client, before all earlier frames are written. So a
//! client that reads nothing pins one write batch, and a client that sends pings and reads no pongs
//! makes no progress.
//!
//! The codec reads, answers pings and closes. The relay's messages are frames already, shared by
//! all their receivers, and go to the socket beside the codec, while the codec has nothing to send.
//! One of the two writes at a time: the codec answers only messages that it reads, and nothing is
//! read while a frame of the relay is half written.
//!
//! Without TLS the connection is a shard's (`ws/on_shard.rs`); over TLS it is a task of its own.
//!
//! May use: `admission`, `shard`.

mod close;
mod connection;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_core::Stream;
use futures_sink::Sink;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_websockets::{CloseCode, Error, Message};

pub(super) use self::connection::WsConnection;
use self::{
    close::{close_code, close_timeout},
    connection::{WsPhase, WsStep},
};
use super::subscriber::WsSubscriber;
use crate::{
    admission::DisconnectReason,
    shard::{MAX_BATCH_BUFFERS, MAX_BATCH_BYTES, advance, io_slices},
    timer_wheel::Deadline,
};

impl<S: AsyncRead + AsyncWrite + Unpin> WsConnection<S> {
    /// Runs steps within the bounds of one poll, and returns `Ready` when the connection has ended.
    ///
    /// `batch` is empty at entry and at exit. `bytes` is increased by the bytes handed over for
    /// writing.
    pub(super) fn run(
        &mut self,
        context: &mut Context<'_>,
        batch: &mut VecDeque<Bytes>,
        bytes: &mut usize,
    ) -> Poll<()> {
        (self.is_caught_up, self.is_idle) = (false, false);
        let budget_end = *bytes + MAX_HANDOVER_BYTES_PER_POLL;
        for _ in 0..MAX_STEPS_PER_POLL {
            if *bytes > budget_end {
                break;
            }
            match self.step(context, batch, bytes) {
                WsStep::Progressed => {}
                WsStep::Waiting => return Poll::Pending,
                WsStep::Closed => return Poll::Ready(()),
            }
        }
        context.waker().wake_by_ref(); // the other subscribers of the thread first
        Poll::Pending
    }

    /// Runs one step: flush, then what the phase calls for.
    fn step(
        &mut self,
        context: &mut Context<'_>,
        batch: &mut VecDeque<Bytes>,
        handed_over: &mut usize,
    ) -> WsStep {
        if self.close_due.is_over(self.subscriber.wheel()) {
            return WsStep::Closed;
        }
        let reason = self.subscriber.check_disconnect();
        let is_urgent = reason.is_some_and(DisconnectReason::is_urgent);
        if let Some(reason) = reason.filter(|_| is_urgent) {
            self.close_within(close_timeout(reason));
        }
        match self.flush(context) {
            Poll::Ready(true) => {}
            Poll::Ready(false) => return WsStep::Closed,
            Poll::Pending => return self.wait_for_writable(context),
        }
        match self.phase {
            WsPhase::Closing => return self.await_close(context),
            WsPhase::Lingering => return self.linger(context),
            WsPhase::Open => {}
        }
        if let Some(reason) = reason.filter(|_| is_urgent || self.subscriber.has_delivered_all()) {
            self.close(close_code(reason));
            return WsStep::Progressed;
        }
        let read = self.read_message(context, handed_over);
        if read == WsStep::Closed || self.phase != WsPhase::Open {
            return read;
        }
        match (read, self.send_queued(context, batch, handed_over)) {
            (_, WsStep::Closed) => WsStep::Closed,
            (WsStep::Waiting, WsStep::Waiting) => self.go_idle(context),
            _ => WsStep::Progressed,
        }
    }

    /// Writes unwritten frames, then those of the codec. Returns `Ready(false)` if the socket has
    /// failed.
    fn flush(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        if !self.unwritten.is_empty() {
            match ready!(poll_write_batch(self.socket.get_mut(), context, &mut self.unwritten)) {
                // Not `clear`: an idle connection keeps no capacity.
                Ok(()) => self.unwritten = VecDeque::new(),
                Err(_) => return Poll::Ready(false),
            }
        }
        Pin::new(&mut self.socket).poll_flush(context).map(|flushed| flushed.is_ok())
    }

    /// Waits for a writable socket. The socket's own deadline ends a stalled client, so only a
    /// disconnect or the token's expiry before that needs a wake-up here.
    fn wait_for_writable(&mut self, context: &Context<'_>) -> WsStep {
        self.subscriber.record_backlog();
        self.subscriber.wake_for_disconnect(self.close_due, context);
        // A second time: the waker is registered now, so a disconnect is either seen here or wakes
        // the task.
        if self.close_due == Deadline::NEVER
            && let Some(reason) =
                self.subscriber.check_disconnect().filter(|found| found.is_urgent())
        {
            self.close_within(close_timeout(reason));
            self.subscriber.wake_for_disconnect(self.close_due, context);
        }
        WsStep::Waiting
    }

    /// Reads and handles one message of the client.
    fn read_message(&mut self, context: &mut Context<'_>, handed_over: &mut usize) -> WsStep {
        if !self.next_message_due.is_over(self.subscriber.wheel()) {
            return WsStep::Waiting;
        }
        match Pin::new(&mut self.socket).poll_next(context) {
            Poll::Pending => WsStep::Waiting,
            Poll::Ready(None) => WsStep::Closed,
            Poll::Ready(Some(Ok(message))) => {
                self.handle_message(message, handed_over);
                WsStep::Progressed
            }
            Poll::Ready(Some(Err(Error::Io(_)))) => WsStep::Closed,
            Poll::Ready(Some(Err(error))) => {
                self.subscriber.mark_faulty();
                // The codec has queued the close frame itself, except for a fragmented message that
                // grows too large.
                if matches!(error, Error::PayloadTooLong { .. }) {
                    self.close(CloseCode::MESSAGE_TOO_BIG);
                }
                self.phase = WsPhase::Lingering;
                self.start_close_timeout();
                WsStep::Progressed
            }
        }
    }

    /// Handles a text, binary or close message; the codec has answered pings and a close by itself.
    fn handle_message(&mut self, message: Message, handed_over: &mut usize) {
        if message.is_text() {
            // One message per tick: a client that floods delays its own messages only.
            self.next_message_due = self.subscriber.deadline_after(Duration::ZERO);
            let text = message.into_payload();
            // Parsing counts against the turn budget, as bytes written do.
            *handed_over += text.len() * FILTER_COST_FACTOR;
            let answer = self.subscriber.handle_subscribe(&text);
            self.queue_frame(answer);
        } else if message.is_binary() {
            self.subscriber.mark_faulty();
            self.close(CloseCode::UNSUPPORTED_DATA);
        } else if message.is_close() {
            self.phase = WsPhase::Closing;
            self.start_close_timeout();
        }
    }

    /// Takes messages from the subscriber, up to one write batch, and writes them.
    fn send_queued(
        &mut self,
        context: &mut Context<'_>,
        batch: &mut VecDeque<Bytes>,
        handed_over: &mut usize,
    ) -> WsStep {
        if !self.unwritten.is_empty() {
            return WsStep::Waiting; // an answer to the client goes first
        }
        let mut taken = 0;
        while taken < MAX_BATCH_BYTES && batch.len() < MAX_BATCH_BUFFERS {
            let Poll::Ready(message) = self.subscriber.poll_message(context) else { break };
            taken += message.len();
            batch.push_back(message);
        }
        *handed_over += taken;
        match self.write_batch(context, batch) {
            Ok(()) if taken > 0 => WsStep::Progressed,
            Ok(()) => WsStep::Waiting,
            Err(_) => WsStep::Closed,
        }
    }

    /// Writes buffers, and keeps what the socket does not accept.
    fn write_batch(
        &mut self,
        context: &mut Context<'_>,
        batch: &mut VecDeque<Bytes>,
    ) -> io::Result<()> {
        match poll_write_batch(self.socket.get_mut(), context, batch) {
            Poll::Ready(written) => written,
            Poll::Pending => {
                self.unwritten.extend(batch.drain(..));
                Ok(())
            }
        }
    }

    /// Queues a heartbeat if one is due; otherwise sets the alarm and sleeps.
    fn go_idle(&mut self, context: &Context<'_>) -> WsStep {
        // A second time: `poll_message` has registered the waker, so a disconnect is either seen
        // here or wakes the task.
        if self.subscriber.check_disconnect().is_some_and(DisconnectReason::is_urgent)
            || self.subscriber.has_delivered_all()
        {
            return WsStep::Progressed;
        }
        if let Some(heartbeat) = self.subscriber.take_heartbeat() {
            self.queue_frame(heartbeat);
            return WsStep::Progressed;
        }
        (self.is_caught_up, self.is_idle) = (self.subscriber.is_caught_up(), true);
        let is_delayed = !self.next_message_due.is_over(self.subscriber.wheel());
        self.subscriber.wake_when_due(
            if is_delayed { self.next_message_due } else { Deadline::NEVER },
            context,
        );
        WsStep::Waiting
    }

    /// Queues a frame for the next step. `unwritten` is empty here: a step flushes it first.
    fn queue_frame(&mut self, frame: Bytes) {
        self.unwritten.push_back(frame);
    }
}

/// A connection without a shard, as a future that completes when the connection has ended.
#[derive(Debug)]
pub(super) struct WsConnectionTask<S> {
    connection: WsConnection<S>,
    batch: VecDeque<Bytes>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WsConnectionTask<S> {
    /// Returns the task of a socket that has just been upgraded.
    pub(super) fn new(socket: S, subscriber: WsSubscriber) -> Self {
        Self { connection: WsConnection::new(socket, subscriber), batch: VecDeque::new() }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Future for WsConnectionTask<S> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Self { connection, batch } = &mut *self;
        connection.run(context, batch, &mut 0)
    }
}

/// Writes buffers until the socket is full; the rest stays in `batch`.
///
/// # Cancel safety
///
/// `batch` always begins with the first byte that the socket has not accepted.
fn poll_write_batch<S: AsyncWrite + Unpin>(
    socket: &mut S,
    context: &mut Context<'_>,
    batch: &mut VecDeque<Bytes>,
) -> Poll<io::Result<()>> {
    while !batch.is_empty() {
        let (slices, used) = io_slices(batch);
        let written = ready!(poll_write_once(socket, context, slices.split_at(used).0))?;
        advance(batch, written);
    }
    Poll::Ready(Ok(()))
}

/// Writes once, and returns how many bytes the socket accepted, at least one.
///
/// # Errors
///
/// The socket's, and `WriteZero` for a socket that accepts nothing more.
pub(super) fn poll_write_once<S: AsyncWrite + Unpin>(
    socket: &mut S,
    context: &mut Context<'_>,
    slices: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    let socket = Pin::new(socket);
    let written = match slices {
        // The most frequent case, and `write` costs the kernel less than `writev`.
        [only] => socket.poll_write(context, only),
        several => socket.poll_write_vectored(context, several),
    };
    match ready!(written)? {
        0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        written => Poll::Ready(Ok(written)),
    }
}

/// Bytes written in one poll, after which other subscribers get their turn.
const MAX_HANDOVER_BYTES_PER_POLL: usize = 4 * MAX_BATCH_BYTES;

/// Written bytes that cost as much work as one byte of a filter.
const FILTER_COST_FACTOR: usize = 8;

/// Steps in one poll: a bound for clients whose messages cost few bytes, such as pings.
const MAX_STEPS_PER_POLL: usize = 16;
