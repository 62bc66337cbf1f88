//! One WebSocket subscriber's connection.
//!
//! ```text
//! flush ─► read one message ─► hand over up to 32 KiB ─► flush …      nothing to do: heartbeat, or wait
//! ```
//!
//! Nothing is read, from the log or from the client, before everything that was handed over is
//! written: so a client that takes nothing pins one hand-over, and one that sends pings and takes
//! no answer gets no further.
//!
//! The codec reads, answers pings and closes. What the relay has to say is in its frames already,
//! which all who get it share, and goes to the socket beside the codec, whenever that has nothing
//! to send itself.
//!
//! On a socket of its own it belongs to a lane, which gives it what arrives; with TLS it is a task
//! by itself.
//!
//! May use: `shard`.

mod close;
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
use tokio_websockets::{CloseCode, Error, Limits, Message, ServerBuilder, WebSocketStream};

use self::close::{close_code, close_timeout};
use super::subscriber::WsSubscriber;
use crate::{
    http::admission::DisconnectReason,
    shard::{MAX_BATCH_BUFFERS, MAX_BATCH_BYTES, advance, io_slices},
};

/// A subscriber and its socket.
#[derive(Debug)]
pub(super) struct WsConnection<S> {
    pub(super) socket: WebSocketStream<S>,
    pub(super) subscriber: WsSubscriber,
    phase: WsPhase,
    /// Frames that the socket has not taken yet.
    pub(super) unwritten: VecDeque<Bytes>,
    /// It has everything, and can take more.
    pub(super) is_caught_up: bool,
    /// It waits for nothing but what there will be for it.
    pub(super) is_idle: bool,
    /// The tick at which the connection is cut, if it has not ended by then.
    close_due: u64,
    /// The tick at which the client's next message is read.
    next_message_due: u64,
}

/// How far a session has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum WsPhase {
    /// Messages go both ways.
    Open,
    /// A close frame is on its way; the client's own is awaited.
    Closing,
    /// The client was told what it did wrong, and may still be sending. Closing the socket on that
    /// would be a reset, which may overtake the close frame.
    Lingering,
}

