//! A leaf and its edge. The test plays the edge, frame by frame.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::scripted::{FROM_OLDEST, edge_and_leaf, resume_fields, send, send_of};
use crate::common::{
    PRODUCT,
    connector::Connector,
    events::{event, number},
    relay::Relay,
};

#[test]
fn a_connector_gets_neither_a_resume_id_nor_the_follow_header() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut subscriber = relay.subscribe();
    for n in 0..4 {
        let mut link = connector.stream();
        assert_eq!(
            (link.request.field("last-event-id"), link.request.field("autoplay-relay")),
            (None, None),
            "{n}"
        );
        link.event_as(&format!("7-{n}"), event(n)); // ids of a connector are ignored
        if n > 0 {
            subscriber.gap();
        }
        let frame = subscriber.event();
        assert!(!frame.id().starts_with("7-"), "{frame:?}");
        if n % 2 == 0 { link.end() } else { link.reset() }
    }
}

#[test]
fn a_leaf_asks_its_edge_for_everything_first_and_then_resumes_after_its_newest_id() {
    let (edge, leaf) = edge_and_leaf();
    let mut subscriber = leaf.subscribe_to(FROM_OLDEST);
    let mut link = edge.accept_leaf();
    assert_eq!(link.request.field("last-event-id"), Some("0"));
    send(&mut link, 1..4);
    link.heartbeat();
    assert_eq!(subscriber.numbers(3), [1, 2, 3]);
    link.end();
    let mut link = edge.stream_as_relay();
    assert_eq!(resume_fields(&link), (Some("7-3"), Some("follow")));
    link.send("id: 7-3\nevent: heartbeat\ndata:\n\n");
    send(&mut link, 4..6);
    assert_eq!(subscriber.numbers(2), [4, 5]);
    link.reset();
    edge.accept().refuse("503 Service Unavailable", "");
    let mut link = edge.stream_as_relay();
    assert_eq!(resume_fields(&link), (Some("7-5"), Some("follow")));
    send(&mut link, 6..7);
    assert_eq!(subscriber.numbers(1), [6]);
    assert_eq!(leaf.all_gaps(), 0.0, "a relay replays missed events");
}

#[test]
fn an_entry_that_the_edge_repeats_is_delivered_once() {
    let (edge, leaf) = edge_and_leaf();
    let mut subscriber = leaf.subscribe_to(FROM_OLDEST);
    let mut link = edge.accept_leaf();
    send(&mut link, 1..4);
    link.gap_as("7-4", "upstream_reconnect", "7-3");
    send(&mut link, 5..7);
    send(&mut link, 6..7);
    send(&mut link, 2..4);
    link.heartbeat();
    assert_eq!(subscriber.numbers(3), [1, 2, 3]);
    assert_eq!(subscriber.gap().id(), "7-4");
    assert_eq!(subscriber.numbers(2), [5, 6]);
    link.reset();
    let mut link = edge.stream_as_relay();
    send(&mut link, 1..4);
    link.gap_as("7-4", "upstream_reconnect", "7-3");
    send(&mut link, 5..9);
    assert_eq!(subscriber.numbers(2), [7, 8]);
    assert_eq!(leaf.all_gaps(), 1.0);
    let mut again = leaf.resume("7-2");
    assert_eq!(again.numbers(1), [3]);
    assert_eq!(again.gap().id(), "7-4");
    assert_eq!(again.numbers(4), [5, 6, 7, 8]);
}

#[test]
fn an_entry_without_an_id_gets_the_id_before_it_with_a_suffix() {
    let (edge, leaf) = edge_and_leaf();
    let mut subscriber = leaf.subscribe_to(FROM_OLDEST);
    let mut link = edge.accept_leaf();
    send(&mut link, 1..4);
    link.send("event: gap\ndata: {}\n\n");
    link.event(event(100));
    send(&mut link, 4..6);
    link.event(event(101));
    assert_eq!(subscriber.numbers(3), [1, 2, 3]);
    let gap = subscriber.gap();
    assert_eq!((gap.id(), gap.json()["reason"].as_str()), ("7-3.1", Some("upstream_reconnect")));
    let frames: Vec<_> = (0..4).map(|_| subscriber.event()).collect();
    assert!(
        frames.iter().map(|frame| frame.id()).eq(["7-3.2", "7-4", "7-5", "7-5.1"]),
        "{frames:?}"
    );
    for (id, rest) in [("7-3.1", 0), ("7-3.2", 1), ("7-3.3", 1), ("7-4", 2), ("7-5", 3)] {
        let mut resumed = leaf.resume(id);
        for frame in &frames[rest..] {
            assert_eq!(resumed.event(), *frame, "behind {id}");
        }
    }
    link.end();
    assert_eq!(resume_fields(&edge.stream_as_relay()), (Some("7-5.1"), Some("follow")));
    assert_eq!(leaf.all_gaps(), 1.0);
}

