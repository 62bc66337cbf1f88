//! Resting subscriber: the few things that a delivery to a caught-up subscriber needs, in its slot.
//!
//! ```text
//!            polled, caught up, no TLS              anything but an event that the socket takes
//!  awake ──────────────────────────────► resting ──────────────────────────────────────────► awake
//!            socket moves into the slot             socket and position move back: settled
//! ```
//!
//! A subscriber's own memory is some hundred bytes here and there. Ten thousand of them are more
//! than the caches hold, and at the rate of an event or two a second each delivery would load them
//! anew. While a subscriber rests, a delivery needs its slot and nothing else of the relay's.
//!
//! May use: `event`, `metrics`, `subscriber`, `timer_wheel`.

use std::io::ErrorKind;

use socket2::SockRef;
use tokio::{net::TcpStream, time::Instant};

use super::{
    FlowState, SubscriberParts,
    delivery::{QueuedEvents, UnfinishedWrite},
    metrics_buffers::MetricsBuffers,
};
use crate::{event::Event, metrics::Transport, subscriber::WriteScratch, timer_wheel::Deadline};

/// A subscriber that waits for events alone, and has received every earlier one.
#[derive(Debug)]
pub(super) struct RestingSubscriber {
    socket: TcpStream,
    /// Position of the last entry that it has received, or that its scope hides.
    position: u64,
    /// Tick of the wheel at the last write since it came to rest.
    written_at: Option<Deadline>,
    /// When its token ends.
    token_expires_at: Option<Instant>,
    transport: Transport,
    /// Its scope admits every event. Of any other scope only the event that the index has found it
    /// by is known to be admitted.
    admits_everything: bool,
}

/// Outcome of a delivery to a resting subscriber.
#[derive(Debug)]
pub(super) enum RestingDelivery {
    /// The socket has taken everything.
    Delivered,
    /// The subscriber has to be awake for these events. None has been written.
    Refused,
    /// The socket has not taken everything, or the batch has more than one write takes.
    Incomplete(UnfinishedWrite),
}

impl RestingSubscriber {
    /// Moves the socket out of a subscriber that may rest: it is caught up, without a session of
    /// TLS.
    pub(super) fn begin(parts: SubscriberParts<'_>) -> Option<Self> {
        let SubscriberParts { connected, socket, flow } = parts;
        if *flow != FlowState::CaughtUp {
            return None;
        }
        Some(Self {
            socket: socket.connection().lend_socket()?,
            position: connected.returned_through(),
            written_at: None,
            token_expires_at: connected.deadlines().token_expires_at(),
            transport: connected.transport(),
            admits_everything: connected.scope().admits_everything(),
        })
    }

    /// Returns whether the scope admits every event.
    pub(super) fn admits_everything(&self) -> bool {
        self.admits_everything
    }

    /// Returns the socket to the subscriber, and records what was delivered while it rested.
    pub(super) fn settle(self, parts: SubscriberParts<'_>) {
        let SubscriberParts { connected, socket, .. } = parts;
        socket.connection().restore_socket(self.socket);
        connected.subscription().record_delivered(self.position);
        if let Some(tick) = self.written_at {
            connected.deadlines().restart_heartbeat_at(tick);
        }
    }

    /// Writes the events of `queued` that the subscriber has not received, in one write. `tick` is
    /// the wheel's.
    ///
    /// Writes past tokio, whose record of the socket's readiness is in memory of its own. It stays
    /// true: a full socket shows when the subscriber, awake, tries again.
    pub(super) fn deliver(
        &mut self,
        queued: &mut QueuedEvents<'_>,
        scratch: &mut WriteScratch,
        metrics: &mut MetricsBuffers,
        tick: Deadline,
    ) -> RestingDelivery {
        let now = Instant::now();
        let is_expired = self.token_expires_at.is_some_and(|expires_at| now >= expires_at);
        if is_expired || !(self.admits_everything || queued.events.len() == 1) {
            return RestingDelivery::Refused;
        }
        let (before, metrics) = (self.position, metrics.of(self.transport));
        let mut take = |event: &Event| {
            // The event may have been read from the log while it was queued.
            let is_new = event.position() > self.position;
            if is_new {
                self.position = event.position();
                metrics.record_delivery(event, now);
            }
            is_new
        };
        let (written, bytes, is_complete) = match queued.single(self.transport) {
            // Most batches have one event. An array of slices for it costs as much as the rest.
            Some((event, encoded)) if take(event) => {
                (SockRef::from(&self.socket).send(encoded), encoded.len(), true)
            }
            Some(_) => return RestingDelivery::Delivered,
            None => {
                let gathered = queued.gather(self.transport, take);
                if gathered.slices().is_empty() {
                    return RestingDelivery::Delivered;
                }
                let written = SockRef::from(&self.socket).send_vectored(gathered.slices());
                (written, gathered.bytes, gathered.is_complete)
            }
        };
        let accepted_bytes = match written {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            written => written,
        };
        self.written_at = Some(tick);
        scratch.written_bytes += *accepted_bytes.as_ref().unwrap_or(&0);
        match accepted_bytes {
            Ok(accepted) if accepted == bytes && is_complete => RestingDelivery::Delivered,
            accepted_bytes => {
                RestingDelivery::Incomplete(UnfinishedWrite { before, accepted_bytes, is_complete })
            }
        }
    }
}
