//! The newest entries in memory, and for each session the chain of its positions.
//!
//! ```text
//! entries   [ 41 ][ 42 ][ 43 ][ 44 ][ 45 ]      evicted_through = 40
//! session a   41          43                    lost_through = 37: its newest entry that was evicted
//! gaps                          44
//! ```
//!
//! A reader of a few sessions walks their chains instead of the ring, so its work follows what it
//! receives.
//!
//! May use: `event`.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    mem,
};

use super::{MemoryBounds, ReadLimits};
use crate::event::{Entry, Gap, Only, Scope, SessionId};

/// The newest entries of one product, bounded by number and bytes.
#[derive(Debug)]
pub(crate) struct Ring {
    bounds: MemoryBounds,
    entries: VecDeque<Entry>,
    /// Place of the newest entry that is gone; the oldest kept is the one after it.
    evicted_through: u64,
    /// Place of the newest entry that the fan-out has seen.
    dispatched_through: u64,
    bytes: u64,
    sessions: HashMap<SessionId, Chain>,
    gaps: Chain,
    /// Whose chain an erasure has emptied, by the last place in it: until that is gone, it knows
    /// what is not missing.
    erased_sessions: BTreeMap<u64, SessionId>,
}

/// Where the entries of one session, or the gaps, stand in the ring.
#[derive(Debug, Default)]
struct Chain {
    positions: VecDeque<u64>,
    /// An entry of this chain with this place may be gone, none with a higher one.
    lost_through: u64,
}

/// What one reading found.
#[derive(Debug)]
pub(crate) enum RingRead {
    /// The reader has now been given, or may not see, everything up to `read_through`.
    Entries {
        /// The place it has come to.
        read_through: u64,
        /// Nothing behind that was in the log.
        reached_end: bool,
    },
    /// Entries that the scope admits may have been evicted before the reader saw them.
    Evicted,
}

