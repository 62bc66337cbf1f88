//! What one webhook is owed, in which order it is tried, and how its endpoint stands: a state machine without I/O.
//!
//! In: events as they are read, answers, orders of operators, the time. Out: what to send next, and what to write down.
//!
//! ```text
//!            take                   next                  settle
//! log ─────────────► lane ─ head ─────────► running ─┬─ accepted ──► delivered (the last 1000)
//!        one lane per  ▲                             ├─ retry ─────► waiting ──┐
//!        session       └─────────────────────────────┴─────────────────────────┘
//!                                                    └─ given up ──► dead letter (in the store)
//! ```
//!
//! Every step takes logarithmic time, however much is owed. What releases, expires or erases many at once has been paid for by
//! each of them.
//!
//! May use: `delivery`, `event`, the store's words.

mod circuit_breaker;
mod commit;
mod delivered;
mod item;
mod journal;
#[cfg(test)]
mod model;
mod operator;
mod redelivery;
mod schedule;
mod session_queues;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use fastrand::Rng;
use tokio::time::Instant;

use self::{
    circuit_breaker::{Chance, Endpoint, Gate, LONGEST_WAIT},
    delivered::Delivered,
    item::{Claim, Item, Row, Stage, Turn},
    journal::Journal,
    redelivery::Walk,
    session_queues::{Heads, Lanes},
};
use super::{Now, Verdict};
use crate::{
    event::{Event, SessionId},
    store::{Changes, Owed},
    webhook_delivery::{Attempt, DeadLetter, DeadReason, Delivery, EndpointState},
};

/// Deliveries that are owed to one webhook at one time where the store has their events: some 20 MiB for each webhook that is so
/// far behind. What comes behind waits in the log.
pub(super) const MOST_OWED: u64 = 65_536;
/// Events that are held although the store has them. Enough that a webhook that keeps up reads nothing again.
const MOST_HELD: usize = 256;
/// Bytes of them.
const MOST_HELD_BYTES: usize = 4 << 20;
/// Heads of lanes whose events are loaded before there is a slot. A page of the store brings about as many.
const MOST_AHEAD: usize = 64;
/// A retry's event is loaded so long before it is due. Longer than a read takes.
const SOON: Duration = Duration::from_secs(1);
/// After an event could not be read. Longer than the pause after each such event, so that a few of them leave time for others.
const UNREADABLE: Duration = Duration::from_secs(10);

/// How hard a webhook is tried, and where what it is owed can be read again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Policy {
    /// Attempts after the first.
    pub(super) max_retries: u32,
    /// The wait before the first retry, which doubles from there.
    pub(super) initial_backoff: Duration,
    /// The longest wait.
    pub(super) max_backoff: Duration,
    /// Deliveries that are under way, or settled and not yet written down.
    pub(super) max_in_flight: usize,
    /// Where events are.
    pub(super) keeping: Keeping,
}

/// Where the events are that are owed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Keeping {
    /// In the store: few need to be held here.
    InStore,
    /// Here alone. Beyond so many bytes the oldest becomes a dead letter.
    InMemory {
        /// Bytes of events, all overhead included.
        most_bytes: u64,
    },
}

/// What one webhook is owed.
#[derive(Debug)]
pub(super) struct Outbox {
    policy: Policy,
    position: u64,
    /// The latest moment that anybody has told.
    seen: Now,
    /// Everything to deliver, by place.
    items: BTreeMap<u64, Item>,
    /// Those of them that are dead letters, delivered again.
    letters: BTreeSet<u64>,
    walk: Walk,
    lanes: Lanes,
    heads: Heads,
    endpoint: Endpoint,
    journal: Journal,
    delivered: Delivered,
    tally: Tally,
    /// The last attempt that began was a retry.
    was_retry: bool,
    /// The store has made dead letters up to this place.
    expired_through: u64,
    random: Rng,
}

/// Counts over all items.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    owed: u64,
    running: usize,
    running_retries: usize,
    held: usize,
    held_bytes: usize,
}

/// How an endpoint stands, and why.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Standing {
    /// In one word.
    pub(super) state: EndpointState,
    /// Until when it is throttled, or when it is probed next.
    pub(super) until: Option<Instant>,
    /// What led to it, if it is not active.
    pub(super) problem: Option<String>,
}

impl Outbox {
    /// The outbox of a webhook that has come to `position`, and is owed these before it.
    pub(super) fn new(policy: Policy, position: u64, owed: Vec<Owed>, now: Now) -> Self {
        let mut outbox = Self {
            policy,
            position,
            seen: now,
            items: BTreeMap::new(),
            letters: BTreeSet::new(),
            walk: Walk::default(),
            lanes: Lanes::default(),
            heads: Heads::default(),
            endpoint: Endpoint::default(),
            journal: Journal::new(position),
            delivered: Delivered::default(),
            tally: Tally::default(),
            was_retry: false,
            expired_through: 0,
            random: Rng::new(),
        };
        owed.into_iter().for_each(|owed| outbox.restore(owed));
        outbox
    }

