//! A filter that the client changes while the socket is open.

use std::time::{Duration, Instant};

use crate::common::{
    SOCKET,
    connector::Connector,
    events::{event, event_like, event_of},
    http::{self, Wire},
    relay::Relay,
    websocket::{self, Socket, TEXT, UPGRADE},
};
use serde_json::json;

#[test]
fn a_new_filter_applies_from_the_position_of_the_old_one() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut socket = relay.socket(&format!("{SOCKET}?session_id=a"));
    let mut witness = relay.subscribe();
    let mut publish = |kind: &str, session: &str, n| {
        link.event(event_like(kind, session, n));
        assert_eq!(witness.numbers(1), [n]);
    };
    publish("actions", "a", 0);
    assert_eq!(socket.numbers(1), [0]);
    socket.send_text(r#"{"subscribe":{"session_ids":["b","a","b"],"types":["summary"]}}"#);
    assert_eq!(
        socket.message(),
        json!({
            "event": "subscribed",
            "data": { "session_ids": ["a", "b"], "user_ids": [], "types": ["summary"] }
        })
    );
    publish("actions", "a", 1);
    publish("summary", "c", 2);
    publish("summary", "b", 3);
    assert_eq!(socket.numbers(1), [3]);
    socket.send_text(r#"{"subscribe":{}}"#);
    assert_eq!(
        socket.message(),
        json!({
            "event": "subscribed",
            "data": { "session_ids": [], "user_ids": [], "types": [] }
        })
    );
    publish("actions", "c", 4);
    assert_eq!(socket.numbers(1), [4]);
    for wrong in
        ["{}", "no", r#"{"subscribe":{"types":[""]}}"#, r#"{"subscribe":{"session_ids":"a"}}"#]
    {
        socket.send_text(wrong);
        let error = socket.message();
        assert_eq!(error["event"], "error");
        assert!(error["data"]["title"].as_str().is_some_and(|title| !title.is_empty()), "{error}");
    }
    publish("actions", "d", 5);
    assert_eq!(socket.numbers(1), [5], "the filter stays");
}

#[test]
fn a_filter_sent_with_the_request_applies_before_the_first_event() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    relay.publish(&mut link, 0..6);
    let mut wire = Wire::connect(relay.public);
    let head = http::request(relay.public, "GET", &format!("{SOCKET}?last_event_id=0"), &UPGRADE);
    let filter = websocket::frame(TEXT, true, br#"{"subscribe":{"session_ids":["nobody"]}}"#);
    wire.send([head.as_bytes(), &filter].concat());
    assert_eq!(wire.head().status(), 101);
    let mut socket = Socket { wire };
    assert_eq!(socket.item()["event"], "subscribed");
    link.event(event_of("nobody", 6));
    assert_eq!(socket.numbers(1), [6]);
}

#[test]
fn a_lagging_subscriber_gets_no_event_of_the_old_filter_after_the_reply() {
    const EVENTS: usize = 3000;
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let (old, new) = ("o".repeat(4000), "n".repeat(4000));
    let mut socket = relay.socket(&format!("{SOCKET}?session_id={old}"));
    (0..EVENTS).for_each(|n| link.event(event_of(&old, n)));
    relay.wait_for_events(EVENTS);
    socket.send_filter(&[&new], &[]);
    let mut before = 0;
    while socket.item()["event"] != "subscribed" {
        before += 1;
    }
    assert!(before < EVENTS, "the subscriber did not lag");
    link.event(event_of(&new, EVENTS));
    assert_eq!(socket.numbers(1), [EVENTS]);
}

#[test]
fn filters_changed_under_load_neither_lose_nor_repeat_events() {
    const EVENTS: usize = 3000;
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut socket = relay.socket(&format!("{SOCKET}?session_id=a"));
    // Each filter admits session a, so each of its events arrives exactly once, whatever changes in
    // between.
    let mut of_a = Vec::new();
    let mut last = None;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..EVENTS {
                link.event(event_of(["a", "b", "c"][n % 3], n));
                if n.is_multiple_of(100) {
                    // the pace of the script: filters change in between
                    std::thread::sleep(Duration::from_millis(40));
                }
            }
        });
        let filters = [&["a", "b"][..], &[], &["a"], &["c", "a"]];
        let mut changes = filters.iter().cycle();
        let (mut is_asked, mut answers) = (false, 0);
        while of_a.len() < EVENTS / 3 {
            if !is_asked {
                socket.send_filter(changes.next().unwrap(), &[]);
                is_asked = true;
            }
            let message = socket.item();
            if message["event"] == "subscribed" {
                (is_asked, answers) = (false, answers + 1);
                continue;
            }
            let n = websocket::number(&message);
            assert!(last.is_none_or(|last| last < n), "{n} after {last:?}");
            last = Some(n);
            if n.is_multiple_of(3) {
                of_a.push(n);
            }
        }
        assert!(answers >= 5, "{answers} changes while events came");
    });
    assert!(of_a.into_iter().eq((0..EVENTS).step_by(3)));
}

#[test]
fn a_client_that_floods_gets_ten_replies_a_second_and_disturbs_no_other() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let (mut socket, mut other) = (relay.socket(SOCKET), relay.socket(SOCKET));
    let begin = Instant::now();
    (0..20).for_each(|_| socket.send_filter(&[], &["actions"]));
    link.event(event(0));
    assert_eq!(other.numbers(1), [0]);
    let mut answers = 0;
    while answers < 20 {
        answers += usize::from(socket.item()["event"] == "subscribed");
    }
    assert!(begin.elapsed() > Duration::from_millis(1500), "{:?}", begin.elapsed());
}
