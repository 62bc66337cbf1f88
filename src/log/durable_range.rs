//! The durable range of one log: what the store has of it, as far as the log must know.
//!
//! ```text
//! positions 1 ──── 40 │ 41 ──── 90 │ 91 ── 95 │ 96 ──── 120 │ 121 ────
//!           evicted   │ persisted  │ hole     │ persisted   │ not persisted: in the ring alone
//! ```
//!
//! May use: no other module.

use std::collections::VecDeque;

/// The state of one log's part of the store.
#[derive(Debug)]
pub(crate) struct DurableRange {
    /// Number of the product in the store.
    pub(crate) product_number: u32,
    /// Everything up to here has been taken away by retention.
    pub(crate) evicted_through: u64,
    /// Everything up to here is on the shelf, evicted or missing.
    pub(crate) persisted_through: u64,
    /// Events and gaps on the shelf.
    pub(crate) events: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// The store's writer has taken everything up to here out of memory.
    pub(crate) claimed_through: u64,
    holes: VecDeque<Hole>,
    /// The ranges that the store has not been told of: those that end behind this place.
    acknowledged_through: u64,
}

/// Places whose entries are gone although the store should have kept them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Hole {
    /// The first of them.
    pub(crate) first: u64,
    /// The last of them.
    pub(crate) last: u64,
}

/// What stands behind a place of a shelf.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum DurableSegment {
    /// Entries up to this place can be read.
    Persisted(u64),
    /// Everything up to this place has been taken away by retention.
    Evicted(u64),
    /// Everything up to this place could not be kept.
    Hole(u64),
}

impl DurableRange {
    /// A shelf as it was found.
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

    /// What a reader finds behind `place`, which lies before the oldest entry in memory.
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

    /// Notes that nothing up to `place` is in memory any more. What the store has not got by now it
    /// never gets. Tells whether that begins a new range.
    pub(crate) fn record_memory_eviction(&mut self, position: u64) -> bool {
        if position <= self.persisted_through {
            return false;
        }
        let first = self.persisted_through + 1;
        self.persisted_through = position;
        self.add_hole(first, position)
    }

    /// Notes that these places are lost, which lie behind every range so far. Tells whether that
    /// begins a new range.
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

    /// Makes one range of the oldest two and what lies between: that many are a disk that cannot be
    /// trusted at all.
    fn merge_oldest_holes(&mut self) -> bool {
        if let (Some(first), Some(second)) = (self.holes.pop_front(), self.holes.front_mut()) {
            second.first = first.first;
        }
        true
    }

    /// Notes that the store as a whole is gone, and that it can have again only what comes behind
    /// `memory_evicted_through`. Tells whether anything is lost by that.
    pub(crate) fn record_total_loss(&mut self, memory_evicted_through: u64) -> bool {
        self.holes.clear();
        let is_loss = memory_evicted_through > self.evicted_through;
        if is_loss {
            // From the first place on: the new file does not know what retention had taken away.
            self.holes.push_back(Hole { first: 1, last: memory_evicted_through });
        }
        (self.persisted_through, self.claimed_through, self.acknowledged_through) =
            (memory_evicted_through, memory_evicted_through, 0);
        (self.events, self.bytes) = (0, 0);
        is_loss
    }

    /// Whether an event at `place`, which is in memory, is in the store, too, or about to be.
    pub(crate) fn contains(&self, position: u64) -> bool {
        self.evicted_through < position && position <= self.claimed_through
    }

    /// Whether the entry at `place` has been committed, as opposed to waiting for that or being
    /// lost.
    pub(crate) fn has_committed(&self, position: u64) -> bool {
        let in_hole =
            || self.holes.iter().any(|range| (range.first..=range.last).contains(&position));
        position <= self.persisted_through && !in_hole()
    }

    /// The store knows everything up to here.
    pub(crate) fn acknowledged_through(&self) -> u64 {
        self.acknowledged_through
    }

    /// The ranges that the store must be told of.
    pub(crate) fn unacknowledged_holes(&self) -> Vec<Hole> {
        self.holes.iter().filter(|range| range.last > self.acknowledged_through).copied().collect()
    }

    /// Notes that the store has committed the entries from `first` through `last`, and knows of the
    /// ranges before them.
    pub(crate) fn record_commit(&mut self, first: u64, last: u64, events: u64, bytes: u64) {
        // What left memory while it was being committed is not missing after all.
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

    /// Notes that retention has taken everything up to `through` away.
    pub(crate) fn record_retention(&mut self, through: u64, events: u64, bytes: u64) {
        self.evicted_through = self.evicted_through.max(through);
        self.holes.retain(|range| range.last > through);
        self.events = self.events.saturating_sub(events);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// Ranges remembered one by one.
const MAX_HOLES: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_is_told_what_it_can_read_and_what_is_gone() {
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
    fn what_leaves_memory_before_it_is_persisted_is_one_hole_until_the_store_catches_up() {
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
    fn what_leaves_memory_while_it_is_being_committed_is_no_hole() {
        let range = |first, last| Hole { first, last };
        for (first, last, left) in [
            (10, 20, vec![]),
            (10, 15, vec![]),
            (10, 12, vec![range(13, 15)]),
            (12, 20, vec![range(10, 11)]), // 10 and 11 were gone before the batch was taken
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
    fn a_lost_store_has_again_what_is_in_memory() {
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
