//! Relays in a row: one edge behind the connector, leaves behind the edge, clients that move between them.
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test states its expectations by panicking, and its helpers do as well"
)]

mod common;

use std::time::{Duration, Instant};

use common::{
    PRODUCT,
    bridge::Bridge,
    connector::{Connector, Link},
    events::{event, event_like, event_of, number},
    relay::{Relay, Setup},
    subscriber::{Frame, Subscriber},
    wait,
};

#[test]
fn a_leaf_hands_on_the_edges_bytes_with_the_edges_ids() {
    let connector = Connector::new();
    let edge = Setup::behind(&connector).server("heartbeat_interval = '200ms'").start();
    let mut link = connector.stream();
    let leaf = leaf_of(&edge);
    let (mut at_edge, mut at_leaf) = (edge.subscribe(), leaf.subscribe());
    let payloads = [
        event(1),
        format!(" {} ", event_like("summary", "sitzung-ä", 2)),
        r#"{"type":"own kind","text":"\u0000 \" ünïcode 🦀"}"#.to_owned(),
        event_of(&"x".repeat(100_000), 4),
        "{\"type\":\ndata: \"two lines\"}".to_owned(),
        event(6),
    ];
    let mut blocks = Vec::new();
    for (n, payload) in payloads.iter().enumerate() {
        link.event(payload);
        let block = payload_of(&mut at_edge);
        assert_eq!(payload_of(&mut at_leaf), block);
        blocks.push(block);
        if n == 2 {
            // Heartbeats of the edge and of the connector are no entries.
            link.heartbeat();
            at_edge.expect_nothing(Duration::from_millis(500));
        }
    }
    for (n, block) in blocks.iter().enumerate() {
        let id = Frame::parse(block).id.unwrap();
        let mut resumed = [edge.resume(&id), leaf.resume(&id)];
        for expected in &blocks[n + 1..] {
            resumed.iter_mut().for_each(|subscriber| {
                assert_eq!(payload_of(subscriber), *expected, "behind {id}")
            });
        }
    }
    assert_eq!(leaf.all_gaps(), 0.0);
}

#[test]
fn an_outage_of_the_connector_is_one_gap_with_the_same_id_wherever_it_is_read() {
    let connector = Connector::new();
    let edge = Relay::behind(&connector);
    let mut link = connector.stream();
    let leaf = leaf_of(&edge);
    let (mut at_edge, mut at_leaf, mut other) =
        (edge.subscribe(), leaf.subscribe(), leaf.subscribe());
    link.event(event(1));
    let before = at_edge.event();
    assert_eq!((at_leaf.event(), other.event()), (before.clone(), before.clone()));
    link.reset();
    let mut link = connector.stream();
    let gap = at_edge.gap();
    assert_eq!(gap.json()["after"], before.id());
    link.event(event(2));
    let after = at_edge.event();
    for subscriber in [&mut at_leaf, &mut other, &mut leaf.resume(before.id())] {
        let passed_on = subscriber.gap();
        assert_eq!((passed_on.id(), passed_on.reason().as_str()), (gap.id(), "upstream_reconnect"));
        assert_eq!(passed_on.json()["after"], before.id());
        assert_eq!(subscriber.event(), after);
    }
    for relay in [&edge, &leaf] {
        assert_eq!(relay.resume(gap.id()).event(), after);
        assert_eq!((relay.all_gaps(), relay.gaps("upstream_reconnect")), (1.0, 1.0));
    }
}

