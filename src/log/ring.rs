//! The newest entries in memory, and for each session the places of its own.
//!
//! ```text
//! entries   [ 41 ][ 42 ][ 43 ][ 44 ][ 45 ]      evicted_through = 40
//! session a   41          43                    lost_through = 37: its newest entry that is gone
//! gaps                          44
//! ```
//!
//! A reader of a few sessions walks their chains, not the ring, so its work follows what it receives.
//!
//! May use: `event`.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use super::Bounds;
use crate::event::{Draft, Entry, Event, EventId, Gap, Only, Scope, SessionId};

/// The newest entries of one product, bounded by number and bytes.
#[derive(Debug)]
pub(crate) struct Ring {
    bounds: Bounds,
    entries: VecDeque<Entry>,
    /// Sequence of the newest entry that is gone; the oldest kept is the one after it.
    evicted_through: u64,
    /// Sequence of the newest entry that the fan-out has seen.
    shown_through: u64,
    bytes: u64,
    sessions: HashMap<SessionId, Chain>,
    gaps: Chain,
}

/// Where the entries of one session, or the gaps, stand in the ring.
#[derive(Debug, Default)]
struct Chain {
    sequences: VecDeque<u64>,
    /// An entry of this chain with this sequence may be gone, none with a higher one.
    lost_through: u64,
}

/// How much one reading returns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Entries, at the most.
    pub(crate) entries: usize,
    /// Bytes after which no further entry is added; one is always returned.
    pub(crate) bytes: usize,
}

/// How far one reading went.
#[derive(Debug)]
pub(crate) struct Reading {
    /// The reader has now been given, or may not see, everything up to here.
    pub(crate) through: u64,
    /// Nothing behind `through` was in the log.
    pub(crate) reached_end: bool,
    /// Set when entries that the scope admits may have been evicted before the reader saw them: the last sequence gone.
    pub(crate) missed_through: Option<u64>,
}

