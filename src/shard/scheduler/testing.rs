//! A scheduler whose steps a test calls one by one.
//!
//! May use: `timer_wheel`.

use std::{
    sync::Arc,
    task::{Context, Wake, Waker},
    time::Duration,
};

use super::{ShardScheduler, SpreadPlan};
use crate::{
    shard::mailbox::{PendingSubscriber, ShardArrival, ShardMailbox},
    timer_wheel::TimerWheel,
};

/// A shard without a task: the test calls the steps of its turns.
pub(crate) struct SteppedScheduler(ShardScheduler);

impl SteppedScheduler {
    /// Subscribers that one turn polls, or delivers to, at most.
    pub(crate) const MAX_SUBSCRIBERS_PER_TURN: usize = super::MAX_SUBSCRIBERS_PER_TURN;

    /// Returns an empty shard, the first of its relay.
    pub(crate) fn new(write_timeout: Duration, wheel: &Arc<TimerWheel>) -> Self {
        Self::numbered(0, write_timeout, wheel)
    }

    /// Returns an empty shard.
    pub(crate) fn numbered(shard: usize, write_timeout: Duration, wheel: &Arc<TimerWheel>) -> Self {
        Self(ShardScheduler::new(&Arc::new(ShardMailbox::new(shard)), write_timeout, wheel))
    }

    /// Gives every subscriber of everything that is idle to another shard, and returns their
    /// number.
    pub(crate) fn give_away_to(&mut self, target: &Self) -> usize {
        let before = self.0.slots.len();
        let target = Arc::clone(&target.0.mailbox);
        let mut plan = SpreadPlan { target, remaining: usize::MAX, next_slot: 0 };
        while plan.remaining > 0 {
            self.0.give_away(&mut plan);
        }
        before - self.0.slots.len()
    }

    /// Adds a subscriber and schedules its first poll.
    pub(crate) fn attach(&mut self, subscriber: PendingSubscriber) {
        self.0.attach(ShardArrival::New(subscriber));
    }

    /// Removes the subscriber in slot `key`.
    pub(crate) fn remove(&mut self, key: usize) {
        self.0.remove(key);
    }

    /// Polls the scheduled subscribers of one turn.
    pub(crate) fn poll_ready(&mut self) {
        self.0.scratch.written_bytes = 0;
        self.0.poll_ready();
    }

    /// Takes the queued events and records their recipients.
    pub(crate) fn collect_events(&mut self) {
        self.0.collect_events();
    }

    /// Delivers the queued events of one turn.
    pub(crate) fn deliver_queued(&mut self) {
        self.0.scratch.written_bytes = 0;
        self.0.deliver_queued();
    }

    /// Ends the rest of every subscriber.
    pub(crate) fn end_rests(&mut self) {
        self.0.slots.iter_mut().for_each(|(_, slot)| _ = slot.wake());
    }

    /// Returns the number of subscribers that rest.
    pub(crate) fn resting_count(&self) -> usize {
        self.0.slots.iter().filter(|(_, slot)| slot.is_resting()).count()
    }

    /// Returns the positions up to which the subscribers have their entries, in ascending order.
    pub(crate) fn positions(&mut self) -> Vec<u64> {
        let slots = self.0.slots.iter_mut();
        let mut positions: Vec<_> =
            slots.map(|(_, slot)| slot.subscription().returned_through()).collect();
        positions.sort_unstable();
        positions
    }

    /// Takes the mailbox's wake-ups and new subscribers.
    pub(crate) fn collect_wakeups(&mut self) {
        self.0.collect_wakeups();
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
