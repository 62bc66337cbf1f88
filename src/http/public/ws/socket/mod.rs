//! One WebSocket subscriber's connection.
//!
//! ```text
//! flush ─► read one message ─► hand over up to 32 KiB ─► flush …      nothing to do: heartbeat, or wait
//! ```
//!
//! Nothing is read, from the log or from the client, before everything that was handed over is written: so a client that
//! takes nothing pins one hand-over, and one that sends pings and takes no answer gets no further.
//!
//! The codec reads, answers pings and closes. What the relay has to say is in its frames already, which all who get it share, and
//! goes to the socket beside the codec, whenever that has nothing to send itself.
//!
//! On a socket of its own it belongs to a lane, which gives it what arrives; with TLS it is a task by itself.
//!
//! May use: nothing.

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
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_websockets::{CloseCode, Error, Limits, Message, ServerBuilder, WebSocketStream};

use super::subscriber::Visitor;
use crate::{
    http::admission::Leave,
    shard::{MOST_BYTES, MOST_PIECES, advance, slices},
};

/// A subscriber and its socket.
#[derive(Debug)]
pub(super) struct Session<S> {
    pub(super) socket: WebSocketStream<S>,
    pub(super) visitor: Visitor,
    phase: Phase,
    /// Frames that the socket has not taken yet.
    pub(super) rest: VecDeque<Bytes>,
    /// It has everything, and can take more.
    pub(super) is_following: bool,
    /// It waits for nothing but what there will be for it.
    pub(super) is_idle: bool,
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

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    /// A session on a socket that has just been upgraded.
    pub(super) fn new(socket: S, visitor: Visitor) -> Self {
        let limits = Limits::default().max_payload_len(Some(LARGEST_MESSAGE));
        let socket = ServerBuilder::new().limits(limits).serve(socket);
        let (phase, cut_due) = (Phase::Open, u64::MAX);
        let (rest, is_following, is_idle) = (VecDeque::new(), false, false);
        Self { socket, visitor, phase, rest, is_following, is_idle, cut_due, next_message: 0 }
    }

    /// Does what there is to do, and tells whether it has ended. `pieces` is empty before and after; `bytes` counts what is
    /// handed over.
    pub(super) fn run(
        &mut self,
        context: &mut Context<'_>,
        pieces: &mut VecDeque<Bytes>,
        bytes: &mut usize,
    ) -> Poll<()> {
        (self.is_following, self.is_idle) = (false, false);
        let most = *bytes + TURN_BYTES;
        for _ in 0..STEPS {
            if *bytes > most {
                break;
            }
            match self.step(context, pieces, bytes) {
                Step::Done => {}
                Step::Waiting => return Poll::Pending,
                Step::Over => return Poll::Ready(()),
            }
        }
        context.waker().wake_by_ref(); // others are to have their turn
        Poll::Pending
    }

