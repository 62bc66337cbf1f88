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
//! The connection belongs to a shard, over TLS and without. Queued events are written by the shard
//! itself (`shard/delivery.rs`), beside the codec.
//!
//! May use: `admission`, `event`, `shard`, `subscriber`, `timer_wheel`.

mod close;
mod connection;
#[cfg(test)]
mod tests;
mod transport;

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use futures_sink::Sink;
use tokio_websockets::{CloseCode, Error, Message};

pub(super) use self::connection::WsConnection;
use self::{
    close::{close_code, close_grace},
    connection::{WsPhase, WsStep},
};
use crate::{
    admission::DisconnectReason,
    event::Scope,
    shard::{FlowState, ShardSubscriber, SubscriberParts},
    subscriber::{SubscriberFault, WriteScratch},
    timer_wheel::Deadline,
};

impl ShardSubscriber for WsConnection {
    fn parts(&mut self) -> SubscriberParts<'_> {
        SubscriberParts {
            connected: &mut self.subscriber.connected,
            socket: &mut self.codec.get_mut().socket,
            flow: &mut self.flow,
        }
    }

    fn take_requested_scope(&mut self) -> Option<Scope> {
        self.subscriber.take_requested_scope()
    }

    /// Runs steps within the bounds of one poll.
    fn poll(&mut self, context: &mut Context<'_>, scratch: &mut WriteScratch) -> Poll<()> {
        self.flow = FlowState::Busy;
        self.codec.get_mut().set_read_budget(SOCKET_READS_PER_POLL);
        let budget_end = scratch.written_bytes + MAX_HANDOVER_BYTES_PER_POLL;
        for _ in 0..MAX_STEPS_PER_POLL {
            if scratch.written_bytes > budget_end {
                break;
            }
            match self.step(context, scratch) {
                WsStep::Progressed => {}
                WsStep::Waiting => return Poll::Pending,
                WsStep::Closed => return Poll::Ready(()),
            }
        }
        context.waker().wake_by_ref(); // the other subscribers of the thread first
        Poll::Pending
    }
}

