//! First half of a turn: from the mailbox to the run queue and the delivery queue.
//!
//! May use: `feed`, `net`.

use std::{
    sync::{Arc, atomic::Ordering},
    task::Waker,
};

use tokio::net::TcpStream;
use tracing::debug;

use super::{MAX_SUBSCRIBERS_PER_TURN, ShardScheduler, SubscriberSlot};
use crate::{
    feed::Feed,
    net::AcceptedSocket,
    shard::{
        DeliveryOutcome,
        mailbox::{GroupWaker, PendingSubscriber, SubscriberWaker},
        product_group::{EventLocation, ProductGroup},
    },
};

impl ShardScheduler {
    pub(super) fn collect_events(&mut self) {
        std::mem::swap(&mut self.mailbox.inbox().signaled, &mut self.signaled);
        for key in self.signaled.drain(..) {
            let Some(group) = self.groups.get_mut(key) else { continue };
            group.is_signaled = true;
            if !std::mem::replace(&mut group.is_queued, true) {
                self.delivery_queue.push_back(key);
            }
        }
        let Self { delivery_queue, groups, slots, run_queue, .. } = self;
        for key in &*delivery_queue {
            let Some(group) = groups.get_mut(*key) else { continue };
            group.take_events(|key, location| {
                let Some(slot) = slots.get_mut(key) else { return false };
                match location {
                    EventLocation::Log(position) => {
                        if slot.subscriber.fall_back_to_log(position) == DeliveryOutcome::NeedsPoll
                        {
                            slot.schedule(key, run_queue);
                        }
                        false
                    }
                    EventLocation::Queue(_) if slot.first_event.is_some() => false,
                    EventLocation::Queue(index) => {
                        slot.first_event = Some(index);
                        true
                    }
                }
            });
        }
    }

    /// Takes what others have left, but for arrivals; whether there is more.
    pub(super) fn collect_wakeups(&mut self) -> bool {
        let is_signaled = {
            let mut inbox = self.mailbox.inbox();
            std::mem::swap(&mut inbox.woken, &mut self.woken);
            self.pending.extend(inbox.pending.drain(..));
            !inbox.signaled.is_empty()
        };
        for key in self.woken.drain(..) {
            if let Some(slot) = self.slots.get_mut(key) {
                slot.waker.is_queued.store(false, Ordering::SeqCst);
                slot.schedule(key, &mut self.run_queue);
            }
        }
        for _ in 0..MAX_SUBSCRIBERS_PER_TURN {
            match self.pending.pop_front() {
                Some(subscriber) => self.attach(subscriber),
                None => break,
            }
        }
        is_signaled || !self.pending.is_empty()
    }

    pub(super) fn attach(
        &mut self,
        PendingSubscriber { socket, permit, factory }: PendingSubscriber,
    ) {
        let socket = match TcpStream::from_std(socket) {
            Ok(stream) => AcceptedSocket { stream, permit },
            Err(error) => {
                debug!(%error, "connection ended");
                self.mailbox.load.fetch_sub(1, Ordering::Relaxed);
                return;
            }
        };
        let mut subscriber = factory(socket);
        let group_key = self.group_of(subscriber.feed());
        let entry = self.slots.vacant_entry();
        let key = entry.key();
        if let Some(group) = self.groups.get_mut(group_key) {
            group.join(key, subscriber.subscription());
        }
        let waker = SubscriberWaker::new(&self.mailbox, key);
        entry.insert(SubscriberSlot {
            subscriber,
            group: group_key,
            first_event: None,
            is_queued: true,
            waker,
        });
        self.run_queue.push_back(key);
    }

    /// The number of a product's flock, which it begins with the first of its subscribers.
    fn group_of(&mut self, feed: &Arc<Feed>) -> usize {
        // By another configuration it is another `Product`, but its events are the same.
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
