use super::*;
use crate::timer_wheel::TimerWheel;

/// Table, and the connections that were admitted to it, by name.
struct TableHarness {
    table: Arc<ConnectionTable>,
    wheel: Arc<TimerWheel>,
    connections: Vec<(&'static str, Arc<ConnectionState>, Place)>,
    is_full: bool,
}

impl TableHarness {
    /// Returns a table of an operators' listener.
    fn new(total: usize, per_address: usize, exempt: usize) -> Self {
        Self::with(ConnectionShares { total, per_address, exempt, spares_working: false })
    }

    fn with(shares: ConnectionShares) -> Self {
        let (table, wheel) = (ConnectionTable::new(shares), TimerWheel::new());
        Self { table, wheel, connections: Vec::new(), is_full: false }
    }

    fn admit(&mut self, name: &'static str, peer: &str) -> Arc<ConnectionState> {
        let peer: IpAddr = peer.parse().unwrap();
        self.table.displace(ClientAddress::new(peer).block(), self.is_full);
        let state = Arc::new(ConnectionState::new(&self.wheel));
        let place = self.table.admit(peer, &state);
        self.connections.push((name, Arc::clone(&state), place));
        state
    }

    /// Admits a connection whose first request is answered at once.
    fn admit_answered(&mut self, name: &'static str) {
        let state = self.admit(name, "::1");
        state.has_request.store(true, Relaxed);
        drop(state.activity.begin_request(&self.wheel));
    }

    /// Admits a connection with an exchange that is to last.
    fn admit_exempt(&mut self, name: &'static str, peer: &str) -> Exemption {
        self.admit(name, peer);
        self.entry(name).exempt()
    }

    /// Returns the latest connection of this name.
    fn entry(&self, name: &str) -> &Arc<TableEntry> {
        let mut named = self.connections.iter().filter(|(other, ..)| *other == name);
        named.next_back().unwrap().2.entry()
    }

    /// Returns the names of the connections that had to give way.
    fn displaced(&self) -> Vec<&'static str> {
        let must_end = |place: &Place| place.entry().must_give_way.load(SeqCst);
        let ended = self.connections.iter().filter(|(_, _, place)| must_end(place));
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
    for (name, peer) in [("a", "2001:db8::1"), ("b", "2001:db8::ffff:2"), ("c", "2001:db8::3")] {
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
    let _streams = ["tail", "second tail"].map(|name| harness.admit_exempt(name, "::1"));
    for name in ["a", "b", "c", "d", "e"] {
        harness.admit(name, "::1");
    }
    let displaced = harness.displaced();
    assert!(!displaced.contains(&"tail") && displaced.contains(&"second tail"), "{displaced:?}");
}

#[test]
fn a_connection_is_exempt_until_the_last_of_its_streams_ends() {
    let mut harness = TableHarness::with(ConnectionShares::UNTIL_FULL);
    let first = harness.admit_exempt("streams", "::1");
    let second = harness.entry("streams").exempt();
    harness.is_full = true;
    drop(first);
    harness.admit("newcomer", "::2");
    assert_eq!(harness.displaced(), [""; 0]);
    drop(second);
    harness.admit("another", "::3");
    assert_eq!(harness.displaced(), ["streams"], "it is idle now, and the oldest");
    // Of a connection that has ended, a stream may be left.
    let left = harness.admit_exempt("ended", "2001:db8::1");
    harness.connections.clear();
    drop(left);
    assert_eq!(harness.table.lock().displaceable, 0);
    assert!(harness.table.lock().ranking.is_empty());
}

#[test]
fn until_a_public_listener_is_full_no_connection_gives_way_and_then_that_of_the_most() {
    let mut harness = TableHarness::with(ConnectionShares::UNTIL_FULL);
    harness.admit("single", "192.0.2.2");
    for name in ["a", "b", "c"] {
        harness.admit(name, "192.0.2.1");
    }
    let _streams = [(); 5].map(|()| harness.admit_exempt("stream", "192.0.2.3"));
    assert_eq!(harness.displaced(), [""; 0]);
    harness.is_full = true;
    for newcomer in ["192.0.2.4", "192.0.2.5"] {
        harness.admit("newcomer", newcomer);
    }
    assert_eq!(harness.displaced(), ["a", "b"], "streams do not count");
    harness.admit("newcomer", "192.0.2.6");
    assert_eq!(harness.displaced(), ["single", "a", "b"], "the oldest where all have as many");
}

/// A proxy with far more connections than are looked at, each with a request in work.
#[test]
fn connections_with_a_request_in_work_never_give_way_on_a_public_listener_and_hide_no_idle_one() {
    let mut harness = TableHarness::with(ConnectionShares::UNTIL_FULL);
    let (proxy, wheel) = ("192.0.2.1", Arc::clone(&harness.wheel));
    let busy: Vec<_> = (0..500).map(|_| harness.admit("busy", proxy)).collect();
    let mut running: Vec<_> =
        busy.iter().map(|state| state.activity.begin_request(&wheel)).collect();
    harness.is_full = true;
    harness.admit("newcomer", "192.0.2.2");
    assert_eq!(harness.displaced(), [""; 0]);
    harness.admit("second", "192.0.2.3");
    assert_eq!(harness.displaced(), ["newcomer"], "it does nothing, and is the only one");
    harness.connections.retain(|(name, ..)| *name == "busy");
    drop(running.remove(400));
    // As many newcomers as it takes to look at all connections of the proxy.
    for _ in 0..500 / MAX_CONNECTIONS_LOOKED_AT {
        std::mem::forget(harness.admit("busy", proxy).activity.begin_request(&wheel));
    }
    assert_eq!(harness.displaced(), ["busy"]);
    assert!(harness.connections[400].2.entry().must_give_way.load(SeqCst));
}

#[tokio::test]
async fn a_connection_that_gives_way_is_dropped_before_its_newcomer_is_admitted() {
    let mut harness = TableHarness::new(1, 1, 0);
    harness.admit("a", "::1");
    let (_, _, place) = harness.connections.remove(0);
    let socket = Arc::new(());
    let held = Arc::clone(&socket);
    let served = tokio::spawn(async move {
        let connection = async move {
            let _held = held;
            std::future::pending::<()>().await;
        };
        place.run(Box::pin(connection)).await
    });
    harness.table.make_room([192, 0, 2, 1].into(), || false).await;
    assert_eq!(Arc::strong_count(&socket), 1);
    assert_eq!(served.await.unwrap(), None);
    harness.admit("b", "::1");
    assert_eq!(harness.connections[0].2.run(Box::pin(async { 1 })).await, Some(1));
}

/// The first one was ending by itself, and an earlier newcomer has its permit.
#[tokio::test(start_paused = true)]
async fn a_second_connection_gives_way_where_the_first_one_leaves_no_room() {
    let mut harness = TableHarness::with(ConnectionShares::UNTIL_FULL);
    for name in ["ending", "idle", "other"] {
        harness.admit(name, "::1");
    }
    let looks = std::cell::Cell::new(0);
    let is_full = || {
        looks.set(looks.get() + 1);
        looks.get() < 4
    };
    harness.table.make_room([192, 0, 2, 1].into(), is_full).await;
    assert_eq!(harness.displaced(), ["ending", "idle"]);
}
