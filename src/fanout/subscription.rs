//! One subscriber's cursor: catches up from the log, then follows it.
//!
//! New, slow and returning subscribers differ only in where the cursor stands. Nothing here grows with traffic: a
//! subscription holds one small hand-over of entries, and everything else stays in the log.
//!
//! May use: `event`, `log`, the fan-out's index.

use std::{
    collections::VecDeque,
    mem,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::Instant;

use super::{Audience, Fanout, Listener};
use crate::{
    event::{Entry, Event, EventId, Gap, GapReason, Scope, Start},
    log::{Limits, Place, Reading},
    store::CatchUp,
};

/// A subscriber's view of one product: entries within its scope, in order, none twice, and a notice for each gap.
#[derive(Debug)]
pub(crate) struct Subscription {
    fanout: Arc<Fanout>,
    pub(super) listener: Arc<Listener>,
    /// It stands in the fan-out's index. Otherwise its lane tells it what has arrived.
    is_listed: bool,
    scope: Scope,
    /// Place of the last entry that has been taken from the log or is hidden by the scope.
    cursor: u64,
    /// There may be entries behind the cursor for which no mark will come.
    behind: bool,
    /// What it came with, as long as that may still turn up in the log.
    awaited: Option<Box<Awaited>>,
    /// It asked for news only.
    skips_history: bool,
    /// It asked for news only, and the log was still getting history when it looked.
    is_held_back: bool,
    /// It asked for what is kept, and has not looked yet: what was evicted of the time before it came is not missing.
    wants_kept: bool,
    /// Set while what comes next is in the store.
    catch_up: Option<Box<CatchUp>>,
    unreadable: Unreadable,
    handover: VecDeque<Entry>,
    notice: Option<Box<Gap>>,
    /// Entries after this one arrived while it listened.
    live_after: u64,
    /// The last id that the subscriber has, and its place.
    given: Option<(u64, EventId)>,
}

/// What becomes of what the store has, but cannot be read there now.
#[derive(Debug)]
enum Unreadable {
    /// It is announced as a gap: a client is not to wait for a disk.
    IsAnnounced,
    /// It is asked for again at this time. What is kept for the reader is not to be given up because a disk was busy.
    IsWaitedFor {
        /// None before the first time.
        until: Option<Instant>,
    },
}

/// An id that the log does not know yet.
#[derive(Debug)]
struct Awaited {
    start: Start,
    until: Instant,
}

impl Subscription {
    /// A subscription at `start`; entries behind `position` will be shown to its `listener`.
    pub(super) fn new(
        fanout: Arc<Fanout>,
        listener: Arc<Listener>,
        scope: Scope,
        start: &Start,
        position: u64,
    ) -> Self {
        let mut subscription = Self {
            fanout,
            listener,
            is_listed: true,
            scope,
            cursor: position,
            behind: false,
            awaited: None,
            skips_history: false,
            is_held_back: false,
            wants_kept: false,
            catch_up: None,
            unreadable: Unreadable::IsAnnounced,
            handover: VecDeque::new(),
            notice: None,
            live_after: position,
            given: None,
        };
        subscription.locate(start, true);
        subscription
    }

    /// Puts the cursor where `start` stands in the log.
    fn locate(&mut self, start: &Start, may_wait: bool) {
        match self.fanout.log().locate(start, may_wait) {
            Place::NotYet if self.awaited.is_some() => return,
            Place::NotYet => {
                self.awaited = Some(Box::new(Awaited { start: start.clone(), until: Instant::now() + AWAIT }));
                return;
            }
            Place::Now => self.skips_history = true,
            Place::Behind(place) => {
                self.cursor = place;
                if let Start::After(id) = start {
                    self.given = Some((place, *id));
                }
            }
            Place::BeforeKept(place) => {
                self.cursor = place;
                self.wants_kept = true;
            }
            Place::Lost(gap) => {
                self.cursor = gap.place;
                self.notice = Some(Box::new(gap));
            }
        }
        self.awaited = None;
        self.behind = self.cursor < self.live_after || self.behind;
    }

    /// Moves the cursor to a place that its owner has kept, and waits from now on for whatever the store has behind it. Nobody
    /// tells it when that can be read again: see [`Subscription::must_look_again`].
    pub(super) fn stand_behind(&mut self, place: u64) {
        (self.cursor, self.skips_history, self.behind) = (place, false, place < self.live_after);
        self.unreadable = Unreadable::IsWaitedFor { until: None };
    }

    /// Whether its lane tells it what has arrived.
    pub(crate) fn is_told_by_lane(&self) -> bool {
        !self.is_listed
    }

    /// Goes on with another scope, from where it stands. What has been returned is not returned again, and what comes behind that is
    /// judged by the new scope alone. One whose lane tells it what has arrived must join that again, see `Followers::change_scope`.
    pub(crate) fn change_scope(&mut self, scope: Scope) {
        self.cursor = self.returned_through();
        self.handover.clear();
        self.catch_up = None;
        // There are no marks for what the new scope shows and the old one has hidden.
        self.behind = true;
        if self.is_listed {
            // Under one lock: no entry is marked by neither scope.
            let mut audience = self.fanout.audience();
            audience.listeners.remove(&self.scope, self.listener.key());
            audience.listeners.insert(&scope, self.listener.key(), &self.listener);
        }
        self.scope = scope;
    }

    /// What it may see.
    pub(crate) fn scope(&self) -> &Scope {
        &self.scope
    }

    /// From now on its lane tells it what arrives. Under the lock of the audience: whatever has been shown until now has left a
    /// mark, and nothing is shown to it from now on.
    pub(super) fn is_told_by_its_lane(&mut self, audience: &mut Audience) {
        if std::mem::take(&mut self.is_listed) {
            audience.listeners.remove(&self.scope, self.listener.key());
        }
        match self.behind || self.is_waiting() {
            true => drop(self.listener.look()), // it looks into the log in any case
            false => self.behind = self.look(self.fanout.position.load(Ordering::SeqCst)),
        }
    }

    /// The entry at `place`, or one behind it, may be for it: it is to be polled, and looks into the log.
    pub(crate) fn look_into_the_log(&mut self, place: u64) {
        self.has_arrived(place.saturating_sub(1)); // what lies before it has been given to it, or was for others
        self.behind = true;
    }

    /// Everything up to `position` that is for it has arrived, and been given to it if it had everything before that.
    pub(crate) fn has_arrived(&mut self, position: u64) {
        if self.is_at_end() {
            self.cursor = self.cursor.max(position);
        }
    }

    /// Gives it an event that has arrived, if that is for it and it does not have it. It must be at the end of what it knew.
    pub(crate) fn take(&mut self, event: &Event) -> bool {
        let is_for_it = event.place() > self.cursor && self.scope.includes(event.session(), event.kind());
        if is_for_it {
            self.cursor = event.place();
            self.given = Some((event.place(), event.id()));
        }
        is_for_it
    }

    /// The place up to which everything within the scope has been returned.
    pub(crate) fn returned_through(&self) -> u64 {
        let first = self.handover.iter().find_map(|entry| match entry {
            Entry::Event(event) => Some(event.place()),
            Entry::Gap(gap) => Some(gap.place),
            Entry::Erased => None,
        });
        first.map_or(self.cursor, |place| place - 1)
    }

    /// The next event or gap within the scope.
    ///
    /// # Cancel safety
    ///
    /// What has not been returned stays for the next call.
    pub(crate) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Item> {
        for _ in 0..READINGS {
            if let Some(gap) = self.notice.take() {
                return Poll::Ready(self.gap(*gap));
            }
            if let Some(entry) = self.handover.pop_front() {
                match entry {
                    Entry::Event(event) => return Poll::Ready(self.event(event)),
                    Entry::Gap(gap) => {
                        let gap = self.fanout.log().announce(&gap);
                        return Poll::Ready(self.gap(gap));
                    }
                    Entry::Erased => continue,
                }
            }
            if !self.is_located() || self.unreadable.is_waited_for() {
                return Poll::Pending;
            }
            if let Some(catch_up) = &mut self.catch_up
                && let Some(chunk) = ready!(catch_up.poll(context))
            {
                match chunk {
                    // Retention was faster.
                    Ok(chunk) if chunk.evicted_through > self.cursor => {
                        self.miss(GapReason::Evicted, chunk.evicted_through);
                    }
                    Ok(chunk) => {
                        self.wants_kept = false;
                        self.handover.extend(chunk.entries);
                        self.cursor = chunk.through;
                    }
                    Err(_) if let Unreadable::IsWaitedFor { until } = &mut self.unreadable => {
                        *until = Some(Instant::now() + ASK_AGAIN);
                        self.catch_up = None; // others may have its turn meanwhile
                    }
                    Err(unread_through) => {
                        self.fanout.log().could_not_be_read();
                        self.lose(GapReason::NotKept, unread_through);
                    }
                }
                self.behind = true;
                continue;
            }
            if !self.behind && !self.is_shown(context) {
                return Poll::Pending;
            }
            self.read();
        }
        // A long way through what the scope hides: others are to have their turn.
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Whether it stands anywhere in the log, and nothing but news is to come to who asked for news.
    fn is_located(&mut self) -> bool {
        let log = self.fanout.log();
        if let Some(awaited) = &mut self.awaited {
            if log.is_behind_its_relay() {
                awaited.until = Instant::now() + AWAIT;
            }
            let may_wait = Instant::now() < awaited.until;
            let start = awaited.start.clone();
            self.locate(&start, may_wait);
            self.behind = true;
            return self.awaited.is_none();
        }
        if self.skips_history {
            let through = log.history_through();
            self.is_held_back = through == u64::MAX;
            if !self.is_held_back {
                self.cursor = self.cursor.max(through);
            }
        }
        !self.is_held_back
    }

    /// Has `context` woken at the next mark, or when its holder is told to leave, without looking for anything.
    pub(crate) fn wake_later(&self, context: &Context<'_>) {
        self.listener.wake_later(context.waker());
    }

    /// Whether it waits for something of which nobody will tell it: it must be polled again soon.
    pub(crate) fn must_look_again(&self) -> bool {
        self.is_waiting()
            || self.unreadable.is_waited_for()
            || self.catch_up.as_ref().is_some_and(|it| it.waits_for_its_turn())
    }

    /// Whether there was nothing for it yet when it looked: its id was not here, or history had not come to its end.
    fn is_waiting(&self) -> bool {
        self.awaited.is_some() || self.is_held_back
    }

    /// Whether what comes next is in the store.
    pub(crate) fn reads_from_store(&self) -> bool {
        self.catch_up.is_some() && self.handover.is_empty()
    }

    /// Whether there was nothing more to see when [`Subscription::poll_next`] returned pending.
    pub(crate) fn is_at_end(&self) -> bool {
        !self.behind && !self.is_waiting() && self.handover.is_empty() && self.notice.is_none()
    }

    /// Whether the fan-out has shown it something behind the cursor. If not, the waker is called when it does.
    fn is_shown(&mut self, context: &Context<'_>) -> bool {
        // In this order: what is shown after the position was read either leaves a mark to see now or calls the waker.
        self.listener.wake_later(context.waker());
        if !self.is_listed {
            return false;
        }
        let position = self.fanout.position.load(Ordering::SeqCst);
        self.look(position)
    }

    /// Takes the mark, which was left before `position` was written or is behind it. Whether there was one.
    fn look(&mut self, position: u64) -> bool {
        match self.listener.look() {
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

    /// Takes one hand-over from the log and moves the cursor over it, or finds out why there is none.
    fn read(&mut self) {
        match self.fanout.log().read_after(self.cursor, &self.scope, HANDOVER, &mut self.handover) {
            Reading::Taken { through, reached_end } => {
                self.catch_up = None;
                self.wants_kept = false;
                self.cursor = through;
                self.behind = !reached_end;
            }
            Reading::InStore { store, wanted } => {
                self.catch_up.get_or_insert_with(|| Box::new(store.catch_up())).want(wanted);
                self.behind = true;
            }
            Reading::Lost { reason, through } => {
                self.miss(reason, through);
                self.behind = true;
            }
        }
    }

    /// Goes on behind what is gone, and announces that. Of what was in the log before it came, one that asked for what is
    /// kept has asked for no more than that; what came since is another matter.
    fn miss(&mut self, reason: GapReason, through: u64) {
        let asked_for_less = mem::take(&mut self.wants_kept) && through <= self.live_after;
        match reason == GapReason::Evicted && asked_for_less {
            true => self.cursor = through,
            false => self.lose(reason, through),
        }
    }

    /// Announces that everything up to `through` is gone, and goes on behind the notice.
    fn lose(&mut self, reason: GapReason, through: u64) {
        let after = match reason {
            GapReason::NotKept => self.fanout.log().id(self.cursor),
            _ => self.given.map(|(_, id)| id),
        };
        let gap = self.fanout.log().lost(reason, after, through);
        self.cursor = gap.place;
        self.notice = Some(Box::new(gap));
    }

    fn event(&mut self, event: Arc<Event>) -> Item {
        self.given = Some((event.place(), event.id()));
        let received = event.received().filter(|_| event.place() > self.live_after);
        Item::Event { event, received }
    }

    fn gap(&mut self, gap: Gap) -> Item {
        self.given = Some((gap.place, gap.id));
        Item::Gap(gap)
    }

    /// Moves the subscriber's id on to where the log has moved past what it has been given; the id, if it has.
    pub(crate) fn move_on(&mut self) -> Option<EventId> {
        let given = self.given.map_or(0, |(place, _)| place);
        let id = self.fanout.log().id(self.cursor).filter(|_| self.cursor > given && self.is_at_end())?;
        self.given = Some((self.cursor, id));
        Some(id)
    }

    /// The last id that the subscriber has.
    pub(crate) fn given(&self) -> Option<EventId> {
        self.given.map(|(_, id)| id)
    }

    /// Entries and bytes that it holds by itself.
    #[cfg(test)]
    pub(super) fn held(&self) -> (usize, usize) {
        (self.handover.len(), self.handover.iter().map(Entry::wire_bytes).sum())
    }

    /// Whether it has been given everything up to `place`, or may not see it. While it waits there is nothing for it.
    pub(crate) fn has_passed(&self, place: u64) -> bool {
        let is_given = self.given.is_some_and(|(given, _)| given >= place);
        let is_behind_it = self.cursor >= place && self.is_at_end();
        let has_nothing_to_get = self.awaited.is_some() || (self.is_held_back && self.fanout.log().is_recovering());
        is_given || is_behind_it || has_nothing_to_get
    }
}

impl Unreadable {
    /// Whether it is too early to ask again.
    fn is_waited_for(&self) -> bool {
        matches!(self, Self::IsWaitedFor { until: Some(until) } if Instant::now() < *until)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if self.is_listed {
            self.fanout.audience().listeners.remove(&self.scope, self.listener.key());
        }
    }
}

/// What a subscriber gets.
#[derive(Debug)]
pub(crate) enum Item {
    /// An event.
    Event {
        /// The event itself, shared.
        event: Arc<Event>,
        /// When its last byte came from the upstream, if that was while the subscriber was there; else it is replayed.
        received: Option<Instant>,
    },
    /// Events may be missing here.
    Gap(Gap),
}

/// One hand-over: enough to fill a write, little enough that a stalled subscriber pins next to nothing.
const HANDOVER: Limits = Limits { entries: 16, bytes: 32 * 1024 };

/// Readings in one poll that find nothing; each looks at some thousand entries.
const READINGS: usize = 16;

/// Between two questions of a reader that waits for what the store cannot give now.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// How long a client's id may be ahead of a relay that has caught up with the relay before it, or has given up waiting for it.
const AWAIT: Duration = Duration::from_secs(5);
