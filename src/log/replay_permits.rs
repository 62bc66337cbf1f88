//! Permits for reading from the store, each for one read, and the queue for them.
//!
//! A permit is a quantum: one read of the store, a few milliseconds at most. The reader of a long
//! replay then queues again, so a client that takes its entries slowly holds no permit meanwhile.
//!
//! ```text
//! read ─┬─ a reader's first reads ─► short ─┐   3 of 4 while both wait
//!       └─ its later reads ────────► long ──┴─► key, then address, in turns ─► oldest read ─► permit
//! ```
//!
//! No clock and no lock: [`LogBacking`](super::backing::LogBacking) calls it under a lock of its
//! own.
//!
//! May use: no other module.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher, Hash, RandomState},
    iter,
    ops::Bound,
    sync::LazyLock,
};

/// Client that a read is charged to: turns are by key, and by address for each key.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct ReplayClient {
    key: u32,
    address: u32,
}

impl ReplayClient {
    /// Returns the client of a key and an address. Two clients are taken for one with a probability
    /// of 1 in 2³², and then share their turns.
    pub(crate) fn new(key: &impl Hash, address: &impl Hash) -> Self {
        // Hashed with a secret: no client can choose its place among the others.
        static SECRET: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        let short = |hash: u64| (hash >> 32) as u32;
        Self { key: short(SECRET.hash_one(key)), address: short(SECRET.hash_one(address)) }
    }
}

/// Permits for a bounded number of reads at a time, and the reads that wait for one.
#[derive(Debug)]
pub(crate) struct ReplayPermits<T> {
    capacity: usize,
    in_use: usize,
    last_number: u64,
    short: ReplayTurns<T>,
    long: ReplayTurns<T>,
    /// Permits given to short reads since the last one for a long read.
    short_in_row: u32,
}

/// Place of a read in the queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReplayTicket {
    client: ReplayClient,
    is_short: bool,
    number: u64,
}

impl<T> ReplayPermits<T> {
    /// Returns permits for `capacity` reads at a time, and at least one.
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.max(1),
            in_use: 0,
            last_number: 0,
            short: ReplayTurns::default(),
            long: ReplayTurns::default(),
            short_in_row: 0,
        }
    }

    /// Adds a read of a reader that has had `earlier_reads`.
    pub(crate) fn push(
        &mut self,
        client: ReplayClient,
        earlier_reads: u32,
        read: T,
    ) -> ReplayTicket {
        self.last_number += 1;
        let is_short = earlier_reads < MAX_SHORT_READS;
        let ticket = ReplayTicket { client, is_short, number: self.last_number };
        self.turns(is_short).push(ticket, read);
        ticket
    }

    /// Removes a read that waits, and returns it.
    pub(crate) fn remove(&mut self, ticket: ReplayTicket) -> Option<T> {
        self.turns(ticket.is_short).remove(ticket)
    }

    /// Removes and returns all reads that wait.
    pub(crate) fn take_all(&mut self) -> Vec<T> {
        iter::from_fn(|| self.short.pop().or_else(|| self.long.pop())).collect()
    }

    /// Returns the read whose turn it is, with a permit that the caller gives back by
    /// [`ReplayPermits::release`]; `None` if no read waits or no permit is free.
    pub(crate) fn pop(&mut self) -> Option<T> {
        if self.in_use >= self.capacity {
            return None;
        }
        let is_turn_of_long = self.short_in_row >= MAX_SHORT_IN_ROW;
        let read = match is_turn_of_long {
            true => self.pop_long().or_else(|| self.pop_short()),
            false => self.pop_short().or_else(|| self.pop_long()),
        }?;
        self.in_use += 1;
        Some(read)
    }

    fn pop_short(&mut self) -> Option<T> {
        let read = self.short.pop()?;
        self.short_in_row = self.short_in_row.saturating_add(1);
        Some(read)
    }

    fn pop_long(&mut self) -> Option<T> {
        let read = self.long.pop()?;
        self.short_in_row = 0;
        Some(read)
    }

    /// Returns a permit.
    pub(crate) fn release(&mut self) {
        self.in_use = self.in_use.saturating_sub(1);
    }

    fn turns(&mut self, is_short: bool) -> &mut ReplayTurns<T> {
        if is_short { &mut self.short } else { &mut self.long }
    }
}

/// Waiting reads, taken in turns by key, and for each key by address.
#[derive(Debug)]
struct ReplayTurns<T> {
    keys: BTreeMap<u32, AddressTurns<T>>,
    last_key: u32,
}

/// Waiting reads of one key.
#[derive(Debug)]
struct AddressTurns<T> {
    /// By number for each address: numbers only grow, so this is the order of arrival.
    addresses: BTreeMap<u32, BTreeMap<u64, T>>,
    last_address: u32,
}

impl<T> Default for ReplayTurns<T> {
    fn default() -> Self {
        Self { keys: BTreeMap::new(), last_key: 0 }
    }
}

impl<T> Default for AddressTurns<T> {
    fn default() -> Self {
        Self { addresses: BTreeMap::new(), last_address: 0 }
    }
}

impl<T> ReplayTurns<T> {
    fn push(&mut self, ticket: ReplayTicket, read: T) {
        let key = self.keys.entry(ticket.client.key).or_default();
        key.addresses.entry(ticket.client.address).or_default().insert(ticket.number, read);
    }

