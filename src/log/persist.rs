//! Interface of the log to the store's writer: hands out uncommitted entries, and records commits,
//! retention and the loss of the file.
//!
//! May use: `event`.

use super::{Hole, IdSpan, IdSpans, Log, LogState, PersistedLog, durable_range::DurableRange};
use crate::event::{Entry, GapReason};

/// Entries of one log that the store has not committed.
#[derive(Debug)]
pub(crate) struct UnpersistedBatch {
    /// Number of the product in the store.
    pub(crate) product_number: u32,
    /// Position of the first entry.
    pub(crate) first: u64,
    /// Entries in order, without a missing position.
    pub(crate) entries: Vec<Entry>,
    /// Spans that begin at one of these entries or within one of the holes.
    pub(crate) spans: Vec<IdSpan>,
    /// Holes before these entries that the store has not recorded.
    pub(crate) holes: Vec<Hole>,
}

impl UnpersistedBatch {
    /// Returns the position of the last entry; the position before the first if there are no
    /// entries.
    pub(crate) fn last(&self) -> u64 {
        self.first + self.entries.len() as u64 - 1
    }
}

impl Log {
    /// Returns the next entries that the store has not committed, at most `max_entries`, or `None`
    /// if there is nothing to write.
    ///
    /// The entries stay in the ring until [`Log::mark_persisted`]: a failed commit is retried from
    /// there.
    pub(crate) fn next_unpersisted(&self, max_entries: usize) -> Option<UnpersistedBatch> {
        let mut state = self.state();
        let LogState { ring, ids, durable, .. } = &mut *state;
        let durable = durable.as_mut()?;
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
        // From here on `erase` counts these entries as the store's: they will be in the file before
        // the writer executes the erasure's command.
        durable.claimed_through = batch.last();
        // Spans that began within a hole belong to this batch, too. The very first span may begin
        // at position 0, before the first entry.
        let unacknowledged_from = if durable.acknowledged_through() == 0 {
            0
        } else {
            durable.acknowledged_through() + 1
        };
        batch.spans = ids.spans_between(unacknowledged_from, batch.last());
        Some(batch)
    }

    /// Records that a batch of [`Log::next_unpersisted`] is committed.
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
        // Committed entries no longer have the excess that the ring grants to uncommitted ones.
        self.enforce_bounds(&mut state);
        self.notify_persisted(&state);
    }

    /// Records that retention has removed everything up to `through` from the store.
    pub(crate) fn mark_retired(&self, through: u64, events: u64, bytes: u64) {
        let mut state = self.state();
        let Some(durable) = &mut state.durable else { return };
        durable.record_retention(through, events, bytes);
        self.metrics.set_store_usage(durable.events, durable.bytes);
    }

    /// Records that an erasure has removed events from the store.
    pub(crate) fn mark_erased(&self, events: u64, bytes: u64) {
        let mut state = self.state();
        let Some(durable) = &mut state.durable else { return };
        durable.events = durable.events.saturating_sub(events);
        durable.bytes = durable.bytes.saturating_sub(bytes);
        self.metrics.set_store_usage(durable.events, durable.bytes);
    }

    /// Returns whether a reopened file is the one of this log. If so, the log adopts the
    /// file's state: a commit, or a step of retention, may have succeeded although it was reported
    /// as failed.
    ///
    /// A file with another product number, with less than the store has acknowledged, with more
    /// than the log has, or with other ids is another file.
    pub(crate) fn reconcile_with(&self, persisted: PersistedLog) -> bool {
        let mut state = self.state();
        let memory_evicted_through = state.ring.evicted_through();
        let newest = state.ring.newest_position();
        let persisted_id =
            IdSpans::restored(persisted.spans.iter().copied()).id_at(persisted.newest);
        let newest_id = state.ids.id_at(persisted.newest);
        let Some(durable) = &mut state.durable else { return true };
        if durable.product_number != persisted.product_number
            || persisted.newest < durable.acknowledged_through()
            || persisted.newest > newest
            || newest_id.is_some_and(|id| persisted_id.is_some_and(|persisted| persisted != id))
        {
            return false;
        }
        let evicted_through = durable.evicted_through.max(persisted.evicted_through);
        *durable = DurableRange::new(
            persisted.product_number,
            evicted_through,
            persisted.newest,
            persisted.holes,
        );
        durable.record_memory_eviction(memory_evicted_through); // counted as a gap when it happened
        (durable.events, durable.bytes) = (persisted.events, persisted.bytes);
        self.metrics.set_store_usage(durable.events, durable.bytes);
        self.notify_persisted(&state);
        true
    }

    /// Records that the store's file is lost. Returns the first position that the new file can
    /// have, and the spans up to there.
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
        // A later span comes with its first entry: without one, it would outlive this life of the
        // log in the file.
        (memory_evicted_through + 1, state.ids.spans_between(0, memory_evicted_through + 1))
    }

    /// Returns the number of the product in the store, 0 without a store.
    pub(crate) fn product_number(&self) -> u32 {
        self.state().durable.as_ref().map_or(0, |durable| durable.product_number)
    }

    /// Returns the number of entries that the store has not committed.
    pub(crate) fn backlog(&self) -> u64 {
        let state = self.state();
        state.ring.newest_position().saturating_sub(state.persisted_through())
    }

    /// Returns the last position that is no longer in memory.
    pub(crate) fn memory_evicted_through(&self) -> u64 {
        self.state().ring.evicted_through()
    }
}
