//! Chains of the ring: the positions of the entries that have a name in common.
//!
//! A session's entries are such a chain, and so are a user's. An event may be in one of each, and
//! an erasure by the one leaves holes in the other.
//!
//! May use: no other module.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap, VecDeque, binary_heap::PeekMut},
    hash::Hash,
    iter, mem,
};

/// Positions of entries in the ring, in order: those of one name, or the gaps.
#[derive(Debug)]
pub(super) struct Chain {
    positions: VecDeque<u64>,
    /// No entry of this chain with a higher position has been evicted; one at this position may
    /// have been.
    pub(super) lost_through: u64,
    /// Position of the newest entry that the chain has had, erased ones included.
    newest: u64,
}

impl Chain {
    /// Returns an empty chain. Entries up to `lost_through` may be its own, and gone.
    pub(super) fn new(lost_through: u64) -> Self {
        Self { positions: VecDeque::new(), lost_through, newest: lost_through }
    }

    /// Appends the position of the newest entry.
    pub(super) fn push(&mut self, position: u64) {
        self.positions.push_back(position);
        self.newest = position;
    }

    /// Removes the oldest entry, which stood at `position`: readers before it have lost it.
    pub(super) fn evict_oldest(&mut self, position: u64) {
        self.positions.pop_front();
        self.lost_through = position;
    }

    /// Iterates over the positions behind `cursor`.
    pub(super) fn positions_after(&self, cursor: u64) -> impl Iterator<Item = u64> {
        let seen = self.positions.partition_point(|position| *position <= cursor);
        self.positions.range(seen..).copied()
    }
}

/// Chains by their names.
#[derive(Debug)]
pub(super) struct Chains<K> {
    by_name: HashMap<K, Chain>,
    /// Names with only erased entries, by the position of the newest. The chain stays until that
    /// position is evicted, so that a resuming reader gets no gap for it.
    erased: BTreeMap<u64, K>,
}

impl<K> Default for Chains<K> {
    fn default() -> Self {
        Self { by_name: HashMap::new(), erased: BTreeMap::new() }
    }
}

impl<K: Clone + Eq + Hash> Chains<K> {
    /// Returns the chain of a name, if the ring has entries of it.
    pub(super) fn get(&self, name: &K) -> Option<&Chain> {
        self.by_name.get(name)
    }

    /// Appends the position of the newest entry to the chain of its name.
    pub(super) fn push(&mut self, name: &K, position: u64, evicted_through: u64) {
        // A name without a chain may have had entries before: any evicted entry may be its own, so
        // the chain starts with the ring's own mark.
        self.by_name
            .entry(name.clone())
            .or_insert_with(|| Chain::new(evicted_through))
            .push(position);
    }

    /// Removes the oldest entry of a name, which stood at `position`.
    pub(super) fn evict(&mut self, name: &K, position: u64) {
        if let Some(chain) = self.by_name.get_mut(name) {
            chain.evict_oldest(position);
            self.drop_if_empty(name, position);
        }
    }

    /// Records that the erased entry at `position` has been evicted.
    pub(super) fn evict_erased(&mut self, position: u64) {
        if let Some(name) = self.erased.remove(&position) {
            self.drop_if_empty(&name, position);
        }
    }

    /// Drops a chain without entries, unless an erased one is still in the ring: the map would
    /// otherwise grow with every name ever seen.
    fn drop_if_empty(&mut self, name: &K, evicted_through: u64) {
        let Some(chain) = self.by_name.get(name) else { return };
        match chain.positions.is_empty() {
            true if chain.newest > evicted_through => {
                self.erased.insert(chain.newest, name.clone());
            }
            true => drop(self.by_name.remove(name)),
            false => {}
        }
    }

    /// Takes all entries of a name, which are erased, and returns their positions.
    pub(super) fn erase(&mut self, name: &K) -> Vec<u64> {
        let Some(chain) = self.by_name.get_mut(name) else { return Vec::new() };
        let positions: Vec<u64> = mem::take(&mut chain.positions).into();
        self.erased.insert(chain.newest, name.clone());
        positions
    }

    /// Takes one entry of a name, which is erased.
    pub(super) fn erase_one(&mut self, name: &K, position: u64) {
        let Some(chain) = self.by_name.get_mut(name) else { return };
        if let Ok(at) = chain.positions.binary_search(&position) {
            chain.positions.remove(at);
        }
        if chain.positions.is_empty() {
            self.erased.insert(chain.newest, name.clone());
        }
    }

    /// Returns the number of chains, and how many of them have erased entries only.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.by_name.len(), self.erased.len())
    }
}

/// Iterates over the positions behind `position` that stand in any of the chains, in order. The
/// merge is lazy: each step costs a look at one chain.
pub(super) fn merge<'a>(position: u64, chains: Vec<&'a Chain>) -> impl Iterator<Item = u64> + 'a {
    let mut rests: Vec<_> =
        chains.into_iter().map(|chain| chain.positions_after(position)).collect();
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