#[test]
fn an_edge_that_restarts_with_its_clock_set_back_loses_nothing() {
    let (edge, leaf) = edge_and_leaf();
    let mut subscriber = leaf.subscribe_to(FROM_OLDEST);
    let mut link = edge.accept_leaf();
    send_of(&mut link, 9, 1..4);
    link.heartbeat();
    assert_eq!(subscriber.numbers(3), [1, 2, 3]);
    link.reset();
    let mut link = edge.stream_as_relay();
    assert_eq!(resume_fields(&link).0, Some("9-3"));
    link.gap_as("8-0", "unknown_id", "9-3");
    send_of(&mut link, 8, 1..4);
    let gap = subscriber.gap();
    assert_eq!((gap.id(), gap.json()["reason"].as_str()), ("8-0", Some("unknown_id")));
    assert_eq!(gap.json()["after"], "9-3");
    assert_eq!(subscriber.numbers(3), [1, 2, 3]);
    let mut across = leaf.resume("9-2");
    assert_eq!(across.numbers(1), [3]);
    assert_eq!(across.gap().id(), "8-0");
    assert_eq!(across.numbers(3), [1, 2, 3]);
    assert_eq!(leaf.resume("8-0").numbers(3), [1, 2, 3]);
    assert_eq!(leaf.resume("8-1").numbers(2), [2, 3]);
    link.reset();
    let mut link = edge.stream_as_relay();
    assert_eq!(resume_fields(&link).0, Some("8-3"));
    send_of(&mut link, 8, 4..5);
    assert_eq!(subscriber.numbers(1), [4]);
    assert_eq!((leaf.all_gaps(), leaf.gaps("unknown_id")), (1.0, 1.0));
}

#[test]
fn a_subscriber_that_comes_from_a_leaf_further_ahead_waits_and_gets_exactly_the_rest() {
    let (edge, leaf) = edge_and_leaf();
    // Resumes before the edge has answered, before the end of the replay, and after it.
    let early = leaf.resume("7-5");
    let mut link = edge.accept_leaf();
    send(&mut link, 1..3);
    leaf.wait_for_events(2);
    let during = leaf.resume("7-5");
    link.heartbeat();
    leaf.wait_for_end_of_replay();
    let after = leaf.resume("7-5");
    let of_its_own = leaf.resume("7-5.1");
    let mut waiting = [early, during, after, of_its_own];
    waiting[3].expect_nothing(Duration::from_millis(300));
    send(&mut link, 3..5);
    waiting[0].expect_nothing(Duration::from_millis(300));
    send(&mut link, 5..8);
    for subscriber in &mut waiting {
        assert_eq!(subscriber.numbers(2), [6, 7]);
        subscriber.expect_nothing(Duration::from_millis(50));
    }
    send(&mut link, 8..9);
    for subscriber in &mut waiting {
        assert_eq!(subscriber.numbers(1), [8]);
    }
    assert_eq!(leaf.all_gaps(), 0.0);
}