impl WsConnection {
    /// Runs one step: flush, then what the phase calls for.
    fn step(&mut self, context: &mut Context<'_>, scratch: &mut WriteScratch) -> WsStep {
        let connected = &mut self.subscriber.connected;
        let reason = connected.check_disconnect();
        if let Some(grace) = reason.and_then(close_grace) {
            connected.deadlines().end_within(grace);
        }
        if connected.deadlines().is_end_reached() {
            return WsStep::Closed;
        }
        match self.flush(context, scratch) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => return self.fail(&error),
            Poll::Pending => return self.wait_for_writable(context),
        }
        match self.phase {
            WsPhase::Closing => return self.await_close(context),
            WsPhase::Lingering => return self.linger(context),
            WsPhase::Open => {}
        }
        let has_delivered_all = self.subscriber.connected.has_delivered_all();
        if let Some(reason) = reason.filter(|it| it.is_urgent() || has_delivered_all) {
            self.close(close_code(reason));
            return WsStep::Progressed;
        }
        let read = self.read_message(context, scratch);
        if read == WsStep::Closed || self.phase != WsPhase::Open {
            return read;
        }
        match (read, self.send_queued(context, scratch)) {
            (_, WsStep::Closed) => WsStep::Closed,
            (WsStep::Waiting, WsStep::Waiting) => self.go_idle(context),
            _ => WsStep::Progressed,
        }
    }

    /// Writes unwritten frames, then those of the codec, within the write deadline.
    fn flush(
        &mut self,
        context: &mut Context<'_>,
        scratch: &mut WriteScratch,
    ) -> Poll<io::Result<()>> {
        let Self { codec, subscriber, .. } = self;
        let wheel = subscriber.connected.deadlines().wheel();
        ready!(codec.get_mut().socket.poll_flush(context, scratch, wheel))?;
        match Pin::new(&mut *codec).poll_flush(context) {
            Poll::Pending => {
                codec.get_mut().socket.check_write_deadline(wheel, scratch.write_timeout)?;
                Poll::Pending
            }
            Poll::Ready(Ok(())) => {
                codec.get_mut().socket.record_progress();
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(Error::Io(error))) => Poll::Ready(Err(error)),
            Poll::Ready(Err(_)) => Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
        }
    }

    /// Waits for a writable socket, up to the write deadline or the subscriber's end.
    fn wait_for_writable(&mut self, context: &Context<'_>) -> WsStep {
        let write_due = self.socket().write_due();
        let connected = &mut self.subscriber.connected;
        connected.subscription().give_back_read_ahead();
        connected.record_backlog();
        match connected.must_end_while_blocked(write_due, close_grace, context) {
            true => WsStep::Closed,
            false => WsStep::Waiting,
        }
    }

    /// Reads and handles one message of the client.
    fn read_message(&mut self, context: &mut Context<'_>, scratch: &mut WriteScratch) -> WsStep {
        if !self.is_next_message_due() {
            return WsStep::Waiting;
        }
        match Pin::new(&mut self.codec).poll_next(context) {
            Poll::Pending => WsStep::Waiting,
            Poll::Ready(None) => WsStep::Closed,
            Poll::Ready(Some(Ok(message))) => {
                self.handle_message(message, scratch);
                WsStep::Progressed
            }
            Poll::Ready(Some(Err(Error::Io(error)))) => self.fail(&error),
            Poll::Ready(Some(Err(error))) => {
                self.subscriber.connected.record_fault(SubscriberFault::Violation);
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

    fn is_next_message_due(&mut self) -> bool {
        self.next_message_due.is_over(self.subscriber.connected.deadlines().wheel())
    }

    /// Handles a text, binary or close message; the codec has answered pings and a close by itself.
    fn handle_message(&mut self, message: Message, scratch: &mut WriteScratch) {
        if message.is_text() {
            // One message per tick: a client that floods delays its own messages only.
            self.next_message_due = self.subscriber.connected.next_tick();
            let text = message.into_payload();
            // Parsing counts against the turn budget, as bytes written do.
            scratch.written_bytes += text.len() * FILTER_COST_FACTOR;
            let answer = self.subscriber.handle_subscribe(&text);
            self.queue_frame(answer);
        } else if message.is_binary() {
            self.subscriber.connected.record_fault(SubscriberFault::Violation);
            self.close(CloseCode::UNSUPPORTED_DATA);
        } else if message.is_close() {
            self.phase = WsPhase::Closing;
            self.start_close_timeout();
        }
    }

    /// Takes messages from the subscriber, up to one write batch, and writes them.
    fn send_queued(&mut self, context: &mut Context<'_>, scratch: &mut WriteScratch) -> WsStep {
        if self.socket().has_unwritten() {
            // An answer to the client goes first, and so does one of the TLS session.
            return WsStep::Progressed;
        }
        while !scratch.batch.is_full() {
            let Poll::Ready(message) = self.subscriber.poll_message(context) else { break };
            scratch.batch.push(message);
        }
        if scratch.batch.is_empty() {
            return WsStep::Waiting;
        }
        match self.codec.get_mut().socket.write(scratch) {
            Ok(()) => WsStep::Progressed,
            Err(error) => self.fail(&error),
        }
    }

    /// Queues a heartbeat if one is due; otherwise sets the alarm and sleeps.
    fn go_idle(&mut self, context: &Context<'_>) -> WsStep {
        // A second time: `poll_message` has registered the waker, so a disconnect is either seen
        // here or wakes the task.
        let connected = &mut self.subscriber.connected;
        if connected.check_disconnect().is_some_and(DisconnectReason::is_urgent)
            || connected.has_delivered_all()
        {
            return WsStep::Progressed;
        }
        if let Some(heartbeat) = self.subscriber.take_heartbeat() {
            self.queue_frame(heartbeat);
            return WsStep::Progressed;
        }
        self.flow = match self.subscriber.is_caught_up() {
            true => FlowState::CaughtUp,
            false => FlowState::ReadsLog,
        };
        let message_due = match self.is_next_message_due() {
            true => Deadline::NEVER,
            false => self.next_message_due,
        };
        self.subscriber.connected.wake_when_idle(message_due, context);
        WsStep::Waiting
    }
}

/// Bytes written in one poll, after which other subscribers get their turn.
const MAX_HANDOVER_BYTES_PER_POLL: usize = 128 * 1024;

/// Written bytes that cost as much work as one byte of a filter.
const FILTER_COST_FACTOR: usize = 8;

/// Steps in one poll: a bound for clients whose messages cost few bytes, such as pings.
const MAX_STEPS_PER_POLL: usize = 16;

/// Reads of the socket in one poll, after which the shard's other subscribers get their turn.
const SOCKET_READS_PER_POLL: u8 = 4;
