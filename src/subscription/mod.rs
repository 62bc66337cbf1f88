//! One subscriber's cursor: catches up from the log, then follows it.
//!
//! In: notifications from the fan-out, or events from the shard; entries from the log. Out: events
//! within the scope, in order, none twice, and a notice for each gap.
//!
//! ```text
//!  start.rs     start position ─► cursor, or waits for an id that the log may still get
//!  read.rs      cursor ─► ring or store ─► read buffer ─► poll_next
//!  queued.rs    queued events of the shard ─► accept, advance_to, or resync_from
//! ```
//!
//! New, slow and returning subscribers differ only in the cursor's position. Memory does not grow
//! with traffic: a subscription holds one small read buffer, and everything else stays in the log.
//!
//! May use: `event`, `fanout`, `log`.

#[cfg(test)]
mod model;
mod queued;
mod read;
mod start;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::time::Instant;

#[cfg(test)]
pub(crate) use self::testing::{FanoutReader, scope};
use crate::{
    event::{Entry, Event, EventId, Gap, Scope, StartPosition},
    fanout::{Fanout, SubscriberSignal},
    log::{ReplayClient, backing::CatchUp},
};

/// A subscriber's view of one product: entries within its scope, in order, none twice, and a notice
/// for each gap.
#[derive(Debug)]
pub(crate) struct Subscription {
    fanout: Arc<Fanout>,
    signal: SubscriberSignal,
    /// Whether the subscription is in the fan-out's index and gets notifications. If not, its shard
    /// passes it what arrives.
    is_indexed: bool,
    scope: Scope,
    /// Position of the last entry that has been read, or that the scope hides.
    cursor: u64,
    /// Whether there may be entries after the cursor for which no notification will come.
    is_lagging: bool,
    /// Whether the subscriber asked for new entries only.
    skips_history: bool,
    /// Whether the subscriber asked for new entries only, and the log was still receiving history
    /// at the last poll.
    is_held_back: bool,
    /// Whether the subscriber asked for everything that is kept, and has not read yet. Evictions of
    /// entries older than the subscription are no loss to it.
    wants_oldest: bool,
    /// Client that reads of the store are charged to.
    replay_client: ReplayClient,
    /// Whether entries that are in the store and cannot be read from it now are read again later:
    /// deliveries that a webhook is owed are not given up because a disk is busy. Else they are
    /// announced as a gap: a client does not wait for a disk.
    retries_failed_reads: bool,
    /// What only a subscription that is not caught up needs. Boxed: there is one subscription per
    /// subscriber, and most are caught up.
    backlog: Option<Box<Backlog>>,
    /// Entries after this position arrived while the subscription existed.
    live_after: u64,
    /// Last id that the subscriber has received, and its position.
    last_delivered: Option<(u64, EventId)>,
    /// Entries and chains that reads have looked at and that were not for the subscriber; wraps
    /// around.
    skipped: u32,
    /// Value of `skipped` when the subscription last let others go first.
    skipped_at_yield: u32,
}

/// What a subscription reads, or waits for, until it is caught up.
#[derive(Debug, Default)]
struct Backlog {
    /// Start position that the log may still get to know.
    awaited_start: Option<AwaitedStart>,
    /// Set while the next entries are in the store.
    catch_up: Option<Box<CatchUp>>,
    /// Reads of the store in a row during which the subscriber's socket was not full.
    steady_reads: u32,
    /// When to read again what the store could not read.
    retry_at: Option<Instant>,
    read_buffer: VecDeque<Entry>,
    pending_gap: Option<Box<Gap>>,
}

/// A start position that is waited for.
#[derive(Debug)]
struct AwaitedStart {
    start: StartPosition,
    until: Instant,
}

impl Subscription {
    /// Registers a subscription to what comes from now on, preceded by what is after `start` and in
    /// the log already.
    pub(crate) fn start(
        fanout: &Arc<Fanout>,
        signal: SubscriberSignal,
        scope: Scope,
        start: &StartPosition,
    ) -> Self {
        // The signal is notified of every entry after this position. Entries up to it are read from
        // the log if `start` asks for them.
        let position = fanout.register(&scope, &signal);
        let mut subscription = Self {
            fanout: Arc::clone(fanout),
            signal,
            is_indexed: true,
            scope,
            cursor: position,
            is_lagging: false,
            skips_history: false,
            is_held_back: false,
            wants_oldest: false,
            replay_client: ReplayClient::default(),
            retries_failed_reads: false,
            backlog: None,
            live_after: position,
            last_delivered: None,
            skipped: 0,
            skipped_at_yield: 0,
        };
        subscription.resolve_start(start, true);
        subscription
    }

    /// Registers a subscription after a position, for a reader that keeps positions and needs no
    /// notice of its own position.
    pub(crate) fn after(
        fanout: &Arc<Fanout>,
        signal: SubscriberSignal,
        scope: Scope,
        position: u64,
    ) -> Self {
        let mut subscription = Self::start(fanout, signal, scope, &StartPosition::Now);
        subscription.resume_after(position);
        subscription
    }

