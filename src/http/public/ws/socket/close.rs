//! Closing handshake of one WebSocket connection (RFC 6455, section 7).
//!
//! May use: no other module.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use futures_core::Stream;
use futures_sink::Sink;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_websockets::{CloseCode, Error, Message};

use super::{WsConnection, WsPhase, WsStep};
use crate::http::admission::DisconnectReason;

impl<S: AsyncRead + AsyncWrite + Unpin> WsConnection<S> {
    /// Waits for the client's close frame.
    pub(super) fn await_close(&mut self, context: &mut Context<'_>) -> WsStep {
        match Pin::new(&mut self.socket).poll_next(context) {
            Poll::Pending => {
                self.subscriber.wake_for_disconnect(self.close_due, context);
                WsStep::Waiting
            }
            Poll::Ready(None | Some(Err(Error::Io(_)))) => WsStep::Closed,
            Poll::Ready(Some(Ok(_))) => WsStep::Progressed,
            Poll::Ready(Some(Err(_))) => {
                self.phase = WsPhase::Lingering;
                WsStep::Progressed
            }
        }
    }

    /// Reads what the client still sends, without looking at it.
    pub(super) fn linger(&mut self, context: &mut Context<'_>) -> WsStep {
        let socket = self.socket.get_mut();
        if let Poll::Ready(Err(_)) = Pin::new(&mut *socket).poll_shutdown(context) {
            return WsStep::Closed;
        }
        let mut storage = [0; LINGER_BUFFER_BYTES];
        let mut buffer = ReadBuf::new(&mut storage);
        match Pin::new(socket).poll_read(context, &mut buffer) {
            Poll::Ready(Ok(())) if !buffer.filled().is_empty() => WsStep::Progressed,
            Poll::Ready(_) => WsStep::Closed,
            Poll::Pending => {
                self.subscriber.wake_for_disconnect(self.close_due, context);
                WsStep::Waiting
            }
        }
    }

    /// Tells the client that the session is over.
    pub(super) fn close(&mut self, code: CloseCode) {
        self.phase = WsPhase::Closing;
        self.start_close_timeout();
        // The codec may have said it already, and refuses a second one.
        let _ = Pin::new(&mut self.socket).start_send(Message::close(Some(code), ""));
    }

    /// From now on the client has a moment, whatever it does, and none past its token's end.
    pub(super) fn start_close_timeout(&mut self) {
        self.close_within(CLOSE_HANDSHAKE_TIMEOUT);
    }

    pub(super) fn close_within(&mut self, time: Duration) {
        if self.close_due == u64::MAX {
            self.close_due = self.subscriber.tick_after_or_end(time);
        }
    }
}

/// What the client is told: to come back, or that it may not.
pub(super) fn close_code(reason: DisconnectReason) -> CloseCode {
    if reason.is_urgent() { CloseCode::POLICY_VIOLATION } else { CloseCode::SERVICE_RESTART }
}

/// What the closing handshake may take.
pub(super) fn close_timeout(reason: DisconnectReason) -> Duration {
    if reason.is_immediate() { IMMEDIATE_CLOSE_TIMEOUT } else { CLOSE_HANDSHAKE_TIMEOUT }
}

/// What a closing handshake may take: less than those who drain are given to leave, after which the
/// wheel stands still.
const CLOSE_HANDSHAKE_TIMEOUT: Duration = Duration::from_millis(1500);

/// The same for a stream that is to be gone within a second, whatever its client does.
const IMMEDIATE_CLOSE_TIMEOUT: Duration = Duration::from_millis(700);

/// Of what is thrown away, at a time.
const LINGER_BUFFER_BYTES: usize = 4 * 1024;
