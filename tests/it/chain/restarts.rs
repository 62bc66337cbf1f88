//! Restarts of chained relays, with a stored log and without one.

use std::time::Duration;

use super::{leaf_behind, nowhere, publish, setup_behind};
use crate::common::{
    PRODUCT,
    bridge::Bridge,
    connector::Connector,
    events::event,
    relay::{Relay, Setup},
    wait,
};

/// Signal that ends a relay, and the storage of its log.
const ENDINGS: [(&str, Log); 4] = [
    ("TERM", Log::InMemory),
    ("KILL", Log::InMemory),
    ("TERM", Log::OnDisk),
    ("KILL", Log::OnDisk),
];

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Log {
    InMemory,
    OnDisk,
}

#[test]
fn a_restarted_leaf_loses_nothing_even_for_subscribers_before_its_replay_ends() {
    for (signal, log_place) in ENDINGS {
        let connector = Connector::new();
        let edge = Relay::behind(&connector);
        let mut link = connector.stream();
        let bridge = Bridge::to(edge.public);
        let directory = tempfile::tempdir().unwrap();
        let log = match log_place {
            Log::InMemory => String::new(),
            Log::OnDisk => {
                format!("memory_events = 16\ndata_dir = '{}'", directory.path().display())
            }
        };
        let mut leaf = leaf_behind(&bridge, &log);
        let (mut at_edge, mut at_leaf) = (edge.subscribe(), leaf.subscribe());
        let frames = publish(&mut link, &mut at_edge, 0..50);
        assert!(at_leaf.numbers(50).into_iter().eq(0..50));
        if log_place == Log::OnDisk {
            // A leaf that is killed before its first commit has no history, as one without a store.
            let on_disk = [("product_id", PRODUCT), ("tier", "disk")];
            let stored = || leaf.metrics().value("autoplay_relay_log_events", &on_disk);
            wait::until("the store holds entries", || stored().is_some_and(|count| count > 0.0));
        }
        leaf.process.signal(signal);
        leaf.process.exit_code();
        publish(&mut link, &mut at_edge, 50..60);
        bridge.block();
        let leaf = setup_behind(&bridge, &log).start();
        let seen = [49, 45, 10];
        let mut resumed = seen.map(|n| leaf.resume(frames[n].id()));
        let mut newcomer = leaf.subscribe();
        if log_place == Log::InMemory {
            resumed[0].expect_nothing(Duration::from_millis(300));
        }
        bridge.unblock();
        leaf.wait_for_end_of_replay();
        publish(&mut link, &mut at_edge, 60..63);
        for (n, subscriber) in seen.into_iter().zip(&mut resumed) {
            assert!(
                subscriber.numbers(62 - n).into_iter().eq(n + 1..63),
                "{signal} {log_place:?} behind {n}"
            );
        }
        let first = newcomer.numbers(1)[0];
        match (signal, log_place) {
            (_, Log::InMemory) => assert_eq!(first, 60, "{signal}: no history for newcomers"),
            ("TERM", Log::OnDisk) => {
                assert_eq!(first, 50, "an entry after the stored ones is live");
            }
            _ => assert!(first <= 50, "live entries, and those not persisted yet"),
        }
        assert!(newcomer.numbers(62 - first).into_iter().eq(first + 1..63));
        let mut all = leaf.resume("0");
        assert!(all.numbers(63).into_iter().eq(0..63), "{signal} {log_place:?}");
        assert_eq!(leaf.all_gaps(), 0.0, "{signal} {log_place:?}");
    }
}