    /// Charges reads of the store to a client, and not to the relay itself.
    pub(crate) fn for_client(mut self, replay_client: ReplayClient) -> Self {
        self.replay_client = replay_client;
        self
    }

    /// Replaces the scope, from the current position on. Items that were returned are not returned
    /// again, and entries after them are judged by the new scope alone. A shard that has taken the
    /// subscription over must replace the scope in its own index and in its port as well.
    pub(crate) fn change_scope(&mut self, scope: Scope) {
        self.cursor = self.returned_through();
        if let Some(backlog) = &mut self.backlog {
            backlog.read_buffer.clear();
            backlog.catch_up = None;
        }
        // No notification came for entries that the new scope admits and the old one hid.
        self.is_lagging = true;
        if self.is_indexed {
            self.fanout.replace_scope(&self.scope, &scope, &self.signal);
        }
        self.scope = scope;
    }

    /// Returns the sessions, users and kinds that the subscription admits.
    pub(crate) fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Returns the position up to which every entry within the scope has been returned.
    pub(crate) fn returned_through(&self) -> u64 {
        let buffered = self.backlog.iter().flat_map(|backlog| &backlog.read_buffer);
        let first = buffered.into_iter().find_map(|entry| match entry {
            Entry::Event(event) => Some(event.position()),
            Entry::Gap(gap) => Some(gap.position),
            Entry::Erased => None,
        });
        first.map_or(self.cursor, |position| position - 1)
    }

    /// Polls for the next event or gap within the scope.
    ///
    /// # Cancel safety
    ///
    /// An item that has not been returned stays for the next call.
    pub(crate) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<SubscriptionItem> {
        let item = self.poll_reads(context);
        if item.is_pending() {
            self.skipped_at_yield = self.skipped;
            // On a shard, which passes on what arrives, the next read may never come. Any other
            // subscription reads the next entry from the log as well, and keeps its buffer.
            if self.is_on_shard() && self.is_caught_up() {
                self.backlog = None;
            }
        }
        item
    }

