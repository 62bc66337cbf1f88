//! Connections of a listener on which the oldest idle one gives way to a newcomer.
//!
//! In: newcomers. Out: a place for each, at the cost of a connection that does nothing. So clients
//! that open connections and send nothing keep a probe out for no longer than it takes to accept
//! it. An address block has a share of the places: one that is at its share displaces a connection
//! of its own.
//!
//! For listeners with a few hundred connections: each newcomer costs a look at all of them.
//!
//! May use: `client_address`.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
};

use tokio_util::sync::CancellationToken;

use super::detach::ConnectionState;
use crate::client_address::{AddressBlock, ClientAddress};

/// Connections of one listener.
#[derive(Debug)]
pub(super) struct ConnectionTable {
    shares: ConnectionShares,
    entries: Mutex<TableEntries>,
}

/// Places on a listener on which the oldest idle connection gives way.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct ConnectionShares {
    /// Connections that may have to give way, at one time.
    pub(crate) total: usize,
    /// Those of one address block.
    pub(crate) per_address: usize,
    /// Further connections, with a stream that is to last. Beyond these, such a connection has to
    /// give way like any other.
    pub(crate) exempt: usize,
}

#[derive(Debug, Default)]
struct TableEntries {
    last_number: u64,
    by_number: BTreeMap<u64, TableEntry>,
}

#[derive(Debug)]
struct TableEntry {
    block: AddressBlock,
    state: Arc<ConnectionState>,
    end: CancellationToken,
}

impl ConnectionTable {
    pub(super) fn new(shares: ConnectionShares) -> Arc<Self> {
        Arc::new(Self { shares, entries: Mutex::default() })
    }

    /// Adds a connection, and ends the one that gives way to it, if there is no place else.
    pub(super) fn admit(self: &Arc<Self>, peer: IpAddr, state: &Arc<ConnectionState>) -> Place {
        let block = ClientAddress::new(peer).block();
        let mut entries = self.lock();
        if let Some(entry) =
            entries.to_displace(block, &self.shares).and_then(|n| entries.by_number.remove(&n))
        {
            entry.end.cancel();
        }
        entries.last_number += 1;
        let (number, end) = (entries.last_number, CancellationToken::new());
        let entry = TableEntry { block, state: Arc::clone(state), end: end.clone() };
        entries.by_number.insert(number, entry);
        Place { table: Arc::clone(self), number, end }
    }

    fn lock(&self) -> MutexGuard<'_, TableEntries> {
        // Each change is one insertion or removal, so a poisoned lock is safe to use.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TableEntries {
    /// Returns the connection that gives way to a newcomer of this block.
    fn to_displace(&self, newcomer: AddressBlock, shares: &ConnectionShares) -> Option<u64> {
        let mut exempt_left = shares.exempt;
        let displaceable: Vec<_> = self
            .by_number
            .iter()
            .filter(|(_, entry)| {
                let is_exempt = entry.is_exempt() && exempt_left > 0;
                exempt_left -= usize::from(is_exempt);
                !is_exempt
            })
            .collect();
        let mut by_block: HashMap<AddressBlock, usize> = HashMap::new();
        displaceable.iter().for_each(|(_, entry)| *by_block.entry(entry.block).or_default() += 1);
        let block = if by_block.get(&newcomer).is_some_and(|count| *count >= shares.per_address) {
            newcomer
        } else if displaceable.len() >= shares.total {
            by_block.into_iter().max_by_key(|(_, count)| *count)?.0
        } else {
            return None;
        };
        let of_block = displaceable.into_iter().filter(|(_, entry)| entry.block == block);
        of_block.min_by_key(|(number, entry)| (entry.rank(), **number)).map(|(number, _)| *number)
    }
}

impl TableEntry {
    fn is_exempt(&self) -> bool {
        self.state.activity.is_exempt()
    }

    /// Orders connections: the first one gives way. A connection that a handler is working for
    /// comes last, and one without a request so far first; among these, the one idle longest.
    fn rank(&self) -> (bool, bool, u64) {
        let activity = &self.state.activity;
        let has_request = self.state.has_request.load(Relaxed);
        (activity.is_working(), has_request, activity.idle_since())
    }
}

/// Place of one connection, returned when dropped.
#[derive(Debug)]
pub(super) struct Place {
    table: Arc<ConnectionTable>,
    number: u64,
    end: CancellationToken,
}