    fn step(&mut self, context: &mut Context<'_>, pieces: &mut VecDeque<Bytes>, bytes: &mut usize) -> Step {
        if self.visitor.now() >= self.cut_due {
            return Step::Over;
        }
        let leave = self.visitor.must_leave();
        let is_urgent = leave.is_some_and(Leave::is_urgent);
        if let Some(leave) = leave.filter(|_| is_urgent) {
            self.end_within(closing_time(leave));
        }
        match self.flush(context) {
            Poll::Ready(true) => {}
            Poll::Ready(false) => return Step::Over,
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
        let read = self.read(context, bytes);
        if read == Step::Over || self.phase != Phase::Open {
            return read;
        }
        match (read, self.hand_over(context, pieces, bytes)) {
            (_, Step::Over) => Step::Over,
            (Step::Waiting, Step::Waiting) => self.idle(context),
            _ => Step::Done,
        }
    }

    /// Writes what is left of earlier writes, and then what the codec has to say. Whether the socket still takes something.
    fn flush(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        if !self.rest.is_empty() {
            match ready!(write(self.socket.get_mut(), context, &mut self.rest)) {
                Ok(()) => self.rest = VecDeque::new(), // who sleeps needs no room for it
                Err(_) => return Poll::Ready(false),
            }
        }
        Pin::new(&mut self.socket).poll_flush(context).map(|flushed| flushed.is_ok())
    }

    /// The socket is full. Its own deadline looks after a client that takes nothing; the task must only hear of what ends the
    /// session before that.
    fn wait_for_room(&mut self, context: &Context<'_>) -> Step {
        self.visitor.is_stuck();
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
    fn read(&mut self, context: &mut Context<'_>, bytes: &mut usize) -> Step {
        if self.visitor.now() < self.next_message {
            return Step::Waiting;
        }
        match Pin::new(&mut self.socket).poll_next(context) {
            Poll::Pending => Step::Waiting,
            Poll::Ready(None) => Step::Over,
            Poll::Ready(Some(Ok(message))) => {
                self.heed(message, bytes);
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
    fn heed(&mut self, message: Message, bytes: &mut usize) {
        if message.is_text() {
            // One a tick: a client that floods waits for its own messages, and nobody else does.
            self.next_message = self.visitor.after(Duration::ZERO);
            let text = message.into_payload();
            *bytes += text.len() * OBEYING; // the turn is over the sooner
            let answer = self.visitor.obey(&text);
            self.say(answer);
        } else if message.is_binary() {
            self.visitor.blame();
            self.close(CloseCode::UNSUPPORTED_DATA);
        } else if message.is_close() {
            self.phase = Phase::Closing;
            self.end_soon();
        }
    }

    /// Takes what there is for the client, up to a hand-over, and writes it.
    fn hand_over(&mut self, context: &mut Context<'_>, pieces: &mut VecDeque<Bytes>, bytes: &mut usize) -> Step {
        if !self.rest.is_empty() {
            return Step::Waiting; // an answer goes before it
        }
        let mut taken = 0;
        while taken < MOST_BYTES && pieces.len() < MOST_PIECES {
            let Poll::Ready(message) = self.visitor.poll_message(context) else { break };
            taken += message.len();
            pieces.push_back(message);
        }
        *bytes += taken;
        match self.write(context, pieces) {
            Ok(()) if taken > 0 => Step::Done,
            Ok(()) => Step::Waiting,
            Err(_) => Step::Over,
        }
    }

    /// Writes pieces, and keeps what the socket does not take.
    fn write(&mut self, context: &mut Context<'_>, pieces: &mut VecDeque<Bytes>) -> io::Result<()> {
        match write(self.socket.get_mut(), context, pieces) {
            Poll::Ready(written) => written,
            Poll::Pending => {
                self.rest.extend(pieces.drain(..));
                Ok(())
            }
        }
    }

    /// There is nothing to do: a heartbeat is due, or the task sleeps.
    fn idle(&mut self, context: &Context<'_>) -> Step {
        // Again, now that whoever dismisses it knows whom to wake.
        if self.visitor.must_leave().is_some_and(Leave::is_urgent) || self.visitor.has_everything() {
            return Step::Done;
        }
        if let Some(heartbeat) = self.visitor.heartbeat() {
            self.say(heartbeat);
            return Step::Done;
        }
        (self.is_following, self.is_idle) = (self.visitor.is_following(), true);
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

    /// Has a frame written at the next step, which is the first of what is written then.
    fn say(&mut self, frame: Bytes) {
        self.rest.push_back(frame);
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

/// A session that no lane looks after, as a future that ends with it.
#[derive(Debug)]
pub(super) struct Alone<S> {
    session: Session<S>,
    pieces: VecDeque<Bytes>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Alone<S> {
    /// A session on what has just been upgraded.
    pub(super) fn new(socket: S, visitor: Visitor) -> Self {
        Self { session: Session::new(socket, visitor), pieces: VecDeque::new() }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Future for Alone<S> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Self { session, pieces } = &mut *self;
        session.run(context, pieces, &mut 0)
    }
}

/// Writes pieces until the socket is full; what it does not take stays.
fn write<S: AsyncWrite + Unpin>(
    socket: &mut S,
    context: &mut Context<'_>,
    pieces: &mut VecDeque<Bytes>,
) -> Poll<io::Result<()>> {
    while !pieces.is_empty() {
        let (slices, used) = slices(pieces);
        let written = ready!(write_once(socket, context, slices.split_at(used).0))?;
        advance(pieces, written);
    }
    Poll::Ready(Ok(()))
}

/// Writes what the socket takes at once of this, which is not nothing.
pub(super) fn write_once<S: AsyncWrite + Unpin>(
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

/// What a closing handshake may take: less than those who drain are given to leave, after which the wheel stands still.
const CLOSING_TIME: Duration = Duration::from_millis(1500);

/// The same for a stream that is to be gone within a second, whatever its client does.
const CLOSING_TIME_AT_ONCE: Duration = Duration::from_millis(700);

/// Of what is thrown away, at a time.
const LINGERING_BYTES: usize = 4 * 1024;

/// Handed over in one poll, after which others have their turn.
const TURN_BYTES: usize = 4 * MOST_BYTES;

/// A byte of a filter is as much work as so many that are written.
const OBEYING: usize = 8;

/// In one poll.
const STEPS: usize = 16;
