//! Which id stands at which place of a log, and where an id stands.
//!
//! ```text
//! places   1 ───── 100 │ 101 ──── 140 │ 141    │ 142 ────
//! ids      7-1 … 7-100 │ 9-101 … 9-140│ 9-140.1│ 9-143 …      four spans: a restart, an own entry, a hole
//! ```
//!
//! A relay that numbers by itself has one span for each of its lives. Behind another relay a hole in that one's ids begins a
//! new one. Within an epoch ids only grow.
//!
//! Pure. May use: `event`.

use std::collections::{BTreeMap, VecDeque};

use crate::event::EventId;

/// The spans of one log.
#[derive(Debug, Default)]
pub(crate) struct Ids {
    /// In the order of their places.
    spans: VecDeque<Span>,
    /// The place of each span by its first id.
    by_id: BTreeMap<EventId, u64>,
}

/// A run of entries whose ids follow one another: the n-th entry after the first has the first's sequence plus n.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Span {
    /// Place of its first entry.
    pub(crate) place: u64,
    /// Id of its first entry.
    pub(crate) id: EventId,
}

impl Span {
    /// The id right before that of its first entry, if its epoch has one.
    fn id_before(&self) -> Option<EventId> {
        match self.id.suffix.checked_sub(1) {
            Some(suffix) => Some(EventId { suffix, ..self.id }),
            None => Some(EventId { sequence: self.id.sequence.checked_sub(1)?, ..self.id }),
        }
    }

    /// The id at a place of this span, which must not lie before it.
    fn id_at(&self, place: u64) -> EventId {
        EventId { sequence: self.id.sequence.saturating_add(place - self.place), ..self.id }
    }
}

/// Where an id stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Found {
    /// Here: the id of this place.
    At(u64),
    /// Between this place and the next one.
    Behind(u64),
    /// Its epoch is that of the newest entry, and it is later than that.
    Ahead,
    /// Its epoch is known, but only from a later id on, with which the log begins.
    TooOld,
    /// Its epoch is not known.
    Nowhere,
}

impl Ids {
    /// The ids of what was kept.
    pub(crate) fn restored(spans: impl IntoIterator<Item = Span>) -> Self {
        let mut ids = Self::default();
        spans.into_iter().for_each(|span| ids.begin(span));
        ids
    }

    /// Notes that `id` stands at `place`, behind everything so far.
    pub(crate) fn append(&mut self, place: u64, id: EventId) {
        let follows = self.spans.back().is_some_and(|last| {
            last.id.suffix == 0 && place > last.place && last.id_at(place) == id // an id with a suffix is a span by itself
        });
        if !follows {
            self.begin(Span { place, id });
        }
    }

    /// Begins a span. One that has no entry yet, because it was only prepared, makes way.
    pub(crate) fn begin(&mut self, span: Span) {
        while let Some(unused) = self.spans.pop_back_if(|last| last.place >= span.place) {
            self.by_id.remove(&unused.id);
        }
        self.spans.push_back(span);
        self.by_id.insert(span.id, span.place);
        while self.spans.len() > MAX_SPANS {
            let Some(oldest) = self.spans.pop_front() else { return };
            self.by_id.remove(&oldest.id);
        }
    }

    /// The id at a place, none before the first span remembered. At the place before everything, the one before the first
    /// entry's where there is such an entry.
    pub(crate) fn at(&self, place: u64) -> Option<EventId> {
        let first = self.spans.iter().take_while(|span| place == 0 && span.place <= 1).last();
        let before_first = first.filter(|first| first.place == 1 && first.id.suffix == 0).and_then(Span::id_before);
        before_first.or_else(|| self.span_of(place).map(|span| span.id_at(place)))
    }

    /// The first place from this one on that has an id to resume from, and the id. Before the first span remembered that is the
    /// place right before it, under the id right before its first.
    pub(crate) fn at_or_behind(&self, place: u64) -> Option<(u64, EventId)> {
        if let Some(id) = self.at(place) {
            return Some((place, id));
        }
        let first = self.spans.front()?;
        match first.id_before() {
            Some(id) => Some((first.place.saturating_sub(1), id)),
            None => Some((first.place, first.id)),
        }
    }

    /// The span in which a place lies.
    fn span_of(&self, place: u64) -> Option<&Span> {
        let behind = self.spans.partition_point(|span| span.place <= place);
        self.spans.get(behind.checked_sub(1)?)
    }

