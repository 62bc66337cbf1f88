//! What a crash must not forget: how far the webhook has come, and what is an exception before that.
//!
//! In: what has become of each delivery. Out: batches of changes for the store, one at a time. What a batch costs, what has
//! happened since the last one has paid for.
//!
//! May use: `delivery`, `event`, the store's words.

use std::collections::{BTreeMap, BTreeSet};

use super::item::{Claim, Row};
use crate::{
    event::SessionId,
    store::{Changes, Fate, Owed},
    webhook_delivery::DeadLetter,
};

/// Dead letters that wait for a store that cannot be written. A burst of refusals, not a day of them.
pub(super) const MOST_UNWRITTEN_LETTERS: usize = 1000;
/// Bytes of their payloads: a quarter of what the log of one product may take by default.
pub(super) const MOST_UNWRITTEN_BYTES: usize = 16 << 20;

/// Fates of one kind in one batch: some ten milliseconds of the store's writer, for whom all other webhooks wait.
const MOST_FATES: usize = 1000;
/// Payloads of dead letters in one batch, and one more.
const MOST_BATCH_BYTES: usize = 1 << 20;

/// What is not in the store yet.
#[derive(Debug, Default)]
pub(super) struct Journal {
    /// How far the store knows that the webhook has come.
    written: u64,
    /// Owed, and not in the store as they are here.
    dirty: BTreeSet<u64>,
    /// Settled for good, while the store has a row that says otherwise.
    settled: BTreeSet<u64>,
    /// Given up.
    dead: BTreeMap<u64, Grave>,
    dead_bytes: usize,
    /// Settled since the last batch, whether a row is needed or not.
    slots: usize,
    /// Something should not wait.
    is_urgent: bool,
    /// The last batch could not be written.
    is_degraded: bool,
    flying: Option<Flying>,
    lost: u64,
    /// The bound of a batch.
    pub(super) most_fates: usize,
}

/// A dead letter that is to be written.
#[derive(Debug)]
struct Grave {
    letter: DeadLetter,
    /// The store would bring it back by itself if this were never written.
    has_row: bool,
}

/// What the batch that is on its way holds.
#[derive(Debug, Default)]
struct Flying {
    position: u64,
    slots: usize,
    /// Owed, for the first time.
    new: BTreeSet<u64>,
    settled: BTreeSet<u64>,
    /// Given up: of which session, and whether the store has a row of it.
    dead: BTreeMap<u64, (Option<SessionId>, bool)>,
}

impl Journal {
    /// The journal of a webhook whose store says that it has come to `position`.
    pub(super) fn new(position: u64) -> Self {
        Self { written: position, most_fates: MOST_FATES, ..Self::default() }
    }

    /// Notes that a delivery is owed, or has changed. Only the latter should not wait.
    pub(super) fn touch(&mut self, place: u64, is_urgent: bool) {
        self.dirty.insert(place);
        self.is_urgent |= is_urgent;
    }

    /// Notes that a delivery is not to be written as owed any more.
    pub(super) fn forget(&mut self, place: u64) {
        self.dirty.remove(&place);
    }

    /// Notes that the store has made a dead letter of what was owed there.
    pub(super) fn expire(&mut self, place: u64) {
        self.forget(place);
        if let Some(flying) = &mut self.flying {
            flying.new.remove(&place);
        }
    }

    /// Notes that a slot is in use until the next batch is written.
    pub(super) fn occupy(&mut self) {
        self.slots += 1;
        self.is_urgent = true;
    }

    /// Slots of what is settled and may be forgotten by a crash.
    pub(super) fn slots(&self) -> usize {
        self.slots + self.flying.as_ref().map_or(0, |flying| flying.slots)
    }

