//! The list of subscribers, disconnecting one of them, and operator streams.

use std::time::{Duration, Instant};

use crate::common::{
    PRODUCT, STREAM,
    connector::Connector,
    events::event_of,
    http::{self, Answer, Wire},
    relay::{KEYS, Relay, Setup},
    subscriber::{Ending, Subscriber},
    wait,
};
use serde_json::Value;

#[test]
fn every_subscriber_is_listed_with_its_properties() {
    let connector = Connector::new();
    let relay = setup(&connector).start();
    let mut link = connector.stream();
    let mut first = open(&relay, "");
    let mut second = open(&relay, "?session_id=b");
    let listed = list(&relay, "");
    let subscribers = listed["subscribers"].as_array().unwrap();
    assert_eq!((subscribers.len(), &listed["next"]), (2, &Value::Null));
    for subscriber in subscribers {
        let known = ["key", "transport", "product_id", "address"]
            .map(|field| subscriber[field].as_str().unwrap());
        assert_eq!(known, ["agent-a", "sse", PRODUCT, "127.0.0.1"]);
        let since = subscriber["since"].as_str().unwrap();
        assert!(since.starts_with("20") && since.ends_with('Z'), "{since}");
        assert_eq!(subscriber.as_object().unwrap().len(), 7);
    }
    assert!(number(&subscribers[0]) < number(&subscribers[1]));
    link.event(event_of("b", 0));
    first.event();
    second.event();
    for n in 1..10 {
        link.event(event_of("a", n));
        first.event();
    }
    wait::until("both subscribers are caught up", || {
        list(&relay, "")["subscribers"].as_array().unwrap().iter().all(|it| it["behind"] == 0)
    });
    drop(first);
    wait::until("one subscriber is removed", || {
        list(&relay, "")["subscribers"].as_array().unwrap().len() == 1
    });
}

#[test]
fn a_subscriber_that_reads_nothing_is_listed_as_behind() {
    let connector = Connector::new();
    let relay = setup(&connector).start();
    let mut link = connector.stream();
    let slow = open(&relay, "");
    let mut quick = open(&relay, "");
    let payload = event_of(&"s".repeat(20_000), 1);
    for _ in 0..400 {
        link.event(&payload);
        quick.event();
    }
    let behind = |of: usize| list(&relay, "")["subscribers"][of]["behind"].as_u64().unwrap();
    wait::until("the quick subscriber is caught up", || behind(1) == 0);
    // The events are eight megabytes, of which the kernel's buffers hold a part.
    assert!((50..400).contains(&behind(0)), "{}", behind(0));
    drop(slow);
}

#[test]
fn pages_of_the_list_are_complete_and_in_order() {
    let connector = Connector::new();
    let relay = setup(&connector).start();
    let _connected: Vec<_> = (0..7).map(|_| open(&relay, "")).collect();
    let (mut after, mut numbers) = (String::new(), Vec::new());
    loop {
        let page = list(&relay, &format!("?limit=3&{after}"));
        numbers.extend(page["subscribers"].as_array().unwrap().iter().map(number));
        let Some(next) = page["next"].as_str() else { break };
        assert_eq!(numbers.len() % 3, 0);
        after = format!("after={next}");
    }
    assert!(numbers.len() == 7 && numbers.is_sorted(), "{numbers:?}");
    assert_eq!(list(&relay, "?limit=7")["next"], Value::Null);
    for query in ["?limit=0", "?limit=1001", "?limit=x", "?after=x"] {
        ask(&relay, "GET", &format!("{LIST}{query}")).problem(400);
    }
}

#[test]
fn a_kicked_subscriber_gets_a_proper_end_and_the_others_stay() {
    let connector = Connector::new();
    let relay = setup(&connector).start();
    let mut link = connector.stream();
    let (mut kicked, mut other) = (open(&relay, ""), open(&relay, ""));
    link.event(event_of("a", 1));
    let labels = [("product_id", PRODUCT), ("type", "actions")];
    relay.wait_for_metric("autoplay_relay_upstream_events_total", &labels, 1.0);
    let path = format!("{LIST}/{}", list(&relay, "")["subscribers"][0]["id"].as_str().unwrap());
    let answer = ask(&relay, "DELETE", &path);
    assert_eq!((answer.status(), answer.body.len()), (204, 0));
    assert_eq!(kicked.numbers(1), [1], "the event before the command");
    assert_eq!(kicked.rest().1, Ending::Proper);
    let labels = [("transport", "sse"), ("reason", "kicked")];
    relay.wait_for_metric("autoplay_relay_subscriber_disconnects_total", &labels, 1.0);
    ask(&relay, "DELETE", &path).problem(404);
    for id in ["0", "x", "-1", "99999999999999999999999"] {
        ask(&relay, "DELETE", &format!("{LIST}/{id}")).problem(404);
    }
    let refused = ask(&relay, "GET", &format!("{LIST}/1")).problem(405);
    assert_eq!(refused.field("allow"), Some("DELETE"));
    link.event(event_of("a", 2));
    assert_eq!(other.numbers(2), [1, 2]);
}

