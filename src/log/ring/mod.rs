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

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    mem,
};

use super::{Bounds, Limits};
use crate::event::{Entry, Gap, Only, Scope, SessionId};

/// The newest entries of one product, bounded by number and bytes.
#[derive(Debug)]
pub(crate) struct Ring {
    bounds: Bounds,
    entries: VecDeque<Entry>,
    /// Place of the newest entry that is gone; the oldest kept is the one after it.
    evicted_through: u64,
    /// Place of the newest entry that the fan-out has seen.
    shown_through: u64,
    bytes: u64,
    sessions: HashMap<SessionId, Chain>,
    gaps: Chain,
    /// Whose chain an erasure has emptied, by the last place in it: until that is gone, it knows what is not missing.
    erased: BTreeMap<u64, SessionId>,
}

/// Where the entries of one session, or the gaps, stand in the ring.
#[derive(Debug, Default)]
struct Chain {
    places: VecDeque<u64>,
    /// An entry of this chain with this place may be gone, none with a higher one.
    lost_through: u64,
}

/// What one reading found.
#[derive(Debug)]
pub(crate) enum Found {
    /// The reader has now been given, or may not see, everything up to `through`.
    Taken {
        /// The place it has come to.
        through: u64,
        /// Nothing behind that was in the log.
        reached_end: bool,
    },
    /// Entries that the scope admits may have been evicted before the reader saw them.
    Gone,
}

