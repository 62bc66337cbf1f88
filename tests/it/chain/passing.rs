//! Entries that a leaf forwards: events, gaps, ids.

use std::time::{Duration, Instant};

use super::{leaf_behind, leaf_of, nowhere, payload_of, publish};
use crate::common::{
    bridge::Bridge,
    connector::Connector,
    events::{event, event_like, event_of},
    relay::{Relay, Setup},
    subscriber::Frame,
    wait,
};

#[test]
fn a_leaf_forwards_the_bytes_and_ids_of_its_edge() {
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
                assert_eq!(payload_of(subscriber), *expected, "behind {id}");
            });
        }
    }
    assert_eq!(leaf.all_gaps(), 0.0);
}

#[test]
fn a_connector_outage_is_one_gap_with_the_same_id_on_every_relay() {
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
        let forwarded = subscriber.gap();
        assert_eq!((forwarded.id(), forwarded.reason().as_str()), (gap.id(), "upstream_reconnect"));
        assert_eq!(forwarded.json()["after"], before.id());
        assert_eq!(subscriber.event(), after);
    }
    for relay in [&edge, &leaf] {
        assert_eq!(relay.resume(gap.id()).event(), after);
        assert_eq!((relay.all_gaps(), relay.gaps("upstream_reconnect")), (1.0, 1.0));
    }
}

#[test]
fn a_leaf_disconnected_for_longer_than_its_edge_keeps_events_forwards_the_gap() {
    let connector = Connector::new();
    let edge = Setup::behind(&connector).log("memory_events = 16").start();
    let mut link = connector.stream();
    let bridge = Bridge::to(edge.public);
    let leaf = leaf_behind(&bridge, "");
    let (mut at_edge, mut at_leaf) = (edge.subscribe(), leaf.subscribe());
    let seen = publish(&mut link, &mut at_edge, 0..3).pop().unwrap();
    assert_eq!(at_leaf.numbers(3), [0, 1, 2]);
    bridge.redirect_to(nowhere());
    bridge.cut();
    let missed = publish(&mut link, &mut at_edge, 3..43);
    bridge.redirect_to(edge.public);
    let gap = at_leaf.gap();
    assert_eq!((gap.id(), gap.reason().as_str()), (missed[23].id(), "evicted"));
    assert_eq!(gap.json()["after"], seen.id());
    assert!(at_leaf.numbers(16).into_iter().eq(27..43));
    assert_eq!((leaf.all_gaps(), leaf.gaps("evicted")), (1.0, 1.0));
    let mut across = leaf.resume(seen.id());
    assert_eq!(across.gap().id(), gap.id());
    assert!(across.numbers(16).into_iter().eq(27..43));
    let mut between = leaf.resume(missed[10].id());
    assert_eq!(between.gap().id(), gap.id(), "a reader that has read a part at the edge");
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

#[test]
fn an_id_from_the_future_is_unknown_to_an_edge_at_once() {
    let connector = Connector::new();
    let edge = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut at_edge = edge.subscribe();
    let frames = publish(&mut link, &mut at_edge, 0..3);
    let (epoch, _) = frames[0].id().split_once('-').unwrap();
    let begin = Instant::now();
    for id in [format!("{epoch}-1000"), format!("{epoch}-1000.1")] {
        let mut resumed = edge.resume(&id);
        let gap = resumed.gap();
        assert_eq!((gap.reason().as_str(), gap.id()), ("unknown_id", frames[2].id()), "{id}");
    }
    for id in [format!("9{epoch}-1"), "not an id".to_owned()] {
        let mut resumed = edge.resume(&id);
        assert_eq!(resumed.gap().reason(), "unknown_id", "{id}");
        assert_eq!(resumed.numbers(3), [0, 1, 2], "{id}");
    }
    wait::assert_within(Duration::ZERO, begin); // a leaf waits 3 s for each unknown id
    let of_a_leaf = format!("{}.1", frames[1].id());
    assert_eq!(
        edge.resume(&of_a_leaf).numbers(1),
        [2],
        "an entry of a leaf follows the id before it"
    );
}
