//! A relay between an edge and a leaf: the end of its replay, and subscribers that wait for
//! history.

use std::time::{Duration, Instant};

use super::scripted::{FOLLOW, edge_and_leaf, send};
use crate::common::{
    STREAM,
    connector::Connector,
    relay::Setup,
    subscriber::{Ending, Subscriber},
    wait,
};

#[test]
fn a_subscriber_that_waits_for_history_is_disconnected_at_once_on_shutdown() {
    let (edge, mut leaf) = edge_and_leaf();
    let mut link = edge.accept_leaf();
    let before = leaf.subscribe();
    send(&mut link, 1..4);
    leaf.wait_for_events(3);
    let mut waiting = [before, leaf.subscribe(), leaf.resume("7-5")];
    leaf.wait_for_subscribers(3.0);
    let begin = Instant::now();
    leaf.process.signal("TERM");
    for subscriber in &mut waiting {
        let (rest, ending) = subscriber.rest();
        let rest = String::from_utf8(rest).unwrap();
        assert!(
            ending == Ending::Proper && rest.starts_with("retry: ") && !rest.contains("data"),
            "{ending:?} {rest}"
        );
    }
    assert_eq!(leaf.process.exit_code(), Some(0));
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
}

#[test]
fn a_middle_relay_ends_its_replay_once_its_own_has_ended() {
    let edge = Connector::new();
    let middle = Setup::behind_relay(edge.address).server("heartbeat_interval = '300ms'").start();
    let mut link = edge.accept_leaf();
    send(&mut link, 1..2);
    middle.wait_for_events(1);
    let mut leaf = Subscriber::open(middle.public, STREAM, FOLLOW);
    assert_eq!(leaf.event().id(), "7-1");
    wait::holds("the connection is open", Duration::from_millis(900), || !leaf.has_ended());
    send(&mut link, 2..3);
    let block = leaf.block();
    let frame = block.strip_prefix(b":\n:\n").unwrap_or_else(|| panic!("no comments: {block:?}"));
    assert!(frame.starts_with(b"id: 7-2\n") || frame.starts_with(b":\nid: 7-2\n"), "{frame:?}");
    link.heartbeat();
    assert_eq!(leaf.frame().event.as_deref(), Some("heartbeat"));
}

#[test]
fn a_middle_relay_without_an_answer_from_its_edge_ends_no_replay() {
    let (edge, middle) = edge_and_leaf();
    let mut leaf = Subscriber::open(middle.public, STREAM, FOLLOW);
    wait::holds("the connection is open", Duration::from_millis(300), || !leaf.has_ended());
    let mut link = edge.accept_leaf();
    send(&mut link, 1..3);
    for id in ["7-1", "7-2"] {
        let frame = leaf.frame();
        assert_eq!((frame.event.as_deref(), frame.id.as_deref()), (None, Some(id)));
    }
    link.heartbeat();
    assert_eq!(leaf.frame().event.as_deref(), Some("heartbeat"));
}

#[test]
fn a_middle_relay_with_a_log_ends_no_replay_before_its_own() {
    let edge = Connector::new();
    let directory = tempfile::tempdir().unwrap();
    let log = format!("data_dir = '{}'", directory.path().display());
    let middle =
        Setup::behind_relay(edge.address).server("heartbeat_interval = '300ms'").log(&log).start();
    let mut link = edge.accept_leaf();
    send(&mut link, 1..3);
    link.heartbeat();
    middle.wait_for_end_of_replay();
    link.end();
    let mut link = edge.stream_as_relay();
    send(&mut link, 3..4);
    middle.wait_for_events(3);
    let mut live = middle.subscribe();
    let mut leaf = Subscriber::open(middle.public, STREAM, FOLLOW);
    assert_eq!(leaf.numbers(3), [1, 2, 3]);
    wait::holds("the connection is open", Duration::from_millis(900), || !leaf.has_ended());
    send(&mut link, 4..5);
    let block = leaf.block();
    assert!(block.starts_with(b":\n"), "only comments meanwhile: {block:?}");
    assert_eq!(live.numbers(1), [4], "an entry after the stored ones is live");
    link.heartbeat();
    assert_eq!(leaf.frame().event.as_deref(), Some("heartbeat"));
}
