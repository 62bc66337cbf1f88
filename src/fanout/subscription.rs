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
    task::{Context, Poll},
};

use super::{Fanout, Listener};
use crate::{
    event::{Entry, Event, EventId, Gap, Scope},
    log::{Limits, Place},
};

/// A subscriber's view of one product: entries within its scope, in order, none twice, and a notice for each gap.
#[derive(Debug)]
pub(crate) struct Subscription {
    fanout: Arc<Fanout>,
    listener: Arc<Listener>,
    scope: Scope,
    /// The last entry that has been taken from the log or is hidden by the scope.
    cursor: u64,
    /// There may be entries behind the cursor for which no mark will come.
    behind: bool,
    /// It asked for what is kept, and has not looked yet: what was evicted of the time before it came is not missing.
    wants_kept: bool,
    handover: VecDeque<Entry>,
    notice: Option<Gap>,
    /// Entries after this one arrived while it listened.
    live_after: u64,
    came_with: Option<u64>,
}

impl Subscription {
    /// A subscription at `place`, or at `position` if that is none; entries behind `position` will be shown to its
    /// `listener`.
    pub(super) fn new(
        fanout: Arc<Fanout>,
        listener: Arc<Listener>,
        scope: Scope,
        place: Option<Place>,
        position: u64,
    ) -> Self {
        let wants_kept = matches!(place, Some(Place::BeforeKept(_)));
        let (cursor, came_with, notice) = match place {
            None => (position, None, None),
            Some(Place::Behind(sequence)) => (sequence, Some(sequence), None),
            Some(Place::BeforeKept(sequence)) => (sequence, None, None),
            Some(Place::Unknown(gap)) => (gap.id.sequence, None, Some(gap)),
        };
        Self {
            fanout,
            listener,
            scope,
            cursor,
            behind: cursor < position,
            wants_kept,
            handover: VecDeque::new(),
            notice,
            live_after: position,
            came_with,
        }
    }

    /// The next event or gap within the scope.
    ///
    /// # Cancel safety
    ///
    /// What has not been returned stays for the next call.
    pub(crate) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Item> {
        for _ in 0..READINGS {
            if let Some(gap) = self.notice.take() {
                return Poll::Ready(Item::Gap(gap));
            }
            if let Some(entry) = self.handover.pop_front() {
                return Poll::Ready(self.item(entry));
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

    /// Whether the fan-out has shown it something behind the cursor. If not, the waker is called when it does.
    fn is_shown(&mut self, context: &Context<'_>) -> bool {
        // In this order: what is shown after the position was read either leaves a mark to see now or calls the waker.
        self.listener.wake_later(context.waker());
        let position = self.fanout.position.load(Ordering::SeqCst);
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

    /// Takes one hand-over from the log and moves the cursor over it.
    fn read(&mut self) {
        let log = self.fanout.log();
        let reading = log.read_after(self.cursor, &self.scope, HANDOVER, &mut self.handover);
        // Of what was in the log before it came, it asked for no more than is kept; what came since is another matter.
        let forgives_through = if mem::take(&mut self.wants_kept) { self.live_after } else { 0 };
        let missed_through = reading.missed_through.filter(|through| *through > forgives_through);
        let has_id = self.cursor > 0 || self.came_with.is_some();
        self.notice = missed_through.map(|through| log.evicted(has_id.then_some(self.cursor), through));
        self.cursor = reading.through;
        self.behind = !reading.reached_end;
    }

    fn item(&self, entry: Entry) -> Item {
        match entry {
            Entry::Event(event) => {
                let live = event.id().sequence > self.live_after;
                Item::Event { event, live }
            }
            Entry::Gap(gap) => Item::Gap(self.fanout.log.announce(&gap)),
        }
    }

    /// Sequence of the id the subscriber came with, if that is known here.
    pub(crate) fn came_with(&self) -> Option<u64> {
        self.came_with
    }

    /// The id up to which the subscriber has everything, once [`Subscription::poll_next`] has returned pending.
    pub(crate) fn position(&self) -> EventId {
        self.fanout.log.id(self.cursor)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.fanout.index().remove(&self.scope, &self.listener);
    }
}

/// What a subscriber gets.
#[derive(Debug)]
pub(crate) enum Item {
    /// An event; `live` when it arrived while the subscriber was there, else replayed.
    Event {
        /// The event itself, shared.
        event: Arc<Event>,
        /// Whether it arrived while the subscriber was there.
        live: bool,
    },
    /// Events may be missing here.
    Gap(Gap),
}

/// One hand-over: enough to fill a write, little enough that a stalled subscriber pins next to nothing.
const HANDOVER: Limits = Limits { entries: 16, bytes: 32 * 1024 };

/// Readings in one poll that find nothing; each looks at some thousand entries.
const READINGS: usize = 16;
