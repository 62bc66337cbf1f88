//! The durable range of one log: what the store has of it, as far as the log must know.
//!
//! ```text
//! positions 1 ──── 40 │ 41 ──── 90 │ 91 ── 95 │ 96 ──── 120 │ 121 ────
//!           evicted   │ persisted  │ hole     │ persisted   │ not persisted: in the ring alone
//! ```
//!
//! May use: no other module.

use std::collections::VecDeque;

use super::id_spans::{EmptyEpoch, IdSpan};

/// Durable range of one product's log: which positions the store has, has evicted, or will never
/// have.
#[derive(Debug)]
pub(crate) struct DurableRange {
    /// Number of the product in the store.
    pub(crate) product_number: u32,
    /// Last position that retention has removed.
    pub(crate) evicted_through: u64,
    /// Last position that needs no commit any more: all up to here are in the store, evicted or in
    /// a hole.
    pub(crate) persisted_through: u64,
    /// Events and gaps in the store.
    pub(crate) events: u64,
    /// Bytes of these entries.
    pub(crate) bytes: u64,
    /// Last position that the store's writer has taken out of memory, committed or not.
    pub(crate) claimed_through: u64,
    holes: VecDeque<Hole>,
    /// Holes that end at or before this position are recorded in the file.
    acknowledged_through: u64,
}

/// State of one product's log as the file has it.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct PersistedLog {
    /// Number of the product in the file.
    pub(crate) product_number: u32,
    /// Position of the newest entry ever committed or recorded as lost, 0 before the first.
    pub(crate) newest: u64,
    /// Last position that retention has removed.
    pub(crate) evicted_through: u64,
    /// Rows: events and gaps.
    pub(crate) events: u64,
    /// Bytes of their payloads, sessions and kinds.
    pub(crate) bytes: u64,
    /// Highest epoch of any span there ever was, 0 for none.
    pub(crate) highest_epoch: u64,
    /// Spans, by position.
    pub(crate) spans: Vec<IdSpan>,
    /// Epochs of which no entry was committed.
    pub(crate) empty_epochs: Vec<EmptyEpoch>,
    /// Holes, by their first position.
    pub(crate) holes: Vec<Hole>,
}

/// Positions whose entries left memory before the store committed them, or were lost with a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Hole {
    /// First position.
    pub(crate) first: u64,
    /// Last position.
    pub(crate) last: u64,
}

/// Entries, a hole or an eviction: the segment that follows a position of a durable range.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum DurableSegment {
    /// Entries up to this position can be read.
    Persisted(u64),
    /// Retention has removed everything up to this position.
    Evicted(u64),
    /// Entries up to this position were never persisted, or were lost.
    Hole(u64),
}

impl DurableRange {
    /// Returns the range as it was found in the file.
    pub(crate) fn new(
        product_number: u32,
        evicted_through: u64,
        newest: u64,
        holes: Vec<Hole>,
    ) -> Self {
        Self {
            product_number,
            evicted_through,
            persisted_through: newest,
            events: 0,
            bytes: 0,
            claimed_through: newest,
            holes: holes.into(),
            acknowledged_through: newest,
        }
    }

    /// Returns the segment that follows `position`, which precedes the oldest entry in memory.
    pub(crate) fn segment_after(&self, position: u64) -> DurableSegment {
        if position < self.evicted_through {
            return DurableSegment::Evicted(self.evicted_through);
        }
        match self.holes.iter().find(|hole| hole.last > position) {
            Some(hole) if hole.first <= position + 1 => DurableSegment::Hole(hole.last),
            Some(hole) => DurableSegment::Persisted(hole.first - 1),
            None => DurableSegment::Persisted(self.persisted_through),
        }
    }

    /// Records that nothing up to `position` is in memory any more: what is not committed by now
    /// never will be. Returns whether that begins a new hole, which is counted as one gap.
    pub(crate) fn record_memory_eviction(&mut self, position: u64) -> bool {
        if position <= self.persisted_through {
            return false;
        }
        let first = self.persisted_through + 1;
        self.persisted_through = position;
        self.add_hole(first, position)
    }