#[test]
fn a_kicked_subscriber_that_reads_nothing_is_disconnected() {
    let connector = Connector::new();
    let relay = setup(&connector).start();
    let mut link = connector.stream();
    let mut stalled = open(&relay, "");
    let payload = event_of(&"s".repeat(20_000), 1);
    (0..1000).for_each(|_| link.event(&payload));
    relay.wait_for_metric(
        "autoplay_relay_upstream_events_total",
        &[("product_id", PRODUCT), ("type", "actions")],
        1000.0,
    );
    let kicked_at = Instant::now();
    let path = format!("{LIST}/{}", list(&relay, "")["subscribers"][0]["id"].as_str().unwrap());
    assert_eq!(ask(&relay, "DELETE", &path).status(), 204);
    let labels = [("transport", "sse"), ("reason", "kicked")];
    relay.wait_for_metric("autoplay_relay_subscriber_disconnects_total", &labels, 1.0);
    wait::assert_within(Duration::from_secs(1), kicked_at);
    assert_eq!(list(&relay, "")["subscribers"], serde_json::json!([]));
    assert_eq!(stalled.rest().1, Ending::BrokenOff);
}

#[test]
fn subscribers_and_operator_streams_require_the_admin_key() {
    let relay = setup(&Connector::new()).start();
    for (method, path) in
        [("GET", LIST), ("DELETE", "/api/v1/subscribers/1"), ("GET", OPERATOR_STREAM)]
    {
        http::ask(relay.admin, method, path, &[]).problem(401);
        http::ask(relay.admin, method, path, &[("Authorization", "Bearer key-of-all")])
            .problem(401);
    }
    relay.get(LIST, &[]).problem(404);
    let open = Setup::behind(&Connector::new()).start();
    http::get(open.admin, OPERATOR_STREAM, &[("Origin", "https://evil.test")]).problem(403);
}

#[test]
fn an_operator_stream_shows_events_and_is_no_subscriber() {
    let connector = Connector::new();
    let relay =
        setup(&connector).server("max_subscribers = 1\nheartbeat_interval = '500ms'").start();
    let mut link = connector.stream();
    let mut connected = open(&relay, "");
    let mut operator = open_operator_stream(&relay, "");
    let mut narrow = open_operator_stream(&relay, "?session_id=b");
    link.event(event_of("a", 1));
    link.event(event_of("b", 2));
    let frames = [connected.event(), connected.event()];
    assert_eq!([operator.event(), operator.event()], frames);
    assert_eq!(narrow.event(), frames[1]);
    let mut again = open_operator_stream(&relay, &format!("?last_event_id={}", frames[0].id()));
    assert_eq!(again.event(), frames[1]);
    assert_eq!(
        operator.frame().event.as_deref(),
        Some("heartbeat"),
        "it has heartbeats of its own"
    );
    assert_eq!(list(&relay, "")["subscribers"].as_array().unwrap().len(), 1);
    let metric =
        |name: &str| relay.metrics().value(name, &[("product_id", PRODUCT), ("transport", "sse")]);
    assert_eq!(metric("autoplay_relay_subscribers"), Some(1.0));
    assert_eq!(metric("autoplay_relay_delivered_events_total"), Some(2.0));
    drop([operator, narrow, again]);
    ask(&relay, "GET", "/api/v1/stream/prod_nothing").problem(404);
    ask(&relay, "GET", &format!("{OPERATOR_STREAM}?type=")).problem(400);
    http::get(relay.admin, OPERATOR_STREAM, &[KEY, ("Accept", "text/html")]).problem(406);
    assert_eq!(ask(&relay, "HEAD", OPERATOR_STREAM).status(), 200);
    assert_eq!(ask(&relay, "POST", OPERATOR_STREAM).field("allow"), Some("GET, HEAD"));
    assert_eq!(metric("autoplay_relay_subscribers"), Some(1.0));
}

#[test]
fn an_operator_stream_does_not_delay_shutdown() {
    let connector = Connector::new();
    let mut relay = setup(&connector).server("drain_window = '10s'").start();
    let _link = connector.stream();
    let mut operator = open_operator_stream(&relay, "");
    let began = Instant::now();
    relay.process.signal("TERM");
    assert_eq!(operator.rest().1, Ending::Proper);
    assert_eq!(relay.process.exit_code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

#[test]
fn the_number_of_operator_streams_is_bounded() {
    let relay = setup(&Connector::new()).start();
    let mut operators: Vec<_> = (0..64).map(|_| open_operator_stream(&relay, "")).collect();
    let mut wire = Wire::connect(relay.admin);
    wire.send(http::request(relay.admin, "GET", OPERATOR_STREAM, &[KEY]));
    assert_eq!(wire.head().status(), 503);
    operators.pop();
    wait::until("an operator stream is free again", || {
        http::status(relay.admin, OPERATOR_STREAM, &[KEY]) == 200
    });
}

fn setup(connector: &Connector) -> Setup {
    Setup::behind(connector).auth(&format!("admin_key = 'key-of-admin'\n{KEYS}"))
}

fn open(relay: &Relay, query: &str) -> Subscriber {
    Subscriber::open(
        relay.public,
        &format!("{STREAM}{query}"),
        &[("Authorization", "Bearer key-of-agent-a")],
    )
}

fn open_operator_stream(relay: &Relay, query: &str) -> Subscriber {
    Subscriber::open(relay.admin, &format!("{OPERATOR_STREAM}{query}"), &[KEY])
}

fn ask(relay: &Relay, method: &str, path: &str) -> Answer {
    http::ask(relay.admin, method, path, &[KEY])
}

fn list(relay: &Relay, query: &str) -> Value {
    ask(relay, "GET", &format!("{LIST}{query}")).json()
}

fn number(subscriber: &Value) -> u64 {
    subscriber["id"].as_str().unwrap().parse().unwrap()
}

const LIST: &str = "/api/v1/subscribers";

const OPERATOR_STREAM: &str = "/api/v1/stream/prod_abc";

const KEY: (&str, &str) = ("X-Admin-Key", "key-of-admin");