    /// Where an id stands in a log whose newest entry is at `newest`.
    pub(crate) fn find(&self, id: EventId, newest: u64) -> Found {
        let below = self.by_id.range(..=id).next_back().filter(|(first, _)| first.epoch == id.epoch);
        if let Some((first, place)) = below {
            return self.find_in(Span { place: *place, id: *first }, id, newest);
        }
        let Some((first, place)) = self.by_id.range(id..).next().filter(|(first, _)| first.epoch == id.epoch) else {
            return Found::Nowhere;
        };
        let before = place.saturating_sub(1);
        let precedes = Span { place: *place, id: *first }.id_before() == Some(id);
        let begins_log = before == 0 || self.spans.front().is_some_and(|oldest| oldest.place == *place);
        match (precedes, begins_log) {
            (true, true) => Found::At(before),
            (_, false) => Found::Behind(before),
            (false, true) => Found::TooOld,
        }
    }

    /// The same, for an id that is not before the first of `span` and before the first of any other in its epoch.
    fn find_in(&self, span: Span, id: EventId, newest: u64) -> Found {
        let next = self.spans.partition_point(|other| other.place <= span.place);
        let last = self.spans.get(next).map_or(newest, |next| next.place - 1);
        let place = span.place.saturating_add(id.sequence - span.id.sequence);
        if place > last {
            return if last == newest { Found::Ahead } else { Found::Behind(last) };
        }
        if span.id_at(place) == id { Found::At(place) } else { Found::Behind(place) }
    }

    /// Whether an entry with this id, or one of its epoch after it, stands here already.
    pub(crate) fn has_passed(&self, id: EventId, newest: u64) -> bool {
        let end_of_epoch = EventId { sequence: u64::MAX, suffix: u32::MAX, ..id };
        let last = self.by_id.range(..=end_of_epoch).next_back().filter(|(first, _)| first.epoch == id.epoch);
        last.is_some_and(|(first, place)| {
            let next = self.spans.partition_point(|span| span.place <= *place);
            let end = self.spans.get(next).map_or(newest, |next| next.place - 1);
            end >= *place && Span { place: *place, id: *first }.id_at(end) >= id
        })
    }

    /// The spans that begin within these places.
    pub(crate) fn between(&self, first: u64, last: u64) -> Vec<Span> {
        let from = self.spans.partition_point(|span| span.place < first);
        self.spans.range(from..).take_while(|span| span.place <= last).copied().collect()
    }
}