#[test]
fn a_missing_id_is_unknown_after_a_wait_and_a_malformed_one_at_once() {
    let (edge, leaf) = edge_and_leaf();
    let mut link = edge.accept_leaf();
    send(&mut link, 1..4);
    link.heartbeat();
    leaf.wait_for_end_of_replay();
    let begin = Instant::now();
    let mut waiting = [leaf.resume("7-1000"), leaf.resume("99999-1"), leaf.resume("3-1")];
    let long = format!("7-{:0>128}", 1);
    for id in ["not an id", "7", "7-3.0", "7-03", &long] {
        let mut malformed = leaf.resume(id);
        let gap = malformed.gap().json();
        assert_eq!(
            (&gap["reason"], &gap["after"]),
            (&"unknown_id".into(), &serde_json::Value::Null),
            "{id}"
        );
        assert_eq!(gap["before"], "7-1");
        assert_eq!(malformed.numbers(3), [1, 2, 3]);
    }
    assert!(
        begin.elapsed() < Duration::from_secs(3),
        "malformed ids are not waited for: {:?}",
        begin.elapsed()
    );
    let [of_the_epoch, foreign @ ..] = &mut waiting;
    let gap = of_the_epoch.gap();
    assert_eq!((gap.reason().as_str(), gap.id()), ("unknown_id", "7-3"), "behind all of its epoch");
    for subscriber in foreign {
        assert_eq!(subscriber.gap().json()["reason"], "unknown_id");
        assert_eq!(subscriber.numbers(3), [1, 2, 3]);
    }
    let waited = begin.elapsed();
    assert!(waited > Duration::from_secs(3) && waited < Duration::from_secs(10), "{waited:?}");
    assert_eq!(leaf.gaps("unknown_id"), 8.0);
}

#[test]
fn an_event_that_the_edge_had_evicted_is_a_gap_for_readers_that_missed_it() {
    let (edge, leaf) = edge_and_leaf();
    let mut link = edge.accept_leaf();
    send(&mut link, 41..44);
    link.heartbeat();
    leaf.wait_for_end_of_replay();
    let mut late = leaf.resume("7-7");
    let gap = late.gap();
    let notice = gap.json();
    assert_eq!((&notice["reason"], &notice["after"]), (&"evicted".into(), &"7-7".into()));
    assert_eq!(notice["before"], "7-41");
    assert_eq!(late.numbers(3), [41, 42, 43]);
    assert_eq!(gap.id(), "7-40", "an id known to every leaf");
    assert_eq!(leaf.resume(gap.id()).numbers(3), [41, 42, 43]);
    assert_eq!(leaf.gaps("evicted"), 1.0, "7-40 has missed nothing");
}

#[test]
fn a_gap_up_to_the_oldest_remembered_id_is_announced_once() {
    let (edge, leaf) = edge_and_leaf();
    let mut link = edge.accept_leaf();
    // Ids as an edge sends them to a leaf that requests some types only: each hole begins a span,
    // and the leaf remembers 4096 spans.
    (1..5001).for_each(|n| link.event_as(&format!("7-{}", 2 * n), event(n)));
    link.heartbeat();
    leaf.wait_for_end_of_replay();
    let gap = leaf.resume("7-2").gap();
    assert_eq!((gap.reason().as_str(), gap.id()), ("evicted", "7-1809"));
    assert_eq!(gap.json()["before"], "7-1810");
    let (mut late, mut again) = (leaf.resume("7-2"), leaf.resume(gap.id()));
    assert_eq!(late.gap(), gap);
    for across in [&mut late, &mut again] {
        assert_eq!(across.numbers(3), [905, 906, 907]);
    }
    assert_eq!(leaf.resume("0").numbers(3), [1, 2, 3], "the log has all events");
}

#[test]
fn a_new_subscriber_gets_no_history_unless_it_asks_for_everything() {
    let (edge, leaf) = edge_and_leaf();
    let (before, mut all) = (leaf.subscribe(), leaf.subscribe_to(FROM_OLDEST));
    let mut link = edge.accept_leaf();
    send(&mut link, 1..4);
    assert_eq!(all.numbers(3), [1, 2, 3]);
    let during = leaf.subscribe();
    send(&mut link, 4..6);
    link.gap_as("7-6", "upstream_reconnect", "7-5");
    assert_eq!(all.numbers(2), [4, 5]);
    assert_eq!(all.gap().id(), "7-6");
    link.heartbeat();
    leaf.wait_for_end_of_replay();
    let mut newcomers = [before, during, leaf.subscribe()];
    send(&mut link, 7..9);
    for newcomer in &mut newcomers {
        assert_eq!(newcomer.numbers(2), [7, 8]);
    }
    assert_eq!(all.numbers(2), [7, 8]);
}

