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
mod tests;