    fn restore(&mut self, owed: Owed) {
        let turn = owed.next_attempt_at.map_or(Turn::Fresh, |at| Turn::Retry(Some(self.instant_of(at))));
        let mut item = Item::new(owed.delivery, None, Claim::Owed);
        item.row = Row::There;
        item.spent = u32::try_from(item.delivery.attempts.len()).unwrap_or(u32::MAX);
        self.admit(item, turn);
    }

    /// Goes on under another policy.
    pub(super) fn change(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// Whether another event may be taken.
    pub(super) fn has_room(&self) -> bool {
        self.is_in_memory() || self.tally.owed < MOST_OWED
    }

    /// Takes over an event that is owed, behind everything so far, and passes its place. One that has been passed is left.
    pub(super) fn take(&mut self, event: Arc<Event>, now: Now) {
        self.seen = now;
        let place = event.place();
        if place <= self.position {
            return;
        }
        self.position = place;
        let delivery = Delivery {
            place,
            event_id: event.id(),
            kind: event.kind().clone(),
            session: event.session().cloned(),
            created_at: now.unix_ms_before(event.received().unwrap_or(now.instant)),
            attempts: Vec::new(),
        };
        let event = (self.is_in_memory() || self.has_spare(1)).then_some(event);
        self.admit(Item::new(delivery, event, Claim::Owed), Turn::Fresh);
        self.journal.touch(place, false);
        self.shed();
    }

    /// Notes that everything up to `place` has been taken or is not for this webhook.
    pub(super) fn pass(&mut self, place: u64) {
        self.position = self.position.max(place);
    }

    /// Everything up to this place has been passed.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// How the endpoint stands.
    pub(super) fn standing(&self) -> Standing {
        self.endpoint.standing(self.seen.instant)
    }

    /// How many deliveries are owed, without those of dead letters; and when the oldest of their events came, in Unix milliseconds.
    pub(super) fn owed(&self) -> (u64, Option<u64>) {
        (self.tally.owed, self.owed_items().next().map(|item| item.delivery.created_at))
    }

    /// Deliveries that are owed, newest first: at most `most` before the place `before`; with when each is due, in Unix
    /// milliseconds, unless it waits for its turn or is under way.
    pub(super) fn pending(&self, before: Option<u64>, most: usize, now: Now) -> Vec<(Delivery, Option<u64>)> {
        let items = self.items.range(..before.unwrap_or(u64::MAX)).rev().map(|(_, item)| item);
        let owed = items.filter(|item| item.claim == Claim::Owed).take(most);
        owed.map(|item| (item.delivery.clone(), self.due_of(item, now))).collect()
    }

    /// The delivery at `place` that is owed, or a dead letter on its way.
    #[cfg(test)]
    fn get(&self, place: u64) -> Option<&Delivery> {
        let item = self.items.get(&place)?;
        matches!(item.claim, Claim::Owed | Claim::Letter).then_some(&item.delivery)
    }

    /// Deliveries that were accepted, newest first, each with its number: at most `most` before the number `before`.
    pub(super) fn delivered(&self, before: Option<u64>, most: usize) -> Vec<(u64, Delivery)> {
        self.delivered.list(before, most)
    }

    /// What is owed, oldest first. Few others stand between: what is under way, and letters.
    fn owed_items(&self) -> impl Iterator<Item = &Item> {
        self.items.values().filter(|item| item.claim == Claim::Owed)
    }

    /// When an item is due, in Unix milliseconds, if that is known.
    fn due_of(&self, item: &Item, now: Now) -> Option<u64> {
        let own = match item.stage {
            Stage::Blocked | Stage::Running { .. } => return None,
            Stage::Idle(Turn::Fresh | Turn::Retry(None)) => now.instant,
            Stage::Idle(Turn::Retry(Some(due))) => due.max(now.instant),
        };
        let standing = self.endpoint.standing(now.instant);
        let due = match standing.state {
            EndpointState::Active => own,
            EndpointState::Throttled => own.max(standing.until?),
            EndpointState::Open if self.heads.oldest() == Some(item.delivery.place) => standing.until?,
            EndpointState::Open | EndpointState::Disabled => return None,
        };
        Some(unix_ms_of(due, now))
    }

    fn is_in_memory(&self) -> bool {
        matches!(self.policy.keeping, Keeping::InMemory { .. })
    }

    /// Whether few enough events are held for another one: of the bound, one part in `share` is for this use.
    fn has_spare(&self, share: usize) -> bool {
        self.tally.held < MOST_HELD / share && self.tally.held_bytes < MOST_HELD_BYTES / share
    }

    fn instant_of(&self, unix_ms: u64) -> Instant {
        let wait = Duration::from_millis(unix_ms.saturating_sub(self.seen.unix_ms));
        self.seen.instant + wait.min(LONGEST_WAIT)
    }

    fn chance(&mut self) -> (&mut Endpoint, Chance<'_>) {
        let chance = Chance { now: self.seen.instant, policy: self.policy, random: &mut self.random };
        (&mut self.endpoint, chance)
    }
}

/// An instant on the other clock. What has passed is now.
fn unix_ms_of(instant: Instant, now: Now) -> u64 {
    let wait = instant.saturating_duration_since(now.instant);
    now.unix_ms.saturating_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX))
}

