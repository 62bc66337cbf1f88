//! The upgrade and the frames: replies and refusals.

use super::wait_for_disconnects;
use crate::common::{
    SOCKET,
    connector::Connector,
    http::{self, Wire},
    relay::{KEYS, Setup},
    websocket::{self, BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, UPGRADE},
};

#[test]
fn pings_are_answered_and_pongs_need_no_answer() {
    let relay = Setup::behind(&Connector::new()).start();
    let mut socket = relay.socket(SOCKET);
    for payload in [&b""[..], b"1", &[7; 125]] {
        socket.send(PONG, true, b"unasked");
        socket.send(PING, true, payload);
        let pong = socket.frame();
        assert_eq!((pong.opcode, &*pong.payload), (PONG, payload));
    }
    // Pings between the fragments of a message are answered, too.
    socket.send(TEXT, false, br#"{"subscribe":"#);
    socket.send(PING, true, b"2");
    socket.send(CONTINUATION, true, b"{}}");
    assert_eq!(socket.frame().opcode, PONG);
    assert_eq!(socket.message()["event"], "subscribed");
}

#[test]
fn a_protocol_violation_is_answered_with_its_close_code() {
    let relay = Setup::behind(&Connector::new()).start();
    let kib_64 = vec![b' '; 64 * 1024];
    let cases: [(&str, u16, Vec<u8>); 8] = [
        ("binary", 1003, websocket::frame(BINARY, true, b"x")),
        ("not UTF-8", 1007, websocket::frame(TEXT, true, b"\xff")),
        ("over 64 KiB", 1009, websocket::frame(TEXT, true, &vec![b' '; 64 * 1024 + 1])),
        (
            "over 64 KiB in two",
            1009,
            [websocket::frame(TEXT, false, &kib_64), websocket::frame(CONTINUATION, true, b" ")]
                .concat(),
        ),
        (
            "far over 64 KiB in many",
            1009,
            [
                websocket::frame(TEXT, false, b""),
                websocket::frame(CONTINUATION, false, &[b' '; 1000]).repeat(100),
            ]
            .concat(),
        ),
        ("no mask", 1002, vec![0x81, 1, b'x']),
        ("a reserved bit", 1002, websocket::frame(TEXT | 0x40, true, b"x")),
        ("a continuation of nothing", 1002, websocket::frame(CONTINUATION, true, b"x")),
    ];
    for (n, (what, code, bytes)) in cases.into_iter().enumerate() {
        let mut socket = relay.socket(SOCKET);
        socket.wire.send(bytes);
        assert_eq!(socket.close_code(), code, "{what}");
        wait_for_disconnects(&relay, "error", n as f64 + 1.0);
    }
    let mut socket = relay.socket(SOCKET);
    socket.send(TEXT, true, &kib_64);
    assert_eq!(socket.message()["event"], "error", "64 KiB are read");
    socket.send(CLOSE, true, &4000_u16.to_be_bytes());
    assert_eq!(socket.close_code_unanswered(), 4000, "a close is answered");
    socket.wire.rest();
    wait_for_disconnects(&relay, "client", 1.0);
}

#[test]
fn a_page_of_another_site_is_refused_with_any_credential() {
    let auth = format!("{KEYS}\n");
    let connector = Connector::new();
    let relay = Setup::behind(&connector)
        .server("cors_allowed_origins = ['https://app.example.com']")
        .auth(&auth)
        .start();
    let own = format!("http://{}", relay.public);
    let token = ("Authorization", "Bearer key-of-agent-a");
    for origin in [&own, "https://app.example.com"] {
        let (head, _wire) = websocket::ask(relay.public, SOCKET, &[("Origin", origin), token]);
        assert_eq!(head.status(), 101, "{origin}");
    }
    for origin in [
        "https://evil.example",
        "http://app.example.com",
        "null",
        "http://127.0.0.1:1",
        "http://localhost",
        "",
    ] {
        for fields in [&[("Origin", origin), token][..], &[("Origin", origin)]] {
            let (head, _wire) = websocket::ask(relay.public, SOCKET, fields);
            assert_eq!(head.status(), 403, "{origin:?}");
            assert_eq!(head.field("content-type"), Some("application/problem+json"));
        }
    }
    let rebound = [("Host", "evil.example"), ("Origin", "http://evil.example")];
    let anonymous = Setup::behind(&connector).start();
    assert_eq!(
        websocket::ask(anonymous.public, SOCKET, &rebound).0.status(),
        403,
        "a host that is not the relay's"
    );
}

#[test]
fn an_invalid_request_is_refused_before_the_upgrade() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).auth(KEYS).start();
    let ask =
        |path: &str, fields: &[(&str, &str)]| websocket::ask(relay.public, path, fields).0.status();
    let token = [("Authorization", "Bearer key-of-agent-a")];
    assert_eq!(ask(SOCKET, &[]), 401);
    assert_eq!(ask(SOCKET, &[("Authorization", "Bearer wrong")]), 401);
    assert_eq!(ask("/ws/other", &token), 403);
    assert_eq!(ask(SOCKET, &[("Authorization", "Bearer key-of-publisher")]), 403);
    assert_eq!(ask("/ws/other", &[("Authorization", "Bearer key-of-all")]), 404);
    assert_eq!(ask(&format!("{SOCKET}?session_id="), &token), 400);
    assert_eq!(ask(&format!("{SOCKET}?type="), &token), 400);
    assert_eq!(ask(SOCKET, &token), 101);
    let plain = http::get(relay.public, SOCKET, &token).problem(426);
    assert_eq!(
        (plain.field("upgrade"), plain.field("connection")),
        (Some("websocket"), Some("upgrade"))
    );
    assert_eq!(
        http::get(relay.public, SOCKET, &[]).status(),
        401,
        "an unauthorized client gets no other reason"
    );
    for method in ["POST", "HEAD"] {
        assert_eq!(http::ask(relay.public, method, SOCKET, &token).status(), 405);
    }
    let without = |name: &str, instead: &[(&str, &str)]| {
        let fields = UPGRADE.iter().chain(&token).filter(|field| field.0 != name).chain(instead);
        http::get(relay.public, SOCKET, &fields.copied().collect::<Vec<_>>())
    };
    let other_version =
        without("Sec-WebSocket-Version", &[("Sec-WebSocket-Version", "8")]).problem(426);
    assert_eq!(other_version.field("sec-websocket-version"), Some("13"));
    for field in ["Connection", "Upgrade", "Sec-WebSocket-Version"] {
        without(field, &[]).problem(426);
    }
    let mut wire = Wire::connect(relay.public);
    let fields: Vec<_> = UPGRADE.iter().chain(&token).copied().collect();
    wire.send(http::request(relay.public, "GET", SOCKET, &fields).replace("HTTP/1.1", "HTTP/1.0"));
    let before = wire.head();
    assert_eq!((before.status(), before.field("upgrade")), (426, Some("websocket")));
    without("Sec-WebSocket-Key", &[]).problem(400);
    without("Sec-WebSocket-Key", &[("Sec-WebSocket-Key", "c2hvcnQ=")]).problem(400);
}
