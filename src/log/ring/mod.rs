//! The newest entries in memory, and for each session the chain of its positions.
//!
//! ```text
//! entries   [ 41 ][ 42 ][ 43 ][ 44 ][ 45 ]     evicted_through = 40
//! session a   41          43                   lost_through = 37: its newest entry that was evicted
//! gaps                          44
//! ```
//!
//! A reader of a few sessions merges their chains instead of walking the ring, so its work follows
//! what it receives. A reader of many sessions walks the ring. Either way a read looks at a bounded
//! number of entries, says how many, and the next read goes on behind them.
//!
//! May use: `event`.

#[cfg(test)]
mod tests;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap, VecDeque, binary_heap::PeekMut},
    iter, mem,
};

use super::limits::{MemoryBounds, ReadLimits};
use crate::event::{Entry, Gap, Only, Scope, SessionId, ValueSet};

/// Newest entries of one product, bounded by number and bytes.
#[derive(Debug)]
pub(crate) struct Ring {
    bounds: MemoryBounds,
    entries: VecDeque<Entry>,
    /// Position of the newest evicted entry; the oldest kept is the one after it.
    evicted_through: u64,
    /// Position of the newest entry that the fan-out has dispatched.
    dispatched_through: u64,
    bytes: u64,
    sessions: HashMap<SessionId, Chain>,
    gaps: Chain,
    /// Sessions with only erased entries, by their last position. The chain stays until that
    /// position is evicted, so that a resuming reader gets no gap for it.
    erased_sessions: BTreeMap<u64, SessionId>,
}

/// Positions of one session's entries, or of the gaps, in the ring.
#[derive(Debug, Default)]
struct Chain {
    positions: VecDeque<u64>,
    /// No entry of this chain with a higher position has been evicted; one at this position may
    /// have been.
    lost_through: u64,
}

/// Result of one read.
#[derive(Debug)]
pub(crate) enum RingRead {
    /// The reader now has, or may not see, everything up to `read_through`.
    Entries {
        /// Position that the reader has come to.
        read_through: u64,
        /// Whether the ring had nothing behind `read_through`.
        reached_end: bool,
        /// Entries and chains that the read has looked at.
        examined: usize,
    },
    /// Entries that the scope admits may have been evicted before the reader saw them.
    Evicted,
}

impl Ring {
    /// Returns an empty ring whose next entry follows position `newest`.
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

    /// Returns the number of entries.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns the bytes that the entries count.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the position of the newest entry ever pushed, 0 before the first.
    pub(crate) fn newest_position(&self) -> u64 {
        self.evicted_through + self.entries.len() as u64
    }

    /// Returns the position of the newest evicted entry, 0 for none.
    pub(crate) fn evicted_through(&self) -> u64 {
        self.evicted_through
    }

