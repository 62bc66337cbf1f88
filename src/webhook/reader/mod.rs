//! What one webhook reads from the log: events in order once they are committed, and single ones again.
//!
//! While the store is degraded nothing is committed: then events are given as soon as they are shown.
//!
//! May use: `event`, `fanout`, `log`.

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
    fanout::{Fanout, Item, Listener, Subscription},
    log::{Limits, Reading},
    store::{CatchUp, Desk},
};

/// One webhook's cursor.
#[derive(Debug)]
pub(super) struct Reader {
    fanout: Arc<Fanout>,
    desk: Arc<Desk>,
    subscription: Subscription,
    kept: watch::Receiver<u64>,
    /// Shown, but not committed yet.
    held: Option<Arc<Event>>,
}

/// What comes next.
#[derive(Debug)]
pub(super) enum Read {
    /// An event.
    Event(Arc<Event>),
    /// So many places are gone that may have held events.
    Lost {
        /// They have been kept for as long as anything is.
        is_evicted: bool,
        /// How many.
        places: u64,
    },
}

impl Reader {
    /// Reads what `scope` admits behind `place`.
    pub(super) fn new(fanout: Arc<Fanout>, desk: Arc<Desk>, scope: Scope, place: u64) -> Self {
        let subscription = fanout.subscribe_behind(Arc::new(Listener::default()), scope, place);
        let kept = fanout.log().kept();
        Self { fanout, desk, subscription, kept, held: None }
    }

    /// Goes on with another scope, or reads again what has been read and not given.
    pub(super) fn narrow(&mut self, scope: Scope) {
        let place = self.passed();
        *self = Self::new(Arc::clone(&self.fanout), Arc::clone(&self.desk), scope, place);
    }

    /// Everything up to this place has been given or is not for this webhook, and is committed.
    pub(super) fn passed(&self) -> u64 {
        let returned =
            self.held.as_ref().map_or_else(|| self.subscription.returned_through(), |event| event.place() - 1);
        returned.min(self.committed())
    }

    /// Everything up to this place is committed.
    pub(super) fn committed(&self) -> u64 {
        *self.kept.borrow()
    }

    /// Entries that have not been looked at.
    pub(super) fn behind(&self) -> u64 {
        self.fanout.log().newest().saturating_sub(self.passed())
    }

    /// The next event, once it may be sent.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Read {
        loop {
            if let Some(event) = &self.held {
                self.until_committed(event.place()).await;
                if let Some(event) = self.held.take() {
                    return Read::Event(event);
                }
            }
            let before = self.subscription.returned_through();
            match self.shown().await {
                Item::Event { event, .. } => self.held = Some(event),
                Item::Gap(gap) if matches!(gap.reason, GapReason::Evicted | GapReason::NotKept) => {
                    let is_evicted = gap.reason == GapReason::Evicted;
                    return Read::Lost { is_evicted, places: gap.place.saturating_sub(before) };
                }
                Item::Gap(_) => {}
            }
        }
    }

    /// The next thing that the log shows.
    async fn shown(&mut self) -> Item {
        loop {
            let next = poll_fn(|context| self.subscription.poll_next(context));
            // It may wait for something of which nobody tells it.
            if let Ok(item) = time::timeout(LOOK_AGAIN, next).await {
                return item;
            }
        }
    }

    /// Waits until `place` is committed, but not for a store that cannot be written.
    async fn until_committed(&self, place: u64) {
        let mut kept = self.kept.clone();
        while *kept.borrow_and_update() < place && !self.desk.is_degraded() {
            let _ = time::timeout(LOOK_AGAIN, kept.changed()).await;
        }
    }
}

/// Reads single events again, one question at a time.
#[derive(Debug)]
pub(super) struct Reloader {
    fanout: Arc<Fanout>,
    /// Something could not be read: the next question is for one event alone, lest its neighbours be at fault.
    asks_for_one: bool,
    /// The place that is asked for, while it is.
    asked: Option<(u64, CatchUp)>,
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

impl Reloader {
    /// Reads from this product's log.
    pub(super) fn new(fanout: Arc<Fanout>) -> Self {
        Self { fanout, asks_for_one: false, asked: None }
    }

    /// Reads the event at `place` and a few behind it.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing; the next call goes on where it was, or begins anew for another place.
    pub(super) async fn reload(&mut self, place: u64) -> Reloaded {
        loop {
            let looked = poll_fn(|context| self.poll(context, place));
            // A turn at the store may become free without a word.
            if let Ok(reloaded) = time::timeout(LOOK_AGAIN, looked).await {
                self.asked = None;
                let has_failed = matches!(reloaded, Reloaded::Unreadable);
                let was_alone = mem::replace(&mut self.asks_for_one, has_failed);
                if was_alone || !has_failed {
                    return reloaded;
                }
            }
        }
    }

    fn poll(&mut self, context: &mut Context<'_>, place: u64) -> Poll<Reloaded> {
        if let Some((asked, catch_up)) = &mut self.asked
            && *asked == place
            && let Some(chunk) = ready!(catch_up.poll(context))
        {
            return Poll::Ready(match chunk {
                Ok(chunk) if chunk.evicted_through >= place => Reloaded::Expired { through: chunk.evicted_through },
                Ok(chunk) => found(place, chunk.entries),
                Err(_) => Reloaded::Unreadable,
            });
        }
        let everything = Scope { sessions: Only::Everything, kinds: Only::Everything };
        let mut entries = VecDeque::new();
        let limits = if self.asks_for_one { Limits { entries: 1, ..RELOAD } } else { RELOAD };
        match self.fanout.log().read_after(place.saturating_sub(1), &everything, limits, &mut entries) {
            Reading::Taken { .. } => Poll::Ready(found(place, entries)),
            Reading::Lost { reason: GapReason::Evicted, through } => Poll::Ready(Reloaded::Expired { through }),
            Reading::Lost { .. } => Poll::Ready(Reloaded::Lost),
            Reading::InStore { store, wanted } => {
                let mut catch_up = store.catch_up();
                catch_up.want(wanted);
                self.asked = Some((place, catch_up));
                context.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }
}

fn found(place: u64, entries: impl IntoIterator<Item = Entry>) -> Reloaded {
    let event = |entry| match entry {
        Entry::Event(event) => Some(event),
        Entry::Gap(_) | Entry::Erased => None,
    };
    let events: Vec<_> = entries.into_iter().filter_map(event).collect();
    match events.first() {
        Some(first) if first.place() == place => Reloaded::Events(events),
        _ => Reloaded::Erased,
    }
}

/// What is read again at one time.
const RELOAD: Limits = Limits { entries: 64, bytes: 256 * 1024 };

/// Some things happen without a word: a turn at the store becomes free, or the store fails.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