    /// Adds a hole behind all others, or extends the last one. Returns whether a new hole begins.
    fn add_hole(&mut self, first: u64, last: u64) -> bool {
        match self.holes.back_mut() {
            Some(range) if range.last + 1 >= first => {
                range.last = last;
                false
            }
            _ => {
                self.holes.push_back(Hole { first, last });
                self.holes.len() <= MAX_HOLES || self.merge_oldest_holes()
            }
        }
    }

    /// Merges the two oldest holes and all between them into one. Only a disk that cannot be
    /// trusted at all leads to so many; readers of that range get one large gap.
    fn merge_oldest_holes(&mut self) -> bool {
        if let (Some(first), Some(second)) = (self.holes.pop_front(), self.holes.front_mut()) {
            second.first = first.first;
        }
        true
    }

    /// Records that the whole file is lost, and that a new one can have only entries behind
    /// `memory_evicted_through`. Returns whether entries are lost by that.
    pub(crate) fn record_total_loss(&mut self, memory_evicted_through: u64) -> bool {
        self.holes.clear();
        let is_loss = memory_evicted_through > self.evicted_through;
        if is_loss {
            // From position 1: the new file does not know what retention had removed.
            self.holes.push_back(Hole { first: 1, last: memory_evicted_through });
        }
        (self.persisted_through, self.claimed_through, self.acknowledged_through) =
            (memory_evicted_through, memory_evicted_through, 0);
        (self.events, self.bytes) = (0, 0);
        is_loss
    }

    /// Returns whether an event at `position`, which is in memory, is in the store as well, or
    /// about to be.
    pub(crate) fn contains(&self, position: u64) -> bool {
        self.evicted_through < position && position <= self.claimed_through
    }

    /// Returns whether the entry at `position` is committed, as opposed to waiting for that or
    /// being lost.
    pub(crate) fn has_committed(&self, position: u64) -> bool {
        let in_hole =
            || self.holes.iter().any(|range| (range.first..=range.last).contains(&position));
        position <= self.persisted_through && !in_hole()
    }

    /// Returns the last position up to which the file records all holes.
    pub(crate) fn acknowledged_through(&self) -> u64 {
        self.acknowledged_through
    }

    /// Returns the holes that the file does not record yet.
    pub(crate) fn unacknowledged_holes(&self) -> Vec<Hole> {
        self.holes.iter().filter(|range| range.last > self.acknowledged_through).copied().collect()
    }

    /// Records that the entries from `first` through `last` are committed, together with all holes
    /// before them.
    pub(crate) fn record_commit(&mut self, first: u64, last: u64, events: u64, bytes: u64) {
        // Entries that left memory during the commit were recorded as a hole; the batch held them,
        // so they are not lost. The hole is cut to the part outside the batch.
        while let Some(range) = self.holes.pop_back_if(|range| range.last >= first) {
            let before = Hole { last: range.last.min(first - 1), ..range };
            let after = Hole { first: range.first.max(last + 1), ..range };
            let rest = [before, after].into_iter().filter(|rest| rest.first <= rest.last);
            let is_last = range.first < first || range.last > last;
            self.holes.extend(rest);
            if is_last {
                break;
            }
        }
        self.persisted_through = self.persisted_through.max(last);
        self.acknowledged_through = self.acknowledged_through.max(last);
        self.events += events;
        self.bytes += bytes;
    }

