//! Converts positions to ids and back, by spans of ids that follow one another.
//!
//! ```text
//! positions 1 ───── 100 │ 101 ──── 140 │ 141    │ 142 ────
//! ids       7-1 … 7-100 │ 9-101 … 9-140│ 9-140.1│ 9-143 …   four spans: a restart, an own entry, a hole
//! ```
//!
//! A relay that numbers its own entries has one span for each of its lives. Behind another relay a
//! hole in that relay's ids begins another span. Within an epoch ids only grow.
//!
//! An epoch of which no entry was kept, as after a crash before the first commit, has no span. The
//! log remembers behind which position it began, because ids of it may have been shown.
//!
//! May use: `event`.

use std::collections::{BTreeMap, VecDeque};

use crate::event::EventId;

/// Spans of one log.
#[derive(Debug, Default)]
pub(crate) struct IdSpans {
    /// By position.
    spans: VecDeque<IdSpan>,
    /// First position of each span, by the span's first id.
    by_id: BTreeMap<EventId, u64>,
    /// Epochs without an entry, with the position behind which each began.
    empty_epochs: BTreeMap<u64, u64>,
}

/// Epoch of which the log has no entry.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct EmptyEpoch {
    /// The epoch.
    pub(crate) epoch: u64,
    /// Position of the newest entry when the epoch began.
    pub(crate) after: u64,
}

/// Run of entries whose ids follow one another: the n-th entry after the first has the first's
/// sequence plus n.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct IdSpan {
    /// Position of the first entry.
    pub(crate) first_position: u64,
    /// Id of the first entry.
    pub(crate) first_id: EventId,
}

impl IdSpan {
    /// Returns the id right before that of the first entry, if its epoch has one.
    fn id_before(&self) -> Option<EventId> {
        match self.first_id.suffix.checked_sub(1) {
            Some(suffix) => Some(EventId { suffix, ..self.first_id }),
            None => {
                Some(EventId { sequence: self.first_id.sequence.checked_sub(1)?, ..self.first_id })
            }
        }
    }

    /// Returns the id at a position, which must not precede this span.
    fn id_at(&self, position: u64) -> EventId {
        EventId {
            sequence: self.first_id.sequence.saturating_add(position - self.first_position),
            ..self.first_id
        }
    }
}

/// Position of an id in a log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum IdLookup {
    /// The id of the entry at this position.
    At(u64),
    /// Between this position and the next.
    After(u64),
    /// Later than the newest entry, and of its epoch.
    Ahead,
    /// Of an epoch that began behind this position, and of which the log has no entry.
    EmptyEpoch(u64),
    /// Of a known epoch, but before the first id of it that the log remembers.
    TooOld,
    /// Of an epoch that the log does not know.
    UnknownEpoch,
}

impl IdSpans {
    /// Returns the spans as they were persisted.
    pub(crate) fn restored(spans: impl IntoIterator<Item = IdSpan>) -> Self {
        let mut ids = Self::default();
        spans.into_iter().for_each(|span| ids.begin_span(span));
        ids
    }

    /// Records epochs of earlier lives of the log that have no entry.
    pub(crate) fn add_empty_epochs(&mut self, epochs: impl IntoIterator<Item = EmptyEpoch>) {
        for EmptyEpoch { epoch, after } in epochs {
            self.empty_epochs.insert(epoch, after);
            while self.empty_epochs.len() > MAX_EMPTY_EPOCHS {
                self.empty_epochs.pop_first();
            }
        }
    }

    /// Records that the entry at `position`, behind all others, has this id.
    pub(crate) fn append(&mut self, position: u64, id: EventId) {
        let continues_span = self.spans.back().is_some_and(|last| {
            last.first_id.suffix == 0
                && position > last.first_position
                && last.id_at(position) == id // an id with a suffix is a span of its own
        });
        if !continues_span {
            self.begin_span(IdSpan { first_position: position, first_id: id });
        }
    }

    /// Begins a span. Replaces a prepared span that has no entry yet: a restart prepares one for
    /// its epoch, and the upstream may turn out to give the ids. Its epoch is remembered as empty.
    pub(crate) fn begin_span(&mut self, span: IdSpan) {
        while let Some(unused) =
            self.spans.pop_back_if(|last| last.first_position >= span.first_position)
        {
            self.by_id.remove(&unused.first_id);
            // At position 0 there is nothing behind which a client could continue.
            if unused.first_id.epoch != span.first_id.epoch && unused.first_position > 0 {
                let (epoch, after) = (unused.first_id.epoch, unused.first_position - 1);
                self.add_empty_epochs([EmptyEpoch { epoch, after }]);
            }
        }
        self.spans.push_back(span);
        self.by_id.insert(span.first_id, span.first_position);
        while self.spans.len() > MAX_SPANS {
            let Some(oldest) = self.spans.pop_front() else { return };
            self.by_id.remove(&oldest.first_id);
        }
    }

