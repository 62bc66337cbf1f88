//! State of one WebSocket connection, which reading, writing and closing share.
//!
//! May use: `shard`, `subscriber`, `timer_wheel`.

use std::io;

use bytes::Bytes;
use tokio_websockets::{Limits, ServerBuilder, WebSocketStream};

use super::transport::WsTransport;
use crate::{
    http::public::ws::subscriber::WsSubscriber,
    shard::FlowState,
    subscriber::{SubscriberSocket, WriteBatch},
    timer_wheel::Deadline,
};

/// A WebSocket subscriber, its codec and its socket.
#[derive(Debug)]
pub(crate) struct WsConnection {
    /// First: its socket is closed before the permit is returned, so that a drain waits for it.
    pub(super) codec: WebSocketStream<WsTransport>,
    pub(super) subscriber: WsSubscriber,
    pub(super) phase: WsPhase,
    pub(super) flow: FlowState,
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

impl WsConnection {
    /// Returns the connection of a socket that has just been upgraded. `read_ahead` is input that
    /// came with the request.
    pub(crate) fn new(
        socket: SubscriberSocket,
        read_ahead: Bytes,
        subscriber: WsSubscriber,
    ) -> Self {
        // The codec's own limit: it stops reading a larger message before the message is in memory.
        let limits = Limits::default().max_payload_len(Some(MAX_CLIENT_MESSAGE_BYTES));
        let transport = WsTransport::new(socket, read_ahead);
        Self {
            codec: ServerBuilder::new().limits(limits).serve(transport),
            subscriber,
            phase: WsPhase::Open,
            flow: FlowState::Busy,
            next_message_due: Deadline::at_tick(0),
        }
    }

    /// Returns the socket below the codec.
    pub(super) fn socket(&mut self) -> &mut SubscriberSocket {
        &mut self.codec.get_mut().socket
    }

    /// Ends the connection because its socket has failed.
    pub(super) fn fail(&mut self, error: &io::Error) -> WsStep {
        self.subscriber.connected.record_io_error(error);
        WsStep::Closed
    }

    /// Queues a frame for the next step, behind what the socket has not taken yet.
    pub(super) fn queue_frame(&mut self, frame: Bytes) {
        let mut batch = WriteBatch::default();
        batch.push(frame);
        self.socket().keep_unwritten(&mut batch);
    }
}

/// Largest message of a client: a filter of a thousand values fits.
const MAX_CLIENT_MESSAGE_BYTES: usize = 64 * 1024;
