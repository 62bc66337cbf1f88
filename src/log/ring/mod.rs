//! The newest entries in memory, and for each session and each user the chain of its positions.
//!
//! ```text
//! entries   [ 41 ][ 42 ][ 43 ][ 44 ][ 45 ]     evicted_through = 40
//! session a   41          43                   lost_through = 37: its newest entry that was evicted
//! user u      41    42
//! gaps                          44
//! ```
//!
//! A reader of a few sessions or users merges their chains instead of walking the ring, so its work
//! follows what it receives. A reader of many walks the ring. Either way a read looks at a bounded
//! number of entries, says how many, and the next read goes on behind them.
//!
//! May use: `event`.

mod chains;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};

use self::chains::{Chain, Chains, merge};
use super::limits::{MemoryBounds, ReadLimits};
use crate::event::{Entry, Gap, NarrowestLimit, Scope, SessionId, UserId};

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
    sessions: Chains<SessionId>,
    users: Chains<UserId>,
    gaps: Chain,
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
            sessions: Chains::default(),
            users: Chains::default(),
            gaps: Chain::new(newest),
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
            Entry::Gap(_) => self.gaps.push(position),
            Entry::Event(event) => {
                if let Some(session) = event.session() {
                    self.sessions.push(session, position, self.evicted_through);
                }
                if let Some(user) = event.user() {
                    self.users.push(user, position, self.evicted_through);
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

    /// Replaces events by [`Entry::Erased`]: those of `sessions`, and those of `users` with all of
    /// the sessions in which they acted, which are added to `sessions`. Returns their positions.
    /// The positions stay, so ids and cursors are as before.
    pub(crate) fn erase(
        &mut self,
        sessions: &mut BTreeSet<SessionId>,
        users: &BTreeSet<UserId>,
    ) -> BTreeSet<u64> {
        let mut positions = BTreeSet::new();
        for user in users {
            let of_user = self.users.erase(user);
            let entries = of_user.iter().filter_map(|position| self.entry_at(*position));
            sessions.extend(entries.filter_map(|entry| match entry {
                Entry::Event(event) => event.session().cloned(),
                Entry::Gap(_) | Entry::Erased => None,
            }));
            positions.extend(of_user);
        }
        for session in &*sessions {
            positions.extend(self.sessions.erase(session));
        }
        for position in &positions {
            self.erase_at(*position);
        }
        positions
    }

    fn erase_at(&mut self, position: u64) {
        let offset = self.offset(position);
        let Some(entry) = offset.checked_sub(1).and_then(|at| self.entries.get_mut(at)) else {
            return;
        };
        if let Entry::Event(event) = entry {
            // Of the two chains at least one has lost the position before.
            if let Some(session) = event.session() {
                self.sessions.erase_one(session, position);
            }
            if let Some(user) = event.user() {
                self.users.erase_one(user, position);
            }
        }
        self.bytes = self.bytes.saturating_sub(entry_bytes(entry)) + entry_bytes(&Entry::Erased);
        *entry = Entry::Erased;
    }

    fn evict_oldest(&mut self) {
        let Some(entry) = self.entries.pop_front() else { return };
        self.evicted_through += 1;
        self.bytes -= entry_bytes(&entry);
        let position = self.evicted_through;
        match &entry {
            Entry::Gap(_) => self.gaps.evict_oldest(position),
            Entry::Erased => {
                self.sessions.evict_erased(position);
                self.users.evict_erased(position);
            }
            Entry::Event(event) => {
                if let Some(session) = event.session() {
                    self.sessions.evict(session, position);
                }
                if let Some(user) = event.user() {
                    self.users.evict(user, position);
                }
            }
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
        // The look for entries that are gone is one at each chain.
        let mut examined = if position < self.evicted_through { scope.chain_count() } else { 0 };
        let position = position.max(self.evicted_through);
        let mut collector = RingCollector {
            scope,
            limits,
            read_buffer,
            bytes: 0,
            read_through: position,
            examined: 0,
        };
        let reached_end = match self.chains_for(scope, position) {
            Some(chains) => {
                examined += scope.chain_count();
                collector.collect(
                    merge(position, chains)
                        .filter_map(|position| Some((position, self.entry_at(position)?))),
                )
            }
            None => {
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
        // Without a chain the ring cannot tell; the store can, where there is one.
        let is_lost =
            |chain: Option<&Chain>| chain.is_none_or(|chain| chain.lost_through > position);
        let misses_some = match scope.narrowest_limit() {
            NarrowestLimit::Sessions(sessions) => {
                sessions.iter().any(|session| is_lost(self.sessions.get(session)))
            }
            NarrowestLimit::Users(users) => users.iter().any(|user| is_lost(self.users.get(user))),
            NarrowestLimit::Kinds(_) | NarrowestLimit::Unlimited => true,
        };
        misses_some || self.gaps.lost_through > position
    }

    /// Returns the chains in which every entry stands that `scope` admits; `None` where a read had
    /// better walk the ring.
    fn chains_for(&self, scope: &Scope, position: u64) -> Option<Vec<&Chain>> {
        let pending = self.newest_position().saturating_sub(position);
        // A look at a chain costs as much as looks at several entries of the ring. Beyond
        // `MAX_CHAINS` the look at the chains alone would hold the lock for too long, and the many
        // names are likely to have much of what the ring holds.
        let names = scope.chain_count();
        if names > MAX_CHAINS || pending <= names as u64 {
            return None;
        }
        let mut chains: Vec<&Chain> = match scope.narrowest_limit() {
            NarrowestLimit::Sessions(sessions) => {
                sessions.iter().filter_map(|session| self.sessions.get(session)).collect()
            }
            NarrowestLimit::Users(users) => {
                users.iter().filter_map(|user| self.users.get(user)).collect()
            }
            NarrowestLimit::Kinds(_) | NarrowestLimit::Unlimited => return None,
        };
        chains.push(&self.gaps);
        Some(chains)
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

/// Bytes that an entry costs beside its event: its slot, its links in two chains and its share of
/// the chains of its session and its user.
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
/// tens with a filter of a thousand sessions or users.
const MAX_ENTRIES_EXAMINED: usize = 256;

/// Sessions or users up to which a read looks at their chains: some ten microseconds under the
/// log's lock. A reader of more walks the ring, and so looks at each entry once at most.
const MAX_CHAINS: usize = 64;
