//! One subscriber's cursor: catches up from the log, then follows it.
//!
//! New, slow and returning subscribers differ only in where the cursor stands. Nothing here grows
//! with traffic: a subscription holds one small hand-over of entries, and everything else stays in
//! the log.
//!
//! May use: `event`, `store`.

mod on_shard;
mod read;
mod start;

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
};

use tokio::time::Instant;

use super::{Fanout, SubscriberSignal};
use crate::{
    event::{Entry, Event, EventId, Gap, Scope, StartPosition},
    store::CatchUp,
};

/// A subscriber's view of one product: entries within its scope, in order, none twice, and a notice
/// for each gap.
#[derive(Debug)]
pub(crate) struct Subscription {
    fanout: Arc<Fanout>,
    pub(super) signal: Arc<SubscriberSignal>,
    /// It stands in the fan-out's index. Otherwise its lane tells it what has arrived.
    is_indexed: bool,
    scope: Scope,
    /// Place of the last entry that has been taken from the log or is hidden by the scope.
    cursor: u64,
    /// There may be entries behind the cursor for which no mark will come.
    is_lagging: bool,
    /// What it came with, as long as that may still turn up in the log.
    awaited_start: Option<Box<AwaitedStart>>,
    /// It asked for news only.
    skips_history: bool,
    /// It asked for news only, and the log was still getting history when it looked.
    is_held_back: bool,
    /// It asked for what is kept, and has not looked yet: what was evicted of the time before it
    /// came is not missing.
    wants_oldest: bool,
    /// Set while what comes next is in the store.
    catch_up: Option<Box<CatchUp>>,
    read_failure_policy: ReadFailurePolicy,
    read_buffer: VecDeque<Entry>,
    pending_gap: Option<Box<Gap>>,
    /// Entries after this one arrived while it listened.
    live_after: u64,
    /// The last id that the subscriber has, and its place.
    last_delivered: Option<(u64, EventId)>,
}

/// What becomes of what the store has, but cannot be read there now.
#[derive(Debug)]
enum ReadFailurePolicy {
    /// It is announced as a gap: a client is not to wait for a disk.
    AnnounceGap,
    /// It is asked for again at this time. What is kept for the reader is not to be given up
    /// because a disk was busy.
    RetryLater {
        /// None before the first time.
        not_before: Option<Instant>,
    },
}

/// An id that the log does not know yet.
#[derive(Debug)]
struct AwaitedStart {
    start: StartPosition,
    until: Instant,
}

impl Subscription {
    /// A subscription at `start`; entries behind `position` will be shown to its `signal`.
    pub(super) fn new(
        fanout: Arc<Fanout>,
        signal: Arc<SubscriberSignal>,
        scope: Scope,
        start: &StartPosition,
        position: u64,
    ) -> Self {
        let mut subscription = Self {
            fanout,
            signal,
            is_indexed: true,
            scope,
            cursor: position,
            is_lagging: false,
            awaited_start: None,
            skips_history: false,
            is_held_back: false,
            wants_oldest: false,
            catch_up: None,
            read_failure_policy: ReadFailurePolicy::AnnounceGap,
            read_buffer: VecDeque::new(),
            pending_gap: None,
            live_after: position,
            last_delivered: None,
        };
        subscription.resolve_start(start, true);
        subscription
    }

    /// Goes on with another scope, from where it stands. What has been returned is not returned
    /// again, and what comes behind that is judged by the new scope alone. One whose lane tells it
    /// what has arrived must join that again, see `Followers::change_scope`.
    pub(crate) fn change_scope(&mut self, scope: Scope) {
        self.cursor = self.returned_through();
        self.read_buffer.clear();
        self.catch_up = None;
        // There are no marks for what the new scope shows and the old one has hidden.
        self.is_lagging = true;
        if self.is_indexed {
            // Under one lock: no entry is marked by neither scope.
            let mut registry = self.fanout.registry();
            registry.subscribers.remove(&self.scope, self.signal.key());
            registry.subscribers.insert(&scope, self.signal.key(), &self.signal);
        }
        self.scope = scope;
    }

    /// What it may see.
    pub(crate) fn scope(&self) -> &Scope {
        &self.scope
    }

    /// The place up to which everything within the scope has been returned.
    pub(crate) fn returned_through(&self) -> u64 {
        let first = self.read_buffer.iter().find_map(|entry| match entry {
            Entry::Event(event) => Some(event.position()),
            Entry::Gap(gap) => Some(gap.position),
            Entry::Erased => None,
        });
        first.map_or(self.cursor, |position| position - 1)
    }