impl Ring {
    /// An empty ring.
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            entries: VecDeque::new(),
            evicted_through: 0,
            shown_through: 0,
            bytes: 0,
            sessions: HashMap::new(),
            gaps: Chain::default(),
        }
    }

    /// Entries kept.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes kept.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Sequence of the newest entry ever pushed, 0 before the first.
    pub(crate) fn newest(&self) -> u64 {
        self.evicted_through + self.entries.len() as u64
    }

    /// Sequence of the newest entry that is gone, 0 when none is.
    pub(crate) fn evicted_through(&self) -> u64 {
        self.evicted_through
    }

    /// Writes an event behind the newest entry, under the id it is given.
    pub(crate) fn push_event(&mut self, id: EventId, draft: Draft) {
        let event = Event::new(id, draft);
        if let Some(session) = event.session() {
            // A session without a chain may have had entries that are long gone.
            let unknown = self.evicted_through;
            let new_chain = || Chain { sequences: VecDeque::new(), lost_through: unknown };
            self.sessions.entry(session.clone()).or_insert_with(new_chain).sequences.push_back(id.sequence);
        }
        self.push(Entry::Event(Arc::new(event)));
    }

    /// Writes a gap behind the newest entry.
    pub(crate) fn push_gap(&mut self, gap: Gap) {
        self.gaps.sequences.push_back(gap.id.sequence);
        self.push(Entry::Gap(Arc::new(gap)));
    }

    fn push(&mut self, entry: Entry) {
        self.bytes += entry_bytes(&entry);
        self.entries.push_back(entry);
        self.evict();
    }

    /// Notes that the fan-out has seen everything up to `sequence`.
    pub(crate) fn shown(&mut self, sequence: u64) {
        self.shown_through = sequence;
        self.evict();
    }

    /// Keeps the ring within its bounds. What the fan-out has not seen yet may go past them for a moment: were it gone
    /// before, nobody could tell any more whom it concerned.
    fn evict(&mut self) {
        while self.entries.len() > 1 {
            let is_shown = self.evicted_through < self.shown_through;
            let (entries, bytes) = if is_shown { (0, 0) } else { (UNSHOWN_ENTRIES, UNSHOWN_BYTES) };
            let is_over = self.entries.len() > self.bounds.events.saturating_add(entries)
                || self.bytes > self.bounds.bytes.saturating_add(bytes);
            if !is_over {
                return;
            }
            self.evict_oldest();
        }
    }

    fn evict_oldest(&mut self) {
        let Some(entry) = self.entries.pop_front() else { return };
        self.evicted_through += 1;
        self.bytes -= entry_bytes(&entry);
        match &entry {
            Entry::Gap(_) => self.gaps.lose_oldest(self.evicted_through),
            Entry::Event(event) => {
                let Some(session) = event.session() else { return };
                let Some(chain) = self.sessions.get_mut(session) else {
                    return;
                };
                chain.lose_oldest(self.evicted_through);
                if chain.sequences.is_empty() {
                    self.sessions.remove(session);
                }
            }
        }
    }

    /// At most `most` entries behind `sequence`, whatever they are, and the sequence of the first.
    pub(crate) fn behind(&self, sequence: u64, most: usize) -> (u64, Vec<Entry>) {
        let entries = self.entries.range(self.offset(sequence)..).take(most).cloned().collect();
        (sequence.max(self.evicted_through) + 1, entries)
    }

    /// Gives a reader at `sequence` what it sees next: entries that `scope` admits, in order, behind those in `handover`.
    pub(crate) fn read_after(
        &self,
        sequence: u64,
        scope: &Scope,
        limits: Limits,
        handover: &mut VecDeque<Entry>,
    ) -> Reading {
        let missed_through = self.misses(sequence, scope).then_some(self.evicted_through);
        let sequence = sequence.max(self.evicted_through);
        let mut taker = Taker { scope, limits, handover, bytes: 0, through: sequence };
        let pending = self.newest().saturating_sub(sequence);
        let reached_end = match &scope.sessions {
            Only::These(sessions) if pending > sessions.len() as u64 => {
                let places = self.places(sequence, sessions, limits.entries);
                let all = places.len() < limits.entries;
                taker.take(places.into_iter().filter_map(|place| Some((place, self.get(place)?)))) && all
            }
            _ => {
                let all = pending <= MAX_WALK as u64;
                taker.take((sequence + 1..).zip(self.entries.range(self.offset(sequence)..)).take(MAX_WALK)) && all
            }
        };
        let through = if reached_end { self.newest() } else { taker.through };
        Reading { through, reached_end, missed_through }
    }

    /// Whether entries that `scope` admits may have gone between `sequence` and what is kept.
    fn misses(&self, sequence: u64, scope: &Scope) -> bool {
        if sequence >= self.evicted_through {
            return false;
        }
        match &scope.sessions {
            Only::Everything => true,
            Only::These(sessions) => {
                let lost = |session| self.sessions.get(session).is_none_or(|chain| chain.lost_through > sequence);
                self.gaps.lost_through > sequence || sessions.iter().any(lost)
            }
        }
    }

    /// The first `most` places behind `sequence` that hold an entry of these sessions, or a gap.
    fn places(&self, sequence: u64, sessions: &BTreeSet<SessionId>, most: usize) -> Vec<u64> {
        let chains = sessions.iter().filter_map(|session| self.sessions.get(session)).chain([&self.gaps]);
        let mut places: Vec<u64> = chains.flat_map(|chain| chain.behind(sequence).take(most)).collect();
        places.sort_unstable();
        places.truncate(most);
        places
    }

    fn get(&self, sequence: u64) -> Option<&Entry> {
        self.entries.get(self.offset(sequence).checked_sub(1)?)
    }

    /// How many kept entries stand at or before `sequence`.
    fn offset(&self, sequence: u64) -> usize {
        let offset = sequence.saturating_sub(self.evicted_through);
        usize::try_from(offset).unwrap_or(usize::MAX).min(self.entries.len())
    }
}

impl Chain {
    fn lose_oldest(&mut self, sequence: u64) {
        self.sequences.pop_front();
        self.lost_through = sequence;
    }

    fn behind(&self, sequence: u64) -> impl Iterator<Item = u64> {
        let seen = self.sequences.partition_point(|place| *place <= sequence);
        self.sequences.range(seen..).copied()
    }
}

/// One reading while it goes on.
struct Taker<'a> {
    scope: &'a Scope,
    limits: Limits,
    handover: &'a mut VecDeque<Entry>,
    bytes: usize,
    through: u64,
}

impl Taker<'_> {
    /// Takes what the scope admits, in order, and tells whether it came to the end before a limit was met.
    fn take<'e>(&mut self, walk: impl Iterator<Item = (u64, &'e Entry)>) -> bool {
        for (sequence, entry) in walk {
            if self.scope.admits(entry) {
                let bytes = self.bytes + entry.wire_bytes();
                let is_full = self.handover.len() >= self.limits.entries || bytes > self.limits.bytes;
                if is_full && !self.handover.is_empty() {
                    return false;
                }
                self.bytes = bytes;
                self.handover.push_back(entry.clone());
            }
            self.through = sequence;
        }
        true
    }
}