    fn pop(&mut self) -> Option<T> {
        let key = next_after(&self.keys, self.last_key)?;
        let turns = self.keys.get_mut(&key)?;
        let address = next_after(&turns.addresses, turns.last_address)?;
        let number = *turns.addresses.get(&address)?.first_key_value()?.0;
        (self.last_key, turns.last_address) = (key, address);
        self.take(ReplayClient { key, address }, number)
    }

    fn remove(&mut self, ticket: ReplayTicket) -> Option<T> {
        self.take(ticket.client, ticket.number)
    }

    /// Takes a read, and forgets its address and key if it was their last.
    fn take(&mut self, client: ReplayClient, number: u64) -> Option<T> {
        let turns = self.keys.get_mut(&client.key)?;
        let reads = turns.addresses.get_mut(&client.address)?;
        let read = reads.remove(&number);
        if reads.is_empty() {
            turns.addresses.remove(&client.address);
        }
        if turns.addresses.is_empty() {
            self.keys.remove(&client.key);
        }
        read
    }
}

/// Returns the key after `last`, or the first one behind the end.
fn next_after<V>(map: &BTreeMap<u32, V>, last: u32) -> Option<u32> {
    let mut later = map.range((Bound::Excluded(last), Bound::Unbounded));
    later.next().or_else(|| map.first_key_value()).map(|(key, _)| *key)
}

/// Reads of one reader that go first: a page of a hundred events, or the resume of a client that
/// was away for a moment.
const MAX_SHORT_READS: u32 = 8;

/// Short reads in a row while a long one waits: replays go on however many pages are asked for.
const MAX_SHORT_IN_ROW: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: u32 = MAX_SHORT_READS;

    fn client(key: u32, address: u32) -> ReplayClient {
        ReplayClient { key, address }
    }

    /// Takes `count` reads one after the other.
    fn popped<T>(permits: &mut ReplayPermits<T>, count: usize) -> Vec<T> {
        let pop = |_| {
            let read = permits.pop()?;
            permits.release();
            Some(read)
        };
        (0..count).map_while(pop).collect()
    }

    #[test]
    fn a_permit_is_for_one_read_and_the_others_wait() {
        let mut permits = ReplayPermits::new(2);
        for read in 0..3 {
            permits.push(client(1, 1), 0, read);
        }
        assert_eq!((permits.pop(), permits.pop(), permits.pop()), (Some(0), Some(1), None));
        permits.release();
        assert_eq!((permits.pop(), permits.pop()), (Some(2), None));
        permits.release();
        assert_eq!(permits.pop(), None, "a free permit without a read");
        assert_eq!(ReplayPermits::<u8>::new(0).capacity, 1);
    }

    #[test]
    fn keys_take_turns_however_many_reads_one_of_them_has() {
        let mut permits = ReplayPermits::new(1);
        for _ in 0..64 {
            permits.push(client(1, 1), LONG, "many");
        }
        assert_eq!(popped(&mut permits, 5), ["many"; 5]);
        permits.push(client(2, 1), LONG, "few");
        permits.push(client(2, 1), LONG, "few");
        assert_eq!(popped(&mut permits, 5), ["few", "many", "few", "many", "many"]);
    }

    #[test]
    fn addresses_of_a_key_share_its_turns() {
        let mut permits = ReplayPermits::new(1);
        for address in 1..=3 {
            for read in 0..2 {
                permits.push(client(1, address), LONG, (address, read));
            }
        }
        permits.push(client(7, 1), LONG, (70, 0));
        permits.push(client(7, 1), LONG, (70, 1));
        let in_turns = [(1, 0), (70, 0), (2, 0), (70, 1), (3, 0), (1, 1), (2, 1), (3, 1)];
        assert_eq!(popped(&mut permits, 9), in_turns);
    }

    #[test]
    fn first_reads_go_first_and_long_replays_go_on() {
        let mut permits = ReplayPermits::new(1);
        for _ in 0..4 {
            permits.push(client(1, 1), LONG, "long");
        }
        for _ in 0..6 {
            permits.push(client(2, 1), LONG - 1, "short");
        }
        let (s, l) = ("short", "long");
        assert_eq!(popped(&mut permits, 20), [s, s, s, l, s, s, s, l, l, l]);
    }

    #[test]
    fn every_read_is_served_while_others_come_without_end() {
        let mut permits = ReplayPermits::new(1);
        permits.push(client(5, 5), LONG, 0);
        let mut served = 0;
        for round in 1..100 {
            permits.push(client(round, 1), 0, round);
            permits.push(client(5, round), LONG, round);
            served += popped(&mut permits, 1).into_iter().filter(|read| *read == 0).count();
        }
        assert_eq!(served, 1);
    }

    #[test]
    fn a_reader_that_leaves_takes_no_permit_and_leaves_nothing_behind() {
        let mut permits = ReplayPermits::new(1);
        let tickets: Vec<_> = (0..10).map(|n| permits.push(client(n % 3, n % 2), n, n)).collect();
        for (n, ticket) in (0..).zip(&tickets).skip(1) {
            assert_eq!(permits.remove(*ticket), Some(n));
            assert_eq!(permits.remove(*ticket), None, "it has left");
        }
        assert_eq!(popped(&mut permits, 2), [0]);
        assert_eq!(permits.remove(tickets[0]), None, "its read is under way or over");
        assert!(permits.short.keys.is_empty() && permits.long.keys.is_empty());
    }
}
