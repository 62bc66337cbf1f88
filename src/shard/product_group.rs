//! The subscribers of one product on one lane, and what has arrived for them.
//!
//! May use: `event`, `fanout`, `metrics`.

use std::{collections::VecDeque, sync::Arc, task::Waker};

use bytes::Bytes;

use super::{QueuedEvents, metrics_buffers::MetricsBuffers};
use crate::{
    event::{Event, Scope},
    fanout::{QueueContents, ShardIndex, Subscription},
    feed::Feed,
};

/// Those who follow one product.
#[derive(Debug)]
pub(super) struct ProductGroup {
    pub(super) feed: Arc<Feed>,
    index: ShardIndex,
    len: usize,
    delivered_through: u64,
    /// What is being given to them.
    events: Vec<Arc<Event>>,
    /// As many as there are arrivals.
    messages: Vec<Option<Bytes>>,
    /// Who has not been given it yet.
    pub(super) recipients: VecDeque<usize>,
    /// More has arrived.
    pub(super) is_signaled: bool,
    /// It stands in its crowd's list of those that have something to give.
    pub(super) is_queued: bool,
    pub(super) metrics: MetricsBuffers,
}

impl ProductGroup {
    /// Nobody yet; `waker` is called when something has arrived.
    pub(super) fn new(feed: &Arc<Feed>, shard: usize, waker: Waker) -> Self {
        Self {
            feed: Arc::clone(feed),
            index: ShardIndex::new(&feed.fanout, shard, waker),
            len: 0,
            delivered_through: 0,
            events: Vec::new(),
            messages: Vec::new(),
            recipients: VecDeque::new(),
            is_signaled: false,
            is_queued: false,
            metrics: MetricsBuffers::new(feed),
        }
    }

    /// One more.
    pub(super) fn join(&mut self, key: usize, subscription: &mut Subscription) {
        self.len += 1;
        self.index.add(key, subscription);
    }

    /// One less; whether that was the last.
    pub(super) fn leave(&mut self, key: usize, scope: &Scope) -> bool {
        self.len -= 1;
        self.index.remove(key, scope);
        self.len == 0
    }

    /// One of them wants something else from now on, and looks into the log for it.
    pub(super) fn change_scope(
        &mut self,
        key: usize,
        subscription: &mut Subscription,
        scope: Scope,
    ) {
        self.index.change_scope(key, subscription, scope);
    }

    /// Takes what has arrived, once what came before has been given. Visits each whom something is for, and is told whether that is
    /// to be given to it.
    pub(super) fn take_events(&mut self, mut visit: impl FnMut(usize, EventLocation) -> bool) {
        let Self { index, events, messages, recipients, .. } = self;
        if !recipients.is_empty() || !std::mem::take(&mut self.is_signaled) {
            return;
        }
        // They are given, or concerned nobody: the fan-out gets back an empty list.
        events.clear();
        messages.clear();
        let mut fall_back = |key, position| {
            visit(key, EventLocation::Log(position));
        };
        let first = match index.take_queued(events) {
            QueueContents::Events => events.first().map(|event| event.position()),
            QueueContents::Marks(marks) => {
                let targets = marks.iter().map(|mark| (mark.session.as_ref(), &mark.kind));
                index.for_each_interested(targets, |mark_index, key| {
                    marks.get(mark_index).into_iter().for_each(|it| fall_back(key, it.position))
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
        let targets = events.iter().map(|event| (event.session(), event.kind()));
        // A relay before this one may still be telling what was, which is not for who asked for news.
        if first.is_some_and(|first| first <= self.feed.log.history_through()) {
            index.for_each_interested(targets, |event_index, key| {
                fall_back(key, position_of(event_index))
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

    /// What is being given, from its number `first` on, and where it is noted.
    pub(super) fn queued_from(&mut self, first: usize) -> (QueuedEvents<'_>, &mut MetricsBuffers) {
        let events = self.events.get(first..).unwrap_or_default();
        let messages = self.messages.get_mut(first..).unwrap_or_default();
        (QueuedEvents { events, messages }, &mut self.metrics)
    }

    /// Whether nothing is kept.
    #[cfg(test)]
    pub(super) fn holds_no_events(&self) -> bool {
        self.events.is_empty() && self.messages.is_empty()
    }

    /// What has arrived has been given to all whom it concerned.
    pub(super) fn finish_batch(&mut self) -> bool {
        if self.recipients.is_empty() {
            // Not kept until something comes: it may be erased meanwhile.
            self.events.clear();
            self.messages.clear();
        }
        self.recipients.is_empty()
    }

    /// The place up to which everything has been given, to those who have not been told to look into the log.
    pub(super) fn advance_delivered_through(&mut self) -> u64 {
        if !self.is_signaled && self.recipients.is_empty() {
            self.delivered_through =
                self.delivered_through.max(self.index.position().unwrap_or_default());
        }
        self.delivered_through
    }
}

/// Where somebody finds what is for it.
#[derive(Clone, Copy, Debug)]
pub(super) enum EventLocation {
    /// From this place on in the log.
    Log(u64),
    /// From this number on among the arrivals.
    Queue(usize),
}
