//! The log as the store's writer sees it: a reader that takes everything, once, and says when it is safe.
//!
//! May use: the log's own state.

use super::{Log, Missing, Span};
use crate::event::{Entry, GapReason};

/// What the store has not got of one log.
#[derive(Debug)]
pub(super) struct Unkept {
    /// Number of the product in the store.
    pub(super) number: u32,
    /// Place of the first entry.
    pub(super) first: u64,
    /// The entries, in order and without a hole.
    pub(super) entries: Vec<Entry>,
    /// The spans that begin with one of these entries.
    pub(super) spans: Vec<Span>,
    /// The ranges before these entries that the store will never get.
    pub(super) missing: Vec<Missing>,
}

impl Unkept {
    /// Place of the last entry; the one before the first if there is none.
    pub(super) fn last(&self) -> u64 {
        self.first + self.entries.len() as u64 - 1
    }
}

impl Log {
    /// The next entries that the store has not got, at most `most` of them.
    pub(super) fn unkept(&self, most: usize) -> Option<Unkept> {
        let state = self.state();
        let shelf = state.shelf.as_ref()?;
        let (first, entries) = state.ring.behind(shelf.kept_through, most);
        let missing = shelf.untold();
        if entries.is_empty() && missing.is_empty() {
            return None;
        }
        let last = first + entries.len() as u64;
        let spans = state.ids.between(first, last.saturating_sub(1));
        Some(Unkept { number: shelf.number, first, entries, spans, missing })
    }

    /// Notes that what [`Log::unkept`] has given is in the store.
    pub(super) fn has_been_kept(&self, unkept: &Unkept) {
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
    }

    /// Notes that retention has taken everything up to `through` out of the store.
    pub(super) fn has_been_retired(&self, through: u64, events: u64, bytes: u64) {
        let mut state = self.state();
        let Some(shelf) = &mut state.shelf else { return };
        shelf.retired(through, events, bytes);
        self.metrics.shelved(shelf.events, shelf.bytes);
    }

    /// Notes that events of one session have been taken out of the store.
    pub(super) fn has_been_erased(&self, events: u64, bytes: u64) {
        let mut state = self.state();
        let Some(shelf) = &mut state.shelf else { return };
        shelf.events = shelf.events.saturating_sub(events);
        shelf.bytes = shelf.bytes.saturating_sub(bytes);
        self.metrics.shelved(shelf.events, shelf.bytes);
    }

    /// Whether a file that has this log up to `newest` under `number` is the one that the log knows. It may have got a commit
    /// that was reported as failed.
    pub(super) fn agrees_with(&self, number: u32, newest: u64) -> bool {
        let mut state = self.state();
        let Some(shelf) = &mut state.shelf else { return true };
        let agrees = shelf.number == number && newest >= shelf.told_through();
        if agrees && newest > shelf.kept_through {
            shelf.committed(shelf.kept_through + 1, newest, 0, 0);
        }
        agrees
    }

    /// Notes that the store's file is lost. Returns the first place that the new one can have, and every span for it.
    pub(super) fn has_lost_its_store(&self, number: u32) -> (u64, Vec<Span>) {
        let mut state = self.state();
        let in_memory_from = state.ring.evicted_through();
        if let Some(shelf) = &mut state.shelf {
            shelf.number = number;
            shelf.lose_everything(in_memory_from);
            self.metrics.gap(GapReason::NotKept);
            self.metrics.shelved(0, 0);
        }
        (in_memory_from + 1, state.ids.all())
    }

    /// Number of the product in the store.
    pub(super) fn number_in_store(&self) -> u32 {
        self.state().shelf.as_ref().map_or(0, |shelf| shelf.number)
    }

    /// Place up to which the store has everything that it can have.
    pub(super) fn kept_through(&self) -> u64 {
        self.state().shelf.as_ref().map_or(0, |shelf| shelf.kept_through)
    }

    /// Entries that the store has not got.
    pub(crate) fn backlog(&self) -> u64 {
        let state = self.state();
        let kept_through = state.shelf.as_ref().map_or(u64::MAX, |shelf| shelf.kept_through);
        state.ring.newest().saturating_sub(kept_through)
    }
}
