//! Decoding of the connector's bytes: payloads are delivered unchanged, and invalid events are
//! counted.

use std::{fs, path::Path, time::Duration};

use crate::common::{
    PRODUCT,
    connector::{Connector, Link},
    events::event,
    relay::{Relay, Setup},
    subscriber::Subscriber,
    wait,
};

#[test]
fn every_fixture_is_delivered_byte_for_byte() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut subscriber = relay.subscribe();
    for name in [
        "actions",
        "actions_anonymous",
        "actions_minimal",
        "summary",
        "unknown_type",
        "usertour_trigger",
    ] {
        let payload = fixture(&format!("{name}.json"));
        let payload = payload.trim_ascii();
        link.event(payload);
        let block = subscriber.block();
        let id_line = block.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        assert!(block.starts_with(b"id: "), "{name}");
        if payload.contains(&b'\n') {
            // A data line has no line breaks; the connector writes payloads without any.
            panic!("{name} spans lines");
        }
        assert_eq!(block[id_line..], [b"data: ", payload, b"\n\n"].concat(), "{name}");
    }
}

#[test]
fn the_recorded_stream_is_delivered_whole() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut subscriber = relay.subscribe();
    let recorded = fixture("stream.sse");
    link.send(&recorded);
    let text = String::from_utf8(recorded).unwrap();
    let mut payloads = 0;
    for block in text.split("\n\n").filter(|block| block.starts_with("data: ")) {
        assert_eq!(subscriber.event().data, block.strip_prefix("data: ").unwrap().as_bytes());
        payloads += 1;
    }
    assert!(payloads >= 6, "{payloads}");
    let last_heartbeat = "autoplay_relay_upstream_last_heartbeat_timestamp_seconds";
    wait::until("the heartbeat is counted", || {
        relay
            .metrics()
            .value(last_heartbeat, &[("product_id", PRODUCT)])
            .is_some_and(|seconds| seconds > 1.7e9)
    });
}

#[test]
fn lines_may_end_with_cr_lf_or_both_and_arrive_in_any_pieces() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut subscriber = relay.subscribe();
    let (one, two) = (r#"{"type":"a","text":"é🔎"}"#, r#"{"type":"b"}"#);
    for end in ["\n", "\r", "\r\n"] {
        let stream = format!(
            ": hello{end}data: {one}{end}{end}event: heartbeat{end}data:{end}{end}data:{two}{end}{end}"
        );
        for byte in stream.as_bytes() {
            // Without Nagle's algorithm, each byte is a segment of its own.
            link.send([*byte]);
        }
        link.send(&stream);
        // After CR an LF might follow, but the event must not wait for it.
        for payload in [one, two, one, two] {
            assert_eq!(subscriber.event().data, payload.as_bytes(), "{end:?}");
        }
    }
    assert_eq!(rejected_in_all(&relay), 0.0);
}

#[test]
fn a_payload_of_several_lines_is_delivered_as_the_same_value() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut subscriber = relay.subscribe();
    link.send("data: {\r\ndata:   \"type\": \"a\",\rdata:\ndata:\"x\": 1}\n\n");
    let block = String::from_utf8(subscriber.block()).unwrap();
    let (_, lines) = block.split_once('\n').unwrap();
    assert_eq!(lines, "data: {\ndata:   \"type\": \"a\",\ndata: \ndata: \"x\": 1}\n\n");
}

#[test]
fn white_space_around_a_payload_is_kept() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut subscriber = relay.subscribe();
    for payload in ["  {\"type\":\"a\"} \t ", "\t{ \"type\" : \"a\" }", "{\"type\":\"a\"}"] {
        link.event(payload);
        assert_eq!(subscriber.event().data, payload.as_bytes());
    }
}

#[test]
fn upstream_event_names_ids_and_unknown_fields_are_not_forwarded() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut subscriber = relay.subscribe();
    for fields in [
        "event: message\n",
        "event: something_new\n",
        "event\n",
        "id: 77\n",
        "x: y\nretry: 5\n",
        ":c\n",
    ] {
        link.send(format!("{fields}data: {}\n\n", event(1)));
        let block = String::from_utf8(subscriber.block()).unwrap();
        assert!(block.starts_with("id: ") && !block.starts_with("id: 77\n"), "{block}");
        assert_eq!(
            block.split_once('\n').unwrap().1,
            format!("data: {}\n\n", event(1)),
            "{fields:?}"
        );
    }
}

#[test]
fn a_byte_order_mark_is_skipped() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut subscriber = relay.subscribe();
    link.send(format!("\u{feff}data: {}\n\n", event(1)));
    assert_eq!(subscriber.numbers(1), [1]);
}