#[test]
fn a_restarted_edge_with_a_stored_log_announces_only_the_connector_outage() {
    for signal in ["TERM", "KILL"] {
        let connector = Connector::new();
        let directory = tempfile::tempdir().unwrap();
        let log = format!("memory_events = 16\ndata_dir = '{}'", directory.path().display());
        let mut edge = Setup::behind(&connector).log(&log).start();
        let mut link = connector.stream();
        let bridge = Bridge::to(edge.public);
        let leaf = leaf_behind(&bridge, "");
        let (mut at_edge, mut at_leaf) = (edge.subscribe(), leaf.subscribe());
        let frames = publish(&mut link, &mut at_edge, 0..30);
        assert!(at_leaf.numbers(30).into_iter().eq(0..30));
        bridge.redirect_to(nowhere());
        bridge.cut();
        publish(&mut link, &mut at_edge, 30..50);
        let on_disk = [("product_id", PRODUCT), ("tier", "disk")];
        edge.wait_for_metric("autoplay_relay_log_events", &on_disk, 50.0);
        edge.process.signal(signal);
        edge.process.exit_code();
        drop(link);
        let edge = Setup::behind(&connector).log(&log).start();
        let mut link = connector.stream();
        edge.wait_for_metric("autoplay_relay_log_events", &on_disk, 51.0);
        bridge.redirect_to(edge.public);
        link.event(event(50));
        assert!(at_leaf.numbers(20).into_iter().eq(30..50), "{signal}");
        let gap = at_leaf.gap();
        assert_eq!(gap.reason(), "upstream_reconnect");
        assert_eq!(at_leaf.numbers(1), [50]);
        for relay in [&edge, &leaf] {
            let mut across = relay.resume(frames[0].id());
            assert!(across.numbers(49).into_iter().eq(1..50), "{signal}");
            assert_eq!(across.gap().id(), gap.id());
            assert_eq!(across.numbers(1), [50]);
            assert_eq!(relay.all_gaps(), 1.0, "{signal}");
        }
    }
}

#[test]
fn a_restarted_edge_without_its_log_is_one_gap_and_its_new_ids_continue() {
    let connector = Connector::new();
    let mut edge = Relay::behind(&connector);
    let mut link = connector.stream();
    let bridge = Bridge::to(edge.public);
    let leaf = leaf_behind(&bridge, "");
    let (mut at_edge, mut at_leaf) = (edge.subscribe(), leaf.subscribe());
    let before = publish(&mut link, &mut at_edge, 0..5);
    assert_eq!(at_leaf.numbers(5), [0, 1, 2, 3, 4]);
    edge.process.signal("TERM");
    assert_eq!(edge.process.exit_code(), Some(0));
    drop(link);
    let edge = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut at_edge = edge.subscribe();
    let after = publish(&mut link, &mut at_edge, 5..8);
    bridge.redirect_to(edge.public);
    let gap = at_leaf.gap();
    assert_eq!(
        (gap.reason().as_str(), &gap.json()["after"]),
        ("unknown_id", &before[4].id().into())
    );
    let (epoch, _) = after[0].id().split_once('-').unwrap();
    assert_eq!(gap.id(), format!("{epoch}-0"), "the edge's id before its first entry");
    after.iter().for_each(|frame| assert_eq!(at_leaf.event(), *frame));
    let more = publish(&mut link, &mut at_edge, 8..10);
    more.iter().for_each(|frame| assert_eq!(at_leaf.event(), *frame));
    let mut across = leaf.resume(before[2].id());
    assert_eq!(across.numbers(2), [3, 4]);
    assert_eq!(across.gap().id(), gap.id());
    assert!(across.numbers(5).into_iter().eq(5..10));
    assert!(leaf.resume(gap.id()).numbers(5).into_iter().eq(5..10));
    assert!(leaf.resume(after[1].id()).numbers(3).into_iter().eq(7..10));
    assert_eq!((leaf.all_gaps(), leaf.gaps("unknown_id")), (1.0, 1.0));
    bridge.cut();
    let last = publish(&mut link, &mut at_edge, 10..11);
    assert_eq!(at_leaf.event(), last[0]);
    assert_eq!(leaf.all_gaps(), 1.0);
}

#[test]
fn a_new_subscriber_gets_no_history_when_all_three_relays_start() {
    let connector = Connector::new();
    let directory = tempfile::tempdir().unwrap();
    let log = format!("data_dir = '{}'", directory.path().display());
    let edge = Setup::behind(&connector).log(&log).start();
    let mut link = connector.stream();
    let mut at_edge = edge.subscribe();
    let seen = publish(&mut link, &mut at_edge, 0..20).swap_remove(9);
    let to_edge = Bridge::to(edge.public);
    to_edge.block();
    let middle = setup_behind(&to_edge, "").start();
    let leaf = Setup::behind_relay(middle.public).start();
    middle.wait_for_subscribers(1.0);
    let (mut newcomer, mut resumed) = (leaf.subscribe(), leaf.resume(seen.id()));
    newcomer.expect_nothing(Duration::from_millis(300));
    to_edge.unblock();
    leaf.wait_for_end_of_replay();
    publish(&mut link, &mut at_edge, 20..22);
    assert_eq!(newcomer.numbers(2), [20, 21]);
    assert!(resumed.numbers(12).into_iter().eq(10..22));
    assert_eq!(leaf.all_gaps() + middle.all_gaps(), 0.0);
}