#[test]
fn a_replay_that_is_cut_continues_and_is_still_history() {
    let (edge, leaf) = edge_and_leaf();
    let (mut newcomer, mut all) = (leaf.subscribe(), leaf.subscribe_to(FROM_OLDEST));
    let mut link = edge.accept_leaf();
    send(&mut link, 1..4);
    assert_eq!(all.numbers(3), [1, 2, 3]);
    link.reset();
    let mut link = edge.stream_as_relay();
    assert_eq!(resume_fields(&link).0, Some("7-3"));
    send(&mut link, 4..6);
    assert_eq!(all.numbers(2), [4, 5]);
    newcomer.expect_nothing(Duration::from_millis(200));
    link.heartbeat();
    leaf.wait_for_end_of_replay();
    send(&mut link, 6..7);
    assert_eq!((all.numbers(1), newcomer.numbers(1)), (vec![6], vec![6]));
}

#[test]
fn an_event_after_the_replay_of_an_empty_log_is_live() {
    let (edge, leaf) = edge_and_leaf();
    let mut link = edge.accept_leaf();
    link.heartbeat();
    leaf.wait_for_end_of_replay();
    let mut subscriber = leaf.subscribe();
    link.reset();
    let mut link = edge.stream_as_relay();
    assert_eq!(resume_fields(&link).0, Some("0"));
    send(&mut link, 1..3);
    link.heartbeat();
    assert_eq!(subscriber.numbers(2), [1, 2], "the subscriber was connected all the time");
}

#[test]
fn an_upstream_that_is_no_longer_a_relay_is_not_asked_to_resume() {
    let (edge, leaf) = edge_and_leaf();
    let mut subscriber = leaf.subscribe_to(FROM_OLDEST);
    let mut link = edge.accept_leaf();
    send(&mut link, 1..4);
    link.heartbeat();
    assert_eq!(subscriber.numbers(3), [1, 2, 3]);
    link.end();
    let mut link = edge.stream();
    assert_eq!(
        resume_fields(&link).0,
        Some("7-3"),
        "the leaf does not know yet that its upstream is a connector"
    );
    let gap = subscriber.gap();
    assert_eq!(
        (&gap.json()["reason"], &gap.json()["after"]),
        (&"upstream_reconnect".into(), &"7-3".into())
    );
    link.event(event(4));
    let own = subscriber.event();
    assert!(!own.id().starts_with("7-"));
    let mut across = leaf.resume("7-2");
    assert_eq!(across.numbers(1), [3]);
    assert_eq!(across.gap().id(), gap.id());
    assert_eq!(across.event(), own);
    link.end();
    let link = edge.stream();
    assert_eq!(resume_fields(&link), (None, None), "a connector again");
    subscriber.gap();
    assert_eq!(leaf.gaps("upstream_reconnect"), 2.0);
}

#[test]
fn an_event_of_a_distant_epoch_is_rejected_and_ids_go_on() {
    let (edge, leaf) = edge_and_leaf();
    let mut subscriber = leaf.subscribe_to(FROM_OLDEST);
    let mut link = edge.accept_leaf();
    send(&mut link, 1..2);
    link.heartbeat();
    assert_eq!(subscriber.numbers(1), [1]);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let day = 24 * 60 * 60 * 1000;
    for epoch in [u128::from(u64::MAX), now + day + 60_000] {
        link.event_as(&format!("{epoch}-1"), event(2));
    }
    // A lead of less than a day is a difference of clocks.
    link.event_as(&format!("{}-1", now + day - 60_000), event(3));
    let frame = subscriber.event();
    assert_eq!(number(&frame.data), 3);
    assert_eq!(frame.id(), format!("{}-1", now + day - 60_000));
    let rejected = [("product_id", PRODUCT), ("reason", "future_id")];
    leaf.wait_for_metric("autoplay_relay_upstream_rejected_total", &rejected, 2.0);
    // A notice of a loss is announced all the same, under an id of the leaf.
    link.gap_as(&format!("{}-1", u64::MAX), "upstream_reconnect", "7-3");
    let gap = subscriber.gap();
    assert!(!gap.id().starts_with("18446744073709551615"), "{}", gap.id());
    leaf.wait_for_metric("autoplay_relay_upstream_rejected_total", &rejected, 3.0);
}
