//! Product group: the subscribers of one product on one shard, and the batch being delivered.
//!
//! In: the events, marks or overflow that the fan-out has queued for the shard. Out: for each
//! subscriber concerned, either its first event in the batch or a position to re-read the log from.
//!
//! A batch is delivered to all its recipients, over several turns if need be, before the next one
//! is taken: the fan-out's queue, which is bounded, holds what arrives meanwhile.
//!
//! May use: `event`, `fanout`, `feed`, `subscription`.

use std::{collections::VecDeque, sync::Arc, task::Waker};

use bytes::Bytes;

use super::{delivery::QueuedEvents, index::ShardIndex, metrics_buffers::MetricsBuffers};
use crate::{
    event::{Event, Scope},
    fanout::QueueContents,
    feed::Feed,
    subscription::Subscription,
};

/// The subscribers of one product on one shard.
#[derive(Debug)]
pub(super) struct ProductGroup {
    pub(super) feed: Arc<Feed>,
    index: ShardIndex,
    len: usize,
    /// Position up to which every event has been delivered, or its subscribers sent to the log.
    delivered_through: u64,
    /// The batch being delivered.
    events: Vec<Arc<Event>>,
    /// WebSocket messages of `events`, index by index.
    messages: Vec<Option<Bytes>>,
    /// Slot keys of the subscribers that have not received the batch yet.
    pub(super) recipients: VecDeque<usize>,
    /// Events have been queued since the last batch was taken.
    pub(super) has_queued_events: bool,
    /// The group is in the scheduler's delivery queue.
    pub(super) is_in_delivery_queue: bool,
    pub(super) metrics: MetricsBuffers,
}

impl ProductGroup {
    /// Returns an empty group and registers `waker`, which is called when events are queued.
    pub(super) fn new(feed: &Arc<Feed>, shard: usize, waker: Waker) -> Self {
        Self {
            feed: Arc::clone(feed),
            index: ShardIndex::new(&feed.fanout, shard, waker),
            len: 0,
            delivered_through: 0,
            events: Vec::new(),
            messages: Vec::new(),
            recipients: VecDeque::new(),
            has_queued_events: false,
            is_in_delivery_queue: false,
            metrics: MetricsBuffers::new(feed),
        }
    }

    /// Adds the subscriber in slot `key` to the group's index.
    pub(super) fn join(&mut self, key: usize, subscription: &mut Subscription) {
        self.len += 1;
        self.index.add(key, subscription);
    }

    /// Adds a subscriber of another shard to the group's index.
    pub(super) fn join_moved(&mut self, key: usize, subscription: &mut Subscription) {
        self.len += 1;
        self.index.add_moved(key, subscription);
    }

    /// Removes a subscriber and returns whether it was the last.
    pub(super) fn leave(&mut self, key: usize, scope: &Scope) -> bool {
        self.len -= 1;
        self.index.remove(key, scope);
        self.len == 0
    }

    /// Applies a new scope to one subscriber, which then re-reads the log.
    pub(super) fn change_scope(
        &mut self,
        key: usize,
        subscription: &mut Subscription,
        scope: Scope,
    ) {
        self.index.change_scope(key, subscription, scope);
    }

    /// Takes the queued events, unless the previous batch still has recipients.
    ///
    /// Calls `visit` for each subscriber concerned and each location; `visit` returns whether the
    /// subscriber is to become a recipient of the batch.
    pub(super) fn take_events(&mut self, mut visit: impl FnMut(usize, EventLocation) -> bool) {
        let Self { index, events, messages, recipients, .. } = self;
        if !recipients.is_empty() || !std::mem::take(&mut self.has_queued_events) {
            return;
        }
        // The old batch has no recipients left. The fan-out swaps lists, and must get an empty one.
        events.clear();
        messages.clear();
        let mut fall_back = |key, position| {
            visit(key, EventLocation::Log(position));
        };
        let first = match index.take_queued(events) {
            QueueContents::Events => events.first().map(|event| event.position()),
            QueueContents::Marks(marks) => {
                let targets = marks.iter().map(|mark| mark.scope_key());
                index.for_each_interested(targets, |mark_index, key| {
                    marks.get(mark_index).into_iter().for_each(|it| fall_back(key, it.position));
                });
                marks.first().map(|mark| mark.position)
            }
            QueueContents::Overflowed(position) => {
                index.for_each(|key| fall_back(key, position));
                Some(position)
            }
        };
        self.delivered_through =
            self.delivered_through.max(first.unwrap_or_default().saturating_sub(1));
        let position_of =
            |event_index: usize| events.get(event_index).map_or(0, |event| event.position());
        let targets = events.iter().map(|event| event.scope_key());
        // An upstream relay may still be replaying history, which subscribers that asked for live
        // events only must not receive. The subscription decides that when it reads the log.
        if first.is_some_and(|first| first <= self.feed.log.history_through()) {
            index.for_each_interested(targets, |event_index, key| {
                fall_back(key, position_of(event_index));
            });
            return events.clear();
        }
        messages.resize(events.len(), None);
        index.for_each_interested(targets, |event_index, key| {
            if visit(key, EventLocation::Queue(event_index)) {
                recipients.push_back(key);
            }
        });
    }

    /// Returns the batch from index `first` on, and the metrics to record deliveries in.
    pub(super) fn queued_from(&mut self, first: usize) -> (QueuedEvents<'_>, &mut MetricsBuffers) {
        let events = self.events.get(first..).unwrap_or_default();
        let messages = self.messages.get_mut(first..).unwrap_or_default();
        (QueuedEvents { feed: &self.feed, events, messages }, &mut self.metrics)
    }

    /// Returns whether the group retains no events.
    #[cfg(test)]
    pub(super) fn holds_no_events(&self) -> bool {
        self.events.is_empty() && self.messages.is_empty()
    }

    /// Releases the batch if it has no recipients left, and returns whether it has none.
    pub(super) fn finish_batch(&mut self) -> bool {
        if self.recipients.is_empty() {
            // Not retained until the next batch: the events may be erased meanwhile.
            self.events.clear();
            self.messages.clear();
        }
        self.recipients.is_empty()
    }

    /// Returns the position up to which every caught-up subscriber has received its events.
    ///
    /// The fan-out's position counts only when no events are queued: with a batch in delivery or a
    /// signal pending, a subscriber advanced to it would skip events.
    pub(super) fn advance_delivered_through(&mut self) -> u64 {
        if !self.has_queued_events && self.recipients.is_empty() {
            self.delivered_through =
                self.delivered_through.max(self.index.position().unwrap_or_default());
        }
        self.delivered_through
    }
}

/// Location of the events that a subscriber is to receive.
#[derive(Clone, Copy, Debug)]
pub(super) enum EventLocation {
    /// In the log, from this position on.
    Log(u64),
    /// In the batch, from this index on.
    Queue(usize),
}
