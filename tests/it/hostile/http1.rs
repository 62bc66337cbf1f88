//! Hostile HTTP/1.1 and TLS clients: slow bytes, too many bytes, and requests that two readers
//! would understand differently.

use std::{
    io::Write,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use super::peers::Usage;
use crate::common::{
    STREAM,
    canaries::Canaries,
    connector::Connector,
    events::event,
    frames::{self, HEADERS},
    http::{self, Look, Wire},
    page::PAGES,
    relay::Setup,
    tls::{Authority, TlsClient},
    wait,
};

#[test]
fn slow_request_heads_are_closed_and_subscribers_are_unaffected() {
    let connector = Connector::new();
    let relay = setup(&connector).server("head_timeout = '700ms'").start();
    let mut canaries = Canaries::of(&relay, &connector);
    let to = relay.public;
    let half_an_http2_head =
        [frames::PREFACE, &frames::settings(&[]), &unfinished_head(to)].concat();
    let head = format!("GET {STREAM} HTTP/1.1\r\nHost: {to}\r\nX-Filler: {}", "x".repeat(1000));
    let beginnings: [&[u8]; 4] = [b"", head.as_bytes(), frames::PREFACE, &half_an_http2_head];
    canaries.during(&relay, || {
        thread::scope(|scope| {
            for beginning in beginnings {
                scope.spawn(move || assert_closed(drip(to, beginning, CONNECTIONS), CONNECTIONS));
            }
        });
    });
}

#[test]
fn slow_tls_handshakes_are_closed_and_other_clients_are_served() {
    let authority = Authority::new();
    authority.issue_as("relay", "IP:127.0.0.1,DNS:localhost", "-days 2");
    let setup = Setup::new().with_tls(&authority.path("relay.pem"), &authority.path("relay.key"));
    let relay = setup.server("head_timeout = '700ms'").start();
    // The beginning of a TLS record with a ClientHello of 512 bytes.
    let hello = [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xFC, 3, 3][..], &[7; 300]].concat();
    let is_served = || {
        let mut secure = TlsClient::connect(relay.public, &authority.client(&["http/1.1"]));
        secure.ask(relay.public, "/nothing", &[]).status() == 404
    };
    assert!(is_served());
    thread::scope(|scope| {
        let attack =
            scope.spawn(|| assert_closed(drip(relay.public, &hello, CONNECTIONS), CONNECTIONS));
        while !attack.is_finished() {
            assert!(is_served());
        }
    });
    assert!(is_served());
}

#[test]
fn slow_bodies_do_not_block_other_publishers() {
    let connector = Connector::new();
    let relay = setup(&connector).start();
    let mut canaries = Canaries::of(&relay, &connector);
    let to = relay.public;
    canaries.during(&relay, || {
        let head = http::request(to, "POST", PAGES, &[("Content-Length", "100")]);
        let mut slow: Vec<_> = (0..CONNECTIONS).map(|_| Wire::connect(to)).collect();
        slow.iter_mut().for_each(|wire| wire.send(&head));
        for _ in 0..20 {
            slow.iter_mut().for_each(|wire| wire.send("{"));
            assert_eq!(
                http::ask_with(to, "POST", "/events/prod_xyz", &[], ANOTHER_EVENT).status(),
                202
            );
        }
    });
}

#[test]
fn two_thousand_slow_heads_and_bodies_delay_no_subscriber_and_take_little_memory() {
    const OF_EACH: usize = 1000;
    let connector = Connector::new();
    let relay = setup(&connector).start();
    let mut canaries = Canaries::of(&relay, &connector);
    let mut usage = Usage::of(&relay);
    let to = relay.public;
    let beginnings = [
        format!("GET {STREAM} HTTP/1.1\r\nHost: {to}\r\nX-Filler: "),
        http::request(to, "POST", PAGES, &[("Content-Length", "1000")]),
    ];
    let mut slow: Vec<_> = (0..2 * OF_EACH).map(|_| Wire::connect(to)).collect();
    slow.iter_mut().enumerate().for_each(|(nth, wire)| wire.send(&beginnings[nth % 2]));
    let mut longest = Duration::ZERO;
    for _ in 0..10 {
        slow.iter_mut().for_each(|wire| wire.send("1"));
        let begin = Instant::now();
        canaries.deliver_event();
        longest = longest.max(begin.elapsed());
        usage.sample();
    }
    assert!(longest < Duration::from_secs(2), "an event took {longest:?}");
    // hyper's read buffer of each connection, and its task.
    usage.assert_bounded(2 * OF_EACH as u64 * 40, 2.0, 10);
}