    /// Records that retention has removed everything up to `through`.
    pub(crate) fn record_retention(&mut self, through: u64, events: u64, bytes: u64) {
        self.evicted_through = self.evicted_through.max(through);
        self.holes.retain(|range| range.last > through);
        self.events = self.events.saturating_sub(events);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// Maximum number of holes remembered one by one.
const MAX_HOLES: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_learns_which_ranges_are_readable_and_which_are_lost() {
        let missing = vec![Hole { first: 91, last: 95 }];
        let mut durable = DurableRange::new(1, 40, 120, missing);
        for (position, segment) in [
            (0, DurableSegment::Evicted(40)),
            (39, DurableSegment::Evicted(40)),
            (40, DurableSegment::Persisted(90)),
            (89, DurableSegment::Persisted(90)),
            (90, DurableSegment::Hole(95)),
            (94, DurableSegment::Hole(95)),
            (95, DurableSegment::Persisted(120)),
        ] {
            assert_eq!(durable.segment_after(position), segment, "{position}");
        }
        durable.record_retention(100, 10, 10);
        assert_eq!(
            (durable.segment_after(93), durable.holes.len()),
            (DurableSegment::Evicted(100), 0)
        );
    }

    #[test]
    fn entries_evicted_before_they_are_persisted_are_one_hole() {
        let mut durable = DurableRange::new(1, 0, 10, Vec::new());
        assert!(!durable.record_memory_eviction(10));
        assert!(durable.record_memory_eviction(12));
        assert!(!durable.record_memory_eviction(13), "the same range");
        assert_eq!(durable.unacknowledged_holes(), [Hole { first: 11, last: 13 }]);
        durable.record_commit(14, 20, 7, 700);
        assert_eq!(
            (
                durable.unacknowledged_holes().len(),
                durable.segment_after(11),
                durable.segment_after(13)
            ),
            (0, DurableSegment::Hole(13), DurableSegment::Persisted(20))
        );
        assert!(!durable.record_memory_eviction(20));
        assert!(durable.record_memory_eviction(21), "another one");
        assert_eq!(durable.unacknowledged_holes(), [Hole { first: 21, last: 21 }]);
    }

    #[test]
    fn entries_evicted_during_their_commit_are_no_hole() {
        let range = |first, last| Hole { first, last };
        for (first, last, left) in [
            (10, 20, vec![]),
            (10, 15, vec![]),
            (10, 12, vec![range(13, 15)]),
            (12, 20, vec![range(10, 11)]), // 10 and 11 were evicted before the batch was taken
            (12, 13, vec![range(10, 11), range(14, 15)]),
            (16, 20, vec![range(10, 15)]),
        ] {
            let mut durable = DurableRange::new(1, 0, 9, Vec::new());
            assert!(durable.record_memory_eviction(15));
            durable.record_commit(first, last, 1, 1);
            assert_eq!(durable.holes, left, "{first} {last}");
            assert_eq!(durable.persisted_through, last.max(15));
        }
    }

    #[test]
    fn a_lost_store_leaves_a_hole_up_to_the_entries_in_memory() {
        let mut durable = DurableRange::new(1, 5, 100, Vec::new());
        assert!(durable.record_total_loss(80));
        assert_eq!(
            (durable.persisted_through, durable.segment_after(5)),
            (80, DurableSegment::Hole(80))
        );
        assert_eq!(durable.unacknowledged_holes(), [Hole { first: 1, last: 80 }]);
        let mut empty = DurableRange::new(1, 0, 0, Vec::new());
        assert!(!empty.record_total_loss(0), "there was nothing to lose");
    }

    #[test]
    fn an_event_is_durable_from_when_the_writer_takes_it_until_retention_does() {
        let mut durable = DurableRange::new(1, 5, 100, Vec::new());
        durable.claimed_through = 110;
        for (position, has) in [(5, false), (6, true), (100, true), (110, true), (111, false)] {
            assert_eq!(durable.contains(position), has, "{position}");
        }
        durable.record_total_loss(80);
        assert!(!durable.contains(90), "to be taken again");
    }

    #[test]
    fn holes_are_bounded() {
        let mut durable = DurableRange::new(1, 0, 0, Vec::new());
        for position in (2..6000).step_by(2) {
            durable.record_commit(position - 1, position - 1, 1, 1);
            assert!(durable.record_memory_eviction(position));
        }
        assert_eq!(durable.holes.len(), MAX_HOLES);
        assert!(matches!(durable.segment_after(1), DurableSegment::Hole(_)));
    }
}
