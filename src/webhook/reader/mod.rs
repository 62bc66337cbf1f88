//! Reader of one webhook: events of the log in order, once committed, and single events again.
//!
//! In: the webhook's subscription, and the store's persisted position. Out: events that may be
//! sent.
//!
//! An event is returned once it is committed, so that after a crash no other event has the
//! position of a delivered one. While the store is degraded it commits nothing: then events are
//! returned as soon as they are in the log.
//!
//! May use: `event`, `fanout`, `log`, `store`, `subscription`.

mod progress;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    future::poll_fn,
    mem,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{sync::watch, time};

pub(super) use self::progress::ReadProgress;
use crate::{
    event::{Entry, Event, GapReason, Scope},
    fanout::{Fanout, SubscriberSignal},
    log::{
        DamagedEvent, ReadLimits, ReadOutcome, ReplayClient,
        backing::{CatchUp, StoredChunk},
    },
    store::StoreHandle,
    subscription::{Subscription, SubscriptionItem},
};

/// Cursor of one webhook in its product's log.
#[derive(Debug)]
pub(super) struct WebhookReader {
    fanout: Arc<Fanout>,
    store: Arc<StoreHandle>,
    subscription: Subscription,
    progress: Arc<ReadProgress>,
    persisted: watch::Receiver<u64>,
    /// Returned by the subscription, not committed yet.
    uncommitted: Option<Arc<Event>>,
}

/// Next item of the log for this webhook.
#[derive(Debug)]
pub(super) enum ReadItem {
    /// An event.
    Event(Arc<Event>),
    /// An event of the scope whose payload the store cannot give any more.
    Damaged {
        /// Position of the event.
        position: u64,
        /// Event without its payload.
        event: DamagedEvent,
    },
    /// Entries are gone that may have been events of the scope.
    Lost {
        /// Retention removed them, rather than an outage of the store.
        is_evicted: bool,
        /// Number of positions.
        positions: u64,
    },
}

impl WebhookReader {
    /// Creates a reader of the events that `scope` admits after `position`. The reader keeps
    /// `progress` up to date.
    pub(super) fn new(
        progress: Arc<ReadProgress>,
        store: Arc<StoreHandle>,
        scope: Scope,
        position: u64,
    ) -> Self {
        let (fanout, signal) = (Arc::clone(progress.fanout()), SubscriberSignal::default());
        progress.restart(signal.clone());
        let subscription = Subscription::after(&fanout, signal, scope, position);
        let persisted = fanout.log().watch_persisted();
        Self { fanout, store, subscription, progress, persisted, uncommitted: None }
    }

    /// Continues with another scope, and discards everything read but not returned, which is read
    /// again.
    pub(super) fn resubscribe(&mut self, scope: Scope) {
        // The new scope is for entries from now on: an idle worker may not have polled for hours.
        self.advance_over_hidden();
        let position = self.passed_position();
        *self = Self::new(Arc::clone(&self.progress), Arc::clone(&self.store), scope, position);
    }

    /// Takes notice of entries outside the scope that have come since the last poll.
    pub(super) fn advance_over_hidden(&mut self) {
        self.subscription.advance_over_hidden();
    }

    /// Returns the position up to which everything is committed and was returned or is outside the
    /// scope.
    pub(super) fn passed_position(&self) -> u64 {
        self.returned_through().min(self.committed_position())
    }

    /// Returns the position up to which everything was returned or is outside the scope, committed
    /// or not.
    pub(super) fn returned_through(&self) -> u64 {
        self.uncommitted
            .as_ref()
            .map_or_else(|| self.subscription.returned_through(), |event| event.position() - 1)
    }

    /// Returns whether the reader holds an event that waits for its commit.
    pub(super) fn has_uncommitted(&self) -> bool {
        self.uncommitted.is_some()
    }

    /// Returns the position up to which the log is committed.
    pub(super) fn committed_position(&self) -> u64 {
        *self.persisted.borrow()
    }

    /// Returns a watch on the committed position, see [`Log::watch_persisted`].
    ///
    /// [`Log::watch_persisted`]: crate::log::Log::watch_persisted
    pub(super) fn watch_commits(&self) -> watch::Receiver<u64> {
        self.fanout.log().watch_persisted()
    }

    /// Returns the number of entries after the passed position.
    pub(super) fn lag(&self) -> u64 {
        self.fanout.log().newest_position().saturating_sub(self.passed_position())
    }

    /// Returns the next event once it may be sent.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing: an event that waits for its commit stays in
    /// `uncommitted`.
    pub(super) async fn next(&mut self) -> ReadItem {
        loop {
            if let Some(event) = &self.uncommitted {
                self.wait_until_committed(event.position()).await;
                if let Some(event) = self.uncommitted.take() {
                    return ReadItem::Event(event);
                }
            }
            let before = self.subscription.returned_through();
            match self.next_item().await {
                SubscriptionItem::Event { event, .. } => self.uncommitted = Some(event),
                SubscriptionItem::Gap(gap)
                    if gap.reason == GapReason::NotKept
                        && let Some(event) = self.fanout.log().damaged_event(gap.position) =>
                {
                    return ReadItem::Damaged { position: gap.position, event };
                }
                SubscriptionItem::Gap(gap)
                    if matches!(gap.reason, GapReason::Evicted | GapReason::NotKept) =>
                {
                    let is_evicted = gap.reason == GapReason::Evicted;
                    return ReadItem::Lost {
                        is_evicted,
                        positions: gap.position.saturating_sub(before),
                    };
                }
                // Gaps of the upstream: events never reached the log, so no delivery is owed.
                SubscriptionItem::Gap(_) => {}
            }
        }
    }

