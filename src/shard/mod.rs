//! Delivery engine: one thread, one mailbox and one task for many subscribers.
//!
//! In: subscribers with sockets of their own, as [`ShardSubscriber`]s (`http::public::sse`,
//! `http::public::ws`), and the events that the fan-out queues for the shard. Out: what the
//! subscribers write to their sockets.
//!
//! ```text
//! http ─ subscriber, socket ─► ShardPlacement ─► ShardMailbox of one shard ─┐
//! fan-out ─ events ─► queue ─► ShardPort ──► GroupWaker ─► mailbox ─────────┼─► ShardScheduler:
//! wheel, socket, admission ──► SubscriberWaker ──────────► mailbox ─────────┘   poll, deliver
//! ```
//!
//! `docs/design/shard.md` describes the protocol and its bounds.
//!
//! May use: `event`, `feed`, `subscription`.

mod index;
mod mailbox;
mod metrics_buffers;
mod placement;
mod product_group;
mod scheduler;
#[cfg(test)]
mod tests;
pub(crate) mod threads;
mod write_batch;

use std::{
    collections::VecDeque,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;

#[cfg(any(test, feature = "micro"))]
pub(crate) use self::index::ShardIndex;
pub(crate) use self::placement::ShardPlacement;
#[cfg(test)]
pub(crate) use self::{mailbox::PendingSubscriber, scheduler::testing::SteppedScheduler};
pub(crate) use self::{
    metrics_buffers::MetricsBuffers,
    write_batch::{MAX_BATCH_BUFFERS, MAX_BATCH_BYTES, advance, io_slices},
};
use crate::{
    event::{Event, Scope},
    feed::Feed,
    subscription::Subscription,
};

/// A subscriber with a socket of its own, which the task of its shard polls and delivers to.
///
/// A subscriber is caught up when it has every entry that its scope admits and its socket has
/// accepted all of them. A caught-up subscriber gets the queued events; a lagging one re-reads the
/// log.
pub(crate) trait ShardSubscriber: Send {
    /// Returns the product that the subscriber is subscribed to.
    fn feed(&self) -> &Arc<Feed>;

    /// Returns the position in the log and the scope.
    fn subscription(&mut self) -> &mut Subscription;

    /// Takes the scope that the client has requested since the last call, if any.
    ///
    /// The subscriber accepts no event until the scheduler has applied the scope to the group's
    /// index, and must be polled after that.
    fn take_requested_scope(&mut self) -> Option<Scope>;

    /// Reads, catches up from the log and writes, within the bounds of one poll.
    ///
    /// Returns `Ready` when the subscriber has ended. Otherwise `context` is woken when there is
    /// more to do. `scratch.batch` is empty at entry, and at exit unless the subscriber has ended.
    fn poll(&mut self, context: &mut Context<'_>, scratch: &mut WriteScratch) -> Poll<()>;

    /// Delivers the queued events that the subscriber's scope admits, in one write.
    fn deliver(
        &mut self,
        queued: QueuedEvents<'_>,
        scratch: &mut WriteScratch,
        metrics: &mut MetricsBuffers,
    ) -> DeliveryOutcome;

    /// Marks the subscriber as lagging: it re-reads the log from `position` at its next poll.
    fn fall_back_to_log(&mut self, position: u64) -> DeliveryOutcome;

    /// Records that the subscriber's work has panicked, as its disconnect reason.
    fn mark_panicked(&mut self);
}

/// Events of one batch, from the first one that concerns the subscriber on.
#[derive(Debug)]
pub(crate) struct QueuedEvents<'a> {
    /// Events in the order of their positions.
    pub(crate) events: &'a [Arc<Event>],
    /// WebSocket message of each event, filled in by the first subscriber that needs it. The other
    /// subscribers of the shard borrow the message and so touch no reference count.
    pub(crate) messages: &'a mut [Option<Bytes>],
}

impl QueuedEvents<'_> {
    /// Returns the position of the first event, or 0 if there is none.
    pub(crate) fn first_position(&self) -> u64 {
        self.events.first().map_or(0, |event| event.position())
    }
}

/// State of a subscriber after a delivery.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum DeliveryOutcome {
    /// The subscriber needs nothing more: it has the events, or something else will wake it.
    Handled,
    /// The subscriber must be polled.
    NeedsPoll,
    /// The subscriber has ended.
    Ended,
}

/// Write buffers and counters that the subscribers of a shard share, so that an idle subscriber
/// holds no buffer of its own.
#[derive(Debug)]
pub(crate) struct WriteScratch {
    /// Buffers of the write under way; empty between two subscribers.
    pub(crate) batch: VecDeque<Bytes>,
    /// Bytes written since the scheduler last reset the counter: the turn budget. With TLS, a
    /// stream counts the bytes of its records.
    pub(crate) written_bytes: usize,
    /// Time for which a socket may accept nothing before its stream is closed.
    pub(crate) write_timeout: Duration,
}
