//! What a lane does for its subscribers: one task that gives each event to all whom it concerns, and looks after everything else that
//! their sockets, the timer and the operators want of them.
//!
//! In: subscribers with sockets of their own (`sse`, `ws`), as [`Follower`]s. Out: what they write.
//!
//! May use: `event`, `fanout`, `metrics`, `net` (the socket), `wheel`.

mod mailbox;
mod metrics_buffers;
mod placement;
mod product_group;
mod scheduler;
pub(crate) mod threads;
mod write_batch;

use std::{
    collections::VecDeque,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;

pub(crate) use self::placement::ShardPlacement;
#[cfg(test)]
pub(crate) use self::{mailbox::PendingSubscriber, scheduler::testing::SteppedScheduler};
pub(crate) use self::{
    metrics_buffers::MetricsBuffers,
    write_batch::{MAX_BATCH_BUFFERS, MAX_BATCH_BYTES, advance, io_slices},
};
use crate::{
    event::{Event, Scope},
    fanout::Subscription,
    feed::Feed,
};

/// A subscriber with a socket of its own, in the hands of its lane's task.
///
/// It is following when it has everything and its socket has taken it. Then it is given what arrives; otherwise it finds that in the
/// log.
pub(crate) trait ShardSubscriber: Send {
    /// The product that it listens to.
    fn feed(&self) -> &Arc<Feed>;

    /// Where it stands in the log, and what it may see.
    fn subscription(&mut self) -> &mut Subscription;

    /// What it wants to see from now on, if it has asked for something else since it was asked last. It gets nothing until that has
    /// been done, and must be polled then.
    fn take_requested_scope(&mut self) -> Option<Scope>;

    /// Does what there is to do, and tells whether it has ended. If it has not, `context` is woken when there is more.
    fn poll(&mut self, context: &mut Context<'_>, scratch: &mut WriteScratch) -> Poll<()>;

    /// Gives it what is for it of what has arrived.
    fn deliver(
        &mut self,
        queued: QueuedEvents<'_>,
        scratch: &mut WriteScratch,
        metrics: &mut MetricsBuffers,
    ) -> DeliveryOutcome;

    /// It does not have everything any more: what there is, from `place` on, it finds in the log.
    fn fall_back_to_log(&mut self, position: u64) -> DeliveryOutcome;

    /// Its work has panicked: it ends.
    fn mark_panicked(&mut self);
}

/// What has arrived, from the first that is for somebody on.
#[derive(Debug)]
pub(crate) struct QueuedEvents<'a> {
    pub(crate) events: &'a [Arc<Event>],
    /// What each of them is as a WebSocket message, once somebody has needed that: all of a lane borrow it then, and count nothing.
    pub(crate) messages: &'a mut [Option<Bytes>],
}

impl QueuedEvents<'_> {
    /// The place of the first.
    pub(crate) fn first_position(&self) -> u64 {
        self.events.first().map_or(0, |event| event.position())
    }
}

/// What became of a subscriber that was given something.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum DeliveryOutcome {
    /// It has it.
    Handled,
    /// It must be polled.
    NeedsPoll,
    /// It has ended.
    Ended,
}

/// What the subscribers of a lane lend each other, so that one that sleeps needs none of its own.
#[derive(Debug)]
pub(crate) struct WriteScratch {
    /// What is being written; empty between two subscribers.
    pub(crate) batch: VecDeque<Bytes>,
    /// What has been written since somebody set it to nought.
    pub(crate) written_bytes: usize,
    /// A socket that takes nothing for this long is closed.
    pub(crate) write_timeout: Duration,
}
