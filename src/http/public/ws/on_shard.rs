//! WebSocket connection on a shard: direct delivery, and the turn budget.
//!
//! In: queued events, each encoded once for the whole shard. Out: one write of the framed messages.
//! [`WsConnection::run`] does everything else.
//!
//! May use: `event`, `feed`, `net`, `shard`, `subscription`.

use std::{
    io::IoSlice,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use tokio::time::Instant;

use super::socket::{WsConnection, poll_write_once};
use crate::{
    event::{Event, Scope},
    feed::Feed,
    net::DeadlineSocket,
    shard::{
        DeliveryOutcome, MAX_BATCH_BUFFERS, MAX_BATCH_BYTES, MetricsBuffers, QueuedEvents,
        ShardSubscriber, WriteScratch, advance,
    },
    subscription::Subscription,
};

impl ShardSubscriber for WsConnection<DeadlineSocket> {
    fn feed(&self) -> &Arc<Feed> {
        self.subscriber.feed()
    }

    fn subscription(&mut self) -> &mut Subscription {
        self.subscriber.subscription()
    }

    fn take_requested_scope(&mut self) -> Option<Scope> {
        self.subscriber.take_requested_scope()
    }

    fn poll(&mut self, context: &mut Context<'_>, scratch: &mut WriteScratch) -> Poll<()> {
        // The codec reads until it has a message; without a budget a client that floods would keep
        // it reading.
        self.socket.get_mut().set_read_budget(SOCKET_READS_PER_POLL);
        self.run(context, &mut scratch.batch, &mut scratch.written_bytes)
    }

    /// Writes the shared messages directly to the socket, beside the codec.
    ///
    /// `is_caught_up` is set only after the codec has been flushed, so the codec has no
    /// half-written frame that these bytes could cut in two.
    fn deliver(
        &mut self,
        queued: QueuedEvents<'_>,
        scratch: &mut WriteScratch,
        metrics: &mut MetricsBuffers,
    ) -> DeliveryOutcome {
        if !self.is_caught_up || self.subscriber.is_token_expired() {
            return self.fall_back_to_log(queued.first_position());
        }
        let QueuedEvents { events, messages } = queued;
        let (now, before) = (Instant::now(), self.subscriber.position());
        let mut slices = [IoSlice::new(&[]); MAX_BATCH_BUFFERS];
        let (mut count, mut bytes, mut is_complete) = (0, 0, true);
        for (event, message) in events.iter().zip(&mut *messages) {
            let Some(slice) = slices.get_mut(count).filter(|_| bytes < MAX_BATCH_BYTES) else {
                is_complete = false;
                break;
            };
            if self.subscriber.accept(event) {
                let message = message.get_or_insert_with(|| self.subscriber.message_for(event));
                *slice = IoSlice::new(message);
                (count, bytes) = (count + 1, bytes + message.len());
                metrics.ws.record_delivery(event, now);
            }
        }
        if count == 0 {
            return DeliveryOutcome::Handled;
        }
        // A no-op waker: if the socket is full, the scheduler polls the connection, which registers
        // the real one.
        let written = match poll_write_once(
            self.socket.get_mut(),
            &mut Context::from_waker(Waker::noop()),
            slices.split_at(count).0,
        ) {
            Poll::Ready(Ok(written)) => written,
            Poll::Ready(Err(_)) => return DeliveryOutcome::Ended,
            Poll::Pending => 0,
        };
        scratch.written_bytes += written;
        self.subscriber.reset_heartbeat();
        if written < bytes {
            // Rebuilt from the positions, as over SSE: most writes are complete and need no list.
            let last = self.subscriber.position();
            let was_accepted = |it: &Event| {
                it.position() > before && it.position() <= last && self.subscriber.includes(it)
            };
            let taken = events.iter().zip(messages).filter(|(event, _)| was_accepted(event));
            self.unwritten.extend(taken.filter_map(|(_, message)| message.clone()));
            advance(&mut self.unwritten, written);
        }
        if self.unwritten.is_empty() && is_complete {
            return DeliveryOutcome::Handled;
        }
        self.fall_back_to_log(0);
        DeliveryOutcome::NeedsPoll
    }

    fn fall_back_to_log(&mut self, position: u64) -> DeliveryOutcome {
        self.is_caught_up = false;
        self.subscriber.subscription().resync_from(position);
        match self.is_idle {
            true => DeliveryOutcome::NeedsPoll,
            // Waiting for a writable socket, a close frame or the next tick: polled then.
            false => DeliveryOutcome::Handled,
        }
    }

    fn mark_panicked(&mut self) {
        self.subscriber.mark_faulty();
    }
}

/// Reads of the socket in one poll, after which the shard's other subscribers get their turn.
const SOCKET_READS_PER_POLL: u8 = 4;