    /// Returns the id at a position, `None` before the oldest span remembered. At position 0 that
    /// is the id before the first entry's, if its epoch has one.
    pub(crate) fn id_at(&self, position: u64) -> Option<EventId> {
        let first =
            self.spans.iter().take_while(|span| position == 0 && span.first_position <= 1).last();
        let before_first = first
            .filter(|first| first.first_position == 1 && first.first_id.suffix == 0)
            .and_then(IdSpan::id_before);
        before_first.or_else(|| self.span_at(position).map(|span| span.id_at(position)))
    }

    /// Returns the first position from `position` on that has an id to resume from, and the id.
    /// Before the oldest span remembered that is the position right before the span, under the id
    /// right before its first.
    pub(crate) fn first_resumable(&self, position: u64) -> Option<(u64, EventId)> {
        if let Some(id) = self.id_at(position) {
            return Some((position, id));
        }
        let first = self.spans.front()?;
        match first.id_before() {
            Some(id) => Some((first.first_position.saturating_sub(1), id)),
            None => Some((first.first_position, first.first_id)),
        }
    }

    /// Returns the span of a position.
    fn span_at(&self, position: u64) -> Option<&IdSpan> {
        let index = self.spans.partition_point(|span| span.first_position <= position);
        self.spans.get(index.checked_sub(1)?)
    }

    /// Returns the position of an id in a log whose newest entry is at `newest`.
    pub(crate) fn find(&self, id: EventId, newest: u64) -> IdLookup {
        let below =
            self.by_id.range(..=id).next_back().filter(|(first, _)| first.epoch == id.epoch);
        if let Some((first, position)) = below {
            return self.find_in(
                IdSpan { first_position: *position, first_id: *first },
                id,
                newest,
            );
        }
        let Some((first, position)) =
            self.by_id.range(id..).next().filter(|(first, _)| first.epoch == id.epoch)
        else {
            return match self.empty_epochs.get(&id.epoch) {
                Some(after) => IdLookup::EmptyEpoch(*after),
                None => IdLookup::UnknownEpoch,
            };
        };
        let before = position.saturating_sub(1);
        let precedes =
            IdSpan { first_position: *position, first_id: *first }.id_before() == Some(id);
        let begins_log = before == 0
            || self.spans.front().is_some_and(|oldest| oldest.first_position == *position);
        match (precedes, begins_log) {
            (true, true) => IdLookup::At(before),
            (_, false) => IdLookup::After(before),
            (false, true) => IdLookup::TooOld,
        }
    }

    /// Returns the position of an id that is at or behind the first of `span`, and before the first
    /// of the next span of its epoch.
    fn find_in(&self, span: IdSpan, id: EventId, newest: u64) -> IdLookup {
        let next = self.spans.partition_point(|other| other.first_position <= span.first_position);
        let last = self.spans.get(next).map_or(newest, |next| next.first_position - 1);
        let position = span.first_position.saturating_add(id.sequence - span.first_id.sequence);
        if position > last {
            return if last == newest { IdLookup::Ahead } else { IdLookup::After(last) };
        }
        if span.id_at(position) == id { IdLookup::At(position) } else { IdLookup::After(position) }
    }

    /// Returns whether the log has an entry with this id, or with a later one of the same epoch.
    pub(crate) fn has_passed(&self, id: EventId, newest: u64) -> bool {
        let end_of_epoch = EventId { sequence: u64::MAX, suffix: u32::MAX, ..id };
        let last = self
            .by_id
            .range(..=end_of_epoch)
            .next_back()
            .filter(|(first, _)| first.epoch == id.epoch);
        last.is_some_and(|(first, position)| {
            let next = self.spans.partition_point(|span| span.first_position <= *position);
            let end = self.spans.get(next).map_or(newest, |next| next.first_position - 1);
            end >= *position
                && IdSpan { first_position: *position, first_id: *first }.id_at(end) >= id
        })
    }

