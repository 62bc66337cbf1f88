//! The bytes that a subscriber of `GET /stream/{product_id}` receives.

use std::time::Duration;

use crate::common::{
    PRODUCT, STREAM,
    connector::Connector,
    events::{event, event_like, event_of, number},
    http,
    relay::{Relay, Setup},
    subscriber::Subscriber,
};

#[test]
fn the_head_arrives_at_once_before_any_event() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let subscriber = relay.subscribe();
    assert_eq!(subscriber.head.first_line, "HTTP/1.1 200 OK");
    let expected = [
        ("content-type", "text/event-stream"),
        ("cache-control", "no-store, no-transform"),
        ("x-accel-buffering", "no"),
        ("autoplay-relay", "resume"),
    ];
    for (name, value) in expected {
        assert_eq!(subscriber.head.field(name), Some(value), "{name}");
    }
}

#[test]
fn the_retry_line_has_no_blank_line_and_an_event_is_one_exact_frame() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut subscriber = relay.subscribe();
    let payload = r#"{"type":"summary", "product_id":"prod_abc","nested":{"ü":[1,2.50,null]} }"#;
    link.event(payload);
    let block = String::from_utf8(subscriber.block()).unwrap();
    let rest = block.strip_prefix("id: ").unwrap();
    let (id, rest) = rest.split_once('\n').unwrap();
    assert!(!id.is_empty() && id.len() <= 128 && id.is_ascii(), "{id}");
    assert_eq!(rest, format!("data: {payload}\n\n"));
}

#[test]
fn an_http_1_0_proxy_gets_the_same_bytes_without_chunks() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut other = relay.subscribe();
    let mut wire = http::Wire::connect(relay.public);
    wire.send(format!("GET {STREAM} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n"));
    let head = wire.head();
    assert_eq!((head.status(), head.framing()), (200, http::Framing::UntilClose));
    relay.wait_for_subscribers(2.0);
    link.event(event(1));
    let block = other.block();
    relay.process.signal("TERM");
    let body = wire.rest();
    let first_line = body.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    assert!(body.starts_with(b"retry: ") && body[first_line..].starts_with(&block), "{body:?}");
}

#[test]
fn retry_is_jittered_per_connection() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let retries: std::collections::BTreeSet<String> =
        (0..12).map(|_| relay.subscribe().retry).collect();
    assert!(retries.len() > 1, "{retries:?}");
}

#[test]
fn ids_increase_and_are_the_same_for_all_subscribers() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let (mut one, mut other) = (relay.subscribe(), relay.subscribe());
    (0..20).for_each(|n| link.event(event(n)));
    let mut last = None;
    for _ in 0..20 {
        let frame = one.event();
        assert_eq!(frame, other.event());
        let (epoch, sequence) = frame.id().split_once('-').unwrap();
        let position: (u64, u64) = (epoch.parse().unwrap(), sequence.parse().unwrap());
        assert!(last < Some(position), "{last:?} {position:?}");
        last = Some(position);
    }
}

#[test]
fn session_filters_admit_exactly_their_sessions() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut one = relay.subscribe_to("/stream/prod_abc?session_id=a");
    let mut two = relay.subscribe_to("/stream/prod_abc?session_id=a&session_id=b%20b");
    let mut prefix = relay.subscribe_to("/stream/prod_abc?session_id=A&session_id=a%20");
    let mut all = relay.subscribe();
    let null_session =
        format!(r#"{{"type":"actions","product_id":"{PRODUCT}","session_id":null,"count":2}}"#);
    let absent = format!(r#"{{"type":"actions","product_id":"{PRODUCT}","count":3}}"#);
    for payload in [
        event_of("a", 0),
        event_of("b b", 1),
        null_session,
        absent,
        event_of("c", 4),
        event_of("a", 5),
    ] {
        link.event(payload);
    }
    assert_eq!(all.numbers(6), [0, 1, 2, 3, 4, 5]);
    assert_eq!(one.numbers(2), [0, 5]);
    assert_eq!(two.numbers(3), [0, 1, 5]);
    link.event(event_of("A", 6));
    assert_eq!(prefix.numbers(1), [6], "sessions are compared as exact strings");
}

#[test]
fn type_filters_admit_exactly_their_types() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut summaries = relay.subscribe_to("/stream/prod_abc?type=summary");
    let mut two = relay.subscribe_to("/stream/prod_abc?type=actions&type=goal_reached");
    let mut of_session = relay.subscribe_to("/stream/prod_abc?type=summary&session_id=b");
    for (n, (kind, session)) in [
        ("actions", "a"),
        ("summary", "a"),
        ("goal_reached", "b"),
        ("summary", "b"),
        ("usertour_trigger", "b"),
    ]
    .into_iter()
    .enumerate()
    {
        link.event(event_like(kind, session, n));
    }
    link.event(event_like("summary", "b", 9));
    assert_eq!(summaries.numbers(3), [1, 3, 9]);
    assert_eq!(two.numbers(2), [0, 2]);
    assert_eq!(of_session.numbers(2), [3, 9]);
}

