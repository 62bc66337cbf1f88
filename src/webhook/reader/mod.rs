//! One webhook's reader of the log: events in order once they are committed, and single events
//! again.
//!
//! While the store is degraded nothing is committed; the reader then returns events as soon as they
//! are dispatched.
//!
//! May use: `event`, `fanout`, `log`, `store`.

#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    future::poll_fn,
    mem,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{sync::watch, time};

use crate::{
    event::{Entry, Event, GapReason, Only, Scope},
    fanout::{Fanout, SubscriberSignal, Subscription, SubscriptionItem},
    log::{ReadLimits, ReadOutcome},
    store::{CatchUp, StoreHandle},
};

/// One webhook's cursor.
#[derive(Debug)]
pub(super) struct WebhookReader {
    fanout: Arc<Fanout>,
    store: Arc<StoreHandle>,
    subscription: Subscription,
    persisted: watch::Receiver<u64>,
    /// Shown, but not committed yet.
    uncommitted: Option<Arc<Event>>,
}

/// What comes next.
#[derive(Debug)]
pub(super) enum ReadItem {
    /// An event.
    Event(Arc<Event>),
    /// So many places are gone that may have held events.
    Lost {
        /// They have been kept for as long as anything is.
        is_evicted: bool,
        /// How many.
        positions: u64,
    },
}

impl WebhookReader {
    /// Reads what `scope` admits behind `place`.
    pub(super) fn new(
        fanout: Arc<Fanout>,
        store: Arc<StoreHandle>,
        scope: Scope,
        position: u64,
    ) -> Self {
        let subscription =
            fanout.subscribe_after(Arc::new(SubscriberSignal::default()), scope, position);
        let persisted = fanout.log().watch_persisted();
        Self { fanout, store, subscription, persisted, uncommitted: None }
    }

    /// Goes on with another scope, or reads again what has been read and not given.
    pub(super) fn resubscribe(&mut self, scope: Scope) {
        let position = self.passed_position();
        *self = Self::new(Arc::clone(&self.fanout), Arc::clone(&self.store), scope, position);
    }

    /// Everything up to this place has been given or is not for this webhook, and is committed.
    pub(super) fn passed_position(&self) -> u64 {
        let returned = self
            .uncommitted
            .as_ref()
            .map_or_else(|| self.subscription.returned_through(), |event| event.position() - 1);
        returned.min(self.committed_position())
    }

    /// Everything up to this place is committed.
    pub(super) fn committed_position(&self) -> u64 {
        *self.persisted.borrow()
    }

    /// Entries that have not been looked at.
    pub(super) fn lag(&self) -> u64 {
        self.fanout.log().newest_position().saturating_sub(self.passed_position())
    }

    /// The next event, once it may be sent.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
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
                    if matches!(gap.reason, GapReason::Evicted | GapReason::NotKept) =>
                {
                    let is_evicted = gap.reason == GapReason::Evicted;
                    return ReadItem::Lost {
                        is_evicted,
                        positions: gap.position.saturating_sub(before),
                    };
                }
                SubscriptionItem::Gap(_) => {}
            }
        }
    }

    /// The next thing that the log shows.
    async fn next_item(&mut self) -> SubscriptionItem {
        loop {
            let next = poll_fn(|context| self.subscription.poll_next(context));
            // It may wait for something of which nobody tells it.
            if let Ok(item) = time::timeout(READER_RECHECK_INTERVAL, next).await {
                return item;
            }
        }
    }

    /// Waits until `place` is committed, but not for a store that cannot be written.
    async fn wait_until_committed(&self, position: u64) {
        let mut persisted = self.persisted.clone();
        while *persisted.borrow_and_update() < position && !self.store.is_degraded() {
            let _ = time::timeout(READER_RECHECK_INTERVAL, persisted.changed()).await;
        }
    }
}

/// Reads single events again, one question at a time.
#[derive(Debug)]
pub(super) struct EventReloader {
    fanout: Arc<Fanout>,
    /// Something could not be read: the next question is for one event alone, lest its neighbours
    /// be at fault.
    single_event_only: bool,
    /// The place that is asked for, while it is.
    pending_read: Option<(u64, CatchUp)>,
}

/// What was found at a place and behind it.
#[derive(Debug)]
pub(super) enum Reloaded {
    /// These; the first is the one that was asked for.
    Events(Vec<Arc<Event>>),
    /// It has been erased.
    Erased,
    /// Everything up to this place has been kept for long enough.
    Expired { through: u64 },
    /// It has not been kept.
    Lost,
    /// The store cannot read it now.
    Unreadable,
}

impl EventReloader {
    /// Reads from this product's log.
    pub(super) fn new(fanout: Arc<Fanout>) -> Self {
        Self { fanout, single_event_only: false, pending_read: None }
    }

    /// Reads the event at `place` and a few behind it.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing; the next call goes on where it was, or begins anew for
    /// another place.
    pub(super) async fn reload(&mut self, position: u64) -> Reloaded {
        loop {
            let polled = poll_fn(|context| self.poll_reload(context, position));
            // A turn at the store may become free without a word.
            if let Ok(reloaded) = time::timeout(READER_RECHECK_INTERVAL, polled).await {
                self.pending_read = None;
                let has_failed = matches!(reloaded, Reloaded::Unreadable);
                let was_alone = mem::replace(&mut self.single_event_only, has_failed);
                if was_alone || !has_failed {
                    return reloaded;
                }
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
                Ok(chunk) => reloaded_from(position, chunk.entries),
                Err(_) => Reloaded::Unreadable,
            });
        }
        let everything = Scope { sessions: Only::Everything, kinds: Only::Everything };
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
                let mut catch_up = store.catch_up();
                catch_up.request(wanted);
                self.pending_read = Some((position, catch_up));
                context.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }
}

fn reloaded_from(position: u64, entries: impl IntoIterator<Item = Entry>) -> Reloaded {
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

/// What is read again at one time.
const RELOAD_LIMITS: ReadLimits = ReadLimits { entries: 64, bytes: 256 * 1024 };

/// Some things happen without a word: a turn at the store becomes free, or the store fails.
const READER_RECHECK_INTERVAL: Duration = Duration::from_millis(50);