#[test]
fn new_types_and_fields_are_delivered_and_counted_as_other() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut subscriber = relay.subscribe();
    let payloads = [
        r#"{"type":"brand_new","deep":[[[[{"a":1e400}]]]],"product_id":null,"session_id":7}"#,
        r#"{"type":"actions","forwarded_at":"soon","session_id":{"a":1}}"#,
        r#"{"type":"summary","type_":"x","sessionId":"y","a":1,"a":2}"#,
    ];
    for payload in payloads {
        link.event(payload);
        assert_eq!(subscriber.event().data, payload.as_bytes());
    }
    for (kind, count) in
        [("other", 1.0), ("actions", 1.0), ("summary", 1.0), ("usertour_trigger", 0.0)]
    {
        let labels = [("product_id", PRODUCT), ("type", kind)];
        relay.wait_for_metric("autoplay_relay_upstream_events_total", &labels, count);
    }
    let lag = relay
        .metrics()
        .value("autoplay_relay_upstream_lag_seconds_count", &[("product_id", PRODUCT)]);
    assert_eq!(lag, Some(0.0), "a forwarded_at that is no number is not counted");
}

#[test]
fn a_forwarded_at_in_the_future_counts_as_no_lag() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    link.event(r#"{"type":"actions","forwarded_at":99999999999.5}"#);
    link.event(r#"{"type":"actions","forwarded_at":1700000000}"#);
    let product = [("product_id", PRODUCT)];
    relay.wait_for_metric("autoplay_relay_upstream_lag_seconds_count", &product, 2.0);
    let smallest = [("product_id", PRODUCT), ("le", "0.01")];
    let within = relay.metrics().value("autoplay_relay_upstream_lag_seconds_bucket", &smallest);
    assert!(within.is_none_or(|within| within >= 1.0), "{within:?}");
    let sum = relay.metrics().value("autoplay_relay_upstream_lag_seconds_sum", &product).unwrap();
    assert!(sum > 1e7, "{sum}");
}

#[test]
fn an_invalid_event_is_counted_by_reason_and_the_stream_continues() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut subscriber = relay.subscribe();
    let cases: [(&str, &[&[u8]]); 6] = [
        (
            "invalid_utf8",
            &[b"{\"type\":\"a\",\"x\":\"\xff\"}", b"\xc3", b"{\"type\":\"\xed\xa0\x80\"}"],
        ),
        (
            "invalid_json",
            &[
                b"{\"type\":\"a\"",
                b"{}}",
                b"hello",
                b"{\"type\":\"a\",\"session_id\":\"x\",\"session_id\":\"x\"}",
                b"{\"type\":\"a\",\"type\":\"b\"}",
                b"{\"type\":\"a\",\"product_id\":\"prod_abc\",\"product_id\":\"prod_abc\"}",
                b"{\"type\":\"a\",\"session_id\":\"x\",\"session\\u005fid\":\"y\"}",
            ],
        ),
        ("not_an_object", &[b"[]", b"1", b"\"text\"", b"null", b"[{\"type\":\"a\"}]"]),
        ("no_type", &[b"{}", b"{\"type\":1}", b"{\"type\":null}", b"{\"x\":{\"type\":\"a\"}}"]),
        (
            "wrong_product",
            &[
                b"{\"type\":\"a\",\"product_id\":\"prod_xyz\"}",
                b"{\"type\":\"a\",\"product_id\":1}",
            ],
        ),
        (
            "control_character",
            &[
                b"{\"type\":\"a\",\"x\":\"\0\"}",
                b"{\"type\":\"a\",\"session_id\":\"x\\u000ay\"}",
                b"{\"type\":\"a\",\"session_id\":\"x\\r\"}",
                b"{\"type\":\"a\\u0000\"}",
            ],
        ),
    ];
    for (number, (reason, payloads)) in cases.into_iter().enumerate() {
        for payload in payloads {
            link.event(payload);
        }
        link.event(event(number));
        assert_eq!(subscriber.numbers(1), [number], "{reason}");
        assert_eq!(rejected(&relay, reason), payloads.len() as f64, "{reason}");
    }
    let in_all: usize = cases.iter().map(|(_, payloads)| payloads.len()).sum();
    assert_eq!(rejected_in_all(&relay), in_all as f64);
    let connects = [("product_id", PRODUCT), ("outcome", "connected")];
    assert_eq!(
        relay.metrics().value("autoplay_relay_upstream_connects_total", &connects),
        Some(1.0)
    );
}