    /// Whether the store has, or is about to have, a row of this place, of which it says itself that there is `row`.
    pub(super) fn row(&self, place: u64, row: Row, claim: Claim) -> Row {
        let is_flying = self.flying.as_ref().is_some_and(|flying| flying.new.contains(&place));
        if is_flying || claim != Claim::Owed { Row::There } else { row }
    }

    /// Notes that the store's row of this place is void.
    pub(super) fn settle(&mut self, place: u64) {
        self.exhume(place);
        self.settled.insert(place);
        self.is_urgent = true;
    }

    /// Notes a dead letter.
    pub(super) fn bury(&mut self, letter: DeadLetter, has_row: bool) {
        self.is_urgent = true;
        self.keep(letter, has_row);
        if self.is_degraded {
            self.shed();
        }
    }

    fn keep(&mut self, letter: DeadLetter, has_row: bool) {
        let place = letter.delivery.place;
        self.exhume(place);
        self.settled.remove(&place);
        self.dead_bytes += letter.payload.len();
        self.dead.insert(place, Grave { letter, has_row });
    }

    fn exhume(&mut self, place: u64) -> Option<Grave> {
        let grave = self.dead.remove(&place)?;
        self.dead_bytes -= grave.letter.payload.len();
        Some(grave)
    }

    /// Lets the oldest go until the bound is kept. Of what the store has a row, it will find out by itself.
    fn shed(&mut self) {
        while self.dead.len() > MOST_UNWRITTEN_LETTERS || self.dead_bytes > MOST_UNWRITTEN_BYTES {
            let Some((place, _)) = self.dead.first_key_value() else { return };
            let place = *place;
            let is_lost = self.exhume(place).is_some_and(|grave| !grave.has_row);
            self.lost += u64::from(is_lost);
        }
    }

    /// Dead letters that were lost since the last look, because the store could not be written for too long.
    pub(super) fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    /// Whether what has become of this place is still to be written.
    pub(super) fn is_open(&self, place: u64) -> bool {
        let flying = self.flying.as_ref();
        self.settled.contains(&place)
            || self.dead.contains_key(&place)
            || flying.is_some_and(|flying| flying.settled.contains(&place) || flying.dead.contains_key(&place))
    }

    /// Whether there is something that should not wait, and no batch is on its way.
    pub(super) fn is_due(&self) -> bool {
        self.is_urgent && self.flying.is_none()
    }

    /// Whether there is anything, and no batch is on its way.
    pub(super) fn has_any(&self, position: u64) -> bool {
        let has_fates = !(self.dirty.is_empty() && self.settled.is_empty() && self.dead.is_empty());
        self.flying.is_none() && (self.is_urgent || has_fates || position > self.written)
    }

    /// What is not in the store, as much as goes into one batch; `owed` gives the row of a delivery and what the store has of it.
    /// The position stays before what is left for the next one. What has been settled behind that keeps its slots.
    pub(super) fn batch(&mut self, position: u64, owed: impl Fn(u64) -> Option<(Owed, Row)>) -> Changes {
        let rest = self.rest();
        let position = rest.map_or(position, |rest| position.min(rest.saturating_sub(1)));
        let slots = if rest.is_none() { std::mem::take(&mut self.slots) } else { 0 };
        let mut flying = Flying { position, slots, ..Flying::default() };
        let mut fates = BTreeMap::new();
        let left = rest.map(|rest| self.dirty.split_off(&rest)).unwrap_or_default();
        for place in std::mem::replace(&mut self.dirty, left) {
            let Some((owed, row)) = owed(place) else { continue };
            if row != Row::There {
                flying.new.insert(place);
            }
            fates.insert(place, Fate::Owed(owed));
        }
        let left = rest.map(|rest| self.settled.split_off(&rest)).unwrap_or_default();
        flying.settled = std::mem::replace(&mut self.settled, left);
        fates.extend(flying.settled.iter().map(|place| (*place, Fate::Settled)));
        let left = rest.map(|rest| self.dead.split_off(&rest)).unwrap_or_default();
        for (place, Grave { letter, has_row }) in std::mem::replace(&mut self.dead, left) {
            self.dead_bytes -= letter.payload.len();
            flying.dead.insert(place, (letter.delivery.session.clone(), has_row));
            fates.insert(place, Fate::Dead(letter));
        }
        (self.is_urgent, self.flying) = (rest.is_some(), Some(flying));
        Changes { position, fates }
    }