/// How items come, move and go. Everything that is counted or found by an index is kept right here.
impl Outbox {
    /// Lines an item up in its lane.
    fn admit(&mut self, item: Item, turn: Turn) {
        let place = item.delivery.place;
        if self.items.contains_key(&place) {
            return;
        }
        let is_first = self.lanes.join(item.delivery.session.as_ref(), place);
        self.count(place, item.claim, true);
        if let Some(event) = &item.event {
            self.tally.hold(event, true);
        }
        self.items.insert(place, item);
        if is_first {
            self.move_to(place, Stage::Idle(turn));
        }
    }

    /// Moves an item from one stage to another.
    fn move_to(&mut self, place: u64, stage: Stage) {
        let Some(item) = self.items.get_mut(&place) else { return };
        let former = std::mem::replace(&mut item.stage, stage);
        let is_held = item.event.is_some();
        match former {
            Stage::Blocked => {}
            Stage::Idle(turn) => self.heads.remove(place, turn, is_held),
            Stage::Running { is_retry } => self.tally.run(is_retry, false),
        }
        match stage {
            Stage::Blocked => {}
            Stage::Idle(turn) => self.heads.insert(place, turn, is_held),
            Stage::Running { is_retry } => self.tally.run(is_retry, true),
        }
    }

    /// Holds an item's event, or no longer.
    fn set_event(&mut self, place: u64, event: Option<Arc<Event>>) {
        let Some(stage) = self.items.get(&place).map(|item| item.stage) else { return };
        self.move_to(place, Stage::Blocked);
        if let Some(item) = self.items.get_mut(&place) {
            let former = std::mem::replace(&mut item.event, event);
            former.iter().for_each(|event| self.tally.hold(event, false));
            item.event.iter().for_each(|event| self.tally.hold(event, true));
        }
        self.move_to(place, stage);
    }

    /// Gives an item another reason to be here.
    fn set_claim(&mut self, place: u64, claim: Claim) {
        let Some(item) = self.items.get_mut(&place) else { return };
        let former = std::mem::replace(&mut item.claim, claim);
        self.count(place, former, false);
        self.count(place, claim, true);
    }

    fn count(&mut self, place: u64, claim: Claim, is_new: bool) {
        match claim {
            Claim::Owed => self.tally.owed = if is_new { self.tally.owed + 1 } else { self.tally.owed - 1 },
            Claim::Letter if is_new => drop(self.letters.insert(place)),
            Claim::Letter => drop(self.letters.remove(&place)),
            Claim::Expired | Claim::Erased => {}
        }
    }

    /// Takes an item out; the next of its lane becomes first.
    fn remove(&mut self, place: u64) -> Option<Item> {
        self.move_to(place, Stage::Blocked);
        let item = self.items.remove(&place)?;
        self.count(place, item.claim, false);
        if let Some(event) = &item.event {
            self.tally.hold(event, false);
        }
        self.journal.forget(place);
        if let Some(next) = self.lanes.leave(item.delivery.session.as_ref(), place) {
            let turn = self.items.get(&next).map_or(Turn::Fresh, Item::turn);
            self.move_to(next, Stage::Idle(turn));
        }
        Some(item)
    }
}

impl Tally {
    fn run(&mut self, is_retry: bool, begins: bool) {
        let retries = usize::from(is_retry);
        if begins {
            (self.running, self.running_retries) = (self.running + 1, self.running_retries + retries);
        } else {
            (self.running, self.running_retries) = (self.running - 1, self.running_retries - retries);
        }
    }

    fn hold(&mut self, event: &Event, begins: bool) {
        let bytes = event.size_bytes();
        if begins {
            (self.held, self.held_bytes) = (self.held + 1, self.held_bytes + bytes);
        } else {
            (self.held, self.held_bytes) = (self.held - 1, self.held_bytes - bytes);
        }
    }
}