#[test]
fn every_head_beyond_a_limit_is_refused() {
    let connector = Connector::new();
    let relay = setup(&connector).start();
    let mut canaries = Canaries::of(&relay, &connector);
    let to = relay.public;
    let many = "X-A: b\r\n".repeat(101);
    let heads = [
        (format!("GET {STREAM} HTTP/1.1\r\nHost: {to}\r\nX: {}\r\n\r\n", "x".repeat(16_500)), 431),
        (format!("GET {STREAM} HTTP/1.1\r\nHost: {to}\r\n{many}\r\n"), 431),
        (format!("GET {STREAM}?{} HTTP/1.1\r\nHost: {to}\r\n\r\n", "x".repeat(61_500)), 414),
        (format!("{} {STREAM} HTTP/1.1\r\nHost: {to}\r\n\r\n", "X".repeat(16_500)), 431),
        (format!("GET {STREAM} HTTP/1.1\r\nHost: {to}\r\n{}: x\r\n\r\n", "x".repeat(16_500)), 431),
    ];
    canaries.during(&relay, || {
        for (head, status) in &heads {
            let mut wire = Wire::connect(to);
            let _ = wire.socket.write_all(head.as_bytes()); // the relay may close early
            let answer = String::from_utf8(wire.rest()).unwrap();
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{}: {answer}",
                &head[..40]
            );
        }
    });
}

/// Sends two requests that some proxies take for one with a longer body: they would forward the
/// second in the name of another client.
#[test]
fn a_request_hidden_in_a_body_never_runs() {
    let connector = Connector::new();
    let relay = setup(&connector).start();
    let mut canaries = Canaries::of(&relay, &connector);
    let to = relay.public;
    let hidden =
        http::request(to, "POST", PAGES, &[("Content-Length", &HIDDEN.len().to_string())]) + HIDDEN;
    let length = hidden.len();
    let beginnings: Vec<(&str, String)> = vec![
        (
            "both, the length first",
            format!(
                "Content-Length: {}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                length + 5
            ),
        ),
        (
            "both, the length last",
            format!(
                "Transfer-Encoding: chunked\r\nContent-Length: {}\r\n\r\n0\r\n\r\n",
                length + 5
            ),
        ),
        (
            "both, another case",
            format!(
                "content-length: {}\r\ntransfer-encoding: CHUNKED\r\n\r\n0\r\n\r\n",
                length + 5
            ),
        ),
        (
            "identity, then chunked",
            "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(),
        ),
        ("chunked, then identity", "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n".into()),
        (
            "chunked on two lines",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n".into(),
        ),
        ("not quite chunked", "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n".into()),
        ("chunked behind a vertical tab", "Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n".into()),
        ("a space before the colon", "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n".into()),
        ("two lengths", format!("Content-Length: 0\r\nContent-Length: {length}\r\n\r\n")),
        ("two lengths on a line", format!("Content-Length: 0, {length}\r\n\r\n")),
        ("a length with a sign", "Content-Length: +0\r\n\r\n".into()),
        ("a length below nothing", "Content-Length: -1\r\n\r\n".into()),
        ("a length in hexadecimal", "Content-Length: 0x0\r\n\r\n".into()),
        ("a length beyond numbers", "Content-Length: 18446744073709551616\r\n\r\n".into()),
        ("a folded field", "X: y\r\n Content-Length: 5\r\n\r\n".into()),
        ("a bare CR", "X: y\rContent-Length: 5\r\n\r\n".into()),
        ("NUL", "X: y\0\r\n\r\n".into()),
        (
            "a chunk beyond numbers",
            "Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n\r\n".into(),
        ),
        ("a chunk with a sign", "Transfer-Encoding: chunked\r\n\r\n-0\r\n\r\n".into()),
        ("a chunk with a prefix", "Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n".into()),
        (
            "a chunk longer than it says",
            "Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n".into(),
        ),
        ("an extension with LF", "Transfer-Encoding: chunked\r\n\r\n0;\n\r\n\r\n".into()),
        (
            "an extension without end",
            format!("Transfer-Encoding: chunked\r\n\r\n0;{}\r\n\r\n", "x".repeat(60_000)),
        ),
        (
            "trailers without end",
            format!("Transfer-Encoding: chunked\r\n\r\n0\r\n{}\r\n", "X: y\r\n".repeat(9_000)),
        ),
    ];
    canaries.during(&relay, || {
        for path in [PAGES, "/events/prod_none", "/nothing"] {
            for (what, beginning) in &beginnings {
                let mut wire = Wire::connect(to);
                let request = format!("POST {path} HTTP/1.1\r\nHost: {to}\r\n{beginning}{hidden}");
                let _ = wire.socket.write_all(request.as_bytes()); // the relay may close early
                let answer = String::from_utf8(wire.rest()).unwrap();
                assert!(answer.matches("HTTP/1.1 ").count() <= 1, "{what}, {path}: {answer}");
                assert!(!answer.starts_with("HTTP/1.1 2"), "{what}, {path}: {answer}");
            }
        }
    });
}

