//! The log as its readers see it: finds the position of an id, and reads what follows a position.
//!
//! May use: `event`, `store`.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use super::{
    Log, LogState, Numbering, ReadLimits, durable_range::DurableSegment, id_spans::IdLookup, ring,
};
use crate::{
    event::{Entry, EventId, Gap, GapReason, Scope, StartPosition},
    store::{ReadRequest, StoreHandle},
};

impl Log {
    /// Gives a reader at `place` what it sees next: entries that `scope` admits, in order and
    /// within `limits`, behind those in `handover`; or says where to find it.
    pub(crate) fn read_after(
        &self,
        position: u64,
        scope: &Scope,
        limits: ReadLimits,
        read_buffer: &mut VecDeque<Entry>,
    ) -> ReadOutcome {
        let state = self.state();
        let evicted_through = match state.ring.read_after(position, scope, limits, read_buffer) {
            ring::RingRead::Entries { read_through, reached_end } => {
                return ReadOutcome::Entries { read_through, reached_end };
            }
            ring::RingRead::Evicted => state.ring.evicted_through(),
        };
        let (Some(durable), Some(store)) = (&state.durable, &self.store) else {
            return ReadOutcome::Lost { reason: GapReason::Evicted, lost_through: evicted_through };
        };
        match durable.segment_after(position) {
            DurableSegment::Evicted(through) => {
                ReadOutcome::Lost { reason: GapReason::Evicted, lost_through: through }
            }
            DurableSegment::Hole(through) => {
                ReadOutcome::Lost { reason: GapReason::NotKept, lost_through: through }
            }
            DurableSegment::Persisted(through) => ReadOutcome::InStore {
                store: Arc::clone(store),
                request: ReadRequest {
                    product: self.product.clone(),
                    product_number: durable.product_number,
                    after: position,
                    through: through.min(evicted_through),
                    scope: scope.clone(),
                    limits,
                },
            },
        }
    }

    /// Where a reader who asks for `start` stands. While `may_wait` is set, one whose id a relay
    /// behind a relay may still get stands nowhere yet.
    pub(crate) fn resolve_start(&self, start: &StartPosition, may_wait: bool) -> ResolvedStart {
        let state = self.state();
        let oldest = state.evicted_through();
        let id = match start {
            StartPosition::Now => return ResolvedStart::Now,
            StartPosition::Oldest => return ResolvedStart::BeforeOldest(oldest),
            StartPosition::Malformed => {
                return ResolvedStart::Lost(self.unknown_id_gap(&state, None));
            }
            StartPosition::After(id) => *id,
        };
        let newest = state.ring.newest_position();
        let found = state.ids.find(id, newest);
        match (found, state.numbering) {
            (IdLookup::At(position), _) => ResolvedStart::After(position),
            (IdLookup::After(position), Numbering::Upstream) => ResolvedStart::After(position),
            // Given by a relay behind this one.
            (IdLookup::After(position), _)
                if id.suffix > 0
                    && state.ids.id_at(position) == Some(EventId { suffix: 0, ..id }) =>
            {
                ResolvedStart::After(position)
            }
            (IdLookup::TooOld, Numbering::Upstream) => {
                self.metrics.record_gap(GapReason::Evicted);
                ResolvedStart::Lost(self.gap_through(&state, GapReason::Evicted, Some(id), oldest))
            }
            (_, Numbering::Upstream) if may_wait => ResolvedStart::NotYetKnown,
            (_, Numbering::Undecided)
                if may_wait && self.created_at.elapsed() < NUMBERING_DECISION_TIMEOUT =>
            {
                ResolvedStart::NotYetKnown
            }
            _ => ResolvedStart::Lost(self.unknown_id_gap(&state, Some(id))),
        }
    }

    /// The notice for someone who came with an id that is not of this log: it stands before the
    /// oldest entry kept.
    fn unknown_id_gap(&self, state: &LogState, after: Option<EventId>) -> Gap {
        self.metrics.record_gap(GapReason::UnknownId);
        self.gap_through(state, GapReason::UnknownId, after, state.evicted_through())
    }

    /// The notice for a reader whose next entries up to `lost_through` are gone; `after` is the
    /// last id it has, if any. It goes on behind the notice's place.
    pub(crate) fn lost_gap(
        &self,
        reason: GapReason,
        after: Option<EventId>,
        lost_through: u64,
    ) -> Gap {
        if reason == GapReason::Evicted {
            self.metrics.record_gap(reason); // others are counted once, where they arise
        }
        self.gap_through(&self.state(), reason, after, lost_through)
    }

    /// Counts that a reader was told of a gap because the store could not be read.
    pub(crate) fn count_unreadable(&self) {
        self.metrics.record_gap(GapReason::NotKept);
    }

    /// The notice that everything up to `place` is gone. Where nobody remembers the id of that
    /// place any more, it reaches up to one that has an id: who came back with any other would get
    /// the notice, and what follows it, again and again.
    fn gap_through(
        &self,
        state: &LogState,
        reason: GapReason,
        after: Option<EventId>,
        position: u64,
    ) -> Gap {
        let after = after.map(|id| id.to_string().into());
        let (position, id) =
            state.ids.first_resumable(position).unwrap_or((position, EventId::new(self.epoch, 0)));
        Gap {
            product: self.product.clone(),
            reason,
            position,
            id,
            after,
            before: state.id_after(position),
        }
    }

    /// A gap of this log as it is announced now: with the id after it, if there is one by now.
    pub(crate) fn with_next_id(&self, gap: &Gap) -> Gap {
        Gap { before: self.state().id_after(gap.position), ..gap.clone() }
    }
}

/// Where a reader begins.
#[derive(Debug)]
pub(crate) enum ResolvedStart {
    /// With what comes from now on.
    Now,
    /// It has seen everything up to this place.
    After(u64),
    /// It wants whatever is kept, which at this moment begins behind this place.
    BeforeOldest(u64),
    /// What follows its id is not here: first this notice, then whatever is kept behind the
    /// notice's place.
    Lost(Gap),
    /// Its id is not here yet, but may come.
    NotYetKnown,
}

/// What a reader finds behind its place.
#[derive(Debug)]
pub(crate) enum ReadOutcome {
    /// It has now been given, or may not see, everything up to `lost_through`.
    Entries {
        /// The place it has come to.
        read_through: u64,
        /// Nothing behind that was in the log.
        reached_end: bool,
    },
    /// What comes next is in the store.
    InStore {
        /// Where to ask.
        store: Arc<StoreHandle>,
        /// For what.
        request: ReadRequest,
    },
    /// Everything up to `lost_through` is gone.
    Lost {
        /// Why.
        reason: GapReason,
        /// The last place that is gone.
        lost_through: u64,
    },
}

/// The upstream's first answer tells whether it is a relay, whose ids may still come. One that has
/// not answered for so long after the start does not hold up those who come with an id.
const NUMBERING_DECISION_TIMEOUT: Duration = Duration::from_secs(3);