#[test]
fn a_leaf_that_was_away_for_longer_than_the_edge_remembers_passes_that_on() {
    let connector = Connector::new();
    let edge = Setup::behind(&connector).log("memory_events = 16").start();
    let mut link = connector.stream();
    let bridge = Bridge::to(edge.public);
    let leaf = leaf_behind(&bridge, "");
    let (mut at_edge, mut at_leaf) = (edge.subscribe(), leaf.subscribe());
    let seen = publish(&mut link, &mut at_edge, 0..3).pop().unwrap();
    assert_eq!(at_leaf.numbers(3), [0, 1, 2]);
    bridge.lead_to(nowhere());
    bridge.cut();
    let missed = publish(&mut link, &mut at_edge, 3..43);
    bridge.lead_to(edge.public);
    let gap = at_leaf.gap();
    assert_eq!((gap.id(), gap.reason().as_str()), (missed[23].id(), "evicted"));
    assert_eq!(gap.json()["after"], seen.id());
    assert!(at_leaf.numbers(16).into_iter().eq(27..43));
    assert_eq!((leaf.all_gaps(), leaf.gaps("evicted")), (1.0, 1.0));
    let mut across = leaf.resume(seen.id());
    assert_eq!(across.gap().id(), gap.id());
    assert!(across.numbers(16).into_iter().eq(27..43));
    let mut between = leaf.resume(missed[10].id());
    assert_eq!(between.gap().id(), gap.id(), "who has read some of it at the edge");
}

#[test]
fn a_cut_between_leaf_and_edge_loses_nothing_and_is_no_gap() {
    let connector = Connector::new();
    let edge = Relay::behind(&connector);
    let mut link = connector.stream();
    let bridge = Bridge::to(edge.public);
    let leaf = leaf_behind(&bridge, "");
    let (mut at_edge, mut at_leaf) = (edge.subscribe(), leaf.subscribe());
    for round in 0..3 {
        let first = round * 10;
        publish(&mut link, &mut at_edge, first..first + 5);
        bridge.cut();
        publish(&mut link, &mut at_edge, first + 5..first + 10);
        assert!(at_leaf.numbers(10).into_iter().eq(first..first + 10));
    }
    assert_eq!(edge.all_gaps() + leaf.all_gaps(), 0.0);
}

/// How a relay is ended, and what it keeps on disk.
const ENDINGS: [(&str, Kept); 4] = [
    ("TERM", Kept::InMemory),
    ("KILL", Kept::InMemory),
    ("TERM", Kept::OnDisk),
    ("KILL", Kept::OnDisk),
];

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kept {
    InMemory,
    OnDisk,
}

#[test]
fn a_leaf_that_is_started_anew_loses_nothing_even_for_who_comes_before_it_has_caught_up() {
    for (signal, kept) in ENDINGS {
        let connector = Connector::new();
        let edge = Relay::behind(&connector);
        let mut link = connector.stream();
        let bridge = Bridge::to(edge.public);
        let directory = tempfile::tempdir().unwrap();
        let log = match kept {
            Kept::InMemory => String::new(),
            Kept::OnDisk => {
                format!("memory_events = 16\ndata_dir = '{}'", directory.path().display())
            }
        };
        let mut leaf = leaf_behind(&bridge, &log);
        let (mut at_edge, mut at_leaf) = (edge.subscribe(), leaf.subscribe());
        let frames = publish(&mut link, &mut at_edge, 0..50);
        assert!(at_leaf.numbers(50).into_iter().eq(0..50));
        leaf.process.signal(signal);
        leaf.process.exit_code();
        publish(&mut link, &mut at_edge, 50..60);
        bridge.block();
        let leaf = setup_behind(&bridge, &log).start();
        let seen = [49, 45, 10];
        let mut resumed = seen.map(|n| leaf.resume(frames[n].id()));
        let mut newcomer = leaf.subscribe();
        if kept == Kept::InMemory {
            resumed[0].expect_nothing(Duration::from_millis(300));
        }
        bridge.unblock();
        leaf.wait_for_end_of_replay();
        publish(&mut link, &mut at_edge, 60..63);
        for (n, subscriber) in seen.into_iter().zip(&mut resumed) {
            assert!(
                subscriber.numbers(62 - n).into_iter().eq(n + 1..63),
                "{signal} {kept:?} behind {n}"
            );
        }
        let first = newcomer.numbers(1)[0];
        match (signal, kept) {
            (_, Kept::InMemory) => assert_eq!(first, 60, "{signal}: no history for newcomers"),
            ("TERM", Kept::OnDisk) => {
                assert_eq!(first, 50, "what comes to a log with a past is news")
            }
            _ => assert!(first <= 50, "the same, and what the log had not kept yet"),
        }
        assert!(newcomer.numbers(62 - first).into_iter().eq(first + 1..63));
        let mut all = leaf.resume("0");
        assert!(all.numbers(63).into_iter().eq(0..63), "{signal} {kept:?}");
        assert_eq!(leaf.all_gaps(), 0.0, "{signal} {kept:?}");
    }
}

