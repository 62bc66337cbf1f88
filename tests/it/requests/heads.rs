//! The head of a request: its host and its maximum length.

use std::{io::Write, net::SocketAddr};

use crate::common::{
    PRODUCT, SOCKET, STREAM,
    connector::Connector,
    events::event_of,
    http::{self, Answer, Framing, Wire},
    page::{PAGES, publish},
    relay::{KEYS, Relay, Setup},
    websocket::{Socket, UPGRADE},
};

#[test]
fn a_request_without_one_clear_host_is_400_on_every_listener() {
    let relay = with_keys();
    let bad = [
        "",
        "Host: a\r\nHost: b\r\n",
        "Host: a\r\nHost: a\r\n",
        "Host:\r\n",
        "Host: a b\r\n",
        "Host: http://a/\r\n",
        "Host: user@a\r\n",
        "Host: a:port\r\n",
        "Host: [::1\r\n",
        "Host: a, b\r\n",
    ];
    for (to, path) in [
        (relay.public, STREAM),
        (relay.public, "/nothing"),
        (relay.admin, "/api/v1/status"),
        (relay.admin, "/healthz"),
        (relay.probe.unwrap(), "/healthz"),
        (relay.probe.unwrap(), "/nothing"),
    ] {
        for hosts in bad {
            let request = format!("GET {path} HTTP/1.1\r\n{hosts}{AUTHORIZATION}\r\n");
            raw(to, &request).problem(400);
        }
    }
}

#[test]
fn a_bad_host_is_400_where_no_credential_is_demanded_and_before_the_body_and_the_upgrade() {
    let relay = Setup::new().upstream(PRODUCT, NO_CONNECTOR, "").start();
    let two = "Host: localhost\r\nHost: evil.test\r\n";
    raw(relay.public, &format!("GET {PAGES} HTTP/1.1\r\n{two}\r\n")).problem(400);
    raw(relay.admin, &format!("GET /metrics HTTP/1.1\r\n{two}\r\n")).problem(400);
    let post = format!("POST {PAGES} HTTP/1.1\r\n{two}Content-Length: 100\r\n\r\n");
    raw(relay.public, &post).problem(400);
    let mut upgrade = format!("GET {SOCKET} HTTP/1.1\r\n{two}");
    for (name, value) in UPGRADE {
        upgrade += &format!("{name}: {value}\r\n");
    }
    raw(relay.public, &(upgrade + "\r\n")).problem(400);
    // The authority of a target does not replace it.
    let absolute = format!("GET http://localhost{PAGES} HTTP/1.1\r\n\r\n");
    raw(relay.public, &absolute).problem(400);
}

#[test]
fn one_host_of_any_right_form_is_served() {
    let relay = with_keys();
    for host in ["relay.test", "RELAY.test:8080", "127.0.0.1:1", "[::1]:8080", "a_b", "relay."] {
        let fields = [("Host", host), ("Authorization", "Bearer key-of-agent-a")];
        assert_eq!(http::get(relay.public, PAGES, &fields).status(), 200, "{host}");
        assert_eq!(http::get(relay.probe.unwrap(), "/healthz", &fields).status(), 200, "{host}");
    }
    let old = format!("GET {PAGES} HTTP/1.0\r\n{AUTHORIZATION}\r\n");
    assert_eq!(raw(relay.public, &old).status(), 200, "HTTP/1.0 knows no Host");
}

#[test]
fn a_thousand_uuids_fit_into_a_filter() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let uuid = |n: usize| format!("00000000-0000-4000-8000-{n:012}");
    let query = (0..1000).map(|n| format!("session_id={}&", uuid(n))).collect::<String>();
    assert!(query.len() > 45_000);
    let mut stream = relay.subscribe_to(&format!("{STREAM}?{query}"));
    let mut socket = Socket::open(relay.public, &format!("{SOCKET}?{query}"), &[]);
    let texts = [event_of("other", 0), event_of(&uuid(999), 1)];
    let frames = publish(&relay, &mut link, texts);
    assert_eq!((stream.numbers(1), socket.numbers(1)), (vec![1], vec![1]));
    let page = relay.get(&format!("{PAGES}?{query}"), &[]);
    assert_eq!((page.status(), page.json()["events"].as_array().unwrap().len()), (200, 1));
    assert_eq!(frames.len(), 2);
}

