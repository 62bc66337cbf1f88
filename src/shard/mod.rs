//! Delivery engine: one thread, one mailbox and one task for many subscribers.
//!
//! In: subscribers with sockets of their own, as [`ShardSubscriber`]s (`http::public::sse`,
//! `http::public::ws`), and the events that the fan-out queues for the shard. Out: bytes on the
//! sockets: of queued events by `delivery`, of everything else by the subscribers.
//!
//! ```text
//! http ─ subscriber, socket ─► ShardPlacement ─► ShardMailbox of one shard ─┐
//! fan-out ─ wake, once ──────► GroupWaker ─────► mailbox ───────────────────┼─► ShardScheduler:
//! wheel, socket, admission ──► SubscriberWaker ► mailbox ───────────────────┘   poll, deliver
//! fan-out ─ events ─► queue ─► ShardPort, from which the scheduler takes them
//! ```
//!
//! `docs/design/shard.md` describes the protocol and its bounds.
//!
//! May use: `event`, `subscriber`.

mod delivery;
mod index;
mod mailbox;
mod metrics_buffers;
mod placement;
mod product_group;
mod resting;
mod scheduler;
mod slot;
mod spread;
#[cfg(test)]
mod tests;
pub(crate) mod threads;

use std::task::{Context, Poll};

#[cfg(any(test, feature = "micro"))]
pub(crate) use self::index::ShardIndex;
pub(crate) use self::placement::ShardPlacement;
#[cfg(test)]
pub(crate) use self::{
    mailbox::{PendingSubscriber, SUBSCRIBER_WAKER_BYTES},
    scheduler::testing::SteppedScheduler,
    slot::SLOT_BYTES,
};
use crate::{
    event::Scope,
    subscriber::{ConnectedSubscriber, SubscriberSocket, WriteScratch},
};

/// A subscriber with a socket of its own, which the task of its shard polls and delivers to.
///
/// A subscriber is caught up when it has every entry that its scope admits and its socket has
/// accepted all of them. A caught-up subscriber gets the queued events from the shard; a lagging
/// one re-reads the log.
pub(crate) trait ShardSubscriber: Send {
    /// Returns what the shard itself works on.
    fn parts(&mut self) -> SubscriberParts<'_>;

    /// Takes the scope that the client has requested since the last call, if any.
    ///
    /// The subscriber is not caught up until the scheduler has applied the scope to the group's
    /// index, and must be polled after that.
    fn take_requested_scope(&mut self) -> Option<Scope>;

    /// Reads, catches up from the log and writes, within the bounds of one poll.
    ///
    /// Returns `Ready` when the subscriber has ended. Otherwise `context` is woken when there is
    /// more to do. `scratch.batch` is empty at entry, and at exit unless the subscriber has ended.
    fn poll(&mut self, context: &mut Context<'_>, scratch: &mut WriteScratch) -> Poll<()>;
}

/// The parts of a subscriber that are the same for every transport.
#[derive(Debug)]
pub(crate) struct SubscriberParts<'a> {
    /// Permit, position, scope and deadlines.
    pub(crate) connected: &'a mut ConnectedSubscriber,
    /// Socket, with what it has not taken yet.
    pub(crate) socket: &'a mut SubscriberSocket,
    /// What the subscriber waits for.
    pub(crate) flow: &'a mut FlowState,
}

/// What a subscriber waits for, and so how it learns of an event.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum FlowState {
    /// For events, with every earlier one written: the shard writes the next one.
    CaughtUp,
    /// For events, and must be polled to read them from the log.
    ReadsLog,
    /// For its socket, its client or a tick, by which it is polled in any case.
    Busy,
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
