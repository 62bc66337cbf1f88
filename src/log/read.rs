//! The log as its readers see it: where an id stands, and what comes behind a place.
//!
//! May use: `event`, the log's own state.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use super::{Limits, Log, Numbering, State, durable_range::Stand, id_spans::Found, ring};
use crate::{
    event::{Entry, EventId, Gap, GapReason, Scope, Start},
    store::{Desk, Wanted},
};

impl Log {
    /// Gives a reader at `place` what it sees next: entries that `scope` admits, in order and within `limits`, behind those
    /// in `handover`; or says where to find it.
    pub(crate) fn read_after(
        &self,
        place: u64,
        scope: &Scope,
        limits: Limits,
        handover: &mut VecDeque<Entry>,
    ) -> Reading {
        let state = self.state();
        let gone = match state.ring.read_after(place, scope, limits, handover) {
            ring::Found::Taken { through, reached_end } => return Reading::Taken { through, reached_end },
            ring::Found::Gone => state.ring.evicted_through(),
        };
        let (Some(shelf), Some(store)) = (&state.shelf, &self.store) else {
            return Reading::Lost { reason: GapReason::Evicted, through: gone };
        };
        match shelf.behind(place) {
            Stand::Evicted(through) => Reading::Lost { reason: GapReason::Evicted, through },
            Stand::Missing(through) => Reading::Lost { reason: GapReason::NotKept, through },
            Stand::Kept(through) => Reading::InStore {
                store: Arc::clone(store),
                wanted: Wanted {
                    product: self.product.clone(),
                    number: shelf.number,
                    after: place,
                    through: through.min(gone),
                    scope: scope.clone(),
                    limits,
                },
            },
        }
    }

    /// Where a reader who asks for `start` stands. While `may_wait` is set, one whose id a relay behind a relay may still get
    /// stands nowhere yet.
    pub(crate) fn locate(&self, start: &Start, may_wait: bool) -> Place {
        let state = self.state();
        let oldest = state.oldest();
        let id = match start {
            Start::Now => return Place::Now,
            Start::Oldest => return Place::BeforeKept(oldest),
            Start::Malformed => return Place::Lost(self.unknown(&state, None)),
            Start::After(id) => *id,
        };
        let newest = state.ring.newest();
        let found = state.ids.find(id, newest);
        match (found, state.numbering) {
            (Found::At(place), _) => Place::Behind(place),
            (Found::Behind(place), Numbering::Upstream) => Place::Behind(place),
            // Given by a relay behind this one.
            (Found::Behind(place), _) if id.suffix > 0 && state.ids.at(place) == Some(EventId { suffix: 0, ..id }) => {
                Place::Behind(place)
            }
            (Found::TooOld, Numbering::Upstream) => {
                self.metrics.gap(GapReason::Evicted);
                Place::Lost(self.gap(&state, GapReason::Evicted, Some(id), oldest))
            }
            (_, Numbering::Upstream) if may_wait => Place::NotYet,
            (_, Numbering::Undecided) if may_wait && self.began.elapsed() < UNDECIDED => Place::NotYet,
            _ => Place::Lost(self.unknown(&state, Some(id))),
        }
    }

    /// The notice for someone who came with an id that is not of this log: it stands before the oldest entry kept.
    fn unknown(&self, state: &State, after: Option<EventId>) -> Gap {
        self.metrics.gap(GapReason::UnknownId);
        self.gap(state, GapReason::UnknownId, after, state.oldest())
    }

    /// The notice for a reader whose next entries up to `through` are gone; `after` is the last id it has, if any. It goes on
    /// behind the notice's place.
    pub(crate) fn lost(&self, reason: GapReason, after: Option<EventId>, through: u64) -> Gap {
        if reason == GapReason::Evicted {
            self.metrics.gap(reason); // others are counted once, where they arise
        }
        self.gap(&self.state(), reason, after, through)
    }

    /// Counts that a reader was told of a gap because the store could not be read.
    pub(crate) fn could_not_be_read(&self) {
        self.metrics.gap(GapReason::NotKept);
    }

    /// The notice that everything up to `place` is gone. Where nobody remembers the id of that place any more, it reaches up to
    /// one that has an id: who came back with any other would get the notice, and what follows it, again and again.
    fn gap(&self, state: &State, reason: GapReason, after: Option<EventId>, place: u64) -> Gap {
        let after = after.map(|id| id.to_string().into());
        let (place, id) = state.ids.at_or_behind(place).unwrap_or((place, EventId::new(self.epoch, 0)));
        Gap { product: self.product.clone(), reason, place, id, after, before: state.next_id(place) }
    }

    /// A gap of this log as it is announced now: with the id after it, if there is one by now.
    pub(crate) fn announce(&self, gap: &Gap) -> Gap {
        Gap { before: self.state().next_id(gap.place), ..gap.clone() }
    }
}

/// Where a reader begins.
#[derive(Debug)]
pub(crate) enum Place {
    /// With what comes from now on.
    Now,
    /// It has seen everything up to this place.
    Behind(u64),
    /// It wants whatever is kept, which at this moment begins behind this place.
    BeforeKept(u64),
    /// What follows its id is not here: first this notice, then whatever is kept behind the notice's place.
    Lost(Gap),
    /// Its id is not here yet, but may come.
    NotYet,
}

/// What a reader finds behind its place.
#[derive(Debug)]
pub(crate) enum Reading {
    /// It has now been given, or may not see, everything up to `through`.
    Taken {
        /// The place it has come to.
        through: u64,
        /// Nothing behind that was in the log.
        reached_end: bool,
    },
    /// What comes next is in the store.
    InStore {
        /// Where to ask.
        store: Arc<Desk>,
        /// For what.
        wanted: Wanted,
    },
    /// Everything up to `through` is gone.
    Lost {
        /// Why.
        reason: GapReason,
        /// The last place that is gone.
        through: u64,
    },
}

/// The upstream's first answer tells whether it is a relay, whose ids may still come. One that has not answered for so long
/// after the start does not hold up those who come with an id.
const UNDECIDED: Duration = Duration::from_secs(3);