    /// The next event or gap within the scope.
    ///
    /// # Cancel safety
    ///
    /// What has not been returned stays for the next call.
    pub(crate) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<SubscriptionItem> {
        for _ in 0..MAX_LOG_READS_PER_POLL {
            if let Some(gap) = self.pending_gap.take() {
                return Poll::Ready(self.deliver_gap(*gap));
            }
            if let Some(entry) = self.read_buffer.pop_front() {
                match entry {
                    Entry::Event(event) => return Poll::Ready(self.deliver_event(event)),
                    Entry::Gap(gap) => {
                        let gap = self.fanout.log().with_next_id(&gap);
                        return Poll::Ready(self.deliver_gap(gap));
                    }
                    Entry::Erased => continue,
                }
            }
            if !self.poll_located() || self.read_failure_policy.is_backing_off() {
                return Poll::Pending;
            }
            if ready!(self.poll_store(context)) {
                continue;
            }
            if !self.is_lagging && !self.poll_pending(context) {
                return Poll::Pending;
            }
            self.read_log();
        }
        // A long way through what the scope hides: others are to have their turn.
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Has `context` woken at the next mark, or when its holder is told to leave, without looking
    /// for anything.
    pub(crate) fn register_waker(&self, context: &Context<'_>) {
        self.signal.register_waker(context.waker());
    }

    /// Whether it waits for something of which nobody will tell it: it must be polled again soon.
    pub(crate) fn must_poll_again(&self) -> bool {
        self.is_waiting_for_log()
            || self.read_failure_policy.is_backing_off()
            || self.catch_up.as_ref().is_some_and(|it| it.is_waiting_for_permit())
    }

    /// Whether there was nothing for it yet when it looked: its id was not here, or history had not
    /// come to its end.
    fn is_waiting_for_log(&self) -> bool {
        self.awaited_start.is_some() || self.is_held_back
    }

    /// Whether what comes next is in the store.
    pub(crate) fn reads_from_store(&self) -> bool {
        self.catch_up.is_some() && self.read_buffer.is_empty()
    }

    /// Whether there was nothing more to see when [`Subscription::poll_next`] returned pending.
    pub(crate) fn is_caught_up(&self) -> bool {
        !self.is_lagging
            && !self.is_waiting_for_log()
            && self.read_buffer.is_empty()
            && self.pending_gap.is_none()
    }

    /// Whether the fan-out has shown it something behind the cursor. If not, the waker is called
    /// when it does.
    fn poll_pending(&mut self, context: &Context<'_>) -> bool {
        // In this order: what is shown after the position was read either leaves a mark to see now
        // or calls the waker.
        self.signal.register_waker(context.waker());
        if !self.is_indexed {
            return false;
        }
        let position = self.fanout.dispatched_through.load(Ordering::SeqCst);
        self.take_pending(position)
    }

    /// Takes the mark, which was left before `position` was written or is behind it. Whether there
    /// was one.
    fn take_pending(&mut self, position: u64) -> bool {
        match self.signal.take_pending() {
            0 => {
                self.cursor = self.cursor.max(position);
                false
            }
            // What lies between the cursor and the first mark was for others.
            first => {
                self.cursor = self.cursor.max(first - 1);
                true
            }
        }
    }

    fn deliver_event(&mut self, event: Arc<Event>) -> SubscriptionItem {
        self.last_delivered = Some((event.position(), event.id()));
        let received = event.received().filter(|_| event.position() > self.live_after);
        SubscriptionItem::Event { event, received }
    }

    fn deliver_gap(&mut self, gap: Gap) -> SubscriptionItem {
        self.last_delivered = Some((gap.position, gap.id));
        SubscriptionItem::Gap(gap)
    }

    /// Moves the subscriber's id on to where the log has moved past what it has been given; the id,
    /// if it has.
    pub(crate) fn advance_last_id(&mut self) -> Option<EventId> {
        let given = self.last_delivered.map_or(0, |(position, _)| position);
        let id = self
            .fanout
            .log()
            .id_at(self.cursor)
            .filter(|_| self.cursor > given && self.is_caught_up())?;
        self.last_delivered = Some((self.cursor, id));
        Some(id)
    }

    /// The last id that the subscriber has.
    pub(crate) fn last_delivered_id(&self) -> Option<EventId> {
        self.last_delivered.map(|(_, id)| id)
    }

    /// Entries and bytes that it holds by itself.
    #[cfg(test)]
    pub(super) fn buffered(&self) -> (usize, usize) {
        (self.read_buffer.len(), self.read_buffer.iter().map(Entry::wire_bytes).sum())
    }

    /// Whether it has been given everything up to `place`, or may not see it. While it waits there
    /// is nothing for it.
    pub(crate) fn has_passed(&self, position: u64) -> bool {
        let is_delivered = self.last_delivered.is_some_and(|(given, _)| given >= position);
        let is_past_it = self.cursor >= position && self.is_caught_up();
        let has_nothing_to_get = self.awaited_start.is_some()
            || (self.is_held_back && self.fanout.log().is_recovering());
        is_delivered || is_past_it || has_nothing_to_get
    }
}

impl ReadFailurePolicy {
    /// Whether it is too early to ask again.
    fn is_backing_off(&self) -> bool {
        matches!(self, Self::RetryLater { not_before: Some(until) } if Instant::now() < *until)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if self.is_indexed {
            self.fanout.registry().subscribers.remove(&self.scope, self.signal.key());
        }
    }
}

/// What a subscriber gets.
#[derive(Debug)]
pub(crate) enum SubscriptionItem {
    /// An event.
    Event {
        /// The event itself, shared.
        event: Arc<Event>,
        /// When its last byte came from the upstream, if that was while the subscriber was there;
        /// else it is replayed.
        received: Option<Instant>,
    },
    /// Events may be missing here.
    Gap(Gap),
}

/// Readings in one poll that find nothing; each looks at some thousand entries.
const MAX_LOG_READS_PER_POLL: usize = 16;