    /// Returns the spans that begin within these positions.
    pub(crate) fn spans_between(&self, first: u64, last: u64) -> Vec<IdSpan> {
        let from = self.spans.partition_point(|span| span.first_position < first);
        self.spans.range(from..).take_while(|span| span.first_position <= last).copied().collect()
    }
}

/// Maximum number of spans remembered, spans of evicted entries included. The oldest one is
/// forgotten first; its ids resolve as unknown from then on.
const MAX_SPANS: usize = 4096;

/// Maximum number of epochs without an entry that are remembered, in memory and in the store. The
/// oldest one is forgotten first; its ids then get everything kept.
pub(crate) const MAX_EMPTY_EPOCHS: usize = 4096;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(text: &str) -> EventId {
        EventId::parse(text).unwrap()
    }

    /// Returns the spans drawn in the module header, up to 9-145 at position 144.
    fn ids() -> IdSpans {
        let mut ids = IdSpans::default();
        ids.begin_span(IdSpan { first_position: 1, first_id: id("7-1") });
        for position in 1..=100 {
            ids.append(position, EventId::new(7, position));
        }
        ids.begin_span(IdSpan { first_position: 101, first_id: id("9-101") });
        for position in 101..=140 {
            ids.append(position, EventId::new(9, position));
        }
        ids.append(141, id("9-140.1"));
        for position in 142..=144 {
            ids.append(position, EventId::new(9, position + 1));
        }
        ids
    }

    #[test]
    fn every_position_has_an_id_that_resolves_to_it() {
        let ids = ids();
        assert_eq!(ids.spans.len(), 4);
        for position in 0..=144 {
            assert_eq!(ids.find(ids.id_at(position).unwrap(), 144), IdLookup::At(position));
        }
        assert_eq!(
            (ids.id_at(0), ids.id_at(141), ids.id_at(142)),
            (Some(id("7-0")), Some(id("9-140.1")), Some(id("9-143")))
        );
    }

    #[test]
    fn a_foreign_id_resolves_to_the_position_before_it() {
        let ids = ids();
        for (text, found) in [
            ("7-40.1", IdLookup::After(40)), // another relay's own entry
            ("9-140.7", IdLookup::After(141)),
            ("9-141", IdLookup::After(141)), // never came here
            ("7-101", IdLookup::After(100)), // of an earlier life of the log
            ("9-50", IdLookup::After(100)),
            ("9-146", IdLookup::Ahead),
            ("9-145.1", IdLookup::After(144)),
            ("8-1", IdLookup::UnknownEpoch),
            ("10-1", IdLookup::UnknownEpoch),
        ] {
            assert_eq!(ids.find(id(text), 144), found, "{text}");
        }
        let later = IdSpans::restored([IdSpan { first_position: 1, first_id: id("9-41") }]);
        assert_eq!(later.find(id("9-7"), 10), IdLookup::TooOld);
        assert_eq!(later.find(id("9-40"), 10), IdLookup::At(0));
        assert_eq!(later.find(id("9-0"), 0), IdLookup::TooOld);
        assert_eq!(IdSpans::default().find(id("9-0"), 0), IdLookup::UnknownEpoch);
    }

    #[test]
    fn an_id_is_passed_when_it_or_a_later_one_of_its_epoch_is_here() {
        let ids = ids();
        for text in ["7-1", "7-100", "9-101", "9-140.1", "9-142", "9-145"] {
            assert!(ids.has_passed(id(text), 144), "{text}");
        }
        for text in ["7-101", "9-146", "9-145.1", "8-1", "10-0"] {
            assert!(!ids.has_passed(id(text), 144), "{text}");
        }
    }

    #[test]
    fn a_prepared_span_without_entries_makes_way() {
        let mut ids = IdSpans::restored([IdSpan { first_position: 1, first_id: id("7-1") }]);
        ids.begin_span(IdSpan { first_position: 6, first_id: id("8-6") });
        assert!(!ids.has_passed(id("8-6"), 5));
        ids.append(6, id("7-6"));
        assert_eq!(
            (ids.id_at(6), ids.find(id("8-6"), 6)),
            (Some(id("7-6")), IdLookup::EmptyEpoch(5))
        );
    }

    #[test]
    fn an_epoch_without_an_entry_is_known_by_the_position_behind_which_it_began() {
        let mut ids = IdSpans::restored([
            IdSpan { first_position: 1, first_id: id("7-1") },
            IdSpan { first_position: 6, first_id: id("9-6") },
        ]);
        ids.begin_span(IdSpan { first_position: 6, first_id: id("11-6") });
        ids.append(6, id("11-6"));
        ids.add_empty_epochs([EmptyEpoch { epoch: 8, after: 5 }]);
        for (text, found) in [
            ("9-6", IdLookup::EmptyEpoch(5)),
            ("9-900", IdLookup::EmptyEpoch(5)),
            ("8-6", IdLookup::EmptyEpoch(5)),
            ("7-9", IdLookup::After(5)),
            ("11-6", IdLookup::At(6)),
            ("10-6", IdLookup::UnknownEpoch),
        ] {
            assert_eq!(ids.find(id(text), 6), found, "{text}");
        }
        ids.add_empty_epochs((100..10_000).map(|epoch| EmptyEpoch { epoch, after: 6 }));
        assert_eq!(ids.empty_epochs.len(), MAX_EMPTY_EPOCHS);
        assert_eq!(ids.find(id("9-6"), 6), IdLookup::UnknownEpoch, "forgotten first");
    }

    #[test]
    fn the_number_of_spans_is_bounded() {
        let mut ids = IdSpans::default();
        (1..=10_000).for_each(|position| ids.append(position, EventId::new(1, position * 2)));
        assert_eq!((ids.spans.len(), ids.by_id.len()), (MAX_SPANS, MAX_SPANS));
        assert_eq!(ids.find(EventId::new(1, 20_000), 10_000), IdLookup::At(10_000));
    }

    #[test]
    fn forgotten_positions_have_no_id_except_the_last_of_them() {
        let mut ids = IdSpans::restored([IdSpan { first_position: 0, first_id: id("9-0") }]);
        (1..=10_000).for_each(|position| ids.append(position, EventId::new(1, position * 2)));
        let first = 10_000 - MAX_SPANS as u64 + 1;
        let before = (first - 1, EventId::new(1, first * 2 - 1));
        for position in [0, 1, first - 1] {
            assert_eq!(
                (ids.id_at(position), ids.first_resumable(position)),
                (None, Some(before)),
                "{position}"
            );
        }
        assert_eq!(ids.find(before.1, 10_000), IdLookup::At(before.0));
        assert_eq!(ids.find(EventId::new(1, first * 2 - 2), 10_000), IdLookup::TooOld);
        assert_eq!(ids.first_resumable(first), Some((first, EventId::new(1, first * 2))));
    }

    #[test]
    fn the_position_before_an_entry_of_a_relays_own_has_an_id_too() {
        for (first, before) in [
            ("7-40.1", (8, "7-40")),
            ("7-40.2", (8, "7-40.1")),
            ("7-40", (8, "7-39")),
            ("7-0", (9, "7-0")),
        ] {
            let ids = IdSpans::restored([IdSpan { first_position: 9, first_id: id(first) }]);
            assert_eq!(ids.first_resumable(3), Some((before.0, id(before.1))), "{first}");
            assert_eq!(ids.find(id(before.1), 9), IdLookup::At(before.0), "{first}");
        }
        assert_eq!(IdSpans::default().first_resumable(0), None);
    }

    proptest! {
        /// Checks that every id resolves to its position, and an id between two to the first's.
        #[test]
        fn ids_are_found_where_they_were_put(steps in proptest::collection::vec((0_u64..3, 1_u64..4, 0_u32..2), 1..60)) {
            let mut ids = IdSpans::default();
            let mut given = Vec::new();
            let (mut epoch, mut sequence) = (5, 0);
            for (position, (newer, further, suffix)) in (1..).zip(steps) {
                epoch += newer / 2;
                let suffixed = suffix > 0 && !given.is_empty() && newer < 2;
                let id = match given.last() {
                    Some(EventId { epoch, sequence, suffix }) if suffixed => EventId { epoch: *epoch, sequence: *sequence, suffix: suffix + 1 },
                    _ => { sequence += further; EventId::new(epoch, sequence) }
                };
                prop_assert!(!ids.has_passed(id, position - 1));
                ids.append(position, id);
                given.push(id);
                prop_assert!(ids.has_passed(id, position));
            }
            let newest = given.len() as u64;
            for (position, id) in (1..).zip(&given) {
                prop_assert_eq!(ids.id_at(position), Some(*id));
                prop_assert_eq!(ids.find(*id, newest), IdLookup::At(position));
                let just_after = EventId { suffix: id.suffix + 1, ..*id };
                if given.get(position as usize) != Some(&just_after) {
                    prop_assert_eq!(ids.find(just_after, newest), IdLookup::After(position));
                }
            }
        }
    }
}