    /// Returns the next item of the subscription, committed or not.
    async fn next_item(&mut self) -> SubscriptionItem {
        loop {
            let polled = poll_fn(|context| {
                self.progress.begin_poll();
                // Also before the poll, whose clock may be the last that finds it too early.
                let retry_before = self.subscription.store_retry_at();
                if let Poll::Ready(item) = self.subscription.poll_next(context) {
                    return Poll::Ready(Ok(item));
                }
                // Nothing wakes a subscription that waits for the store to recover.
                match self.subscription.store_retry_at().or(retry_before) {
                    Some(retry_at) => Poll::Ready(Err(retry_at)),
                    None => {
                        if self.subscription.is_caught_up() {
                            self.progress.mark_caught_up();
                        }
                        Poll::Pending
                    }
                }
            });
            match polled.await {
                Ok(item) => return item,
                Err(retry_at) => time::sleep_until(retry_at).await,
            }
        }
    }

    /// Waits until `position` is committed, or the store is degraded.
    async fn wait_until_committed(&self, position: u64) {
        let mut persisted = self.persisted.clone();
        tokio::select! {
            // Cannot fail: the sender is part of the log.
            _ = persisted.wait_for(|persisted| *persisted >= position) => {}
            () = self.store.backing().wait_until_degraded() => {}
        }
    }
}

/// Reads single events again, one request at a time.
#[derive(Debug)]
pub(super) struct EventReloader {
    fanout: Arc<Fanout>,
    /// The last read failed: the next one asks for one event alone, because the fault may be in
    /// another event of the same page.
    single_event_only: bool,
    /// The request in flight, with its position.
    pending_read: Option<(u64, CatchUp)>,
}

/// Result of a read at one position.
#[derive(Debug)]
pub(super) enum Reloaded {
    /// The event and some that follow it.
    Events(Vec<Arc<Event>>),
    /// The event was erased.
    Erased,
    /// Retention has removed everything up to `through`.
    Expired { through: u64 },
    /// The event was never stored.
    Lost,
    /// The event's row in the store is damaged.
    Damaged,
    /// The store cannot read the event at present.
    Unreadable,
}

impl EventReloader {
    /// Creates a reloader of one product's log.
    pub(super) fn new(fanout: Arc<Fanout>) -> Self {
        Self { fanout, single_event_only: false, pending_read: None }
    }

    /// Reads the event at `position` and a few that follow it.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing: the next call continues the request, or starts another
    /// for another position.
    pub(super) async fn reload(&mut self, position: u64) -> Reloaded {
        loop {
            let reloaded = poll_fn(|context| self.poll_reload(context, position)).await;
            self.pending_read = None;
            let has_failed = matches!(reloaded, Reloaded::Unreadable);
            let was_alone = mem::replace(&mut self.single_event_only, has_failed);
            if was_alone || !has_failed {
                return reloaded;
            }
        }
    }

    fn poll_reload(&mut self, context: &mut Context<'_>, position: u64) -> Poll<Reloaded> {
        if let Some((asked_position, catch_up)) = &mut self.pending_read
            && *asked_position == position
            && let Some(chunk) = ready!(catch_up.poll_chunk(context))
        {
            return Poll::Ready(match chunk {
                Ok(chunk) if chunk.evicted_through >= position => {
                    Reloaded::Expired { through: chunk.evicted_through }
                }
                Ok(StoredChunk { damaged: Some(row), .. })
                    if (row.first..=row.position).contains(&position) =>
                {
                    self.fanout.log().record_damaged_row(row);
                    Reloaded::Damaged
                }
                Ok(chunk) => reloaded_from(position, chunk.entries),
                Err(_) => Reloaded::Unreadable,
            });
        }
        let everything = Scope::EVERYTHING;
        let mut entries = VecDeque::new();
        let limits = if self.single_event_only {
            ReadLimits { entries: 1, ..RELOAD_LIMITS }
        } else {
            RELOAD_LIMITS
        };
        match self.fanout.log().read_after(
            position.saturating_sub(1),
            &everything,
            limits,
            &mut entries,
        ) {
            ReadOutcome::Entries { .. } => Poll::Ready(reloaded_from(position, entries)),
            ReadOutcome::Lost { reason: GapReason::Evicted, lost_through: through } => {
                Poll::Ready(Reloaded::Expired { through })
            }
            ReadOutcome::Lost { .. } => Poll::Ready(Reloaded::Lost),
            ReadOutcome::InStore { store, request: wanted } => {
                let mut catch_up = store.catch_up(ReplayClient::default());
                catch_up.request(wanted);
                self.pending_read = Some((position, catch_up));
                // Polled again at once: only the next poll registers the waker with the request.
                context.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }
}

fn reloaded_from(position: u64, entries: impl IntoIterator<Item = Entry>) -> Reloaded {
    // An entry at another position comes first if the requested one is erased or a gap.
    let event = |entry| match entry {
        Entry::Event(event) => Some(event),
        Entry::Gap(_) | Entry::Erased => None,
    };
    let events: Vec<_> = entries.into_iter().filter_map(event).collect();
    match events.first() {
        Some(first) if first.position() == position => Reloaded::Events(events),
        _ => Reloaded::Erased,
    }
}

/// Bounds of one read: a page of events that are likely needed soon.
const RELOAD_LIMITS: ReadLimits = ReadLimits { entries: 64, bytes: 256 * 1024 };
