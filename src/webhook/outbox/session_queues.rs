//! Who is first in each session, and who may be sent of those.
//!
//! A delivery without a session has a lane of its own and is always first. Everything is found in logarithmic time.
//!
//! May use: `event`.

use std::collections::{BTreeSet, HashMap};

use tokio::time::Instant;

use super::item::Turn;
use crate::event::SessionId;

/// The order within sessions.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    by_session: HashMap<SessionId, Lane>,
}

/// The deliveries of one session, by place.
#[derive(Debug)]
struct Lane {
    head: u64,
    behind: BTreeSet<u64>,
}

impl Lanes {
    /// Lines up, and tells whether that is as the first.
    pub(super) fn join(&mut self, session: Option<&SessionId>, place: u64) -> bool {
        let Some(session) = session else { return true };
        match self.by_session.get_mut(session) {
            Some(lane) => {
                lane.behind.insert(place);
                false
            }
            None => {
                self.by_session.insert(session.clone(), Lane { head: place, behind: BTreeSet::new() });
                true
            }
        }
    }

    /// The first of a session.
    pub(super) fn head(&self, session: &SessionId) -> Option<u64> {
        self.by_session.get(session).map(|lane| lane.head)
    }

    /// Puts one that is behind before the head.
    pub(super) fn lead(&mut self, session: &SessionId, place: u64) {
        let Some(lane) = self.by_session.get_mut(session) else { return };
        if lane.behind.remove(&place) {
            lane.behind.insert(std::mem::replace(&mut lane.head, place));
        }
    }

    /// Leaves, and tells who is the first now if that has changed.
    pub(super) fn leave(&mut self, session: Option<&SessionId>, place: u64) -> Option<u64> {
        let session = session?;
        let lane = self.by_session.get_mut(session)?;
        if lane.head != place {
            lane.behind.remove(&place);
            return None;
        }
        match lane.behind.pop_first() {
            Some(next) => {
                lane.head = next;
                Some(next)
            }
            None => {
                self.by_session.remove(session);
                None
            }
        }
    }

    /// Everyone of a session.
    pub(super) fn members(&self, session: &SessionId) -> Vec<u64> {
        let lane = self.by_session.get(session);
        lane.map(|lane| std::iter::once(lane.head).chain(lane.behind.iter().copied()).collect()).unwrap_or_default()
    }
}

/// The first of every lane, as far as they are not under way.
#[derive(Debug, Default)]
pub(super) struct Heads {
    all: BTreeSet<u64>,
    held: Queue,
    bare: Queue,
}

/// Those whose event is held, or those whose event is not.
#[derive(Debug, Default)]
struct Queue {
    fresh: BTreeSet<u64>,
    retries: BTreeSet<(Option<Instant>, u64)>,
}

impl Queue {
    fn insert(&mut self, place: u64, turn: Turn) {
        match turn {
            Turn::Fresh => self.fresh.insert(place),
            Turn::Retry(due) => self.retries.insert((due, place)),
        };
    }

    fn remove(&mut self, place: u64, turn: Turn) {
        match turn {
            Turn::Fresh => self.fresh.remove(&place),
            Turn::Retry(due) => self.retries.remove(&(due, place)),
        };
    }

    fn due_by(&self, when: Instant) -> impl Iterator<Item = u64> {
        self.retries.range(..=(Some(when), u64::MAX)).map(|(_, place)| *place)
    }

    fn release(&mut self) -> Vec<u64> {
        let places: Vec<u64> = self.retries.iter().map(|(_, place)| *place).collect();
        self.retries = places.iter().map(|place| (None, *place)).collect();
        places
    }
}

impl Heads {
    /// Another one.
    pub(super) fn insert(&mut self, place: u64, turn: Turn, is_held: bool) {
        self.all.insert(place);
        self.queue(is_held).insert(place, turn);
    }

    /// One less.
    pub(super) fn remove(&mut self, place: u64, turn: Turn, is_held: bool) {
        self.all.remove(&place);
        self.queue(is_held).remove(place, turn);
    }

    fn queue(&mut self, is_held: bool) -> &mut Queue {
        if is_held { &mut self.held } else { &mut self.bare }
    }

    /// The oldest.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.all.first().copied()
    }

    /// The oldest that has not been tried and can be sent.
    pub(super) fn fresh(&self) -> Option<u64> {
        self.held.fresh.first().copied()
    }

    /// The retry that has been due for the longest and can be sent.
    pub(super) fn retry(&self, now: Instant) -> Option<u64> {
        self.held.due_by(now).next()
    }

    /// How many could be sent as their first attempt.
    pub(super) fn held_fresh(&self) -> usize {
        self.held.fresh.len()
    }

    /// How many retries could be sent by then, as far as `most`.
    pub(super) fn held_retries(&self, when: Instant, most: usize) -> usize {
        self.held.due_by(when).take(most).count()
    }

    /// The oldest that has not been tried and must be loaded first.
    pub(super) fn bare_fresh(&self) -> Option<u64> {
        self.bare.fresh.first().copied()
    }

    /// The retry that is due first, by then, and must be loaded first.
    pub(super) fn bare_retry(&self, when: Instant) -> Option<u64> {
        self.bare.due_by(when).next()
    }

    /// When something comes due: what is held at any time, what must be loaded only if that is still to come.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        if !self.held.fresh.is_empty() {
            return Some(now);
        }
        let held = self.held.retries.first().map(|(due, _)| due.unwrap_or(now));
        let bare = self.bare.retries.range((Some(now), u64::MAX)..).find_map(|(due, _)| *due);
        held.into_iter().chain(bare).min()
    }

    /// Makes every retry due at once, and tells which there are. What each costs here, its failed attempt has paid for.
    pub(super) fn release(&mut self) -> Vec<u64> {
        let mut places = self.held.release();
        places.append(&mut self.bare.release());
        places
    }
}