/// Sends two requests with valid, unambiguous framing, both of which are answered.
#[test]
fn two_pipelined_requests_are_two_requests() {
    let connector = Connector::new();
    let relay = setup(&connector).start();
    let _link = connector.stream();
    let body = event(7);
    let post =
        http::request(relay.public, "POST", PAGES, &[("Content-Length", &body.len().to_string())])
            + &body;
    for request in [post.clone(), post.replace("\r\n", "\n")] {
        let mut wire = Wire::connect(relay.public);
        wire.send(request.repeat(2));
        for _ in 0..2 {
            let head = wire.head();
            assert_eq!(head.status(), 202);
            wire.body(head.field("content-length").unwrap().parse().unwrap());
        }
    }
}

/// Returns an HTTP/2 request head that announces more to come.
fn unfinished_head(to: SocketAddr) -> Vec<u8> {
    let mut head = frames::head(to, "GET", STREAM);
    (0..8).for_each(|n| head.extend(frames::field(&format!("x-{n}"), &"y".repeat(100))));
    frames::frame(HEADERS, 0, 1, &head)
}

/// Opens connections and sends each these bytes one by one. Returns the connections that are open
/// once all bytes are sent.
fn drip(to: SocketAddr, bytes: &[u8], count: usize) -> Vec<Wire> {
    let mut wires: Vec<_> = (0..count).map(|_| Wire::connect(to)).collect();
    let begin = Instant::now();
    for byte in bytes {
        wires.retain_mut(|wire| {
            wire.socket.write_all(&[*byte]).is_ok() && wire.look(Instant::now()) != Look::End
        });
        if wires.is_empty() {
            break;
        }
        assert!(begin.elapsed() < wait::TIMEOUT, "{} of {count} are still open", wires.len());
    }
    wires
}

/// Checks that the relay closes these connections without a further byte.
fn assert_closed(wires: Vec<Wire>, count: usize) {
    let begin = Instant::now();
    let left = wires.len();
    wires.into_iter().for_each(|mut wire| drop(wire.rest()));
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "{left} of {count} after {:?}",
        begin.elapsed()
    );
}

/// Returns the setup of a relay that lets anonymous clients publish.
fn setup(connector: &Connector) -> Setup {
    let auth = "allow_anonymous = true\nanonymous_permissions = ['subscribe', 'publish']";
    Setup::behind(connector).upstream("prod_xyz", "http://127.0.0.1:1/", "").auth(auth)
}

/// Connections of each kind.
const CONNECTIONS: usize = 30;

const HIDDEN: &str = r#"{"type":"actions","count":666}"#;

const ANOTHER_EVENT: &str = r#"{"type":"actions"}"#;
