//! Closing handshake of one WebSocket connection (RFC 6455, section 7), and its time limits.
//!
//! May use: `admission`, `timer_wheel`.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_core::Stream;
use futures_sink::Sink;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_websockets::{CloseCode, Error, Message};

use super::connection::{WsConnection, WsPhase, WsStep};
use crate::{admission::DisconnectReason, timer_wheel::Deadline};

impl WsConnection {
    /// Reads until the client's close frame, or until it breaks the protocol.
    pub(super) fn await_close(&mut self, context: &mut Context<'_>) -> WsStep {
        match Pin::new(&mut self.codec).poll_next(context) {
            Poll::Pending => self.wait_for_close(context),
            Poll::Ready(None) => WsStep::Closed,
            Poll::Ready(Some(Err(Error::Io(error)))) => self.fail(&error),
            Poll::Ready(Some(Ok(_))) => WsStep::Progressed,
            Poll::Ready(Some(Err(_))) => {
                self.phase = WsPhase::Lingering;
                WsStep::Progressed
            }
        }
    }

    /// Shuts the sending side down and discards what the client still sends.
    pub(super) fn linger(&mut self, context: &mut Context<'_>) -> WsStep {
        let transport = self.codec.get_mut();
        if let Poll::Ready(Err(error)) = Pin::new(&mut *transport).poll_shutdown(context) {
            return self.fail(&error);
        }
        let mut storage = [0; LINGER_BUFFER_BYTES];
        let mut buffer = ReadBuf::new(&mut storage);
        match Pin::new(transport).poll_read(context, &mut buffer) {
            Poll::Ready(Ok(())) if !buffer.filled().is_empty() => WsStep::Progressed,
            Poll::Ready(Ok(())) => WsStep::Closed,
            Poll::Ready(Err(error)) => self.fail(&error),
            Poll::Pending => self.wait_for_close(context),
        }
    }

    /// Waits for the client's input, within the time limit.
    fn wait_for_close(&mut self, context: &Context<'_>) -> WsStep {
        let connected = &mut self.subscriber.connected;
        match connected.must_end_while_blocked(Deadline::NEVER, close_grace, context) {
            true => WsStep::Closed,
            false => WsStep::Waiting,
        }
    }

    /// Sends a close frame and starts the closing handshake.
    pub(super) fn close(&mut self, code: CloseCode) {
        self.phase = WsPhase::Closing;
        self.start_close_timeout();
        // The codec refuses a second close frame if it has sent one already.
        let _ = Pin::new(&mut self.codec).start_send(Message::close(Some(code), ""));
    }

    /// Starts the time limit of the handshake, which never lasts past the token's end.
    pub(super) fn start_close_timeout(&mut self) {
        self.subscriber.connected.deadlines().end_within(CLOSE_HANDSHAKE_TIMEOUT);
    }
}

/// Returns the close code: 1012 if the client may reconnect at once, 1008 if it must not retry
/// unchanged.
pub(super) fn close_code(reason: DisconnectReason) -> CloseCode {
    if reason.is_urgent() { CloseCode::POLICY_VIOLATION } else { CloseCode::SERVICE_RESTART }
}

/// Returns the time limit of the closing handshake, for a reason that does not wait until the
/// subscriber has read everything.
pub(super) fn close_grace(reason: DisconnectReason) -> Option<Duration> {
    let grace =
        if reason.is_immediate() { IMMEDIATE_CLOSE_TIMEOUT } else { CLOSE_HANDSHAKE_TIMEOUT };
    reason.is_urgent().then_some(grace)
}

/// Time limit of a closing handshake: less than the 2 s that draining subscribers get for their
/// last bytes, after which the wheel stops.
const CLOSE_HANDSHAKE_TIMEOUT: Duration = Duration::from_millis(1500);

/// Time limit for a revoked or removed subscriber, which must be gone within a second.
const IMMEDIATE_CLOSE_TIMEOUT: Duration = Duration::from_millis(700);

/// Size of one discarding read.
const LINGER_BUFFER_BYTES: usize = 4 * 1024;
