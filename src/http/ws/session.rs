//! One WebSocket subscriber's connection, as a future that ends with it.
//!
//! ```text
//! flush ─► read one message ─► hand over up to 32 KiB ─► flush …      nothing to do: heartbeat, or wait
//! ```
//!
//! Nothing is read, from the log or from the client, before everything that was handed over is written: so a client that
//! takes nothing pins one hand-over, and one that sends pings and takes no answer gets no further.
//!
//! May use: `net`.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_core::Stream;
use futures_sink::Sink;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_websockets::{CloseCode, Error, Limits, Message, ServerBuilder, WebSocketStream};

use super::visitor::Visitor;
use crate::http::subscribers::Leave;

/// A subscriber and its socket.
#[derive(Debug)]
pub(super) struct Session {
    socket: WebSocketStream<TokioIo<Upgraded>>,
    visitor: Visitor,
    phase: Phase,
    /// The tick at which the connection is cut, if it has not ended by then.
    cut_due: u64,
    /// The tick at which the client's next message is read.
    next_message: u64,
}

/// How far a session has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    /// Messages go both ways.
    Open,
    /// A close frame is on its way; the client's own is awaited.
    Closing,
    /// The client was told what it did wrong, and may still be sending. Closing the socket on that would be a reset, which may
    /// overtake the close frame.
    Lingering,
}

/// What came of one step.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    /// Something: there may be more to do.
    Done,
    /// Nothing: the task will be woken.
    Waiting,
    /// The connection is at its end.
    Over,
}

impl Session {
    /// A session on a socket that has just been upgraded.
    pub(super) fn new(socket: TokioIo<Upgraded>, visitor: Visitor) -> Self {
        let limits = Limits::default().max_payload_len(Some(LARGEST_MESSAGE));
        let socket = ServerBuilder::new().limits(limits).serve(socket);
        Self { socket, visitor, phase: Phase::Open, cut_due: u64::MAX, next_message: 0 }
    }