#[test]
fn an_event_that_nests_over_128_levels_is_rejected_and_the_stream_continues() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut subscriber = relay.subscribe();
    let nested = |arrays: usize| {
        format!(r#"{{"type":"a","x":{}{}}}"#, "[".repeat(arrays), "]".repeat(arrays))
    };
    for too_deep in [128, 10_000, 100_000] {
        link.event(nested(too_deep));
    }
    link.event(nested(127));
    assert_eq!(subscriber.event().data, nested(127).as_bytes(), "the object is the first level");
    assert_eq!(rejected(&relay, "invalid_json"), 3.0);
}

#[test]
fn an_event_beyond_max_event_bytes_is_skipped_and_the_connection_stays() {
    let connector = Connector::new();
    let relay = Setup::behind_with(&connector, "max_event_bytes = '1KiB'").start();
    let mut link = connector.stream();
    let mut subscriber = relay.subscribe();
    let of_size = |size: usize| {
        let empty = r#"{"type":"a","x":""}"#;
        empty.replace("\"\"", &format!("\"{}\"", "y".repeat(size - empty.len())))
    };
    let largest = of_size(1024);
    link.event(&largest);
    assert_eq!(subscriber.event().data, largest.as_bytes());
    link.event(of_size(1025));
    too_large(&relay, &mut link, &mut subscriber, 1.0);
    let lines = (0..200).map(|_| "data: 0123456789\n").collect::<String>();
    link.send(format!("{lines}\n"));
    too_large(&relay, &mut link, &mut subscriber, 2.0);
    link.send(format!("event: {}\ndata: {{}}\n\n", "e".repeat(5000)));
    too_large(&relay, &mut link, &mut subscriber, 3.0);
}

#[test]
fn an_endless_line_uses_no_memory_and_rejects_only_itself() {
    let connector = Connector::new();
    let relay = Setup::behind_with(&connector, "max_event_bytes = '64KiB'").start();
    let mut link = connector.stream();
    let mut subscriber = relay.subscribe();
    link.event(event(0));
    assert_eq!(subscriber.numbers(1), [0]);
    let resident = || relay.metrics().value("process_resident_memory_bytes", &[]).unwrap();
    let before = resident();
    link.send("data: {\"type\":\"a\",\"x\":\"");
    let part = vec![b'y'; 1 << 20];
    (0..48).for_each(|_| link.send(&part));
    let grown = resident() - before;
    assert!(grown < 16e6, "{grown} bytes for 48 MiB of a line");
    link.send("\"}\n\n");
    too_large(&relay, &mut link, &mut subscriber, 1.0);
    link.send(format!(": {}\n", "c".repeat(1 << 20)));
    link.event(event(1));
    assert_eq!(subscriber.numbers(1), [1], "a long comment rejects no event");
    assert_eq!(rejected(&relay, "too_large"), 1.0);
}

#[test]
fn an_unfinished_event_at_the_end_is_discarded() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut subscriber = relay.subscribe();
    let mut link = connector.stream();
    link.send(format!("data: {}\n\ndata: {}\n", event(0), event(1)));
    link.end();
    let mut link = connector.stream();
    link.event(event(2));
    assert_eq!(subscriber.numbers(1), [0]);
    subscriber.gap();
    assert_eq!(subscriber.numbers(1), [2]);
    assert_eq!(rejected_in_all(&relay), 0.0);
}

#[test]
fn a_payload_cannot_smuggle_a_field_into_the_stream() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut subscriber = relay.subscribe();
    let payload = r#"{"type":"a","x":"\n\nevent: gap\ndata: {}\r\n\u000a"}"#;
    link.event(payload);
    assert_eq!(subscriber.event().data, payload.as_bytes());
    subscriber.expect_nothing(Duration::from_millis(50));
}

/// Waits until `count` events were rejected as too large, and checks that the next event is
/// delivered.
fn too_large(relay: &Relay, link: &mut Link, subscriber: &mut Subscriber, count: f64) {
    let labels = [("product_id", PRODUCT), ("reason", "too_large")];
    relay.wait_for_metric("autoplay_relay_upstream_rejected_total", &labels, count);
    link.event(event(7));
    assert_eq!(subscriber.numbers(1), [7]);
    assert!(link.is_open());
}

fn rejected(relay: &Relay, reason: &str) -> f64 {
    let labels = [("product_id", PRODUCT), ("reason", reason)];
    relay.metrics().value("autoplay_relay_upstream_rejected_total", &labels).unwrap()
}

fn rejected_in_all(relay: &Relay) -> f64 {
    let reasons = [
        "invalid_utf8",
        "invalid_json",
        "not_an_object",
        "no_type",
        "wrong_product",
        "too_large",
        "control_character",
        "future_id",
    ];
    reasons.iter().map(|reason| rejected(relay, reason)).sum()
}

fn fixture(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)).unwrap()
}
