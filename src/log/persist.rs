//! The log as the store's writer sees it: hands out each uncommitted entry once, and records
//! commits.
//!
//! May use: `event`, `store`.

use super::{Hole, IdSpan, Log, LogState, durable_range::DurableRange};
use crate::{
    event::{Entry, GapReason},
    store::PersistedLog,
};

/// What the store has not got of one log.
#[derive(Debug)]
pub(crate) struct UnpersistedBatch {
    /// Number of the product in the store.
    pub(crate) product_number: u32,
    /// Place of the first entry.
    pub(crate) first: u64,
    /// The entries, in order and without a hole.
    pub(crate) entries: Vec<Entry>,
    /// The spans that begin with one of these entries, or in one of the ranges before them.
    pub(crate) spans: Vec<IdSpan>,
    /// The ranges before these entries that the store will never get.
    pub(crate) holes: Vec<Hole>,
}

impl UnpersistedBatch {
    /// Place of the last entry; the one before the first if there is none.
    pub(crate) fn last(&self) -> u64 {
        self.first + self.entries.len() as u64 - 1
    }
}

impl Log {
    /// The next entries that the store has not got, at most `most` of them.
    pub(crate) fn next_unpersisted(&self, max_entries: usize) -> Option<UnpersistedBatch> {
        let mut state = self.state();
        let LogState { ring, ids, durable: shelf, .. } = &mut *state;
        let durable = shelf.as_mut()?;
        let (first, entries) = ring.entries_after(durable.persisted_through, max_entries);
        let holes = durable.unacknowledged_holes();
        if entries.is_empty() && holes.is_empty() {
            return None;
        }
        let mut batch = UnpersistedBatch {
            product_number: durable.product_number,
            first,
            entries,
            spans: Vec::new(),
            holes,
        };
        durable.claimed_through = batch.last();
        // Those that began in a missing range, too; and the first of all, which may begin before
        // the first place.
        let unacknowledged_from = if durable.acknowledged_through() == 0 {
            0
        } else {
            durable.acknowledged_through() + 1
        };
        batch.spans = ids.spans_between(unacknowledged_from, batch.last());
        Some(batch)
    }

    /// Notes that what [`Log::next_unpersisted`] has given is in the store.
    pub(crate) fn mark_persisted(&self, batch: &UnpersistedBatch) {
        let mut state = self.state();
        let Some(durable) = &mut state.durable else { return };
        let (events, bytes) =
            batch.entries.iter().fold((0, 0), |(events, bytes), entry| match entry {
                Entry::Event(event) => (events + 1, bytes + event.content_bytes()),
                Entry::Gap(_) => (events + 1, bytes),
                Entry::Erased => (events, bytes),
            });
        durable.record_commit(batch.first, batch.last(), events, bytes);
        self.metrics.set_store_usage(durable.events, durable.bytes);
        self.enforce_bounds(&mut state);
        self.notify_persisted(&state);
    }

    /// Notes that retention has taken everything up to `through` out of the store.
    pub(crate) fn mark_retired(&self, through: u64, events: u64, bytes: u64) {
        let mut state = self.state();
        let Some(durable) = &mut state.durable else { return };
        durable.record_retention(through, events, bytes);
        self.metrics.set_store_usage(durable.events, durable.bytes);
    }

    /// Notes that events of one session have been taken out of the store.
    pub(crate) fn mark_erased(&self, events: u64, bytes: u64) {
        let mut state = self.state();
        let Some(durable) = &mut state.durable else { return };
        durable.events = durable.events.saturating_sub(events);
        durable.bytes = durable.bytes.saturating_sub(bytes);
        self.metrics.set_store_usage(durable.events, durable.bytes);
    }

    /// Whether a file that has this of the log is the one that the log knows. If so, the log goes
    /// by the file from now on: it may have got a commit, or have lost what is too old, although
    /// that was reported as failed.
    pub(crate) fn reconcile_with(&self, kept: PersistedLog) -> bool {
        let mut state = self.state();
        let memory_evicted_through = state.ring.evicted_through();
        let Some(durable) = &mut state.durable else { return true };
        if durable.product_number != kept.product_number
            || kept.newest < durable.acknowledged_through()
        {
            return false;
        }
        let evicted_through = durable.evicted_through.max(kept.evicted_through);
        *durable = DurableRange::new(kept.product_number, evicted_through, kept.newest, kept.holes);
        durable.record_memory_eviction(memory_evicted_through); // counted when it went
        (durable.events, durable.bytes) = (kept.events, kept.bytes);
        self.metrics.set_store_usage(durable.events, durable.bytes);
        self.notify_persisted(&state);
        true
    }

    /// Notes that the store's file is lost. Returns the first place that the new one can have, and
    /// the spans up to there.
    pub(crate) fn mark_store_lost(&self, product_number: u32) -> (u64, Vec<IdSpan>) {
        let mut state = self.state();
        let memory_evicted_through = state.ring.evicted_through();
        if let Some(durable) = &mut state.durable {
            durable.product_number = product_number;
            if durable.record_total_loss(memory_evicted_through) {
                self.metrics.record_gap(GapReason::NotKept);
            }
            self.metrics.set_store_usage(0, 0);
            self.notify_persisted(&state);
        }
        // A later one comes with its first entry: alone, it would outlive this life of the log in
        // the file.
        (memory_evicted_through + 1, state.ids.spans_between(0, memory_evicted_through + 1))
    }

    /// Number of the product in the store.
    pub(crate) fn product_number(&self) -> u32 {
        self.state().durable.as_ref().map_or(0, |shelf| shelf.product_number)
    }

    /// Entries that the store has not got.
    pub(crate) fn backlog(&self) -> u64 {
        let state = self.state();
        state.ring.newest_position().saturating_sub(state.persisted_through())
    }

    /// The place up to which nothing is in memory any more.
    pub(crate) fn memory_evicted_through(&self) -> u64 {
        self.state().ring.evicted_through()
    }
}