    fn step(&mut self, context: &mut Context<'_>) -> Step {
        if self.visitor.now() >= self.cut_due {
            return Step::Over;
        }
        let leave = self.visitor.must_leave();
        let is_urgent = leave.is_some_and(Leave::is_urgent);
        if let Some(leave) = leave.filter(|_| is_urgent) {
            self.end_within(closing_time(leave));
        }
        match Pin::new(&mut self.socket).poll_flush(context) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) => return Step::Over,
            Poll::Pending => return self.wait_for_room(context),
        }
        match self.phase {
            Phase::Closing => return self.await_close(context),
            Phase::Lingering => return self.linger(context),
            Phase::Open => {}
        }
        if let Some(leave) = leave.filter(|_| is_urgent || self.visitor.has_everything()) {
            self.close(close_code(leave));
            return Step::Done;
        }
        let read = self.read(context);
        if read == Step::Over || self.phase != Phase::Open {
            return read;
        }
        match (read, self.hand_over(context)) {
            (Step::Waiting, Step::Waiting) => self.idle(context),
            _ => Step::Done,
        }
    }

    /// The socket is full. Its own deadline looks after a client that takes nothing; the task must only hear of what ends the
    /// session before that.
    fn wait_for_room(&mut self, context: &Context<'_>) -> Step {
        self.visitor.wake_to_leave(self.cut_due, context);
        // Again, now that whoever dismisses it knows whom to wake.
        if self.cut_due == u64::MAX
            && let Some(leave) = self.visitor.must_leave().filter(|leave| leave.is_urgent())
        {
            self.end_within(closing_time(leave));
            self.visitor.wake_to_leave(self.cut_due, context);
        }
        Step::Waiting
    }

    /// Takes one message of the client.
    fn read(&mut self, context: &mut Context<'_>) -> Step {
        if self.visitor.now() < self.next_message {
            return Step::Waiting;
        }
        match Pin::new(&mut self.socket).poll_next(context) {
            Poll::Pending => Step::Waiting,
            Poll::Ready(None) => Step::Over,
            Poll::Ready(Some(Ok(message))) => {
                self.heed(message);
                Step::Done
            }
            Poll::Ready(Some(Err(Error::Io(_)))) => Step::Over,
            Poll::Ready(Some(Err(error))) => {
                self.visitor.blame();
                // Of the rest the codec has told the client itself; it does not tell of a message in fragments.
                if matches!(error, Error::PayloadTooLong { .. }) {
                    self.close(CloseCode::MESSAGE_TOO_BIG);
                }
                self.phase = Phase::Lingering;
                self.end_soon();
                Step::Done
            }
        }
    }

    /// Pings have been answered by the codec, and so has a close.
    fn heed(&mut self, message: Message) {
        if message.is_text() {
            // One a tick: a client that floods waits for its own messages, and nobody else does.
            self.next_message = self.visitor.after(Duration::ZERO);
            let answer = self.visitor.obey(&message.into_payload());
            self.send(answer);
        } else if message.is_binary() {
            self.visitor.blame();
            self.close(CloseCode::UNSUPPORTED_DATA);
        } else if message.is_close() {
            self.phase = Phase::Closing;
            self.end_soon();
        }
    }

    /// Takes what there is for the client, up to a hand-over.
    fn hand_over(&mut self, context: &mut Context<'_>) -> Step {
        let mut bytes = 0;
        while bytes < HANDOVER_BYTES {
            let Poll::Ready(message) = self.visitor.poll_message(context) else { break };
            bytes += message.as_payload().len();
            self.send(message);
        }
        if bytes > 0 { Step::Done } else { Step::Waiting }
    }

    /// There is nothing to do: a heartbeat is due, or the task sleeps.
    fn idle(&mut self, context: &Context<'_>) -> Step {
        // Again, now that whoever dismisses it knows whom to wake.
        if self.visitor.must_leave().is_some_and(Leave::is_urgent) || self.visitor.has_everything() {
            return Step::Done;
        }
        if let Some(heartbeat) = self.visitor.heartbeat() {
            self.send(heartbeat);
            return Step::Done;
        }
        let is_delayed = self.visitor.now() < self.next_message;
        self.visitor.wake_when_due(if is_delayed { self.next_message } else { u64::MAX }, context);
        Step::Waiting
    }

    /// Waits for the client's close frame.
    fn await_close(&mut self, context: &mut Context<'_>) -> Step {
        match Pin::new(&mut self.socket).poll_next(context) {
            Poll::Pending => {
                self.visitor.wake_to_leave(self.cut_due, context);
                Step::Waiting
            }
            Poll::Ready(None | Some(Err(Error::Io(_)))) => Step::Over,
            Poll::Ready(Some(Ok(_))) => Step::Done,
            Poll::Ready(Some(Err(_))) => {
                self.phase = Phase::Lingering;
                Step::Done
            }
        }
    }

    /// Reads what the client still sends, without looking at it.
    fn linger(&mut self, context: &mut Context<'_>) -> Step {
        let socket = self.socket.get_mut();
        if let Poll::Ready(Err(_)) = Pin::new(&mut *socket).poll_shutdown(context) {
            return Step::Over;
        }
        let mut space = [0; LINGERING_BYTES];
        let mut buffer = ReadBuf::new(&mut space);
        match Pin::new(socket).poll_read(context, &mut buffer) {
            Poll::Ready(Ok(())) if !buffer.filled().is_empty() => Step::Done,
            Poll::Ready(_) => Step::Over,
            Poll::Pending => {
                self.visitor.wake_to_leave(self.cut_due, context);
                Step::Waiting
            }
        }
    }

    /// Queues a message. Only as much is ever queued as one step hands over.
    fn send(&mut self, message: Message) {
        if Pin::new(&mut self.socket).start_send(message).is_err() {
            self.phase = Phase::Closing;
            self.end_soon();
        }
    }

    /// Tells the client that the session is over.
    fn close(&mut self, code: CloseCode) {
        self.phase = Phase::Closing;
        self.end_soon();
        // The codec may have said it already, and refuses a second one.
        let _ = Pin::new(&mut self.socket).start_send(Message::close(Some(code), ""));
    }

    /// From now on the client has a moment, whatever it does, and none past its token's end.
    fn end_soon(&mut self) {
        self.end_within(CLOSING_TIME);
    }

    fn end_within(&mut self, time: Duration) {
        if self.cut_due == u64::MAX {
            self.cut_due = self.visitor.after_or_end(time);
        }
    }
}

impl Future for Session {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        for _ in 0..STEPS {
            match self.step(context) {
                Step::Done => {}
                Step::Waiting => return Poll::Pending,
                Step::Over => return Poll::Ready(()),
            }
        }
        // Others are to have their turn.
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

/// What the client is told: to come back, or that it may not.
fn close_code(leave: Leave) -> CloseCode {
    if leave.is_urgent() { CloseCode::POLICY_VIOLATION } else { CloseCode::SERVICE_RESTART }
}

/// What the closing handshake may take.
fn closing_time(leave: Leave) -> Duration {
    if leave.is_at_once() { CLOSING_TIME_AT_ONCE } else { CLOSING_TIME }
}

/// A filter of a thousand values has room in it.
const LARGEST_MESSAGE: usize = 64 * 1024;

/// Enough to fill a write, little enough that a stalled subscriber pins next to nothing.
const HANDOVER_BYTES: usize = 32 * 1024;

/// What a closing handshake may take: less than those who drain are given to leave, after which the wheel stands still.
const CLOSING_TIME: Duration = Duration::from_millis(1500);

/// The same for a stream that is to be gone within a second, whatever its client does.
const CLOSING_TIME_AT_ONCE: Duration = Duration::from_millis(700);

/// Of what is thrown away, at a time.
const LINGERING_BYTES: usize = 4 * 1024;

/// In one poll.
const STEPS: usize = 16;