impl Ring {
    /// An empty ring whose next entry is the one behind `newest_position`.
    pub(crate) fn new(bounds: MemoryBounds, newest: u64) -> Self {
        Self {
            bounds,
            entries: VecDeque::new(),
            evicted_through: newest,
            dispatched_through: newest,
            bytes: 0,
            sessions: HashMap::new(),
            gaps: Chain { positions: VecDeque::new(), lost_through: newest },
            erased_sessions: BTreeMap::new(),
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
    pub(crate) fn newest_position(&self) -> u64 {
        self.evicted_through + self.entries.len() as u64
    }

    /// Place of the newest entry that is gone, 0 when none is.
    pub(crate) fn evicted_through(&self) -> u64 {
        self.evicted_through
    }

    /// Writes an entry behind the newest one. Whoever does so evicts.
    pub(crate) fn push(&mut self, entry: Entry) {
        let position = self.newest_position() + 1;
        match &entry {
            Entry::Gap(_) => self.gaps.positions.push_back(position),
            Entry::Event(event) => {
                if let Some(session) = event.session() {
                    // A session without a chain may have had entries that are long gone.
                    let unknown = self.evicted_through;
                    let new_chain = || Chain { positions: VecDeque::new(), lost_through: unknown };
                    self.sessions
                        .entry(session.clone())
                        .or_insert_with(new_chain)
                        .positions
                        .push_back(position);
                }
            }
            Entry::Erased => {}
        }
        self.bytes += entry_bytes(&entry);
        self.entries.push_back(entry);
    }

    /// Notes that the fan-out has seen everything up to `place`.
    pub(crate) fn mark_dispatched(&mut self, position: u64) {
        self.dispatched_through = position;
    }

    /// Brings the ring back within its bounds, and returns the place up to which entries are gone.
    ///
    /// What the fan-out has not seen may go past the bounds for a moment: were it gone before,
    /// nobody could tell any more whom it concerned. So may what the store has not got yet, which
    /// is what comes after `persisted_through`.
    pub(crate) fn evict(&mut self, persisted_through: u64) -> u64 {
        while self.entries.len() > 1 {
            let next = self.evicted_through + 1;
            let (entries, bytes) = match () {
                () if next > persisted_through => {
                    (UNPERSISTED_EXCESS_ENTRIES, UNPERSISTED_EXCESS_BYTES)
                }
                () if next > self.dispatched_through => {
                    (UNDISPATCHED_EXCESS_ENTRIES, UNDISPATCHED_EXCESS_BYTES)
                }
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
        let positions: Vec<u64> = mem::take(&mut chain.positions).into();
        if let Some(last) = positions.last() {
            self.erased_sessions.insert(*last, session.clone());
        }
        for position in &positions {
            let offset = self.offset(*position);
            if let Some(entry) = offset.checked_sub(1).and_then(|at| self.entries.get_mut(at)) {
                self.bytes =
                    self.bytes.saturating_sub(entry_bytes(entry)) + entry_bytes(&Entry::Erased);
                *entry = Entry::Erased;
            }
        }
        positions
    }

    fn evict_oldest(&mut self) {
        let Some(entry) = self.entries.pop_front() else { return };
        self.evicted_through += 1;
        self.bytes -= entry_bytes(&entry);
        let session = match &entry {
            Entry::Gap(_) => return self.gaps.evict_oldest(self.evicted_through),
            Entry::Erased => self.erased_sessions.remove(&self.evicted_through),
            Entry::Event(event) => event.session().cloned(),
        };
        let Some((session, chain)) =
            session.and_then(|it| self.sessions.get_mut(&it).map(|chain| (it, chain)))
        else {
            return;
        };
        if let Entry::Event(_) = entry {
            chain.evict_oldest(self.evicted_through);
        }
        if chain.positions.is_empty() {
            self.sessions.remove(&session);
        }
    }

    /// At most `most` entries behind `place`, whatever they are, and the place of the first.
    pub(crate) fn entries_after(&self, position: u64, max_entries: usize) -> (u64, Vec<Entry>) {
        let entries =
            self.entries.range(self.offset(position)..).take(max_entries).cloned().collect();
        (position.max(self.evicted_through) + 1, entries)
    }

    /// Gives a reader at `place` what it sees next: entries that `scope` admits, in order, behind
    /// those in `handover`.
    pub(crate) fn read_after(
        &self,
        position: u64,
        scope: &Scope,
        limits: ReadLimits,
        read_buffer: &mut VecDeque<Entry>,
    ) -> RingRead {
        if self.misses_entries(position, scope) {
            return RingRead::Evicted;
        }
        let position = position.max(self.evicted_through);
        let mut collector =
            RingCollector { scope, limits, read_buffer, bytes: 0, read_through: position };
        let pending = self.newest_position().saturating_sub(position);
        let reached_end = match &scope.sessions {
            Only::These(sessions) if pending > sessions.len() as u64 => {
                let positions = self.chain_positions(position, sessions, limits.entries);
                let all = positions.len() < limits.entries;
                collector.collect(
                    positions
                        .into_iter()
                        .filter_map(|position| Some((position, self.entry_at(position)?))),
                ) && all
            }
            _ => {
                let all = pending <= MAX_SCAN_ENTRIES as u64;
                collector.collect(
                    (position + 1..)
                        .zip(self.entries.range(self.offset(position)..))
                        .take(MAX_SCAN_ENTRIES),
                ) && all
            }
        };
        let read_through =
            if reached_end { self.newest_position() } else { collector.read_through };
        RingRead::Entries { read_through, reached_end }
    }

    /// Whether entries that `scope` admits may have gone between `place` and what is kept.
    fn misses_entries(&self, position: u64, scope: &Scope) -> bool {
        if position >= self.evicted_through {
            return false;
        }
        match &scope.sessions {
            Only::Everything => true,
            Only::These(sessions) => {
                let lost = |session| {
                    self.sessions.get(session).is_none_or(|chain| chain.lost_through > position)
                };
                self.gaps.lost_through > position || sessions.iter().any(lost)
            }
        }
    }

    /// The first `most` places behind `place` that hold an entry of these sessions, or a gap.
    fn chain_positions(
        &self,
        position: u64,
        sessions: &BTreeSet<SessionId>,
        max_entries: usize,
    ) -> Vec<u64> {
        let chains =
            sessions.iter().filter_map(|session| self.sessions.get(session)).chain([&self.gaps]);
        let mut positions: Vec<u64> =
            chains.flat_map(|chain| chain.positions_after(position).take(max_entries)).collect();
        positions.sort_unstable();
        positions.truncate(max_entries);
        positions
    }

    fn entry_at(&self, position: u64) -> Option<&Entry> {
        self.entries.get(self.offset(position).checked_sub(1)?)
    }

    /// How many kept entries stand at or before `place`.
    fn offset(&self, position: u64) -> usize {
        let offset = position.saturating_sub(self.evicted_through);
        usize::try_from(offset).unwrap_or(usize::MAX).min(self.entries.len())
    }
}

impl Chain {
    fn evict_oldest(&mut self, position: u64) {
        self.positions.pop_front();
        self.lost_through = position;
    }

    fn positions_after(&self, cursor: u64) -> impl Iterator<Item = u64> {
        let seen = self.positions.partition_point(|position| *position <= cursor);
        self.positions.range(seen..).copied()
    }
}

/// One reading while it goes on.
struct RingCollector<'a> {
    scope: &'a Scope,
    limits: ReadLimits,
    read_buffer: &'a mut VecDeque<Entry>,
    bytes: usize,
    read_through: u64,
}

impl RingCollector<'_> {
    /// Takes what the scope admits, in order, and tells whether it came to the end before a limit
    /// was met.
    fn collect<'e>(&mut self, scan: impl Iterator<Item = (u64, &'e Entry)>) -> bool {
        for (position, entry) in scan {
            if self.scope.admits(entry) {
                let bytes = self.bytes + entry.wire_bytes();
                let is_full =
                    self.read_buffer.len() >= self.limits.entries || bytes > self.limits.bytes;
                if is_full && !self.read_buffer.is_empty() {
                    return false;
                }
                self.bytes = bytes;
                self.read_buffer.push_back(entry.clone());
            }
            self.read_through = position;
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

/// What an entry costs beside its event: its slot, its link in a chain and its share of the
/// session's.
const ENTRY_OVERHEAD_BYTES: usize = 64;

/// How far the ring may go past its bounds for what the fan-out has not seen: it shares a task with
/// ingest, which lets it run at the latest after some hundred events.
const UNDISPATCHED_EXCESS_ENTRIES: usize = 1024;

/// The same in bytes.
const UNDISPATCHED_EXCESS_BYTES: u64 = 8 << 20;

/// How far the ring may go past its bounds for what the store has not got: ten seconds of a very
/// busy product.
const UNPERSISTED_EXCESS_ENTRIES: usize = if cfg!(test) { 64 } else { 65_536 };

/// The same in bytes.
const UNPERSISTED_EXCESS_BYTES: u64 = 32 << 20;

/// Entries that one reading looks at while it holds the lock: some ten microseconds.
const MAX_SCAN_ENTRIES: usize = 1024;