impl Place {
    /// Runs the connection until it ends, or gives way.
    pub(super) async fn run<F: Future>(&self, connection: F) -> Option<F::Output> {
        self.end.run_until_cancelled(connection).await
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.table.lock().by_number.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timer_wheel::TimerWheel;

    /// Table, and the connections that were admitted to it, by name.
    struct TableHarness {
        table: Arc<ConnectionTable>,
        wheel: Arc<TimerWheel>,
        connections: Vec<(&'static str, Arc<ConnectionState>, Place)>,
    }

    impl TableHarness {
        fn new(total: usize, per_address: usize, exempt: usize) -> Self {
            Self {
                table: ConnectionTable::new(ConnectionShares { total, per_address, exempt }),
                wheel: TimerWheel::new(),
                connections: Vec::new(),
            }
        }

        fn admit(&mut self, name: &'static str, peer: &str) -> Arc<ConnectionState> {
            let state = Arc::new(ConnectionState::new(&self.wheel));
            let place = self.table.admit(peer.parse().unwrap(), &state);
            self.connections.push((name, Arc::clone(&state), place));
            state
        }

        /// Admits a connection whose first request is answered at once.
        fn admit_answered(&mut self, name: &'static str) {
            let state = self.admit(name, "::1");
            state.has_request.store(true, Relaxed);
            drop(state.activity.begin_request(&self.wheel));
        }

        /// Returns the names of the connections that had to give way.
        fn displaced(&self) -> Vec<&'static str> {
            let ended = self.connections.iter().filter(|(_, _, place)| place.end.is_cancelled());
            ended.map(|(name, _, _)| *name).collect()
        }
    }

    #[test]
    fn the_oldest_connection_of_an_address_at_its_share_gives_way_to_its_next_one() {
        let mut harness = TableHarness::new(10, 2, 0);
        harness.admit("other", "192.0.2.9");
        for name in ["a", "b", "c", "d"] {
            harness.admit(name, "::ffff:192.0.2.1");
        }
        assert_eq!(harness.displaced(), ["a", "b"]);
        harness.connections.retain(|(name, ..)| *name != "c");
        harness.admit("e", "192.0.2.1");
        assert_eq!(harness.displaced(), ["a", "b"], "a place was free");
    }

    #[test]
    fn a_64_of_ipv6_is_one_address() {
        let mut harness = TableHarness::new(10, 2, 0);
        for (name, peer) in [("a", "2001:db8::1"), ("b", "2001:db8::ffff:2"), ("c", "2001:db8::3")]
        {
            harness.admit(name, peer);
        }
        harness.admit("d", "2001:db8:0:1::3");
        assert_eq!(harness.displaced(), ["a"]);
    }

    #[test]
    fn on_a_full_listener_the_address_with_most_connections_makes_room() {
        let mut harness = TableHarness::new(4, 3, 0);
        harness.admit("single", "192.0.2.2");
        for name in ["a", "b", "c"] {
            harness.admit(name, "192.0.2.1");
        }
        harness.admit("newcomer", "192.0.2.3");
        assert_eq!(harness.displaced(), ["a"]);
    }

    #[test]
    fn a_connection_without_a_request_gives_way_before_an_idle_one_and_a_busy_one_comes_last() {
        let mut harness = TableHarness::new(10, 3, 0);
        let (busy, wheel) = (harness.admit("busy", "::1"), Arc::clone(&harness.wheel));
        busy.has_request.store(true, Relaxed);
        let running = busy.activity.begin_request(&wheel);
        harness.admit_answered("idle");
        harness.admit("silent", "::1");
        harness.admit_answered("fourth");
        assert_eq!(harness.displaced(), ["silent"]);
        harness.admit_answered("fifth");
        assert_eq!(harness.displaced(), ["idle", "silent"]);
        drop(running);
        harness.admit("sixth", "::1");
        assert_eq!(harness.displaced(), ["busy", "idle", "silent"], "it is idle now, and oldest");
    }

    #[test]
    fn exempt_connections_stay_and_take_no_share_up_to_their_number() {
        let mut harness = TableHarness::new(10, 2, 1);
        for name in ["tail", "second tail"] {
            harness.admit(name, "::1").activity.exempt();
        }
        for name in ["a", "b", "c", "d", "e"] {
            harness.admit(name, "::1");
        }
        let displaced = harness.displaced();
        assert!(
            !displaced.contains(&"tail") && displaced.contains(&"second tail"),
            "{displaced:?}"
        );
    }

    #[tokio::test]
    async fn a_connection_that_gives_way_is_dropped() {
        let mut harness = TableHarness::new(1, 1, 0);
        harness.admit("a", "::1");
        harness.admit("b", "::1");
        let [(_, _, first), (_, _, second)] = &harness.connections[..] else { panic!("two") };
        assert_eq!(first.run(std::future::pending::<()>()).await, None);
        assert_eq!(second.run(async { 1 }).await, Some(1));
    }
}
