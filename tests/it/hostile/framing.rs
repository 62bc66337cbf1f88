//! Bodies of HTTP/1.1 whose end is not clear, or lies beyond the limit (RFC 9112, sections 6 and
//! 7.1).

use std::{io::Write, net::SocketAddr};

use crate::common::{
    PRODUCT,
    events::event,
    http::{self, Answer, Framing, Wire},
    page::PAGES,
    relay::{Relay, Setup},
};

#[test]
fn a_body_without_one_clear_end_is_400_and_closes_the_connection_on_every_route() {
    let relay = relay();
    let fields = [
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked, gzip",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: ",
        "Transfer-Encoding: chunked;q=1",
        "Transfer-Encoding: chunked\r\nContent-Length: 20",
        "Content-Length: 20\r\nTransfer-Encoding: chunked",
        "Content-Length: 20\r\nContent-Length: 21",
        "Content-Length: 20, 20",
    ];
    for (to, method, path) in routes(&relay) {
        for field in fields {
            let head = format!("{method} {path} HTTP/1.1\r\nHost: {to}\r\n{field}\r\n\r\n");
            let body = format!("{:x}\r\n{BODY}\r\n0\r\n\r\n", BODY.len());
            assert_closing_problem(to, &format!("{head}{body}"), 400);
        }
    }
    let old = "POST /events/prod_abc HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    assert_closing_problem(relay.public, old, 400);
}

#[test]
fn malformed_chunks_are_400_and_close_the_connection_on_every_route_with_a_body() {
    let relay = relay();
    let bodies = [
        "x\r\n",
        "\r\n",
        "-1\r\n",
        "+1\r\n",
        "0x1\r\n",
        "1 1\r\n{\r\n",
        "1;a\nb\r\n{\r\n",
        "1\n{\r\n",
        "1\r{\r\n",
        "1\r\n{}\r\n0\r\n\r\n",
        "2\r\n{}0\r\n\r\n",
        "2\r\n{}\n0\r\n\r\n",
    ];
    for (to, method, path) in routes_with_a_body(&relay) {
        for body in bodies {
            assert_closing_problem(to, &format!("{}{body}", chunked(to, method, &path)), 400);
        }
    }
}

/// The body never comes, so an answer shows that the relay does not wait for it.
#[test]
fn a_chunk_beyond_the_limit_is_413_before_it_has_come() {
    let relay = relay();
    for (to, method, path) in routes_with_a_body(&relay) {
        for sizes in [
            "ffffffffffffffff\r\n",
            "7fffffffffffffff\r\n",
            "10000000000000000\r\n",
            "fffffffffffffffffffffffffffffffff;x=y\r\n",
            "0000000000010001\r\n",
            "2\r\n{}\r\nffff\r\n",
        ] {
            assert_closing_problem(to, &format!("{}{sizes}", chunked(to, method, &path)), 413);
        }
    }
    // In pieces, with the first chunk whole before the second is announced.
    let mut wire = Wire::connect(relay.public);
    wire.send(chunked(relay.public, "POST", PAGES));
    for piece in ["1", "\r\n", "{", "\r\n", "ffff", "ffff", "\r", "\n"] {
        wire.send(piece);
    }
    assert_eq!(wire.head().status(), 413);
}

#[test]
fn chunks_of_every_right_form_are_accepted_and_the_connection_goes_on() {
    let relay = relay();
    let (head, size) = (chunked(relay.public, "POST", PAGES), BODY.len());
    let (first, rest) = BODY.split_at(5);
    let mut wire = Wire::connect(relay.public);
    let bodies = [
        format!("{size:x}\r\n{BODY}\r\n0\r\n\r\n"),
        format!("{size:020X} \r\n{BODY}\r\n000\r\n\r\n"),
        format!("5;a=\"b\"\r\n{first}\r\n{:x};c\r\n{rest}\r\n0;d\r\nX: y\r\n\r\n", rest.len()),
    ];
    for body in &bodies {
        wire.send(format!("{head}{body}"));
        assert_eq!(answer(&mut wire).status(), 202, "{body:?}");
    }
    // Together, the second with a body close to the limit: its size is its own alone.
    let large = format!("{}{}", event(1), " ".repeat(65_500 - event(1).len()));
    wire.send(format!("{head}{}{head}{:x}\r\n{large}\r\n0\r\n\r\n", bodies[0], large.len()));
    assert_eq!([answer(&mut wire).status(), answer(&mut wire).status()], [202, 202]);
    let delete = chunked(relay.admin, "DELETE", &format!("/api/v1/events/{PRODUCT}"));
    let mut wire = Wire::connect(relay.admin);
    wire.send(format!("{delete}16\r\n{{\"session_ids\":[\"s1\"]}}\r\n0\r\n\r\n"));
    assert_eq!(answer(&mut wire).status(), 200);
}

/// Sends a request, and checks that the relay answers with a problem of this status and closes the
/// connection, without another answer.
fn assert_closing_problem(to: SocketAddr, request: &str, status: u16) {
    let mut wire = Wire::connect(to);
    let _ = wire.socket().write_all(request.as_bytes()); // the relay may close early
    let answer = answer(&mut wire);
    assert_eq!(answer.status(), status, "{request:?}: {answer:?}");
    assert_eq!(answer.field("connection"), Some("close"), "{request:?}");
    answer.problem(status);
    assert_eq!(String::from_utf8_lossy(&wire.rest()), "", "{request:?}");
}

fn answer(wire: &mut Wire) -> Answer {
    let head = wire.head();
    let Framing::Length(length) = head.framing() else { panic!("{head:?}") };
    Answer { body: wire.body(length), head }
}

fn chunked(to: SocketAddr, method: &str, path: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: {to}\r\nTransfer-Encoding: chunked\r\n\r\n")
}

fn routes_with_a_body(relay: &Relay) -> Vec<(SocketAddr, &'static str, String)> {
    let admin = |method, path: &str| (relay.admin, method, path.to_owned());
    vec![
        (relay.public, "POST", PAGES.to_owned()),
        admin("POST", "/api/v1/webhooks"),
        admin("PUT", "/api/v1/webhooks/w"),
        admin("POST", "/api/v1/webhooks/w/redeliver"),
        admin("POST", "/products"),
        admin("DELETE", &format!("/api/v1/events/{PRODUCT}")),
    ]
}

fn routes(relay: &Relay) -> Vec<(SocketAddr, &'static str, String)> {
    let mut routes = routes_with_a_body(relay);
    for (to, path) in [
        (relay.public, PAGES),
        (relay.public, "/nothing"),
        (relay.admin, "/healthz"),
        (relay.admin, "/nothing"),
        (relay.probe.unwrap(), "/readyz"),
    ] {
        routes.push((to, "GET", path.to_owned()));
    }
    routes
}

/// Starts a relay with a webhook whose limits on bodies are 64 KiB on all routes.
fn relay() -> Relay {
    let relay = Setup::new()
        .upstream(PRODUCT, "http://127.0.0.1:1/", "")
        .server("probe_listen = '127.0.0.1:0'\nmax_publish_bytes = '64KiB'")
        .auth("allow_anonymous = true\nanonymous_permissions = ['subscribe', 'publish']")
        .start();
    let webhook = r#"{"id":"w","product_id":"prod_abc","url":"https://a.test/","secret":"hush"}"#;
    let made = http::ask_with(relay.admin, "POST", "/api/v1/webhooks", &[], webhook);
    assert_eq!(made.status(), 201, "{made:?}");
    relay
}

const BODY: &str = r#"{"type":"actions"}"#;
