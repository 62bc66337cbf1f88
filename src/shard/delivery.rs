//! Direct delivery: queued events to one caught-up subscriber, in one write.
//!
//! ```text
//! caught up? ─► accept: in scope, not delivered before ─► slices of the events ─► one write ─┬─ all
//!     └─ no: read the log                                                      unwritten ◄──┴─ rest
//! ```
//!
//! The bytes are the event's own buffer (SSE), or the message that the shard's subscribers share
//! (WebSocket): no delivery copies a payload or touches a reference count.
//!
//! May use: `event`, `metrics`, `subscriber`.

use std::{io::IoSlice, sync::Arc};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    DeliveryOutcome, FlowState, QueuedEvents, SubscriberParts, metrics_buffers::MetricsBuffers,
};
use crate::{
    event::Event,
    metrics::Transport,
    subscriber::{
        ConnectedSubscriber, MAX_BATCH_BUFFERS, MAX_BATCH_BYTES, WriteBatch, WriteScratch,
    },
};

impl SubscriberParts<'_> {
    /// Delivers the queued events that the subscriber's scope admits, in one write.
    pub(super) fn deliver(
        &mut self,
        queued: QueuedEvents<'_>,
        scratch: &mut WriteScratch,
        metrics: &mut MetricsBuffers,
    ) -> DeliveryOutcome {
        let now = Instant::now();
        if *self.flow != FlowState::CaughtUp || self.connected.deadlines().is_token_expired_at(now)
        {
            return self.fall_back_to_log(queued.first_position());
        }
        let QueuedEvents { events, messages } = queued;
        let transport = self.connected.transport();
        let metrics = metrics.of(transport);
        // A partial write is rebuilt from the positions in between, so that the common case, where
        // the socket accepts everything, collects no list of events.
        let before = self.connected.returned_through();
        let mut slices = [IoSlice::new(&[]); MAX_BATCH_BUFFERS];
        let (mut count, mut bytes, mut is_complete) = (0, 0, true);
        for (event, message) in events.iter().zip(&mut *messages) {
            let Some(slice) = slices.get_mut(count).filter(|_| bytes < MAX_BATCH_BYTES) else {
                is_complete = false;
                break;
            };
            if self.connected.accept(event) {
                let encoded = encoded_for(self.connected, transport, event, message);
                *slice = IoSlice::new(encoded);
                (count, bytes) = (count + 1, bytes + encoded.len());
                metrics.record_delivery(event, now);
            }
        }
        if count == 0 {
            return DeliveryOutcome::Handled;
        }
        let written = match self.socket.write_slices(slices.split_at(count).0) {
            Ok(written) => written,
            Err(error) => {
                self.connected.record_io_error(&error);
                return DeliveryOutcome::Ended;
            }
        };
        scratch.written_bytes += written.sent_bytes;
        self.connected.deadlines().reset_heartbeat();
        let is_written =
            written.accepted_bytes == bytes && !self.socket.connection().has_unsent_records();
        if is_written && is_complete {
            return DeliveryOutcome::Handled;
        }
        if !is_written {
            let mut rest = self.accepted_since(before, transport, events, messages);
            rest.advance(written.accepted_bytes);
            self.socket.keep_unwritten(&mut rest);
            self.connected.record_backlog();
        }
        if !is_complete {
            // The batch has more than one write takes; 0 keeps the subscription's own position.
            self.connected.subscription().resync_from(0);
        }
        *self.flow = FlowState::Busy;
        DeliveryOutcome::NeedsPoll
    }

    /// Returns the buffers of the events that were accepted after `before`.
    fn accepted_since(
        &mut self,
        before: u64,
        transport: Transport,
        events: &[Arc<Event>],
        messages: &mut [Option<Bytes>],
    ) -> WriteBatch {
        let last = self.connected.returned_through();
        let mut batch = WriteBatch::default();
        for (event, message) in events.iter().zip(messages) {
            if event.position() > before
                && event.position() <= last
                && self.connected.scope().includes(event.session(), event.kind())
            {
                batch.push(encoded_for(self.connected, transport, event, message).clone());
            }
        }
        batch
    }

    /// Makes the subscriber re-read the log from `position` at its next poll.
    pub(crate) fn fall_back_to_log(&mut self, position: u64) -> DeliveryOutcome {
        self.connected.subscription().resync_from(position);
        match *self.flow {
            FlowState::CaughtUp | FlowState::ReadsLog => {
                *self.flow = FlowState::ReadsLog;
                DeliveryOutcome::NeedsPoll
            }
            // Polling it before would only find the socket full.
            FlowState::Busy => DeliveryOutcome::Handled,
        }
    }
}

/// Returns an event as the subscriber's transport sends it. `message` is filled in by the first
/// subscriber of the shard that needs it.
fn encoded_for<'a>(
    subscriber: &ConnectedSubscriber,
    transport: Transport,
    event: &'a Event,
    message: &'a mut Option<Bytes>,
) -> &'a Bytes {
    match transport {
        Transport::Sse => event.http1_chunk(),
        Transport::WebSocket => message.get_or_insert_with(|| subscriber.feed().ws_message(event)),
    }
}
