//! A fan-out's way to one lane: events are left there once, however many of the lane's streams they are for.
//!
//! ```text
//! fan-out ─ which lanes listen? ─► arrivals of lane 0 ─┐ one wake-up, until they are taken
//!                               └► arrivals of lane 1 ─┴─► the lane's task: followers, found in an index of its own
//! ```
//!
//! A follower that has everything is given what has arrived; one that has not is told to look into the log, and so are those concerned
//! when more has arrived than is kept here: then only the first place for each session and kind is, as a mark.
//!
//! May use: `event`, the fan-out and its index.

#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    task::Waker,
};

use super::{
    Fanout, Subscription,
    index::{Index, Places},
};
use crate::event::{Event, Kind, Only, Scope, SessionId};

/// What is left for one lane.
#[derive(Debug, Default)]
pub(super) struct Branch {
    arrivals: Mutex<Arrivals>,
}

#[derive(Debug, Default)]
struct Arrivals {
    events: Vec<Arc<Event>>,
    bytes: usize,
    /// In place of the events, when there were too many.
    marks: Option<Marks>,
    /// Place of the first entry that is not kept here in any form.
    torn_at: Option<u64>,
    is_called: bool,
    /// Of whoever takes them; none while nobody does.
    waker: Option<Waker>,
}

impl Branch {
    /// Leaves an event.
    pub(super) fn bring(&self, event: &Arc<Event>) {
        self.arrivals().bring(event);
    }

    /// Has everybody on the lane look into the log for what is there from `place` on.
    pub(super) fn tear(&self, place: u64) {
        self.arrivals().tear(place);
    }

    /// Tells the lane that something has arrived, unless it has been told.
    pub(super) fn call(&self) {
        let mut arrivals = self.arrivals();
        if mem::replace(&mut arrivals.is_called, true) {
            return;
        }
        let waker = arrivals.waker.clone();
        drop(arrivals);
        waker.inspect(Waker::wake_by_ref);
    }

    fn arrivals(&self) -> MutexGuard<'_, Arrivals> {
        // Whatever a panic leaves undone here, the worst is an event that is looked for in the log.
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first place for each session and kind.
type Marks = HashMap<(Option<SessionId>, Kind), u64>;

impl Arrivals {
    fn bring(&mut self, event: &Arc<Event>) {
        if self.torn_at.is_some() {
            return;
        }
        self.bytes += event.chunk().len();
        let is_full = self.events.len() == MOST_EVENTS || self.bytes > MOST_BYTES;
        if self.marks.is_none() && !is_full {
            return self.events.push(Arc::clone(event));
        }
        let marks = self.marks.get_or_insert_default();
        for event in self.events.drain(..).chain([Arc::clone(event)]) {
            marks.entry((event.session().cloned(), event.kind().clone())).or_insert(event.place());
        }
        if marks.len() > MOST_EVENTS {
            self.tear(event.place());
        }
    }

    fn tear(&mut self, place: u64) {
        let of_events = self.events.drain(..).map(|event| event.place()).next();
        let of_marks = self.marks.take().and_then(|marks| marks.into_values().min());
        self.torn_at.get_or_insert(of_events.or(of_marks).unwrap_or(place));
    }

    fn is_empty(&self) -> bool {
        self.events.is_empty() && self.marks.is_none() && self.torn_at.is_none()
    }
}

/// In which form something has arrived.
#[derive(Debug, PartialEq)]
pub(crate) enum Arrived {
    /// The events themselves.
    Events,
    /// Marks of what is in the log, in the order of their places.
    Marks(Vec<Mark>),
    /// Everybody must look into the log, from this place on.
    Torn(u64),
}

/// The first of the entries of one session and kind that have arrived.
#[derive(Debug, PartialEq)]
pub(crate) struct Mark {
    /// Where it is in the log.
    pub(crate) place: u64,
    /// Whose it is.
    pub(crate) session: Option<SessionId>,
    /// Of what kind.
    pub(crate) kind: Kind,
}

/// A lane's streams of one product, by what they want. Belongs to the lane's task alone.
#[derive(Debug)]
pub(crate) struct Followers {
    fanout: Arc<Fanout>,
    lane: usize,
    index: Index<()>,
}

impl Followers {
    /// Nobody yet. Whenever something has arrived, `waker` is called, once until it is taken.
    pub(crate) fn new(fanout: &Arc<Fanout>, lane: usize, waker: Waker) -> Self {
        let followers = Self { fanout: Arc::clone(fanout), lane, index: Index::default() };
        if let Some(branch) = followers.branch() {
            *branch.arrivals() = Arrivals { waker: Some(waker), ..Arrivals::default() };
        }
        followers
    }

    /// From now on, events that this one may see arrive here.
    pub(crate) fn join(&mut self, number: usize, subscription: &mut Subscription) {
        self.index.insert(subscription.scope(), number, &());
        let mut audience = self.fanout.audience();
        audience.interests.add(subscription.scope(), self.lane);
        subscription.is_told_by_its_lane(&mut audience);
    }

    /// The end of that.
    pub(crate) fn leave(&mut self, number: usize, scope: &Scope) {
        self.index.remove(scope, number);
        self.fanout.audience().interests.remove(scope, self.lane, &self.index);
    }

    /// From now on, it is what another scope shows that arrives for this one. It looks into the log first.
    pub(crate) fn change_scope(&mut self, number: usize, subscription: &mut Subscription, scope: Scope) {
        self.leave(number, subscription.scope());
        subscription.change_scope(scope);
        self.join(number, subscription);
    }

