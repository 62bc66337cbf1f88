//! Direct delivery: queued events to one caught-up subscriber, in one write.
//!
//! ```text
//! caught up? ─► admitted: in scope, not delivered before ─► gathered slices ─► one write ─┬─ all
//!     └─ no: read the log                                                  unwritten ◄──┴─ rest
//! ```
//!
//! The bytes are the event's own buffer (SSE), or the message that the shard's subscribers share
//! (WebSocket): no delivery copies a payload or touches a reference count. A subscriber that rests
//! is written to from its slot (`resting.rs`), and by what is here in every other case.
//!
//! May use: `event`, `feed`, `metrics`, `subscriber`.

use std::{
    io::{self, IoSlice},
    sync::Arc,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::{DeliveryOutcome, FlowState, SubscriberParts, metrics_buffers::MetricsBuffers};
use crate::{
    event::Event,
    feed::Feed,
    metrics::Transport,
    subscriber::{MAX_BATCH_BUFFERS, MAX_BATCH_BYTES, WriteBatch, WriteScratch},
};

/// Events of one batch, from the first one that concerns the subscriber on.
#[derive(Debug)]
pub(super) struct QueuedEvents<'a> {
    /// Product of the events.
    pub(super) feed: &'a Feed,
    /// Events in the order of their positions.
    pub(super) events: &'a [Arc<Event>],
    /// WebSocket message of each event, filled in by the first subscriber that needs it. The other
    /// subscribers of the shard borrow the message and so touch no reference count.
    pub(super) messages: &'a mut [Option<Bytes>],
}

/// Slices of the events that one subscriber gets in one write.
#[derive(Debug)]
pub(super) struct GatheredSlices<'a> {
    slices: [IoSlice<'a>; MAX_BATCH_BUFFERS],
    count: usize,
    /// Length of all slices.
    pub(super) bytes: usize,
    /// No event was left for another write.
    pub(super) is_complete: bool,
}

/// Write after which a subscriber has more to do.
#[derive(Debug)]
pub(super) struct UnfinishedWrite {
    /// Position of the subscriber before the write.
    pub(super) before: u64,
    /// Bytes that the socket has accepted; 0 if it is full.
    pub(super) accepted_bytes: io::Result<usize>,
    /// No event was left for another write.
    pub(super) is_complete: bool,
}

impl QueuedEvents<'_> {
    /// Returns the position of the first event, or 0 if there is none.
    pub(super) fn first_position(&self) -> u64 {
        self.events.first().map_or(0, |event| event.position())
    }

    /// Returns the event and its encoding if there is only one.
    pub(super) fn single(&mut self, transport: Transport) -> Option<(&Event, &Bytes)> {
        match (self.events, &mut *self.messages) {
            ([event], [message]) => {
                Some((&**event, encoded_for(transport, self.feed, event, message)))
            }
            _ => None,
        }
    }

    /// Returns the slices of the events that `admit` admits, within the bounds of one write. It is
    /// called for each event that the write has room for, in order.
    pub(super) fn gather(
        &mut self,
        transport: Transport,
        mut admit: impl FnMut(&Event) -> bool,
    ) -> GatheredSlices<'_> {
        let Self { feed, events, messages } = self;
        let slices = [IoSlice::new(&[]); MAX_BATCH_BUFFERS];
        let mut gathered = GatheredSlices { slices, count: 0, bytes: 0, is_complete: true };
        for (event, message) in events.iter().zip(&mut **messages) {
            let slice = gathered.slices.get_mut(gathered.count);
            let Some(slice) = slice.filter(|_| gathered.bytes < MAX_BATCH_BYTES) else {
                gathered.is_complete = false;
                break;
            };
            if admit(event) {
                let encoded = encoded_for(transport, feed, event, message);
                *slice = IoSlice::new(encoded);
                gathered.count += 1;
                gathered.bytes += encoded.len();
            }
        }
        gathered
    }
}

impl<'a> GatheredSlices<'a> {
    /// Returns the slices; none if no event was admitted.
    pub(super) fn slices(&self) -> &[IoSlice<'a>] {
        self.slices.split_at(self.count).0
    }
}

impl SubscriberParts<'_> {
    /// Delivers the queued events that the subscriber's scope admits, in one write.
    pub(super) fn deliver(
        &mut self,
        queued: &mut QueuedEvents<'_>,
        scratch: &mut WriteScratch,
        metrics: &mut MetricsBuffers,
    ) -> DeliveryOutcome {
        let now = Instant::now();
        if *self.flow != FlowState::CaughtUp || self.connected.deadlines().is_token_expired_at(now)
        {
            return self.fall_back_to_log(queued.first_position());
        }
        let transport = self.connected.transport();
        let metrics = metrics.of(transport);
        // A partial write is rebuilt from the positions in between, so that the common case, where
        // the socket accepts everything, collects no list of events.
        let before = self.connected.returned_through();
        let gathered = queued.gather(transport, |event| {
            let is_for_it = self.connected.accept(event);
            if is_for_it {
                metrics.record_delivery(event, now);
            }
            is_for_it
        });
        if gathered.slices().is_empty() {
            return DeliveryOutcome::Handled;
        }
        let written = self.socket.write_slices(gathered.slices());
        let (bytes, is_complete) = (gathered.bytes, gathered.is_complete);
        self.connected.deadlines().reset_heartbeat();
        let accepted_bytes = written.map(|written| {
            scratch.written_bytes += written.sent_bytes;
            written.accepted_bytes
        });
        let is_written = accepted_bytes.as_ref().is_ok_and(|accepted| *accepted == bytes);
        if is_written && is_complete && !self.socket.connection().has_unsent_records() {
            return DeliveryOutcome::Handled;
        }
        self.finish_write(UnfinishedWrite { before, accepted_bytes, is_complete }, queued)
    }

    /// Keeps what the socket has not accepted, or what did not fit, for the subscriber's next poll.
    pub(super) fn finish_write(
        &mut self,
        unfinished: UnfinishedWrite,
        queued: &mut QueuedEvents<'_>,
    ) -> DeliveryOutcome {
        let UnfinishedWrite { before, accepted_bytes, is_complete } = unfinished;
        let accepted_bytes = match accepted_bytes {
            Ok(accepted_bytes) => accepted_bytes,
            Err(error) => {
                self.connected.record_io_error(&error);
                return DeliveryOutcome::Ended;
            }
        };
        let mut rest = self.accepted_since(before, queued);
        rest.advance(accepted_bytes);
        if !rest.is_empty() || self.socket.connection().has_unsent_records() {
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
    fn accepted_since(&self, before: u64, queued: &mut QueuedEvents<'_>) -> WriteBatch {
        let last = self.connected.returned_through();
        let transport = self.connected.transport();
        let mut batch = WriteBatch::default();
        for (event, message) in queued.events.iter().zip(&mut *queued.messages) {
            if event.position() > before
                && event.position() <= last
                && self.connected.scope().includes(event.scope_key())
            {
                batch.push(encoded_for(transport, queued.feed, event, message).clone());
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

/// Returns an event as a transport sends it. `message` is filled in by the first subscriber of the
/// shard that needs it.
fn encoded_for<'a>(
    transport: Transport,
    feed: &Feed,
    event: &'a Event,
    message: &'a mut Option<Bytes>,
) -> &'a Bytes {
    match transport {
        Transport::Sse => event.http1_chunk(),
        Transport::WebSocket => message.get_or_insert_with(|| feed.ws_message(event)),
    }
}
