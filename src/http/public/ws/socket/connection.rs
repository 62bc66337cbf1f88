//! State of one WebSocket connection, which reading, writing and closing share.
//!
//! May use: no other module.

use std::collections::VecDeque;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_websockets::{Limits, ServerBuilder, WebSocketStream};

use crate::{http::public::ws::subscriber::WsSubscriber, timer_wheel::Deadline};

/// A WebSocket subscriber and its socket.
#[derive(Debug)]
pub(crate) struct WsConnection<S> {
    pub(crate) socket: WebSocketStream<S>,
    pub(crate) subscriber: WsSubscriber,
    pub(super) phase: WsPhase,
    /// Frames that the socket has not accepted yet.
    pub(crate) unwritten: VecDeque<Bytes>,
    /// The subscriber has every entry, and the socket has accepted all of them.
    pub(crate) is_caught_up: bool,
    /// The connection waits for entries only, and not for its socket or its client.
    pub(crate) is_idle: bool,
    /// Tick at which the connection is closed without further waiting.
    pub(super) close_due: Deadline,
    /// Tick before which the client's next message is not read.
    pub(super) next_message_due: Deadline,
}

/// Phase of a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum WsPhase {
    /// Messages go both ways.
    Open,
    /// A close frame has been queued; the client's own is awaited.
    Closing,
    /// The client violated the protocol and may still be sending. Closing a socket with unread
    /// input resets the connection, and the reset may overtake the close frame.
    Lingering,
}

/// Outcome of one step.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum WsStep {
    /// There may be more to do.
    Progressed,
    /// Nothing to do; a waker is registered.
    Waiting,
    /// The connection has ended.
    Closed,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WsConnection<S> {
    /// Returns the connection of a socket that has just been upgraded.
    pub(crate) fn new(socket: S, subscriber: WsSubscriber) -> Self {
        // The codec's own limit: it stops reading a larger message before the message is in memory.
        let limits = Limits::default().max_payload_len(Some(MAX_CLIENT_MESSAGE_BYTES));
        let socket = ServerBuilder::new().limits(limits).serve(socket);
        let (phase, close_due) = (WsPhase::Open, Deadline::NEVER);
        let (unwritten, is_caught_up, is_idle) = (VecDeque::new(), false, false);
        Self {
            socket,
            subscriber,
            phase,
            unwritten,
            is_caught_up,
            is_idle,
            close_due,
            next_message_due: Deadline::at_tick(0),
        }
    }
}

/// Largest message of a client: a filter of a thousand values fits.
const MAX_CLIENT_MESSAGE_BYTES: usize = 64 * 1024;