    /// Takes what has arrived; `events` is empty, and gets the events, if it is events.
    pub(crate) fn take(&self, events: &mut Vec<Arc<Event>>) -> Arrived {
        debug_assert!(events.is_empty(), "what is left would go back");
        let Some(branch) = self.branch() else { return Arrived::Events };
        let mut arrivals = branch.arrivals();
        mem::swap(&mut arrivals.events, events);
        (arrivals.bytes, arrivals.is_called) = (0, false);
        let (torn_at, marks) = (arrivals.torn_at.take(), arrivals.marks.take());
        drop(arrivals);
        match (torn_at, marks) {
            (Some(place), _) => Arrived::Torn(place),
            (None, None) => Arrived::Events,
            (None, Some(marks)) => {
                let mark = |((session, kind), place)| Mark { place, session, kind };
                let mut marks: Vec<_> = marks.into_iter().map(mark).collect();
                marks.sort_unstable_by_key(|mark| mark.place);
                Arrived::Marks(marks)
            }
        }
    }

    /// The place up to which everything has been taken, or was for nobody here; none while something waits.
    pub(crate) fn position(&self) -> Option<u64> {
        // In this order: what lies before the position was left there before that was written.
        let position = self.fanout.position.load(Ordering::SeqCst);
        self.branch()?.arrivals().is_empty().then_some(position)
    }

    /// Visits the numbers of those who may see something of this session and kind, for each in `news`, with which of these it is. Who
    /// has been visited for an earlier one may be left out.
    pub(crate) fn concerned<'a>(
        &self,
        news: impl ExactSizeIterator<Item = (Option<&'a SessionId>, &'a Kind)>,
        mut visit: impl FnMut(usize, usize),
    ) {
        if news.len() == 1 {
            return news.for_each(|(session, kind)| {
                self.index.concerned(session, kind, Places::ALL, |number, ()| visit(0, number));
            });
        }
        // A burst for ten thousand is not to be ten million visits.
        let (mut kinds, mut pairs) = (HashSet::new(), HashSet::new());
        for (at, (session, kind)) in news.enumerate() {
            let places =
                Places { session: pairs.insert((session, kind)), kind: kinds.insert(kind), everything: at == 0 };
            self.index.concerned(session, kind, places, |number, ()| visit(at, number));
        }
    }

    /// Visits everybody's number, some more than once.
    pub(crate) fn everybody(&self, mut visit: impl FnMut(usize)) {
        self.index.everybody(|number, ()| visit(number));
    }

    fn branch(&self) -> Option<&Branch> {
        self.fanout.branches.get(self.lane)
    }
}

impl Drop for Followers {
    fn drop(&mut self) {
        if let Some(branch) = self.branch() {
            *branch.arrivals() = Arrivals::default();
        }
    }
}

/// Which lanes listen to what: a bit for each.
#[derive(Debug, Default)]
pub(super) struct Interests {
    sessions: HashMap<SessionId, u64>,
    kinds: HashMap<Kind, u64>,
    everything: u64,
}

impl Interests {
    fn add(&mut self, scope: &Scope, lane: usize) {
        let bit = bit(lane);
        match scope {
            Scope { sessions: Only::These(sessions), .. } => {
                sessions.iter().for_each(|session| *self.sessions.entry(session.clone()).or_default() |= bit);
            }
            Scope { kinds: Only::These(kinds), .. } => {
                kinds.iter().for_each(|kind| *self.kinds.entry(kind.clone()).or_default() |= bit);
            }
            _ => self.everything |= bit,
        }
    }

    /// Forgets what nobody on the lane listens to any more.
    fn remove(&mut self, scope: &Scope, lane: usize, left: &Index<()>) {
        let bit = bit(lane);
        match scope {
            Scope { sessions: Only::These(sessions), .. } => {
                sessions.iter().filter(|it| !left.has_session(it)).for_each(|it| forget(&mut self.sessions, it, bit));
            }
            Scope { kinds: Only::These(kinds), .. } => {
                kinds.iter().filter(|it| !left.has_kind(it)).for_each(|it| forget(&mut self.kinds, it, bit));
            }
            _ if !left.has_everything() => self.everything &= !bit,
            _ => {}
        }
    }

    /// The lanes that somebody listens on who may see `event`.
    pub(super) fn of(&self, event: &Event) -> u64 {
        let of_session = event.session().and_then(|session| self.sessions.get(session));
        let of_kind = self.kinds.get(event.kind());
        self.everything | of_session.copied().unwrap_or_default() | of_kind.copied().unwrap_or_default()
    }
}

/// Takes a bit out of a place, and the place away with the last one.
fn forget<K: Eq + std::hash::Hash>(places: &mut HashMap<K, u64>, at: &K, bit: u64) {
    if let Some(lanes) = places.get_mut(at) {
        *lanes &= !bit;
        if *lanes == 0 {
            places.remove(at);
        }
    }
}

fn bit(lane: usize) -> u64 {
    u32::try_from(lane).ok().and_then(|lane| 1_u64.checked_shl(lane)).unwrap_or_default()
}

/// The numbers of the lanes in a set of bits.
pub(super) fn lanes(mut bits: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let lane = (bits != 0).then_some(bits.trailing_zeros() as usize);
        bits &= bits.wrapping_sub(1);
        lane
    })
}

/// Events of one product that wait for a lane, or marks in their place. While the lane gives what it has taken, it holds as many.
const MOST_EVENTS: usize = 1024;

/// Their bytes.
const MOST_BYTES: usize = 4 << 20;