#[test]
fn an_idle_stream_gets_heartbeats() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).server("heartbeat_interval = '300ms'").start();
    let mut subscriber = relay.subscribe();
    assert_eq!(subscriber.block(), b"event: heartbeat\ndata:\n\n");
    assert_eq!(subscriber.block(), b"event: heartbeat\ndata:\n\n");
}

#[test]
fn a_heartbeat_advances_the_id_only_past_events_that_the_filter_hides() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).server("heartbeat_interval = '300ms'").start();
    let mut link = connector.stream();
    let mut filtered = relay.subscribe_to("/stream/prod_abc?session_id=mine");
    let mut all = relay.subscribe();
    link.event(event_of("mine", 0));
    assert_eq!(filtered.numbers(1), [0]);
    assert_eq!(
        filtered.block(),
        b"event: heartbeat\ndata:\n\n",
        "the client has the newest id already"
    );
    link.event(event_of("other", 1));
    assert_eq!(all.numbers(1), [0]);
    let hidden = all.event();
    let moved = loop {
        let frame = filtered.frame();
        assert_eq!(frame.event.as_deref(), Some("heartbeat"));
        if frame.id.is_some() {
            break frame;
        }
    };
    assert_eq!(moved.id(), hidden.id());
    assert_eq!(filtered.block(), b"event: heartbeat\ndata:\n\n", "the id is given once");
    link.event(event_of("mine", 2));
    let mut resumed = Subscriber::open(
        relay.public,
        "/stream/prod_abc?session_id=mine",
        &[("Last-Event-ID", moved.id())],
    );
    assert_eq!(resumed.numbers(1), [2]);
}

#[test]
fn a_heartbeat_with_an_id_begins_with_the_id_line() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).server("heartbeat_interval = '300ms'").start();
    let mut link = connector.stream();
    let mut filtered = relay.subscribe_to("/stream/prod_abc?type=none");
    let mut all = relay.subscribe();
    link.event(event(0));
    let id = all.event().id.unwrap();
    let expected = format!("id: {id}\nevent: heartbeat\ndata:\n\n");
    let block = loop {
        let block = filtered.block();
        if block.starts_with(b"id:") {
            break block;
        }
    };
    assert_eq!(String::from_utf8(block).unwrap(), expected);
}

#[test]
fn two_thousand_events_reach_twenty_subscribers_in_order() {
    const EVENTS: usize = 2000;
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut subscribers: Vec<Subscriber> = (0..20).map(|_| relay.subscribe()).collect();
    std::thread::scope(|scope| {
        let readers: Vec<_> = subscribers
            .iter_mut()
            .map(|subscriber| scope.spawn(move || subscriber.numbers(EVENTS)))
            .collect();
        let mut burst = String::new();
        for n in 0..EVENTS {
            burst += &format!("data: {}\n\n", event(n));
            if n % 50 == 49 {
                link.send(std::mem::take(&mut burst));
            }
        }
        for reader in readers {
            assert!(reader.join().unwrap().into_iter().eq(0..EVENTS));
        }
    });
    let labels = [("product_id", PRODUCT), ("transport", "sse")];
    relay.wait_for_metric("autoplay_relay_delivered_events_total", &labels, 20.0 * EVENTS as f64);
}

#[test]
fn the_last_event_id_header_overrides_the_query() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut first = relay.subscribe();
    (0..4).for_each(|n| link.event(event(n)));
    let ids: Vec<String> = (0..4).map(|_| first.event().id.unwrap()).collect();
    let path = format!("{STREAM}?last_event_id={}", ids[0]);
    let mut resumed = Subscriber::open(relay.public, &path, &[("Last-Event-ID", &ids[2])]);
    assert_eq!(resumed.numbers(1), [3]);
    let mut by_query = relay.subscribe_to(&path);
    assert_eq!(by_query.numbers(3), [1, 2, 3]);
}