    fn poll_reads(&mut self, context: &mut Context<'_>) -> Poll<SubscriptionItem> {
        for _ in 0..MAX_LOG_READS_PER_POLL {
            if let Some(gap) = self.backlog.as_mut().and_then(|it| it.pending_gap.take()) {
                return Poll::Ready(self.return_gap(*gap));
            }
            if let Some(entry) = self.backlog.as_mut().and_then(|it| it.read_buffer.pop_front()) {
                match entry {
                    Entry::Event(event) => return Poll::Ready(self.return_event(event)),
                    Entry::Gap(gap) => {
                        let gap = self.fanout.log().with_next_id(&gap);
                        return Poll::Ready(self.return_gap(gap));
                    }
                    Entry::Erased => continue,
                }
            }
            if !self.poll_located() || self.store_retry_at().is_some() {
                return Poll::Pending;
            }
            // Across calls: the caller of a poll takes many items, and each may stand behind many
            // entries that the scope hides. Asked before a pending position is taken, which would
            // be lost here, so a caught-up subscription passes.
            if self.is_lagging
                && self.skipped.wrapping_sub(self.skipped_at_yield) >= MAX_SKIPPED_PER_POLL
            {
                break;
            }
            if ready!(self.poll_store(context)) {
                continue;
            }
            if !self.is_lagging && !self.poll_pending(context) {
                return Poll::Pending;
            }
            self.read_log();
        }
        // Many entries, most of which the scope hides: other tasks get their turn before the rest
        // is read.
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Returns how many entries this subscription has looked at in vain, as a number that wraps
    /// around. A shard charges the difference to its turn.
    pub(crate) fn skipped(&self) -> u32 {
        self.skipped
    }

    /// Registers the task's waker for the next notification or disconnect, without polling.
    pub(crate) fn register_waker(&self, context: &Context<'_>) {
        self.signal.register_waker(context.waker());
    }

    /// Returns whether the subscription waits for something that wakes no task: it must be polled
    /// again soon.
    pub(crate) fn must_poll_again(&self) -> bool {
        self.is_waiting_for_log() || self.store_retry_at().is_some()
    }

    /// Returns when to poll again if the subscription waits for the store to recover.
    pub(crate) fn store_retry_at(&self) -> Option<Instant> {
        let retry_at = self.backlog.as_ref()?.retry_at?;
        (Instant::now() < retry_at).then_some(retry_at)
    }

    /// Returns whether the last poll found the start id missing, or history still arriving.
    fn is_waiting_for_log(&self) -> bool {
        self.awaits_start() || self.is_held_back
    }

    fn awaits_start(&self) -> bool {
        self.backlog.as_ref().is_some_and(|backlog| backlog.awaited_start.is_some())
    }

    /// Returns whether the next entries are in the store.
    pub(crate) fn reads_from_store(&self) -> bool {
        let backlog = self.backlog.as_ref();
        backlog.is_some_and(|it| it.catch_up.is_some() && it.read_buffer.is_empty())
    }

    /// Returns whether the last [`Subscription::poll_next`] that returned `Pending` had nothing
    /// left to read.
    pub(crate) fn is_caught_up(&self) -> bool {
        !self.is_lagging
            && !self.is_waiting_for_log()
            && self
                .backlog
                .as_ref()
                .is_none_or(|it| it.read_buffer.is_empty() && it.pending_gap.is_none())
    }

    /// Returns whether the subscription was notified of an entry after the cursor. If not, the
    /// waker is called at the next notification.
    fn poll_pending(&mut self, context: &Context<'_>) -> bool {
        // Three steps, in this order: register, read the position, take `pending`. An entry
        // dispatched after the position was read is either in `pending` by the time it is taken, or
        // finds the registered waker. An entry up to the position was notified before the position
        // was stored; if `pending` is 0 here, no entry up to it is within the scope.
        self.signal.register_waker(context.waker());
        if !self.is_indexed {
            return false;
        }
        let position = self.fanout.dispatched_through();
        self.take_pending(position)
    }

    /// Takes the pending position, and moves the cursor over what is known to concern other
    /// subscribers. Returns whether there was one.
    ///
    /// `position` was read from the fan-out before the call.
    fn take_pending(&mut self, position: u64) -> bool {
        match self.signal.take_pending() {
            0 => {
                self.cursor = self.cursor.max(position);
                false
            }
            // Entries between the cursor and the first pending position are not within the scope.
            // This makes gaps exact: a subscription with nothing pending has missed nothing,
            // however much of other sessions was evicted.
            first => {
                self.cursor = self.cursor.max(first - 1);
                true
            }
        }
    }

    /// Moves the cursor of a subscription that is caught up over entries that its scope hides. A
    /// poll does so too; this is for a caller that has not polled since they were dispatched.
    pub(crate) fn advance_over_hidden(&mut self) {
        if !self.is_indexed || !self.is_caught_up() {
            return;
        }
        // In this order, and for the same reason, as in `poll_pending`; `pending` stays.
        let position = self.fanout.dispatched_through();
        let hidden_through = self.signal.pending_position().map_or(position, |first| first - 1);
        self.cursor = self.cursor.max(hidden_through);
    }

    fn return_event(&mut self, event: Arc<Event>) -> SubscriptionItem {
        self.last_delivered = Some((event.position(), event.id()));
        let received = event.received().filter(|_| event.position() > self.live_after);
        SubscriptionItem::Event { event, received }
    }

    fn return_gap(&mut self, gap: Gap) -> SubscriptionItem {
        self.last_delivered = Some((gap.position, gap.id));
        SubscriptionItem::Gap(gap)
    }

    /// Moves the subscriber's last id to the cursor if only hidden entries are between. Returns
    /// the id if it has moved.
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

    /// Returns the last id that the subscriber has received.
    pub(crate) fn last_delivered_id(&self) -> Option<EventId> {
        self.last_delivered.map(|(_, id)| id)
    }

    /// Returns the number and the bytes of the entries in the read buffer.
    #[cfg(test)]
    pub(super) fn buffered(&self) -> (usize, usize) {
        let buffer = || self.backlog.iter().flat_map(|backlog| &backlog.read_buffer);
        (buffer().count(), buffer().map(Entry::encoded_len).sum())
    }

    /// Returns whether every entry up to `position` has been returned or is hidden by the scope. A
    /// subscription that waits for its start counts as past it: there is nothing to return yet.
    pub(crate) fn has_passed(&self, position: u64) -> bool {
        let is_delivered = self.last_delivered.is_some_and(|(given, _)| given >= position);
        let is_past_it = self.cursor >= position && self.is_caught_up();
        let has_nothing_to_get =
            self.awaits_start() || (self.is_held_back && self.fanout.log().is_recovering());
        is_delivered || is_past_it || has_nothing_to_get
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if self.is_indexed {
            self.fanout.unregister(&self.scope, &self.signal);
        }
    }
}

/// Item that a subscriber receives.
#[derive(Debug)]
pub(crate) enum SubscriptionItem {
    /// An event within the scope.
    Event {
        /// The event, shared with all other subscribers.
        event: Arc<Event>,
        /// When the event's last byte came from the upstream; none for an event that is older than
        /// the subscription, which is replayed.
        received: Option<Instant>,
    },
    /// Notice that events may be missing at this point.
    Gap(Gap),
}

/// Reads in one call that find nothing to return: erased entries, or entries outside the scope.
const MAX_LOG_READS_PER_POLL: usize = 16;

/// Entries that a subscription looks at in vain before it lets others go first, however many items
/// it returns in between: some hundred microseconds. What it returns is bounded by its caller.
const MAX_SKIPPED_PER_POLL: u32 = 1024;
