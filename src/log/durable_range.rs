//! What the store has of one log, as far as the log itself must know.
//!
//! ```text
//! places    1 ──── 40 │ 41 ──── 90 │ 91 ── 95 │ 96 ──── 120 │ 121 ────
//!           evicted   │ kept       │ missing  │ kept        │ not kept yet: in the ring alone
//! ```
//!
//! Pure. May use: nothing.

use std::collections::VecDeque;

/// The state of one log's part of the store.
#[derive(Debug)]
pub(crate) struct Shelf {
    /// Number of the product in the store.
    pub(crate) number: u32,
    /// Everything up to here has been taken away by retention.
    pub(crate) evicted_through: u64,
    /// Everything up to here is on the shelf, evicted or missing.
    pub(crate) kept_through: u64,
    /// Events and gaps on the shelf.
    pub(crate) events: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// The store's writer has taken everything up to here out of memory.
    pub(crate) taken_through: u64,
    missing: VecDeque<Missing>,
    /// The ranges that the store has not been told of: those that end behind this place.
    told_through: u64,
}

/// Places whose entries are gone although the store should have kept them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Missing {
    /// The first of them.
    pub(crate) first: u64,
    /// The last of them.
    pub(crate) last: u64,
}

/// What stands behind a place of a shelf.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Stand {
    /// Entries up to this place can be read.
    Kept(u64),
    /// Everything up to this place has been taken away by retention.
    Evicted(u64),
    /// Everything up to this place could not be kept.
    Missing(u64),
}

impl Shelf {
    /// A shelf as it was found.
    pub(crate) fn new(number: u32, evicted_through: u64, newest: u64, missing: Vec<Missing>) -> Self {
        Self {
            number,
            evicted_through,
            kept_through: newest,
            events: 0,
            bytes: 0,
            taken_through: newest,
            missing: missing.into(),
            told_through: newest,
        }
    }

    /// What a reader finds behind `place`, which lies before the oldest entry in memory.
    pub(crate) fn behind(&self, place: u64) -> Stand {
        if place < self.evicted_through {
            return Stand::Evicted(self.evicted_through);
        }
        match self.missing.iter().find(|missing| missing.last > place) {
            Some(missing) if missing.first <= place + 1 => Stand::Missing(missing.last),
            Some(missing) => Stand::Kept(missing.first - 1),
            None => Stand::Kept(self.kept_through),
        }
    }

    /// Notes that nothing up to `place` is in memory any more. What the store has not got by now it never gets. Tells
    /// whether that begins a new range.
    pub(crate) fn gone_from_memory(&mut self, place: u64) -> bool {
        if place <= self.kept_through {
            return false;
        }
        let first = self.kept_through + 1;
        self.kept_through = place;
        self.lose(first, place)
    }

    /// Notes that these places are lost, which lie behind every range so far. Tells whether that begins a new range.
    fn lose(&mut self, first: u64, last: u64) -> bool {
        match self.missing.back_mut() {
            Some(range) if range.last + 1 >= first => {
                range.last = last;
                false
            }
            _ => {
                self.missing.push_back(Missing { first, last });
                self.missing.len() <= MAX_RANGES || self.merge_oldest()
            }
        }
    }

    /// Makes one range of the oldest two and what lies between: that many are a disk that cannot be trusted at all.
    fn merge_oldest(&mut self) -> bool {
        if let (Some(first), Some(second)) = (self.missing.pop_front(), self.missing.front_mut()) {
            second.first = first.first;
        }
        true
    }

    /// Notes that the store as a whole is gone, and that it can have again only what comes behind `in_memory_from`. Tells
    /// whether anything is lost by that.
    pub(crate) fn lose_everything(&mut self, in_memory_from: u64) -> bool {
        self.missing.clear();
        let is_loss = in_memory_from > self.evicted_through;
        if is_loss {
            // From the first place on: the new file does not know what retention had taken away.
            self.missing.push_back(Missing { first: 1, last: in_memory_from });
        }
        (self.kept_through, self.taken_through, self.told_through) = (in_memory_from, in_memory_from, 0);
        (self.events, self.bytes) = (0, 0);
        is_loss
    }

    /// Whether an event at `place`, which is in memory, is in the store, too, or about to be.
    pub(crate) fn has(&self, place: u64) -> bool {
        self.evicted_through < place && place <= self.taken_through
    }

    /// Whether the entry at `place` has been committed, as opposed to waiting for that or being lost.
    pub(crate) fn has_committed(&self, place: u64) -> bool {
        let is_missing = || self.missing.iter().any(|range| (range.first..=range.last).contains(&place));
        place <= self.kept_through && !is_missing()
    }

    /// The store knows everything up to here.
    pub(crate) fn told_through(&self) -> u64 {
        self.told_through
    }

    /// The ranges that the store must be told of.
    pub(crate) fn untold(&self) -> Vec<Missing> {
        self.missing.iter().filter(|range| range.last > self.told_through).copied().collect()
    }