#[test]
fn an_edge_that_keeps_its_log_comes_back_with_the_connectors_outage_and_no_other_gap() {
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
        bridge.lead_to(nowhere());
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
        bridge.lead_to(edge.public);
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
fn an_edge_that_has_forgotten_everything_is_one_gap_and_its_new_ids_go_on() {
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
    bridge.lead_to(edge.public);
    let gap = at_leaf.gap();
    assert_eq!(
        (gap.reason().as_str(), &gap.json()["after"]),
        ("unknown_id", &before[4].id().into())
    );
    let (epoch, _) = after[0].id().split_once('-').unwrap();
    assert_eq!(gap.id(), format!("{epoch}-0"), "as the edge has it: the place before everything");
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
fn a_client_that_moves_to_a_leaf_that_lags_waits_for_it() {
    let connector = Connector::new();
    let edge = Relay::behind(&connector);
    let mut link = connector.stream();
    let bridge = Bridge::to(edge.public);
    let (leaf, lagging) = (leaf_of(&edge), leaf_behind(&bridge, ""));
    let (mut at_edge, mut at_leaf) = (edge.subscribe(), leaf.subscribe());
    publish(&mut link, &mut at_edge, 0..5);
    lagging.wait_for_events(5);
    bridge.block();
    publish(&mut link, &mut at_edge, 5..10);
    let ids: Vec<_> = (0..10).map(|_| at_leaf.event().id.unwrap()).collect();
    let mut moved = [lagging.resume(&ids[9]), lagging.resume(&ids[7]), lagging.resume(&ids[4])];
    moved.iter_mut().for_each(|subscriber| subscriber.expect_nothing(Duration::from_millis(300)));
    bridge.unblock();
    publish(&mut link, &mut at_edge, 10..12);
    assert_eq!(moved[0].numbers(2), [10, 11]);
    assert_eq!(moved[1].numbers(4), [8, 9, 10, 11]);
    assert!(moved[2].numbers(7).into_iter().eq(5..12));
    assert_eq!(lagging.all_gaps(), 0.0);
}

#[test]
fn a_client_that_wanders_between_edge_and_leaves_sees_every_event_once() {
    const EVENTS: usize = 400;
    let connector = Connector::new();
    let edge = Relay::behind(&connector);
    let mut link = connector.stream();
    let bridge = Bridge::to(edge.public);
    let (leaf, cut_off) = (leaf_of(&edge), leaf_behind(&bridge, ""));
    let relays = [&edge, &leaf, &cut_off];
    let mut subscriber = edge.subscribe();
    let mut seen = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..EVENTS {
                link.event(event(n));
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let mut moves = 0;
        while seen.len() < EVENTS {
            let mut id = String::new();
            for _ in 0..(5 + moves % 7).min(EVENTS - seen.len()) {
                let frame = subscriber.event();
                seen.push(number(&frame.data));
                id = frame.id.unwrap();
            }
            moves += 1;
            if moves % 10 == 0 {
                bridge.cut();
            }
            subscriber = relays[moves % 3].resume(&id);
        }
    });
    assert!(seen.into_iter().eq(0..EVENTS));
    assert_eq!(relays.iter().map(|relay| relay.all_gaps()).sum::<f64>(), 0.0);
}

#[test]
fn at_an_edge_an_id_from_the_future_is_unknown_at_once() {
    let connector = Connector::new();
    let edge = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut at_edge = edge.subscribe();
    let frames = publish(&mut link, &mut at_edge, 0..3);
    let (epoch, _) = frames[0].id().split_once('-').unwrap();
    let begin = Instant::now();
    for id in [
        format!("{epoch}-1000"),
        format!("{epoch}-1000.1"),
        format!("9{epoch}-1"),
        "not an id".to_owned(),
    ] {
        let mut resumed = edge.resume(&id);
        assert_eq!(resumed.gap().reason(), "unknown_id", "{id}");
        assert_eq!(resumed.numbers(3), [0, 1, 2], "{id}");
    }
    wait::assert_within(Duration::ZERO, begin); // a leaf would wait that long for each of them
    let of_a_leaf = format!("{}.1", frames[1].id());
    assert_eq!(
        edge.resume(&of_a_leaf).numbers(1),
        [2],
        "a leaf's own entry stands behind the id before it"
    );
}

#[test]
fn three_in_a_row_are_as_good_as_one() {
    let connector = Connector::new();
    let edge = Relay::behind(&connector);
    let mut link = connector.stream();
    let to_edge = Bridge::to(edge.public);
    let mut middle = leaf_behind(&to_edge, "");
    let to_middle = Bridge::to(middle.public);
    let leaf = leaf_behind(&to_middle, "");
    let (mut at_edge, mut at_leaf) = (edge.subscribe(), leaf.subscribe());
    let mut same = |link: &mut Link, numbers| {
        publish(link, &mut at_edge, numbers)
            .iter()
            .for_each(|frame| assert_eq!(at_leaf.event(), *frame));
    };
    same(&mut link, 0..5);
    to_edge.cut();
    same(&mut link, 5..10);
    to_middle.cut();
    same(&mut link, 10..15);
    middle.process.signal("KILL");
    middle.process.exit_code();
    to_edge.block();
    let middle = setup_behind(&to_edge, "").start();
    to_middle.lead_to(middle.public);
    middle.wait_for_subscribers(1.0); // the leaf is back, before the middle has anything
    to_edge.unblock();
    same(&mut link, 15..20);
    link.reset();
    let mut link = connector.stream();
    assert_eq!(at_edge.gap().id(), at_leaf.gap().id());
    link.event(event(20));
    assert_eq!(at_edge.event(), at_leaf.event());
    for relay in [&middle, &leaf] {
        assert_eq!((relay.all_gaps(), relay.gaps("upstream_reconnect")), (1.0, 1.0));
        let mut all = relay.resume("0");
        assert!(all.numbers(20).into_iter().eq(0..20));
        all.gap();
        assert_eq!(all.numbers(1), [20]);
    }
}

#[test]
fn when_all_three_begin_anew_newcomers_get_no_history() {
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

/// A leaf that has caught up.
fn leaf_of(edge: &Relay) -> Relay {
    let leaf = Setup::behind_relay(edge.public).start();
    leaf.wait_for_end_of_replay();
    leaf
}

/// The same at the end of a bridge.
fn leaf_behind(bridge: &Bridge, log: &str) -> Relay {
    let leaf = setup_behind(bridge, log).start();
    leaf.wait_for_end_of_replay();
    leaf
}

fn setup_behind(bridge: &Bridge, log: &str) -> Setup {
    Setup::behind_relay(bridge.address).log(log)
}

/// An address where nobody listens.
fn nowhere() -> std::net::SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Sends events, and returns them as a subscriber of the edge gets them.
fn publish(
    link: &mut Link,
    at_edge: &mut Subscriber,
    numbers: std::ops::Range<usize>,
) -> Vec<Frame> {
    numbers
        .map(|n| {
            link.event(event(n));
            let frame = at_edge.event();
            assert_eq!(number(&frame.data), n);
            frame
        })
        .collect()
}

/// The next block that is no heartbeat, byte for byte.
fn payload_of(subscriber: &mut Subscriber) -> Vec<u8> {
    loop {
        let block = subscriber.block();
        if Frame::parse(&block).event.is_none() {
            return block;
        }
    }
}