/// Spans remembered, those of entries long gone included. An id of an older one is answered as unknown.
const MAX_SPANS: usize = 4096;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(text: &str) -> EventId {
        EventId::parse(text).unwrap()
    }

    /// The log of the picture above, up to 9-145 at place 144.
    fn ids() -> Ids {
        let mut ids = Ids::default();
        ids.begin(Span { place: 1, id: id("7-1") });
        for place in 1..=100 {
            ids.append(place, EventId::new(7, place));
        }
        ids.begin(Span { place: 101, id: id("9-101") });
        for place in 101..=140 {
            ids.append(place, EventId::new(9, place));
        }
        ids.append(141, id("9-140.1"));
        for place in 142..=144 {
            ids.append(place, EventId::new(9, place + 1));
        }
        ids
    }

    #[test]
    fn every_place_has_an_id_that_stands_there() {
        let ids = ids();
        assert_eq!(ids.spans.len(), 4);
        for place in 0..=144 {
            assert_eq!(ids.find(ids.at(place).unwrap(), 144), Found::At(place));
        }
        assert_eq!((ids.at(0), ids.at(141), ids.at(142)), (Some(id("7-0")), Some(id("9-140.1")), Some(id("9-143"))));
    }

    #[test]
    fn ids_that_were_not_given_here_stand_between_those_that_were() {
        let ids = ids();
        for (text, found) in [
            ("7-40.1", Found::Behind(40)), // another relay's own entry
            ("9-140.7", Found::Behind(141)),
            ("9-141", Found::Behind(141)), // never came here
            ("7-101", Found::Behind(100)), // of a life that ended before
            ("9-50", Found::Behind(100)),
            ("9-146", Found::Ahead),
            ("9-145.1", Found::Behind(144)),
            ("8-1", Found::Nowhere),
            ("10-1", Found::Nowhere),
        ] {
            assert_eq!(ids.find(id(text), 144), found, "{text}");
        }
        let later = Ids::restored([Span { place: 1, id: id("9-41") }]);
        assert_eq!(later.find(id("9-7"), 10), Found::TooOld);
        assert_eq!(later.find(id("9-40"), 10), Found::At(0));
        assert_eq!(later.find(id("9-0"), 0), Found::TooOld);
        assert_eq!(Ids::default().find(id("9-0"), 0), Found::Nowhere);
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
        let mut ids = Ids::restored([Span { place: 1, id: id("7-1") }]);
        ids.begin(Span { place: 6, id: id("8-6") });
        assert!(!ids.has_passed(id("8-6"), 5));
        ids.append(6, id("7-6"));
        assert_eq!((ids.at(6), ids.find(id("8-6"), 6)), (Some(id("7-6")), Found::Nowhere));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut ids = Ids::default();
        (1..=10_000).for_each(|place| ids.append(place, EventId::new(1, place * 2)));
        assert_eq!((ids.spans.len(), ids.by_id.len()), (MAX_SPANS, MAX_SPANS));
        assert_eq!(ids.find(EventId::new(1, 20_000), 10_000), Found::At(10_000));
    }

    #[test]
    fn what_is_no_longer_remembered_has_no_id_but_the_place_before_the_rest_does() {
        let mut ids = Ids::restored([Span { place: 0, id: id("9-0") }]);
        (1..=10_000).for_each(|place| ids.append(place, EventId::new(1, place * 2)));
        let first = 10_000 - MAX_SPANS as u64 + 1;
        let before = (first - 1, EventId::new(1, first * 2 - 1));
        for place in [0, 1, first - 1] {
            assert_eq!((ids.at(place), ids.at_or_behind(place)), (None, Some(before)), "{place}");
        }
        assert_eq!(ids.find(before.1, 10_000), Found::At(before.0));
        assert_eq!(ids.find(EventId::new(1, first * 2 - 2), 10_000), Found::TooOld);
        assert_eq!(ids.at_or_behind(first), Some((first, EventId::new(1, first * 2))));
    }

    #[test]
    fn the_place_before_an_entry_of_a_relays_own_has_an_id_too() {
        for (first, before) in
            [("7-40.1", (8, "7-40")), ("7-40.2", (8, "7-40.1")), ("7-40", (8, "7-39")), ("7-0", (9, "7-0"))]
        {
            let ids = Ids::restored([Span { place: 9, id: id(first) }]);
            assert_eq!(ids.at_or_behind(3), Some((before.0, id(before.1))), "{first}");
            assert_eq!(ids.find(id(before.1), 9), Found::At(before.0), "{first}");
        }
        assert_eq!(Ids::default().at_or_behind(0), None);
    }

    proptest! {
        /// Whatever ids come, each stands where it was put, and what lies between two stands behind the first.
        #[test]
        fn ids_are_found_where_they_were_put(steps in proptest::collection::vec((0_u64..3, 1_u64..4, 0_u32..2), 1..60)) {
            let mut ids = Ids::default();
            let mut given = Vec::new();
            let (mut epoch, mut sequence) = (5, 0);
            for (place, (newer, further, suffix)) in (1..).zip(steps) {
                epoch += newer / 2;
                let suffixed = suffix > 0 && !given.is_empty() && newer < 2;
                let id = match given.last() {
                    Some(EventId { epoch, sequence, suffix }) if suffixed => EventId { epoch: *epoch, sequence: *sequence, suffix: suffix + 1 },
                    _ => { sequence += further; EventId::new(epoch, sequence) }
                };
                prop_assert!(!ids.has_passed(id, place - 1));
                ids.append(place, id);
                given.push(id);
                prop_assert!(ids.has_passed(id, place));
            }
            let newest = given.len() as u64;
            for (place, id) in (1..).zip(&given) {
                prop_assert_eq!(ids.at(place), Some(*id));
                prop_assert_eq!(ids.find(*id, newest), Found::At(place));
                let just_after = EventId { suffix: id.suffix + 1, ..*id };
                if given.get(place as usize) != Some(&just_after) {
                    prop_assert_eq!(ids.find(just_after, newest), Found::Behind(place));
                }
            }
        }
    }
}