impl Ring {
    /// An empty ring whose next entry is the one behind `newest`.
    pub(crate) fn new(bounds: Bounds, newest: u64) -> Self {
        Self {
            bounds,
            entries: VecDeque::new(),
            evicted_through: newest,
            shown_through: newest,
            bytes: 0,
            sessions: HashMap::new(),
            gaps: Chain { places: VecDeque::new(), lost_through: newest },
            erased: BTreeMap::new(),
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

    /// Place of the newest entry ever pushed, 0 before the first.
    pub(crate) fn newest(&self) -> u64 {
        self.evicted_through + self.entries.len() as u64
    }

    /// Place of the newest entry that is gone, 0 when none is.
    pub(crate) fn evicted_through(&self) -> u64 {
        self.evicted_through
    }

    /// Writes an entry behind the newest one. Whoever does so evicts.
    pub(crate) fn push(&mut self, entry: Entry) {
        let place = self.newest() + 1;
        match &entry {
            Entry::Gap(_) => self.gaps.places.push_back(place),
            Entry::Event(event) => {
                if let Some(session) = event.session() {
                    // A session without a chain may have had entries that are long gone.
                    let unknown = self.evicted_through;
                    let new_chain = || Chain { places: VecDeque::new(), lost_through: unknown };
                    self.sessions.entry(session.clone()).or_insert_with(new_chain).places.push_back(place);
                }
            }
            Entry::Erased => {}
        }
        self.bytes += entry_bytes(&entry);
        self.entries.push_back(entry);
    }

    /// Notes that the fan-out has seen everything up to `place`.
    pub(crate) fn shown(&mut self, place: u64) {
        self.shown_through = place;
    }

    /// Brings the ring back within its bounds, and returns the place up to which entries are gone.
    ///
    /// What the fan-out has not seen may go past the bounds for a moment: were it gone before, nobody could tell any more
    /// whom it concerned. So may what the store has not got yet, which is what comes after `kept_through`.
    pub(crate) fn evict(&mut self, kept_through: u64) -> u64 {
        while self.entries.len() > 1 {
            let next = self.evicted_through + 1;
            let (entries, bytes) = match () {
                () if next > kept_through => (UNKEPT_ENTRIES, UNKEPT_BYTES),
                () if next > self.shown_through => (UNSHOWN_ENTRIES, UNSHOWN_BYTES),
                () => (0, 0),
            };
            let is_over = self.entries.len() > self.bounds.events.saturating_add(entries)
                || self.bytes > self.bounds.bytes.saturating_add(bytes);
            if !is_over {
                break;
            }
            self.evict_oldest();
        }
        self.evicted_through
    }

    /// Takes the events of a session away, and returns their places.
    pub(crate) fn erase(&mut self, session: &SessionId) -> Vec<u64> {
        let Some(chain) = self.sessions.get_mut(session) else { return Vec::new() };
        let places: Vec<u64> = mem::take(&mut chain.places).into();
        if let Some(last) = places.last() {
            self.erased.insert(*last, session.clone());
        }
        for place in &places {
            let offset = self.offset(*place);
            if let Some(entry) = offset.checked_sub(1).and_then(|at| self.entries.get_mut(at)) {
                self.bytes = self.bytes.saturating_sub(entry_bytes(entry)) + entry_bytes(&Entry::Erased);
                *entry = Entry::Erased;
            }
        }
        places
    }

    fn evict_oldest(&mut self) {
        let Some(entry) = self.entries.pop_front() else { return };
        self.evicted_through += 1;
        self.bytes -= entry_bytes(&entry);
        let session = match &entry {
            Entry::Gap(_) => return self.gaps.lose_oldest(self.evicted_through),
            Entry::Erased => self.erased.remove(&self.evicted_through),
            Entry::Event(event) => event.session().cloned(),
        };
        let Some((session, chain)) = session.and_then(|it| self.sessions.get_mut(&it).map(|chain| (it, chain))) else {
            return;
        };
        if let Entry::Event(_) = entry {
            chain.lose_oldest(self.evicted_through);
        }
        if chain.places.is_empty() {
            self.sessions.remove(&session);
        }
    }

    /// At most `most` entries behind `place`, whatever they are, and the place of the first.
    pub(crate) fn behind(&self, place: u64, most: usize) -> (u64, Vec<Entry>) {
        let entries = self.entries.range(self.offset(place)..).take(most).cloned().collect();
        (place.max(self.evicted_through) + 1, entries)
    }

    /// Gives a reader at `place` what it sees next: entries that `scope` admits, in order, behind those in `handover`.
    pub(crate) fn read_after(
        &self,
        place: u64,
        scope: &Scope,
        limits: Limits,
        handover: &mut VecDeque<Entry>,
    ) -> Found {
        if self.misses(place, scope) {
            return Found::Gone;
        }
        let place = place.max(self.evicted_through);
        let mut taker = Taker { scope, limits, handover, bytes: 0, through: place };
        let pending = self.newest().saturating_sub(place);
        let reached_end = match &scope.sessions {
            Only::These(sessions) if pending > sessions.len() as u64 => {
                let places = self.places(place, sessions, limits.entries);
                let all = places.len() < limits.entries;
                taker.take(places.into_iter().filter_map(|place| Some((place, self.get(place)?)))) && all
            }
            _ => {
                let all = pending <= MAX_WALK as u64;
                taker.take((place + 1..).zip(self.entries.range(self.offset(place)..)).take(MAX_WALK)) && all
            }
        };
        let through = if reached_end { self.newest() } else { taker.through };
        Found::Taken { through, reached_end }
    }

    /// Whether entries that `scope` admits may have gone between `place` and what is kept.
    fn misses(&self, place: u64, scope: &Scope) -> bool {
        if place >= self.evicted_through {
            return false;
        }
        match &scope.sessions {
            Only::Everything => true,
            Only::These(sessions) => {
                let lost = |session| self.sessions.get(session).is_none_or(|chain| chain.lost_through > place);
                self.gaps.lost_through > place || sessions.iter().any(lost)
            }
        }
    }

    /// The first `most` places behind `place` that hold an entry of these sessions, or a gap.
    fn places(&self, place: u64, sessions: &BTreeSet<SessionId>, most: usize) -> Vec<u64> {
        let chains = sessions.iter().filter_map(|session| self.sessions.get(session)).chain([&self.gaps]);
        let mut places: Vec<u64> = chains.flat_map(|chain| chain.behind(place).take(most)).collect();
        places.sort_unstable();
        places.truncate(most);
        places
    }

    fn get(&self, place: u64) -> Option<&Entry> {
        self.entries.get(self.offset(place).checked_sub(1)?)
    }

    /// How many kept entries stand at or before `place`.
    fn offset(&self, place: u64) -> usize {
        let offset = place.saturating_sub(self.evicted_through);
        usize::try_from(offset).unwrap_or(usize::MAX).min(self.entries.len())
    }
}

impl Chain {
    fn lose_oldest(&mut self, place: u64) {
        self.places.pop_front();
        self.lost_through = place;
    }

    fn behind(&self, cursor: u64) -> impl Iterator<Item = u64> {
        let seen = self.places.partition_point(|place| *place <= cursor);
        self.places.range(seen..).copied()
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
        for (place, entry) in walk {
            if self.scope.admits(entry) {
                let bytes = self.bytes + entry.wire_bytes();
                let is_full = self.handover.len() >= self.limits.entries || bytes > self.limits.bytes;
                if is_full && !self.handover.is_empty() {
                    return false;
                }
                self.bytes = bytes;
                self.handover.push_back(entry.clone());
            }
            self.through = place;
        }
        true
    }
}

fn entry_bytes(entry: &Entry) -> u64 {
    let bytes = match entry {
        Entry::Event(event) => event.size_bytes(),
        Entry::Gap(_) => size_of::<Gap>(),
        Entry::Erased => 0,
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

/// How far the ring may go past its bounds for what the store has not got: ten seconds of a very busy product.
const UNKEPT_ENTRIES: usize = if cfg!(test) { 64 } else { 65_536 };

/// The same in bytes.
const UNKEPT_BYTES: u64 = 32 << 20;

/// Entries that one reading looks at while it holds the lock: some ten microseconds.
const MAX_WALK: usize = 1024;
