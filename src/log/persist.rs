//! The log as the store's writer sees it: a reader that takes everything, once, and says when it is safe.
//!
//! May use: `event`, the log's own state.

use super::{Log, Missing, Span, State, durable_range::Shelf};
use crate::{
    event::{Entry, GapReason},
    store::Kept,
};

/// What the store has not got of one log.
#[derive(Debug)]
pub(crate) struct Unkept {
    /// Number of the product in the store.
    pub(crate) number: u32,
    /// Place of the first entry.
    pub(crate) first: u64,
    /// The entries, in order and without a hole.
    pub(crate) entries: Vec<Entry>,
    /// The spans that begin with one of these entries, or in one of the ranges before them.
    pub(crate) spans: Vec<Span>,
    /// The ranges before these entries that the store will never get.
    pub(crate) missing: Vec<Missing>,
}

impl Unkept {
    /// Place of the last entry; the one before the first if there is none.
    pub(crate) fn last(&self) -> u64 {
        self.first + self.entries.len() as u64 - 1
    }
}

impl Log {
    /// The next entries that the store has not got, at most `most` of them.
    pub(crate) fn unkept(&self, most: usize) -> Option<Unkept> {
        let mut state = self.state();
        let State { ring, ids, shelf, .. } = &mut *state;
        let shelf = shelf.as_mut()?;
        let (first, entries) = ring.behind(shelf.kept_through, most);
        let missing = shelf.untold();
        if entries.is_empty() && missing.is_empty() {
            return None;
        }
        let mut unkept = Unkept { number: shelf.number, first, entries, spans: Vec::new(), missing };
        shelf.taken_through = unkept.last();
        // Those that began in a missing range, too; and the first of all, which may begin before the first place.
        let untold_from = if shelf.told_through() == 0 { 0 } else { shelf.told_through() + 1 };
        unkept.spans = ids.between(untold_from, unkept.last());
        Some(unkept)
    }

    /// Notes that what [`Log::unkept`] has given is in the store.
    pub(crate) fn has_been_kept(&self, unkept: &Unkept) {
        let mut state = self.state();
        let Some(shelf) = &mut state.shelf else { return };
        let (events, bytes) = unkept.entries.iter().fold((0, 0), |(events, bytes), entry| match entry {
            Entry::Event(event) => (events + 1, bytes + event.content_bytes()),
            Entry::Gap(_) => (events + 1, bytes),
            Entry::Erased => (events, bytes),
        });
        shelf.committed(unkept.first, unkept.last(), events, bytes);
        self.metrics.shelved(shelf.events, shelf.bytes);
        self.settle(&mut state);
        self.tell_kept(&state);
    }

    /// Notes that retention has taken everything up to `through` out of the store.
    pub(crate) fn has_been_retired(&self, through: u64, events: u64, bytes: u64) {
        let mut state = self.state();
        let Some(shelf) = &mut state.shelf else { return };
        shelf.retired(through, events, bytes);
        self.metrics.shelved(shelf.events, shelf.bytes);
    }

    /// Notes that events of one session have been taken out of the store.
    pub(crate) fn has_been_erased(&self, events: u64, bytes: u64) {
        let mut state = self.state();
        let Some(shelf) = &mut state.shelf else { return };
        shelf.events = shelf.events.saturating_sub(events);
        shelf.bytes = shelf.bytes.saturating_sub(bytes);
        self.metrics.shelved(shelf.events, shelf.bytes);
    }

    /// Whether a file that has this of the log is the one that the log knows. If so, the log goes by the file from now on: it
    /// may have got a commit, or have lost what is too old, although that was reported as failed.
    pub(crate) fn agrees_with(&self, kept: Kept) -> bool {
        let mut state = self.state();
        let in_memory_from = state.ring.evicted_through();
        let Some(shelf) = &mut state.shelf else { return true };
        if shelf.number != kept.number || kept.newest < shelf.told_through() {
            return false;
        }
        let evicted_through = shelf.evicted_through.max(kept.evicted_through);
        *shelf = Shelf::new(kept.number, evicted_through, kept.newest, kept.missing);
        shelf.gone_from_memory(in_memory_from); // counted when it went
        (shelf.events, shelf.bytes) = (kept.events, kept.bytes);
        self.metrics.shelved(shelf.events, shelf.bytes);
        self.tell_kept(&state);
        true
    }

    /// Notes that the store's file is lost. Returns the first place that the new one can have, and the spans up to there.
    pub(crate) fn has_lost_its_store(&self, number: u32) -> (u64, Vec<Span>) {
        let mut state = self.state();
        let in_memory_from = state.ring.evicted_through();
        if let Some(shelf) = &mut state.shelf {
            shelf.number = number;
            if shelf.lose_everything(in_memory_from) {
                self.metrics.gap(GapReason::NotKept);
            }
            self.metrics.shelved(0, 0);
            self.tell_kept(&state);
        }
        // A later one comes with its first entry: alone, it would outlive this life of the log in the file.
        (in_memory_from + 1, state.ids.between(0, in_memory_from + 1))
    }

    /// Number of the product in the store.
    pub(crate) fn number_in_store(&self) -> u32 {
        self.state().shelf.as_ref().map_or(0, |shelf| shelf.number)
    }

    /// Entries that the store has not got.
    pub(crate) fn backlog(&self) -> u64 {
        let state = self.state();
        state.ring.newest().saturating_sub(state.kept_through())
    }

    /// The place up to which nothing is in memory any more.
    pub(crate) fn in_memory_from(&self) -> u64 {
        self.state().ring.evicted_through()
    }
}
