//! The log as its readers see it: finds the position of an id, and reads what follows a position.
//!
//! May use: `event`.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use super::{
    DamagedEvent, DamagedRow, Log, LogState, Numbering, ReadLimits,
    backing::{LogBacking, ReadRequest},
    durable_range::DurableSegment,
    id_spans::IdLookup,
    ring,
};
use crate::event::{Entry, EventId, Gap, GapReason, Scope, StartPosition};

impl Log {
    /// Reads what follows `position`: entries that `scope` admits, in order and within `limits`,
    /// appended to `read_buffer`; or says where to find them.
    pub(crate) fn read_after(
        &self,
        position: u64,
        scope: &Scope,
        limits: ReadLimits,
        read_buffer: &mut VecDeque<Entry>,
    ) -> ReadOutcome {
        let state = self.state();
        let evicted_through = match state.ring.read_after(position, scope, limits, read_buffer) {
            ring::RingRead::Entries { read_through, reached_end, examined } => {
                return ReadOutcome::Entries { read_through, reached_end, examined };
            }
            ring::RingRead::Evicted => state.ring.evicted_through(),
        };
        let (Some(durable), Some(store)) = (&state.durable, &self.backing) else {
            return ReadOutcome::Lost { reason: GapReason::Evicted, lost_through: evicted_through };
        };
        match durable.segment_after(position) {
            DurableSegment::Evicted(through) => {
                ReadOutcome::Lost { reason: GapReason::Evicted, lost_through: through }
            }
            DurableSegment::Hole(through) => {
                ReadOutcome::Lost { reason: GapReason::NotKept, lost_through: through }
            }
            DurableSegment::Persisted(through) => {
                let product_number = durable.product_number;
                // A scope may have a thousand sessions: it is copied without the lock.
                drop(state);
                ReadOutcome::InStore {
                    store: Arc::clone(store),
                    request: ReadRequest {
                        product: self.product.clone(),
                        product_number,
                        after: position,
                        through: through.min(evicted_through),
                        scope: scope.clone(),
                        limits,
                    },
                }
            }
        }
    }

    /// Returns the position at which a reader that asks for `start` begins. With `may_wait`, an id
    /// that the log's upstream may still send is [`ResolvedStart::NotYetKnown`] instead of a loss.
    pub(crate) fn resolve_start(&self, start: &StartPosition, may_wait: bool) -> ResolvedStart {
        let state = self.state();
        let oldest = state.evicted_through();
        let id = match start {
            StartPosition::Now => return ResolvedStart::Now,
            StartPosition::Oldest => return ResolvedStart::BeforeOldest(oldest),
            StartPosition::Malformed => {
                return ResolvedStart::Lost(self.unknown_id_gap(&state, None, oldest));
            }
            StartPosition::After(id) => *id,
        };
        let newest = state.ring.newest_position();
        let found = state.ids.find(id, newest);
        match (found, state.numbering) {
            (IdLookup::At(position), _) => ResolvedStart::After(position),
            (IdLookup::After(position), Numbering::Upstream) => ResolvedStart::After(position),
            // An id with a suffix names an own entry of a relay that follows this log; its clients
            // continue behind the entry that the suffix was added to.
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
            // Shown by this log and then lost, as in a crash before the commit: everything before
            // the end of its epoch has been shown to the client, too.
            (IdLookup::After(position) | IdLookup::EmptyEpoch(position), _) => {
                ResolvedStart::Lost(self.unknown_id_gap(&state, Some(id), position))
            }
            (IdLookup::Ahead, _) => {
                ResolvedStart::Lost(self.unknown_id_gap(&state, Some(id), newest))
            }
            _ => ResolvedStart::Lost(self.unknown_id_gap(&state, Some(id), oldest)),
        }
    }