    /// Appends an entry. The caller enforces the bounds by [`Ring::evict`].
    pub(crate) fn push(&mut self, entry: Entry) {
        let position = self.newest_position() + 1;
        match &entry {
            Entry::Gap(_) => self.gaps.positions.push_back(position),
            Entry::Event(event) => {
                if let Some(session) = event.session() {
                    // A session without a chain may have had entries before: any evicted entry may
                    // be its own, so the chain starts with the ring's own mark.
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

    /// Records that the fan-out has dispatched everything up to `position`.
    pub(crate) fn mark_dispatched(&mut self, position: u64) {
        self.dispatched_through = position;
    }

    /// Evicts entries until the ring is within its bounds, and returns the position of the newest
    /// evicted entry.
    ///
    /// Entries that the fan-out has not dispatched may exceed the bounds: without them, the relay
    /// could not tell any more which subscriptions they concerned. So may entries that the store
    /// has not committed, which lie behind `persisted_through`. Both excesses are bounded.
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

    /// Replaces a session's events by [`Entry::Erased`], and returns their positions. The positions
    /// stay, so ids and cursors are as before.
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
        // Nothing is kept of sessions without entries: the map would otherwise grow with every
        // session ever seen.
        if chain.positions.is_empty() {
            self.sessions.remove(&session);
        }
    }

    /// Returns at most `max_entries` entries behind `position`, unfiltered, and the position of the
    /// first.
    pub(crate) fn entries_after(&self, position: u64, max_entries: usize) -> (u64, Vec<Entry>) {
        let entries =
            self.entries.range(self.offset(position)..).take(max_entries).cloned().collect();
        (position.max(self.evicted_through) + 1, entries)
    }

    /// Reads what follows `position`: entries that `scope` admits, in order and within `limits`,
    /// appended to `read_buffer`.
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
        let mut examined = match &scope.sessions {
            Only::These(sessions) if position < self.evicted_through => sessions.len(),
            _ => 0,
        };
        let position = position.max(self.evicted_through);
        let mut collector = RingCollector {
            scope,
            limits,
            read_buffer,
            bytes: 0,
            read_through: position,
            examined: 0,
        };
        let pending = self.newest_position().saturating_sub(position);
        // A look at a chain costs as much as looks at several entries of the ring. Beyond
        // `MAX_CHAINS` the look at the chains alone would hold the lock for too long, and the many
        // sessions are likely to have much of what the ring holds.
        let reached_end = match &scope.sessions {
            Only::These(sessions)
                if sessions.len() <= MAX_CHAINS && pending > sessions.len() as u64 =>
            {
                examined += sessions.len();
                collector.collect(
                    self.merged_chains(position, sessions)
                        .filter_map(|position| Some((position, self.entry_at(position)?))),
                )
            }
            _ => {
                collector.collect((position + 1..).zip(self.entries.range(self.offset(position)..)))
            }
        };
        examined += collector.examined;
        let read_through =
            if reached_end { self.newest_position() } else { collector.read_through };
        RingRead::Entries { read_through, reached_end, examined }
    }

    /// Returns whether entries that `scope` admits may have been evicted behind `position`.
    fn misses_entries(&self, position: u64, scope: &Scope) -> bool {
        if position >= self.evicted_through {
            return false;
        }
        match &scope.sessions {
            Only::Everything => true,
            Only::These(sessions) => {
                let lost = |session| {
                    // Without a chain the ring cannot tell; the store can, where there is one.
                    self.sessions.get(session).is_none_or(|chain| chain.lost_through > position)
                };
                self.gaps.lost_through > position || sessions.iter().any(lost)
            }
        }
    }

    /// Returns the positions behind `position` that hold an entry of these sessions, or a gap, in
    /// order. The merge is lazy: each step costs a look at one chain.
    fn merged_chains(
        &self,
        position: u64,
        sessions: &ValueSet<SessionId>,
    ) -> impl Iterator<Item = u64> {
        let chains =
            sessions.iter().filter_map(|session| self.sessions.get(session)).chain([&self.gaps]);
        let mut rests: Vec<_> = chains.map(|chain| chain.positions_after(position)).collect();
        let mut heads: BinaryHeap<_> = rests
            .iter_mut()
            .enumerate()
            .filter_map(|(chain, rest)| Some(Reverse((rest.next()?, chain))))
            .collect();
        iter::from_fn(move || {
            let mut head = heads.peek_mut()?;
            let Reverse((position, chain)) = *head;
            match rests.get_mut(chain).and_then(Iterator::next) {
                Some(next) => *head = Reverse((next, chain)),
                None => drop(PeekMut::pop(head)),
            }
            Some(position)
        })
    }

    fn entry_at(&self, position: u64) -> Option<&Entry> {
        self.entries.get(self.offset(position).checked_sub(1)?)
    }

    /// Returns the number of kept entries at or before `position`.
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

/// State of one read.
struct RingCollector<'a> {
    scope: &'a Scope,
    limits: ReadLimits,
    read_buffer: &'a mut VecDeque<Entry>,
    bytes: usize,
    read_through: u64,
    examined: usize,
}

impl RingCollector<'_> {
    /// Takes admitted entries in order, and returns whether the scan ended before a limit was met,
    /// the limit on examined entries included.
    fn collect<'e>(&mut self, scan: impl Iterator<Item = (u64, &'e Entry)>) -> bool {
        for (position, entry) in scan {
            if self.examined == MAX_ENTRIES_EXAMINED {
                return false;
            }
            self.examined += 1;
            if self.scope.admits(entry) {
                let bytes = self.bytes + entry.encoded_len();
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

/// Bytes that an entry costs beside its event: its slot, its link in a chain and its share of the
/// session's chain.
const ENTRY_OVERHEAD_BYTES: usize = 64;

/// Entries by which the ring may exceed its bounds for the fan-out. Fan-out and ingest share a
/// task, which runs the fan-out after some hundred events at the latest.
const UNDISPATCHED_EXCESS_ENTRIES: usize = 1024;

/// Bytes by which the ring may exceed its bounds for the fan-out.
const UNDISPATCHED_EXCESS_BYTES: u64 = 8 << 20;

/// Entries by which the ring may exceed its bounds for the store: ten seconds of a very busy
/// product. Beyond that, entries leave memory uncommitted and become a hole. Tests use a small
/// value to reach it.
const UNPERSISTED_EXCESS_ENTRIES: usize = if cfg!(test) { 64 } else { 65_536 };

/// Bytes by which the ring may exceed its bounds for the store.
const UNPERSISTED_EXCESS_BYTES: u64 = 32 << 20;

/// Entries that one read examines while it holds the log's lock: some ten microseconds, and some
/// tens with a filter of a thousand sessions.
const MAX_ENTRIES_EXAMINED: usize = 256;

/// Sessions up to which a read looks at their chains: some ten microseconds under the log's lock.
/// A reader of more sessions walks the ring, and so looks at each entry once at most.
const MAX_CHAINS: usize = 64;
