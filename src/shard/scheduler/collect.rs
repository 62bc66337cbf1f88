//! First step of a turn: from the mailbox to the run queue and the delivery queue.
//!
//! In: the mailbox's lists, and the batches of the product groups that have events. Out: attached
//! subscribers, scheduled slots, recipients.
//!
//! May use: `feed`, `net`.

use std::{
    sync::{Arc, atomic::Ordering},
    task::Waker,
};

use tokio::net::TcpStream;
use tracing::debug;

use super::{MAX_SUBSCRIBERS_PER_TURN, ShardScheduler};
use crate::{
    feed::Feed,
    net::AcceptedSocket,
    shard::{
        DeliveryOutcome, ShardSubscriber,
        mailbox::{GroupWaker, MovedSubscriber, PendingSubscriber, ShardArrival, SubscriberWaker},
        product_group::{EventLocation, ProductGroup},
        slot::SubscriberSlot,
    },
};

impl ShardScheduler {
    /// Takes the batches of the groups that have events and records which slots they concern.
    pub(super) fn collect_events(&mut self) {
        std::mem::swap(&mut self.mailbox.inbox().groups_with_events, &mut self.groups_with_events);
        for key in self.groups_with_events.drain(..) {
            let Some(group) = self.groups.get_mut(key) else { continue };
            group.has_queued_events = true;
            if !std::mem::replace(&mut group.is_in_delivery_queue, true) {
                self.delivery_queue.push_back(key);
            }
        }
        let Self { delivery_queue, groups, slots, run_queue, .. } = self;
        // Of all queued groups, not only of those just added: a group whose batch was still in
        // delivery when its signal came takes the next batch here once it is done.
        for key in &*delivery_queue {
            let Some(group) = groups.get_mut(*key) else { continue };
            group.take_events(|key, location| {
                let Some(slot) = slots.get_mut(key) else { return false };
                match location {
                    EventLocation::Log(position) => {
                        let outcome = slot.wake().parts().fall_back_to_log(position);
                        if outcome == DeliveryOutcome::NeedsPoll {
                            slot.schedule(key, run_queue);
                        }
                        false
                    }
                    // Already a recipient: delivery continues to the batch's end by itself.
                    EventLocation::Queue(_) if slot.first_event.is_some() => false,
                    EventLocation::Queue(index) => {
                        slot.first_event = Some(index);
                        true
                    }
                }
            });
        }
    }

    /// Schedules the woken slots, attaches new subscribers, and returns whether the mailbox or
    /// `pending` has more.
    pub(super) fn collect_wakeups(&mut self) -> bool {
        let has_events = {
            let mut inbox = self.mailbox.inbox();
            std::mem::swap(&mut inbox.woken, &mut self.woken);
            self.pending.extend(inbox.pending.drain(..));
            // Signals since `collect_events` stay in the mailbox, which is then not empty: `post`
            // wakes no shard for a later entry, so this turn must wake itself.
            !inbox.groups_with_events.is_empty()
        };
        for key in self.woken.drain(..) {
            if let Some(slot) = self.slots.get_mut(key) {
                // Before the poll; SeqCst: see `SubscriberWaker::wake_by_ref`.
                slot.waker.is_in_mailbox.store(false, Ordering::SeqCst);
                slot.schedule(key, &mut self.run_queue);
            }
        }
        for _ in 0..MAX_SUBSCRIBERS_PER_TURN {
            match self.pending.pop_front() {
                Some(arrival) => self.attach(arrival),
                None => break,
            }
        }
        has_events || !self.pending.is_empty()
    }

    /// Adds a subscriber to its group and schedules its first poll.
    pub(super) fn attach(&mut self, arrival: ShardArrival) {
        match arrival {
            ShardArrival::New(PendingSubscriber { socket, permit, factory }) => {
                match TcpStream::from_std(socket) {
                    Ok(stream) => self.insert(factory(AcceptedSocket { stream, permit }), None),
                    Err(error) => {
                        debug!(%error, "connection ended");
                        self.mailbox.load.fetch_sub(1, Ordering::Relaxed);
                    }
                }
            }
            ShardArrival::Moved(MovedSubscriber { subscriber, waker }) => {
                self.insert(subscriber, Some(waker));
            }
        }
    }

    /// Adds a subscriber to its group, with the waker of its former slot if it had one, and
    /// schedules its next poll.
    fn insert(
        &mut self,
        mut subscriber: Box<dyn ShardSubscriber>,
        former_waker: Option<Arc<SubscriberWaker>>,
    ) {
        let group_key = self.group_of(subscriber.parts().connected.feed());
        let entry = self.slots.vacant_entry();
        let key = entry.key();
        if let Some(group) = self.groups.get_mut(group_key) {
            let subscription = subscriber.parts().connected.subscription();
            match former_waker {
                None => group.join(key, subscription),
                Some(_) => group.join_moved(key, subscription),
            }
        }
        let waker = match former_waker {
            None => SubscriberWaker::new(&self.mailbox, key),
            Some(waker) => {
                waker.move_to(&self.mailbox, key);
                waker
            }
        };
        entry.insert(SubscriberSlot::new(subscriber, group_key, waker));
        self.run_queue.push_back(key);
    }

    /// Returns the key of a product's group, which the first subscriber creates.
    fn group_of(&mut self, feed: &Arc<Feed>) -> usize {
        // The fan-out identifies the product: a product that is removed and comes again under the
        // same id has another one.
        let is_same = |known: &Feed| Arc::ptr_eq(&known.fanout, &feed.fanout);
        let known = self.groups.iter().find(|(_, group)| is_same(&group.feed));
        known.map(|(key, _)| key).unwrap_or_else(|| {
            let entry = self.groups.vacant_entry();
            let key = entry.key();
            let waker = Waker::from(Arc::new(GroupWaker::new(&self.mailbox, key)));
            entry.insert(ProductGroup::new(feed, self.mailbox.shard, waker));
            key
        })
    }
}