    /// Notes that the store has committed the entries from `first` through `last`, and knows of the ranges before them.
    pub(crate) fn committed(&mut self, first: u64, last: u64, events: u64, bytes: u64) {
        // What left memory while it was being committed is not missing after all.
        while let Some(range) = self.missing.pop_back_if(|range| range.last >= first) {
            let before = Missing { last: range.last.min(first - 1), ..range };
            let after = Missing { first: range.first.max(last + 1), ..range };
            let rest = [before, after].into_iter().filter(|rest| rest.first <= rest.last);
            let is_done = range.first < first || range.last > last;
            self.missing.extend(rest);
            if is_done {
                break;
            }
        }
        self.kept_through = self.kept_through.max(last);
        self.told_through = self.told_through.max(last);
        self.events += events;
        self.bytes += bytes;
    }

    /// Notes that retention has taken everything up to `through` away.
    pub(crate) fn retired(&mut self, through: u64, events: u64, bytes: u64) {
        self.evicted_through = self.evicted_through.max(through);
        self.missing.retain(|range| range.last > through);
        self.events = self.events.saturating_sub(events);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// Ranges remembered one by one.
const MAX_RANGES: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_is_told_what_it_can_read_and_what_is_gone() {
        let missing = vec![Missing { first: 91, last: 95 }];
        let mut shelf = Shelf::new(1, 40, 120, missing);
        for (place, stand) in [
            (0, Stand::Evicted(40)),
            (39, Stand::Evicted(40)),
            (40, Stand::Kept(90)),
            (89, Stand::Kept(90)),
            (90, Stand::Missing(95)),
            (94, Stand::Missing(95)),
            (95, Stand::Kept(120)),
        ] {
            assert_eq!(shelf.behind(place), stand, "{place}");
        }
        shelf.retired(100, 10, 10);
        assert_eq!((shelf.behind(93), shelf.missing.len()), (Stand::Evicted(100), 0));
    }

    #[test]
    fn what_leaves_memory_before_it_is_kept_is_one_missing_range_until_the_store_catches_up() {
        let mut shelf = Shelf::new(1, 0, 10, Vec::new());
        assert!(!shelf.gone_from_memory(10));
        assert!(shelf.gone_from_memory(12));
        assert!(!shelf.gone_from_memory(13), "the same range");
        assert_eq!(shelf.untold(), [Missing { first: 11, last: 13 }]);
        shelf.committed(14, 20, 7, 700);
        assert_eq!(
            (shelf.untold().len(), shelf.behind(11), shelf.behind(13)),
            (0, Stand::Missing(13), Stand::Kept(20))
        );
        assert!(!shelf.gone_from_memory(20));
        assert!(shelf.gone_from_memory(21), "another one");
        assert_eq!(shelf.untold(), [Missing { first: 21, last: 21 }]);
    }

    #[test]
    fn what_leaves_memory_while_it_is_being_committed_is_not_missing() {
        let range = |first, last| Missing { first, last };
        for (first, last, left) in [
            (10, 20, vec![]),
            (10, 15, vec![]),
            (10, 12, vec![range(13, 15)]),
            (12, 20, vec![range(10, 11)]), // 10 and 11 were gone before the batch was taken
            (12, 13, vec![range(10, 11), range(14, 15)]),
            (16, 20, vec![range(10, 15)]),
        ] {
            let mut shelf = Shelf::new(1, 0, 9, Vec::new());
            assert!(shelf.gone_from_memory(15));
            shelf.committed(first, last, 1, 1);
            assert_eq!(shelf.missing, left, "{first} {last}");
            assert_eq!(shelf.kept_through, last.max(15));
        }
    }

    #[test]
    fn a_lost_store_has_again_what_is_in_memory() {
        let mut shelf = Shelf::new(1, 5, 100, Vec::new());
        assert!(shelf.lose_everything(80));
        assert_eq!((shelf.kept_through, shelf.behind(5)), (80, Stand::Missing(80)));
        assert_eq!(shelf.untold(), [Missing { first: 1, last: 80 }]);
        let mut empty = Shelf::new(1, 0, 0, Vec::new());
        assert!(!empty.lose_everything(0), "there was nothing to lose");
    }

    #[test]
    fn an_event_is_on_the_shelf_from_when_the_writer_takes_it_until_retention_does() {
        let mut shelf = Shelf::new(1, 5, 100, Vec::new());
        shelf.taken_through = 110;
        for (place, has) in [(5, false), (6, true), (100, true), (110, true), (111, false)] {
            assert_eq!(shelf.has(place), has, "{place}");
        }
        shelf.lose_everything(80);
        assert!(!shelf.has(90), "to be taken again");
    }

    #[test]
    fn ranges_are_bounded() {
        let mut shelf = Shelf::new(1, 0, 0, Vec::new());
        for place in (2..6000).step_by(2) {
            shelf.committed(place - 1, place - 1, 1, 1);
            assert!(shelf.gone_from_memory(place));
        }
        assert_eq!(shelf.missing.len(), MAX_RANGES);
        assert!(matches!(shelf.behind(1), Stand::Missing(_)));
    }
}