fn entry_bytes(entry: &Entry) -> u64 {
    let bytes = match entry {
        Entry::Event(event) => event.size_bytes(),
        Entry::Gap(_) => size_of::<Gap>(),
    };
    (bytes + ENTRY_OVERHEAD_BYTES) as u64
}

/// What an entry costs beside its event: its slot, its link in a chain and its share of the session's.
const ENTRY_OVERHEAD_BYTES: usize = 64;

/// How far the ring may go past its bounds for what the fan-out has not seen: it shares a task with ingest, which lets it
/// run at the latest after some hundred events.
const UNSHOWN_ENTRIES: usize = 1024;

/// The same in bytes.
const UNSHOWN_BYTES: u64 = 8 << 20;

/// Entries that one reading looks at while it holds the lock: some ten microseconds.
const MAX_WALK: usize = 1024;

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::time::Instant;

    use super::*;
    use crate::event::{GapReason, Kind, ProductId};

    const ALL: Limits = Limits { entries: usize::MAX, bytes: usize::MAX };

    fn ring(events: usize) -> Ring {
        Ring::new(Bounds { events, bytes: u64::MAX })
    }

    fn id(sequence: u64) -> EventId {
        EventId { epoch: 1, sequence }
    }

    /// Pushes an event of each session; "-" stands for none, "!" for a gap.
    fn push(ring: &mut Ring, sessions: &str) {
        for session in sessions.split_whitespace() {
            let id = id(ring.newest() + 1);
            if session == "!" {
                let product = ProductId::new("p").unwrap();
                let reason = GapReason::UpstreamReconnect;
                ring.push_gap(Gap { product, reason, id, after: None, before: None });
                continue;
            }
            ring.push_event(
                id,
                Draft {
                    kind: Kind::new(if id.sequence.is_multiple_of(2) { "even" } else { "odd" }),
                    session: (session != "-").then(|| SessionId::new(session).unwrap()),
                    forwarded_at: None,
                    payload: Bytes::from_static(b"0123456789"),
                    received: Instant::now(),
                },
            );
        }
        ring.shown(ring.newest());
    }

    fn only(sessions: &str) -> Scope {
        let sessions = sessions.split_whitespace().map(|session| SessionId::new(session).unwrap()).collect();
        Scope { sessions: Only::These(sessions), kinds: Only::Everything }
    }

    const EVERYTHING: Scope = Scope { sessions: Only::Everything, kinds: Only::Everything };

    fn read(ring: &Ring, after: u64, scope: &Scope, limits: Limits) -> (Vec<u64>, Reading) {
        let mut handover = VecDeque::new();
        let reading = ring.read_after(after, scope, limits, &mut handover);
        let sequences = handover.iter().map(|entry| match entry {
            Entry::Event(event) => event.id().sequence,
            Entry::Gap(gap) => gap.id.sequence,
        });
        (sequences.collect(), reading)
    }

    #[test]
    fn a_reader_gets_what_is_behind_its_place_and_ends_at_the_newest() {
        let mut ring = ring(100);
        push(&mut ring, "a b - a ! b");
        let (found, reading) = read(&ring, 2, &EVERYTHING, ALL);
        assert_eq!(found, [3, 4, 5, 6]);
        assert_eq!((reading.through, reading.reached_end, reading.missed_through), (6, true, None));
        assert_eq!(read(&ring, 6, &EVERYTHING, ALL).0, [0_u64; 0]);
    }

    #[test]
    fn a_reader_of_sessions_gets_theirs_and_every_gap_by_either_way_through_the_ring() {
        let mut ring = ring(10_000);
        push(&mut ring, "a b - a ! b c a");
        // Few entries are walked, many are reached by the chains.
        for _ in 0..2 {
            assert_eq!(read(&ring, 0, &only("a"), ALL).0, [1, 4, 5, 8]);
            assert_eq!(read(&ring, 1, &only("b c"), ALL).0, [2, 5, 6, 7]);
            assert_eq!(read(&ring, 5, &only("nobody"), ALL).0, [0_u64; 0]);
            push(&mut ring, &"z ".repeat(3000));
        }
        let (found, reading) = read(&ring, 5, &only("a"), ALL);
        assert_eq!((found, reading.through, reading.reached_end), (vec![8], 6008, true));
    }

    #[test]
    fn a_limit_ends_a_reading_where_the_next_one_goes_on() {
        let mut ring = ring(5000);
        push(&mut ring, &"a b ! ".repeat(1000));
        for scope in [EVERYTHING, only("a"), only("a b")] {
            let whole = read(&ring, 0, &scope, ALL);
            let everything: Vec<u64> = match whole.1.reached_end {
                true => whole.0,
                false => (1..=3000).collect(), // more than one reading walks over
            };
            for limits in [Limits { entries: 7, ..ALL }, Limits { bytes: 100, ..ALL }, Limits { bytes: 0, ..ALL }] {
                let (mut at, mut found) = (0, Vec::new());
                loop {
                    let (more, reading) = read(&ring, at, &scope, limits);
                    assert!(more.len() <= limits.entries);
                    found.extend(more);
                    assert!(reading.through > at || reading.reached_end, "it moves");
                    at = reading.through;
                    if reading.reached_end {
                        break;
                    }
                }
                assert_eq!(found, everything);
            }
        }
    }

    #[test]
    fn eviction_is_missed_by_whom_it_concerns_and_by_nobody_else() {
        let mut ring = ring(4);
        push(&mut ring, "a b a c   b b a -");
        assert_eq!((ring.evicted_through(), ring.newest()), (4, 8));
        let missed = |after, scope: &Scope| read(&ring, after, scope, ALL).1.missed_through;
        assert_eq!(missed(3, &EVERYTHING), Some(4));
        assert_eq!(missed(4, &EVERYTHING), None);
        assert_eq!(missed(2, &only("a")), Some(4), "its entry at 3 is gone");
        assert_eq!(missed(3, &only("a")), None, "its chain says that 3 was the last to go");
        assert_eq!(missed(2, &only("b")), None, "only others' entries went since");
        assert_eq!(missed(1, &only("b")), Some(4));
        assert_eq!(missed(3, &only("c")), Some(4), "no chain is left to tell");
        assert_eq!(missed(3, &only("a c")), Some(4));
    }

    #[test]
    fn an_evicted_gap_concerns_every_reader_before_it() {
        let mut ring = ring(3);
        push(&mut ring, "a ! b a b");
        assert_eq!(read(&ring, 1, &only("b"), ALL).1.missed_through, Some(2));
        assert_eq!(read(&ring, 2, &only("b"), ALL).1.missed_through, None);
    }

    #[test]
    fn a_session_that_comes_back_after_its_chain_was_forgotten_may_have_lost_entries() {
        let mut ring = ring(2);
        push(&mut ring, "a b b b a");
        assert_eq!(read(&ring, 0, &only("a"), ALL).1.missed_through, Some(3));
        assert_eq!(read(&ring, 3, &only("a"), ALL).1.missed_through, None);
    }

    #[test]
    fn what_the_fanout_has_not_seen_is_kept_a_little_longer() {
        let mut ring = ring(16);
        push(&mut ring, &"a ".repeat(100));
        assert_eq!((ring.len(), ring.evicted_through()), (16, 84));
        let draft = || Draft {
            kind: Kind::Actions,
            session: None,
            forwarded_at: None,
            payload: Bytes::from_static(b"{}"),
            received: Instant::now(),
        };
        for sequence in 101..=2000 {
            ring.push_event(id(sequence), draft());
        }
        assert_eq!((ring.len(), ring.newest()), (16 + UNSHOWN_ENTRIES, 2000), "but not without a bound");
        ring.shown(1990);
        assert_eq!(ring.len(), 16);
    }

    #[test]
    fn bytes_bound_the_ring_and_one_entry_is_always_kept() {
        let mut ring = Ring::new(Bounds { events: 100, bytes: 1 });
        push(&mut ring, "a b c");
        assert_eq!((ring.len(), ring.evicted_through()), (1, 2));
        assert!(ring.bytes() > 1);
        assert_eq!(ring.sessions.len(), 1, "nothing is kept of sessions without entries");
    }

    #[test]
    fn kinds_are_filtered_beside_sessions() {
        let mut ring = ring(100);
        push(&mut ring, "a a b a a");
        let odd = Only::These(BTreeSet::from([Kind::new("odd")]));
        assert_eq!(read(&ring, 0, &Scope { kinds: odd.clone(), ..EVERYTHING }, ALL).0, [1, 3, 5]);
        assert_eq!(read(&ring, 0, &Scope { kinds: odd, ..only("a") }, ALL).0, [1, 5]);
    }
}
