//! WebSocket subscribers with scoped tokens: which events they receive, and how they are
//! disconnected.

use std::time::Duration;

use crate::common::{
    PRODUCT, SOCKET,
    connector::{Connector, Link},
    events::event_like,
    http,
    relay::{Relay, Setup},
    token::{bearer, jwt, now},
    websocket::{self, Socket},
};
use serde_json::{Value, json};

#[test]
fn a_token_limits_a_websocket_in_live_events_replay_and_filter_changes() {
    let (_connector, mut link, relay) = behind();
    let token = bearer(&json!({"session_id": ["s1", "s2"], "type": ["summary", "own"]}));
    let mut witness = open(&relay, SOCKET, &bearer(&json!({})));
    let mut socket = open(&relay, SOCKET, &token);
    let mut publish = |kind: &str, session: &str, n| {
        link.event(event_like(kind, session, n));
        assert_eq!(witness.numbers(1), [n]);
    };
    for (n, (kind, session)) in
        [("summary", "s1"), ("actions", "s1"), ("summary", "s3"), ("own", "s2")].iter().enumerate()
    {
        publish(kind, session, n);
    }
    assert_eq!(socket.numbers(2), [0, 3]);
    for more in
        [r#"{"session_ids":["s3"]}"#, r#"{"session_ids":["s1","s3"]}"#, r#"{"types":["actions"]}"#]
    {
        socket.send_text(&format!(r#"{{"subscribe":{more}}}"#));
        assert_eq!(socket.message()["event"], "error", "{more}");
    }
    socket.send_text(r#"{"subscribe":{"session_ids":["s2"]}}"#);
    let narrowed = json!({"session_ids": ["s2"], "user_ids": [], "types": ["summary", "own"]});
    assert_eq!(socket.message(), json!({"event": "subscribed", "data": narrowed}));
    publish("summary", "s1", 4);
    publish("summary", "s2", 5);
    assert_eq!(socket.numbers(1), [5]);
    socket.send_text(r#"{"subscribe":{}}"#);
    let granted = json!({"session_ids": ["s1", "s2"], "user_ids": [], "types": ["summary", "own"]});
    assert_eq!(socket.message()["data"], granted, "an empty filter is the grant");
    publish("actions", "s2", 6);
    publish("own", "s1", 7);
    assert_eq!(socket.numbers(1), [7]);
    let mut replayed = open(&relay, &format!("{SOCKET}?last_event_id=0"), &token);
    assert_eq!(replayed.numbers(5), [0, 3, 4, 5, 7]);
    for path in ["?session_id=s3", "?type=actions", "?session_id=s1&session_id=s3&last_event_id=0"]
    {
        let (head, _) =
            websocket::ask(relay.public, &format!("{SOCKET}{path}"), &[("Authorization", &token)]);
        assert_eq!(head.status(), 403, "{path}");
    }
}

#[test]
fn a_websocket_is_closed_with_1008_before_its_token_expires() {
    let (_connector, mut link, relay) = behind();
    let began = now();
    let mut socket = open(&relay, SOCKET, &bearer(&json!({"exp": began + 2.0})));
    link.event(event_like("actions", "s1", 0));
    assert_eq!(socket.numbers(1), [0]);
    assert_eq!(socket.close_code(), 1008);
    assert!((1.0..2.1).contains(&(now() - began)), "it lasted {} s", now() - began);
    relay.wait_for_metric(
        "autoplay_relay_subscriber_disconnects_total",
        &[("transport", "ws"), ("reason", "expired")],
        1.0,
    );
}

#[test]
fn an_expired_token_ends_a_draining_websocket_that_reads_nothing() {
    let connector = Connector::new();
    let relay =
        Setup::behind(&connector).server("max_connection_age = '500ms'").auth(&jwt("")).start();
    let mut link = connector.stream();
    let _stalled = open(&relay, SOCKET, &bearer(&json!({"exp": now() + 3.0})));
    let session = "x".repeat(8000);
    (0..3000).for_each(|n| link.event(event_like("actions", &session, n)));
    relay.wait_for_events(3000);
    relay.wait_for_metric(
        "autoplay_relay_subscriber_disconnects_total",
        &[("transport", "ws"), ("reason", "expired")],
        1.0,
    );
}

#[test]
fn an_operator_lists_a_websocket_and_disconnects_it_with_1008() {
    let (_connector, mut link, relay) = behind();
    let mut socket = open(&relay, SOCKET, &bearer(&json!({"session_id": "s1"})));
    link.event(event_like("actions", "s1", 0));
    assert_eq!(socket.numbers(1), [0]);
    let mut listed = Value::Null;
    crate::common::wait::until("the subscriber is caught up", || {
        listed =
            http::get(relay.admin, "/api/v1/subscribers", &[]).json()["subscribers"][0].clone();
        listed["behind"] == 0
    });
    assert_eq!((&listed["transport"], &listed["key"]), (&json!("ws"), &json!("token")));
    let path = format!("/api/v1/subscribers/{}", listed["id"].as_str().unwrap());
    assert_eq!(http::ask(relay.admin, "DELETE", &path, &[]).status(), 204);
    assert_eq!(socket.close_code(), 1008);
    // The subscriber is removed once the closing handshake is complete.
    crate::common::wait::until("the subscriber is removed", || {
        http::ask(relay.admin, "DELETE", &path, &[]).status() == 404
    });
}

#[test]
fn a_token_publishes_only_within_its_grant() {
    let (_connector, _link, relay) = behind();
    let mut witness = open(&relay, SOCKET, &bearer(&json!({})));
    let may = bearer(&json!({"session_id": "s1", "type": "own", "permissions": ["publish"]}));
    let publish = |token: &str, kind: &str, session: &str| {
        let body = event_like(kind, session, 7);
        let fields = [("Authorization", token), ("Content-Type", "application/json")];
        http::ask_with(relay.public, "POST", &format!("/events/{PRODUCT}"), &fields, &body).status()
    };
    assert_eq!(publish(&may, "own", "s1"), 202);
    assert_eq!(publish(&may, "own", "s2"), 403);
    assert_eq!(publish(&may, "actions", "s1"), 403);
    assert_eq!(publish(&bearer(&json!({})), "own", "s1"), 403, "the permission is not the default");
    assert_eq!(witness.numbers(1), [7]);
    witness.expect_nothing(Duration::from_millis(200));
}

fn behind() -> (Connector, Link, Relay) {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).auth(&jwt("")).start();
    let link = connector.stream();
    relay.wait_for_upstream("connected");
    (connector, link, relay)
}

fn open(relay: &Relay, path: &str, authorization: &str) -> Socket {
    Socket::open(relay.public, path, &[("Authorization", authorization)])
}