    /// The lowest place that is left for the batch behind this one, if any is.
    fn rest(&self) -> Option<u64> {
        let beyond = |places: &BTreeSet<u64>| places.iter().nth(self.most_fates).copied();
        let (mut letters, mut bytes) = (0, 0);
        let dead = self.dead.iter().find(|(_, grave)| {
            let is_beyond = letters >= self.most_fates || bytes >= MOST_BATCH_BYTES;
            (letters, bytes) = (letters + 1, bytes + grave.letter.payload.len());
            is_beyond
        });
        let dead = dead.map(|(place, _)| *place);
        [beyond(&self.dirty), beyond(&self.settled), dead].into_iter().flatten().min()
    }

    /// Notes that the batch is in the store, and tells of which places it has a row now.
    pub(super) fn committed(&mut self) -> BTreeSet<u64> {
        let Some(flying) = self.flying.take() else { return BTreeSet::new() };
        self.is_degraded = false;
        self.written = self.written.max(flying.position);
        flying.new
    }

    /// Notes that the store is degraded, so that nothing is written for now. Delivery goes on: all slots are free, and the bound
    /// of what is delivered twice after a crash is void.
    pub(super) fn cannot_be_written(&mut self) {
        (self.is_degraded, self.slots) = (true, 0);
        if let Some(flying) = &mut self.flying {
            flying.slots = 0;
        }
        self.shed();
    }

    /// Puts a batch that could not be written under what has happened since, and tells of which places it may have written a row
    /// for the first time all the same. What says that such a row is void stays: there, it is needed; else it does no harm.
    pub(super) fn not_committed(&mut self, changes: Changes, is_owed: impl Fn(u64) -> bool) -> BTreeSet<u64> {
        let Some(flying) = self.flying.take() else { return BTreeSet::new() };
        self.is_urgent = true;
        for place in &flying.new {
            if let Some(grave) = self.dead.get_mut(place) {
                grave.has_row = false;
            }
        }
        for (place, fate) in changes.fates {
            match fate {
                Fate::Owed(_) if is_owed(place) => self.touch(place, true),
                Fate::Settled if !self.dead.contains_key(&place) => self.settle(place),
                Fate::Dead(letter) if !self.is_open(place) => {
                    self.keep(letter, flying.dead.get(&place).is_some_and(|(_, has_row)| *has_row));
                }
                Fate::Owed(_) | Fate::Settled | Fate::Dead(_) => {}
            }
        }
        self.cannot_be_written();
        flying.new
    }

    /// Notes that the store has forgotten everything. Dead letters that are still here are still to be written.
    pub(super) fn rewrite(&mut self) {
        (self.written, self.is_urgent) = (0, true);
        self.settled.clear();
        self.dead.values_mut().for_each(|grave| grave.has_row = false);
    }

    /// Forgets the dead letters of a session, also the one that is just being written.
    pub(super) fn erase(&mut self, session: &SessionId) {
        let is_of = |grave: &Grave| grave.letter.delivery.session.as_ref() == Some(session);
        let waiting: Vec<u64> = self.dead.iter().filter(|(_, grave)| is_of(grave)).map(|(place, _)| *place).collect();
        let flying = self.flying.iter().flat_map(|flying| &flying.dead);
        let flying = flying.filter(|(_, (of, _))| of.as_ref() == Some(session)).map(|(place, _)| *place);
        for place in waiting.into_iter().chain(flying.collect::<Vec<u64>>()) {
            self.settle(place);
        }
    }
}