#[test]
fn a_target_over_60_kib_is_414_with_an_alternative() {
    let relay = Setup::new().upstream(PRODUCT, NO_CONNECTOR, "").start();
    let of = |bytes: usize| format!("{PAGES}?_={}", "x".repeat(bytes - PAGES.len() - 3));
    assert_eq!(relay.get(&of(60 * 1024), &[]).status(), 200);
    for bytes in [60 * 1024 + 1, 65_534, 65_535, 70_000, 100_000] {
        let request = http::request(relay.public, "GET", &of(bytes), &[]);
        let detail = raw(relay.public, &request).problem(414).json()["detail"].to_string();
        assert!(detail.contains("subscribe"), "{bytes}: {detail}");
    }
}

#[test]
fn a_head_over_its_bound_and_a_malformed_head_get_a_problem() {
    let relay = Setup::new().upstream(PRODUCT, NO_CONNECTOR, "").start();
    let to = relay.public;
    let with = |lines: &str| format!("GET {PAGES} HTTP/1.1\r\nHost: {to}\r\n{lines}\r\n");
    for long in [17_000, 79_000, 90_000] {
        raw(to, &with(&format!("X: {}\r\n", "x".repeat(long)))).problem(431);
    }
    raw(to, &with(&"X-A: b\r\n".repeat(101))).problem(431);
    raw(to, &with("X y: z\r\n")).problem(400);
    raw(relay.admin, "GET\r\n\r\n").problem(400);
    assert_eq!(raw(to, &with(&"X-A: b\r\n".repeat(90))).status(), 200);
}

#[test]
fn an_erasure_takes_its_sessions_from_a_json_body() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    publish(&relay, &mut link, (0..9).map(|n| event_of(&format!("s{}", n % 3), n)));
    let erase = |query: &str, body: &str| {
        http::ask_with(
            relay.admin,
            "DELETE",
            &format!("/api/v1/events/{PRODUCT}{query}"),
            &[],
            body,
        )
    };
    erase("?session_id=s0", r#"{"session_ids":["s1"]}"#).problem(400);
    erase("", "{}").problem(400);
    erase("", r#"{"session_ids":["s0"],"sessions":["s1"]}"#).problem(422);
    erase("", r#"{"session_ids":"s0"}"#).problem(422);
    let answer = erase("", r#"{"session_ids":["s0","s1","s0","s9"]}"#);
    assert_eq!((answer.status(), answer.json()["erased"].as_u64()), (200, Some(6)));
    let left = crate::common::page::Page::get(&relay, "").numbers();
    assert_eq!(left, [2, 5, 8]);
}

/// Sends these bytes and reads the whole answer, even if the relay stops reading.
fn raw(to: SocketAddr, request: &str) -> Answer {
    let mut wire = Wire::connect(to);
    let _ = wire.socket.write_all(request.as_bytes()); // it need not take all of it
    let head = wire.head();
    let body = match head.framing() {
        Framing::Length(length) => wire.body(length),
        _ => wire.rest(),
    };
    Answer { head, body }
}

fn with_keys() -> Relay {
    let setup = Setup::new().upstream(PRODUCT, NO_CONNECTOR, "").auth(KEYS);
    setup.server("probe_listen = '127.0.0.1:0'").start()
}

const AUTHORIZATION: &str = "Authorization: Bearer key-of-agent-a\r\n";

/// URL of a port without a listener.
const NO_CONNECTOR: &str = "http://127.0.0.1:1/stream/prod_abc";
