//! Slot of one subscriber on its shard: awake or resting, scheduled or not.
//!
//! The subscriber is reached through [`SubscriberSlot::wake`] alone, which ends its rest, so that
//! nothing sees it without what was delivered meanwhile.
//!
//! May use: `subscriber`, `subscription`, `timer_wheel`.

use std::{collections::VecDeque, mem, sync::Arc};

use super::{
    DeliveryOutcome, ShardSubscriber,
    delivery::QueuedEvents,
    mailbox::SubscriberWaker,
    metrics_buffers::MetricsBuffers,
    resting::{RestingDelivery, RestingSubscriber},
};
use crate::{
    subscriber::{SubscriberFault, WriteScratch},
    subscription::Subscription,
    timer_wheel::Deadline,
};

/// A subscriber on a shard.
pub(super) struct SubscriberSlot {
    /// Set while the subscriber rests. Before `subscriber`, so that its socket is closed before the
    /// permit is returned.
    resting: Option<RestingSubscriber>,
    /// Index of the first event in the group's batch for this subscriber, while it is a recipient.
    pub(super) first_event: Option<usize>,
    /// Key of its product group.
    pub(super) group: usize,
    /// The slot's key is in the run queue.
    pub(super) is_in_run_queue: bool,
    pub(super) waker: Arc<SubscriberWaker>,
    subscriber: Box<dyn ShardSubscriber>,
}

impl SubscriberSlot {
    /// Returns the slot of a subscriber that is in the run queue.
    pub(super) fn new(
        subscriber: Box<dyn ShardSubscriber>,
        group: usize,
        waker: Arc<SubscriberWaker>,
    ) -> Self {
        Self { resting: None, first_event: None, group, is_in_run_queue: true, waker, subscriber }
    }

    /// Returns the subscriber, awake, and its waker.
    pub(super) fn into_parts(mut self) -> (Box<dyn ShardSubscriber>, Arc<SubscriberWaker>) {
        self.wake();
        (self.subscriber, self.waker)
    }

    /// Adds the slot to the run queue, unless it is there.
    pub(super) fn schedule(&mut self, key: usize, run_queue: &mut VecDeque<usize>) {
        if !mem::replace(&mut self.is_in_run_queue, true) {
            run_queue.push_back(key);
        }
    }

    /// Returns the subscriber, awake.
    pub(super) fn wake(&mut self) -> &mut dyn ShardSubscriber {
        if let Some(resting) = self.resting.take() {
            resting.settle(self.subscriber.parts());
        }
        &mut *self.subscriber
    }

    /// Returns the subscription of the subscriber, awake.
    pub(super) fn subscription(&mut self) -> &mut Subscription {
        self.wake().parts().connected.subscription()
    }

    /// Returns whether the subscriber rests.
    #[cfg(test)]
    pub(super) fn is_resting(&self) -> bool {
        self.resting.is_some()
    }

    /// Returns whether the subscriber is one of everything, and the slot neither scheduled nor a
    /// recipient of a batch.
    pub(super) fn is_movable(&mut self) -> bool {
        let admits_everything = match &self.resting {
            Some(resting) => resting.admits_everything(),
            None => self.subscriber.parts().connected.scope().admits_everything(),
        };
        admits_everything && !self.is_in_run_queue && self.first_event.is_none()
    }

    /// Lets the subscriber rest if it can.
    pub(super) fn rest(&mut self) {
        if self.resting.is_none() {
            self.resting = RestingSubscriber::begin(self.subscriber.parts());
        }
    }

    /// Delivers the queued events that the subscriber's scope admits, in one write. `tick` is the
    /// wheel's.
    pub(super) fn deliver(
        &mut self,
        mut queued: QueuedEvents<'_>,
        scratch: &mut WriteScratch,
        metrics: &mut MetricsBuffers,
        tick: Deadline,
    ) -> DeliveryOutcome {
        if let Some(resting) = &mut self.resting {
            match resting.deliver(&mut queued, scratch, metrics, tick) {
                RestingDelivery::Delivered => return DeliveryOutcome::Handled,
                RestingDelivery::Refused => {}
                RestingDelivery::Incomplete(unfinished) => {
                    return self.wake().parts().finish_write(unfinished, &mut queued);
                }
            }
        }
        let outcome = self.wake().parts().deliver(&mut queued, scratch, metrics);
        if outcome == DeliveryOutcome::Handled {
            self.rest();
        }
        outcome
    }

    /// Records a panic as the reason for the subscriber's end.
    pub(super) fn mark_panicked(&mut self) {
        self.wake().parts().connected.record_fault(SubscriberFault::Error);
    }
}

/// Bytes that a shard's table of slots has for each subscriber.
#[cfg(test)]
pub(crate) const SLOT_BYTES: usize = size_of::<Option<SubscriberSlot>>();