/// What came of one step.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum WsStep {
    /// Something: there may be more to do.
    Progressed,
    /// Nothing: the task will be woken.
    Waiting,
    /// The connection is at its end.
    Closed,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WsConnection<S> {
    /// A session on a socket that has just been upgraded.
    pub(super) fn new(socket: S, subscriber: WsSubscriber) -> Self {
        let limits = Limits::default().max_payload_len(Some(MAX_CLIENT_MESSAGE_BYTES));
        let socket = ServerBuilder::new().limits(limits).serve(socket);
        let (phase, close_due) = (WsPhase::Open, u64::MAX);
        let (unwritten, is_caught_up, is_idle) = (VecDeque::new(), false, false);
        Self {
            socket,
            subscriber,
            phase,
            unwritten,
            is_caught_up,
            is_idle,
            close_due,
            next_message_due: 0,
        }
    }

    /// Does what there is to do, and tells whether it has ended. `batch` is empty before and
    /// after; `bytes` counts what is handed over.
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
        context.waker().wake_by_ref(); // others are to have their turn
        Poll::Pending
    }

    fn step(
        &mut self,
        context: &mut Context<'_>,
        batch: &mut VecDeque<Bytes>,
        handed_over: &mut usize,
    ) -> WsStep {
        if self.subscriber.now() >= self.close_due {
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

    /// Writes what is left of earlier writes, and then what the codec has to say. Whether the
    /// socket still takes something.
    fn flush(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        if !self.unwritten.is_empty() {
            match ready!(poll_write_batch(self.socket.get_mut(), context, &mut self.unwritten)) {
                Ok(()) => self.unwritten = VecDeque::new(), // who sleeps needs no room for it
                Err(_) => return Poll::Ready(false),
            }
        }
        Pin::new(&mut self.socket).poll_flush(context).map(|flushed| flushed.is_ok())
    }

    /// The socket is full. Its own deadline looks after a client that takes nothing; the task must
    /// only hear of what ends the session before that.
    fn wait_for_writable(&mut self, context: &Context<'_>) -> WsStep {
        self.subscriber.record_backlog();
        self.subscriber.wake_for_disconnect(self.close_due, context);
        // Again, now that whoever dismisses it knows whom to wake.
        if self.close_due == u64::MAX
            && let Some(reason) =
                self.subscriber.check_disconnect().filter(|leave| leave.is_urgent())
        {
            self.close_within(close_timeout(reason));
            self.subscriber.wake_for_disconnect(self.close_due, context);
        }
        WsStep::Waiting
    }

    /// Takes one message of the client.
    fn read_message(&mut self, context: &mut Context<'_>, handed_over: &mut usize) -> WsStep {
        if self.subscriber.now() < self.next_message_due {
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
                // Of the rest the codec has told the client itself; it does not tell of a message
                // in fragments.
                if matches!(error, Error::PayloadTooLong { .. }) {
                    self.close(CloseCode::MESSAGE_TOO_BIG);
                }
                self.phase = WsPhase::Lingering;
                self.start_close_timeout();
                WsStep::Progressed
            }
        }
    }

    /// Pings have been answered by the codec, and so has a close.
    fn handle_message(&mut self, message: Message, handed_over: &mut usize) {
        if message.is_text() {
            // One a tick: a client that floods waits for its own messages, and nobody else does.
            self.next_message_due = self.subscriber.tick_after(Duration::ZERO);
            let text = message.into_payload();
            *handed_over += text.len() * FILTER_COST_FACTOR; // the turn is over the sooner
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

    /// Takes what there is for the client, up to a hand-over, and writes it.
    fn send_queued(
        &mut self,
        context: &mut Context<'_>,
        batch: &mut VecDeque<Bytes>,
        handed_over: &mut usize,
    ) -> WsStep {
        if !self.unwritten.is_empty() {
            return WsStep::Waiting; // an answer goes before it
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

    /// Writes pieces, and keeps what the socket does not take.
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

    /// There is nothing to do: a heartbeat is due, or the task sleeps.
    fn go_idle(&mut self, context: &Context<'_>) -> WsStep {
        // Again, now that whoever dismisses it knows whom to wake.
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
        let is_delayed = self.subscriber.now() < self.next_message_due;
        self.subscriber
            .wake_when_due(if is_delayed { self.next_message_due } else { u64::MAX }, context);
        WsStep::Waiting
    }

    /// Has a frame written at the next step, which is the first of what is written then.
    fn queue_frame(&mut self, frame: Bytes) {
        self.unwritten.push_back(frame);
    }
}

/// A session that no lane looks after, as a future that ends with it.
#[derive(Debug)]
pub(super) struct WsConnectionTask<S> {
    connection: WsConnection<S>,
    batch: VecDeque<Bytes>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WsConnectionTask<S> {
    /// A session on what has just been upgraded.
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

/// Writes pieces until the socket is full; what it does not take stays.
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

/// Writes what the socket takes at once of this, which is not nothing.
pub(super) fn poll_write_once<S: AsyncWrite + Unpin>(
    socket: &mut S,
    context: &mut Context<'_>,
    slices: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    let socket = Pin::new(socket);
    let written = match slices {
        // As most are; the kernel has less to do for one.
        [only] => socket.poll_write(context, only),
        several => socket.poll_write_vectored(context, several),
    };
    match ready!(written)? {
        0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        written => Poll::Ready(Ok(written)),
    }
}

/// A filter of a thousand values has room in it.
const MAX_CLIENT_MESSAGE_BYTES: usize = 64 * 1024;

/// Handed over in one poll, after which others have their turn.
const MAX_HANDOVER_BYTES_PER_POLL: usize = 4 * MAX_BATCH_BYTES;

/// A byte of a filter is as much work as so many that are written.
const FILTER_COST_FACTOR: usize = 8;

/// In one poll.
const MAX_STEPS_PER_POLL: usize = 16;
