//! A scheduler whose steps a test calls one by one.
//!
//! May use: `timer_wheel`.

use std::{
    sync::Arc,
    task::{Context, Wake, Waker},
    time::Duration,
};

use super::{ShardScheduler, SubscriberSlot};
use crate::{
    shard::mailbox::{PendingSubscriber, ShardMailbox, SubscriberWaker},
    timer_wheel::TimerWheel,
};

/// A shard without a task: the test calls the steps of its turns.
pub(crate) struct SteppedScheduler(ShardScheduler);

impl SteppedScheduler {
    /// Subscribers that one turn polls, or delivers to, at most.
    pub(crate) const MAX_SUBSCRIBERS_PER_TURN: usize = super::MAX_SUBSCRIBERS_PER_TURN;

    /// Bytes that a subscriber takes in the table of slots.
    pub(crate) const SLOT_BYTES: usize = size_of::<Option<SubscriberSlot>>();

    /// Bytes of a subscriber's waker.
    pub(crate) const WAKER_BYTES: usize = size_of::<SubscriberWaker>();

    /// Returns an empty shard.
    pub(crate) fn new(write_timeout: Duration, wheel: &Arc<TimerWheel>) -> Self {
        Self(ShardScheduler::new(&Arc::new(ShardMailbox::new(0)), write_timeout, wheel))
    }

    /// Adds a subscriber and schedules its first poll.
    pub(crate) fn attach(&mut self, subscriber: PendingSubscriber) {
        self.0.attach(subscriber);
    }

    /// Removes the subscriber in slot `key`.
    pub(crate) fn remove(&mut self, key: usize) {
        self.0.remove(key);
    }

    /// Polls the scheduled subscribers of one turn.
    pub(crate) fn poll_ready(&mut self) {
        self.0.poll_ready();
    }

    /// Takes the queued events and records their recipients.
    pub(crate) fn collect_events(&mut self) {
        self.0.collect_events();
    }

    /// Delivers the queued events of one turn.
    pub(crate) fn deliver_queued(&mut self) {
        self.0.deliver_queued();
    }

    /// Runs one whole turn.
    pub(crate) fn run_turn(&mut self) {
        self.0.run_turn(&Context::from_waker(Waker::noop()));
    }

    /// Wakes every subscriber, as a deadline or a socket would.
    pub(crate) fn wake_all(&mut self) {
        self.0.slots.iter().for_each(|(_, slot)| slot.waker.wake_by_ref());
    }

    /// Returns whether no subscriber has asked for another turn.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.0.run_queue.is_empty() && self.0.mailbox.inbox().is_empty()
    }

    /// Returns the key of the first product group, and of the first subscriber still waiting there.
    pub(crate) fn first_recipient(&self) -> (usize, usize) {
        let (key, group) = self.0.groups.iter().next().unwrap();
        (key, *group.recipients.front().unwrap())
    }

    /// Returns the key of the product group that the subscriber in slot `key` belongs to.
    pub(crate) fn group_of_slot(&self, key: usize) -> usize {
        self.0.slots[key].group
    }

    /// Returns whether no product group retains events.
    pub(crate) fn holds_no_events(&self) -> bool {
        self.0.groups.iter().all(|(_, group)| group.holds_no_events())
    }
}