    /// Returns the gap for an id that the log does not have. It reaches up to `position`, or to the
    /// oldest entry kept if that is further.
    fn unknown_id_gap(&self, state: &LogState, after: Option<EventId>, position: u64) -> Gap {
        self.metrics.record_gap(GapReason::UnknownId);
        let position = position.max(state.evicted_through());
        self.gap_through(state, GapReason::UnknownId, after, position)
    }

    /// Returns the gap for a reader whose next entries up to `lost_through` are gone; `after` is
    /// the last id that the reader has, if any. The reader continues behind the gap's position.
    pub(crate) fn lost_gap(
        &self,
        reason: GapReason,
        after: Option<EventId>,
        lost_through: u64,
    ) -> Gap {
        if reason == GapReason::Evicted {
            // gaps for other reasons are counted once, where they arise
            self.metrics.record_gap(reason);
        }
        self.gap_through(&self.state(), reason, after, lost_through)
    }

    /// Records that a reader has found this row of the store damaged, or rows gone. The first
    /// report is counted and, within a bound, logged.
    pub(crate) fn record_damaged_row(&self, row: DamagedRow) {
        let (position, positions) = (row.position, row.position - row.first + 1);
        let mut state = self.state();
        if !state.damaged_rows.add(row) {
            return;
        }
        let rows_since = state.damaged_rows.begin_line();
        drop(state);
        if let Some(rows) = rows_since {
            tracing::error!(
                product = %self.product,
                position,
                positions,
                rows,
                "a row of the store does not fit its checksum: its event is not kept"
            );
        }
        self.metrics.record_gap(GapReason::NotKept);
    }

    /// Returns the event at a position whose row was found damaged, if its other columns are whole.
    pub(crate) fn damaged_event(&self, position: u64) -> Option<DamagedEvent> {
        self.state().damaged_rows.event_at(position)
    }

    /// Counts a gap that a reader got because the store could not be read.
    pub(crate) fn count_unreadable(&self) {
        self.metrics.record_gap(GapReason::NotKept);
    }

    /// Returns the gap that says everything up to `position` is gone. If that position has no id
    /// any more, the gap reaches up to the next one that has: a client that resumed with an id that
    /// does not resolve would get the gap and all that follows it again and again.
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

    /// Returns a gap of this log with the id after it, if there is one by now.
    pub(crate) fn with_next_id(&self, gap: &Gap) -> Gap {
        Gap { before: self.state().id_after(gap.position), ..gap.clone() }
    }
}

/// Position at which a reader begins.
#[derive(Debug)]
pub(crate) enum ResolvedStart {
    /// Behind the newest entry.
    Now,
    /// Behind this position: the reader has everything up to here.
    After(u64),
    /// Behind this position, which at this moment is the one before the oldest entry kept.
    BeforeOldest(u64),
    /// Behind a loss: first this gap, then the entries behind the gap's position.
    Lost(Gap),
    /// Not decided: the id is not here yet, but may come.
    NotYetKnown,
}

/// Result of a read behind a position.
#[derive(Debug)]
pub(crate) enum ReadOutcome {
    /// Entries were appended to the caller's buffer.
    Entries {
        /// Last position that the reader has been given, or that its scope hides.
        read_through: u64,
        /// Whether the log had nothing behind `read_through`.
        reached_end: bool,
        /// Entries and chains that the read has looked at.
        examined: usize,
    },
    /// The next entries are in the store alone.
    InStore {
        /// Store to ask.
        store: Arc<LogBacking>,
        /// Request to submit.
        request: ReadRequest,
    },
    /// The next entries are gone.
    Lost {
        /// Cause of the loss.
        reason: GapReason,
        /// Last position that is gone.
        lost_through: u64,
    },
}

/// Time after the start during which an undecided numbering makes clients with an unknown id wait.
/// The upstream's first answer decides it; an upstream that does not answer must not hold clients
/// up longer.
const NUMBERING_DECISION_TIMEOUT: Duration = Duration::from_secs(3);