#[test]
fn other_methods_get_405_with_the_allowed_method() {
    let relay = Setup::new().upstream(PRODUCT, NO_CONNECTOR, "").start();
    for method in ["POST", "PUT", "DELETE", "PATCH"] {
        let answer =
            http::ask(relay.public, method, STREAM, &[("Content-Length", "0")]).problem(405);
        assert!(
            answer.field("allow").is_some_and(|allow| allow.contains("GET")),
            "{method}: {answer:?}"
        );
    }
}

#[test]
fn unknown_paths_get_404() {
    let relay = Setup::new().upstream(PRODUCT, NO_CONNECTOR, "").start();
    for path in ["/stream/prod_xyz", "/", "/stream", "/stream/", "/stream/prod_abc/x", "/nothing"] {
        relay.get(path, &[]).problem(404);
    }
}

#[test]
fn an_accept_header_that_excludes_event_streams_gets_406() {
    let relay = Setup::new().upstream(PRODUCT, NO_CONNECTOR, "").start();
    for accept in [
        "application/json",
        "text/event-stream;q=0",
        "text/html, image/*",
        "text/event-stream; q=0.0, */*",
    ] {
        relay.get(STREAM, &[("Accept", accept)]).problem(406);
    }
    for accept in
        ["*/*", "text/event-stream", "text/*;q=0.1", "application/json, text/event-stream"]
    {
        Subscriber::open(relay.public, STREAM, &[("Accept", accept)]);
    }
}

#[test]
fn invalid_filters_get_400() {
    let relay = Setup::new().upstream(PRODUCT, NO_CONNECTOR, "").start();
    relay.get("/stream/prod_abc?session_id=", &[]).problem(400);
    relay.get("/stream/prod_abc?type=", &[]).problem(400);
    relay.get("/stream/prod_abc?session_id=a&session_id=", &[]).problem(400);
    let sessions =
        |count| (0..count).map(|n| format!("session_id={n}")).collect::<Vec<_>>().join("&");
    relay.get(&format!("{STREAM}?{}", sessions(1001)), &[]).problem(400);
    relay.get(&format!("{STREAM}?{}&type=x", sessions(1000)), &[]).problem(400);
    relay.subscribe_to(&format!("{STREAM}?{}", sessions(1000)));
}

#[test]
fn a_stream_with_an_invalid_last_event_id_opens() {
    let relay = Setup::new().upstream(PRODUCT, NO_CONNECTOR, "").start();
    let long = "9".repeat(5000);
    for id in ["", "x", "-", "1-", "-1", "1-1-1", "18446744073709551616-1", "1 1", "\u{fc}", &long]
    {
        Subscriber::open(relay.public, STREAM, &[("Last-Event-ID", id)]);
    }
    for id in ["", "%00", "%FF", "%0A%0D", "0-0", "-0"] {
        relay.subscribe_to(&format!("{STREAM}?last_event_id={id}"));
    }
}

#[test]
fn a_disconnect_by_the_client_is_counted_as_client() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let closing = relay.subscribe();
    let mut staying = relay.subscribe();
    relay.wait_for_subscribers(2.0);
    drop(closing);
    relay.wait_for_subscribers(1.0);
    let labels = [("transport", "sse"), ("reason", "client")];
    relay.wait_for_metric("autoplay_relay_subscriber_disconnects_total", &labels, 1.0);
    link.event(event(1));
    assert_eq!(number(&staying.event().data), 1);
    staying.expect_nothing(Duration::from_millis(100));
}

#[test]
fn a_stream_gets_a_proper_end_at_its_maximum_age() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).server("max_connection_age = '500ms'").start();
    let mut subscriber = relay.subscribe();
    let (rest, ending) = subscriber.rest();
    assert_eq!(ending, crate::common::subscriber::Ending::Proper);
    assert!(String::from_utf8(rest).unwrap().starts_with("retry: "));
    let labels = [("transport", "sse"), ("reason", "rotated")];
    relay.wait_for_metric("autoplay_relay_subscriber_disconnects_total", &labels, 1.0);
}

/// No process listens there.
const NO_CONNECTOR: &str = "http://127.0.0.1:1/stream/prod_abc";
