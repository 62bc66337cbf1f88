//! `GET /ws/{product_id}`: the stream over WebSocket, with a filter that can be changed.
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test states its expectations by panicking, and its helpers do as well"
)]

mod common;

use std::time::{Duration, Instant};

use common::{
    PRODUCT, SOCKET,
    connector::Connector,
    events::{event, event_like, event_of},
    http::{self, Wire},
    relay::{KEYS, Relay, Setup},
    websocket::{self, BINARY, CLOSE, CONTINUATION, PING, PONG, Socket, TEXT, UPGRADE},
};
use serde_json::{Value, json};

const DISCONNECTS: &str = "autoplay_relay_subscriber_disconnects_total";

fn wait_for_sockets(relay: &Relay, count: f64) {
    relay.wait_for_metric(
        "autoplay_relay_subscribers",
        &[("product_id", PRODUCT), ("transport", "ws")],
        count,
    );
}

fn wait_for_disconnects(relay: &Relay, reason: &str, count: f64) {
    relay.wait_for_metric(DISCONNECTS, &[("transport", "ws"), ("reason", reason)], count);
}

#[test]
fn an_event_is_a_message_with_the_upstreams_bytes() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut socket = relay.socket(SOCKET);
    let mut witness = relay.subscribe();
    let payload = format!(r#"{{ "type":"actions",  "product_id":"{PRODUCT}", "x":"é\u00e9\"" }}"#);
    link.event(&payload);
    let id = witness.event().id.unwrap();
    assert_eq!(socket.text(), format!(r#"{{"id":"{id}","event":"message","data":{payload}}}"#));
    let labels = [("product_id", PRODUCT), ("transport", "ws")];
    relay.wait_for_metric("autoplay_relay_delivered_events_total", &labels, 1.0);
    relay.wait_for_metric("autoplay_relay_delivery_lag_seconds_count", &[("transport", "ws")], 1.0);
    wait_for_sockets(&relay, 1.0);
    drop(socket);
    wait_for_sockets(&relay, 0.0);
    wait_for_disconnects(&relay, "client", 1.0);
}

#[test]
fn large_and_many_messages_come_whole_and_in_order() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut socket = relay.socket(SOCKET);
    for (n, length) in [0, 10, 100, 20_000, 70_000, 900_000].into_iter().enumerate() {
        link.event(event_of(&"x".repeat(length + 1), n));
        let message = socket.event();
        assert_eq!(
            (websocket::number(&message), message["data"]["session_id"].as_str().unwrap().len()),
            (n, length + 1)
        );
    }
    (0..2000).for_each(|n| link.event(event(n)));
    assert!(socket.numbers(2000).into_iter().eq(0..2000));
}

#[test]
fn an_id_of_one_transport_resumes_the_other() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let frames = relay.publish(&mut link, 0..6);
    let mut socket = Socket::open(relay.public, SOCKET, &[("Last-Event-ID", frames[1].id())]);
    let messages: Vec<_> = (0..4).map(|_| socket.event()).collect();
    assert!(messages.iter().map(websocket::number).eq(2..6));
    for (message, frame) in messages.iter().zip(&frames[2..]) {
        assert_eq!(message["id"], frame.id());
    }
    let mut stream = relay.resume(messages[1]["id"].as_str().unwrap());
    assert_eq!(stream.numbers(2), [4, 5]);
    let mut all = relay.socket(&format!("{SOCKET}?last_event_id=0&session_id=s1"));
    assert!(all.numbers(6).into_iter().eq(0..6));
    link.event(event(6));
    assert_eq!((all.numbers(1), socket.numbers(1), stream.numbers(1)), (vec![6], vec![6], vec![6]));
}

#[test]
fn gaps_come_in_their_place_and_an_unknown_id_is_told() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut socket = relay.socket(&format!("{SOCKET}?session_id=s1"));
    link.event(event(0));
    let id = socket.event()["id"].clone();
    drop(link);
    let mut link = relay.reconnect(&connector);
    link.event(event(1));
    let gap = socket.item();
    assert_eq!(
        (&gap["event"], &gap["data"]["reason"]),
        (&json!("gap"), &json!("upstream_reconnect"))
    );
    assert_eq!((&gap["data"]["type"], &gap["data"]["after"]), (&json!("gap"), &id));
    assert!(gap["id"].is_string());
    let next = socket.event();
    assert_eq!(websocket::number(&next), 1);
    let mut resumed =
        relay.socket(&format!("{SOCKET}?last_event_id={}", gap["id"].as_str().unwrap()));
    assert_eq!(resumed.numbers(1), [1]);
    let mut stranger = relay.socket(&format!("{SOCKET}?last_event_id=nonsense"));
    let gap = stranger.item();
    assert_eq!(
        (&gap["data"]["reason"], &gap["data"]["after"]),
        (&json!("unknown_id"), &Value::Null)
    );
    assert_eq!(stranger.numbers(1), [0]);
}

#[test]
fn a_heartbeat_comes_in_silence_and_brings_the_id_past_what_is_hidden() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).server("heartbeat_interval = '500ms'").start();
    let mut link = connector.stream();
    let mut socket = relay.socket(&format!("{SOCKET}?session_id=nobody"));
    assert_eq!(socket.text(), r#"{"event":"heartbeat"}"#);
    let frames = relay.publish(&mut link, 0..3);
    let heartbeat = loop {
        let message = socket.message();
        assert_eq!(message["event"], "heartbeat");
        if message["id"] == frames[2].id() {
            break message;
        }
    };
    assert_eq!(heartbeat.as_object().unwrap().len(), 2);
    assert_eq!(socket.text(), r#"{"event":"heartbeat"}"#, "the id is told once");
}

#[test]
fn a_new_filter_takes_over_where_the_old_one_stood() {
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
    socket.say(r#"{"subscribe":{"session_ids":["b","a","b"],"types":["summary"]}}"#);
    assert_eq!(
        socket.message(),
        json!({ "event": "subscribed", "data": { "session_ids": ["a", "b"], "types": ["summary"] } })
    );
    publish("actions", "a", 1);
    publish("summary", "c", 2);
    publish("summary", "b", 3);
    assert_eq!(socket.numbers(1), [3]);
    socket.say(r#"{"subscribe":{}}"#);
    assert_eq!(
        socket.message(),
        json!({ "event": "subscribed", "data": { "session_ids": [], "types": [] } })
    );
    publish("actions", "c", 4);
    assert_eq!(socket.numbers(1), [4]);
    for wrong in
        ["{}", "no", r#"{"subscribe":{"types":[""]}}"#, r#"{"subscribe":{"session_ids":"a"}}"#]
    {
        socket.say(wrong);
        let error = socket.message();
        assert_eq!(error["event"], "error");
        assert!(error["data"]["title"].as_str().is_some_and(|title| !title.is_empty()), "{error}");
    }
    publish("actions", "d", 5);
    assert_eq!(socket.numbers(1), [5], "the filter stays");
}

#[test]
fn a_filter_sent_right_behind_the_request_is_in_force_before_anything_is_sent() {
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
fn a_subscriber_that_is_behind_gets_nothing_of_the_old_filter_once_it_is_told_of_the_new() {
    const EVENTS: usize = 3000;
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let (old, new) = ("o".repeat(4000), "n".repeat(4000));
    let mut socket = relay.socket(&format!("{SOCKET}?session_id={old}"));
    (0..EVENTS).for_each(|n| link.event(event_of(&old, n)));
    relay.wait_for_events(EVENTS);
    socket.ask_for(&[&new], &[]);
    let mut before = 0;
    while socket.item()["event"] != "subscribed" {
        before += 1;
    }
    assert!(before < EVENTS, "it was not behind");
    link.event(event_of(&new, EVENTS));
    assert_eq!(socket.numbers(1), [EVENTS]);
}

#[test]
fn filters_that_change_under_load_neither_lose_nor_repeat_anything() {
    const EVENTS: usize = 3000;
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut socket = relay.socket(&format!("{SOCKET}?session_id=a"));
    // Each filter admits session a; so each of its events comes exactly once, whatever happens in between.
    let mut of_a = Vec::new();
    let mut last = None;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..EVENTS {
                link.event(event_of(["a", "b", "c"][n % 3], n));
                if n.is_multiple_of(100) {
                    std::thread::sleep(Duration::from_millis(40)); // the pace of the script: changes come in between
                }
            }
        });
        let filters = [&["a", "b"][..], &[], &["a"], &["c", "a"]];
        let mut changes = filters.iter().cycle();
        let (mut is_asked, mut answers) = (false, 0);
        while of_a.len() < EVENTS / 3 {
            if !is_asked {
                socket.ask_for(changes.next().unwrap(), &[]);
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
fn a_client_that_floods_gets_ten_answers_a_second_and_disturbs_nobody() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let (mut socket, mut other) = (relay.socket(SOCKET), relay.socket(SOCKET));
    let begin = Instant::now();
    (0..20).for_each(|_| socket.ask_for(&[], &["actions"]));
    link.event(event(0));
    assert_eq!(other.numbers(1), [0]);
    let mut answers = 0;
    while answers < 20 {
        answers += usize::from(socket.item()["event"] == "subscribed");
    }
    assert!(begin.elapsed() > Duration::from_millis(1500), "{:?}", begin.elapsed());
}

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
    // Between the fragments of a message, too.
    socket.send(TEXT, false, br#"{"subscribe":"#);
    socket.send(PING, true, b"2");
    socket.send(CONTINUATION, true, b"{}}");
    assert_eq!(socket.frame().opcode, PONG);
    assert_eq!(socket.message()["event"], "subscribed");
}

#[test]
fn who_breaks_the_protocol_is_told_how() {
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
fn a_page_of_another_site_is_refused_whatever_it_shows() {
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
fn what_is_wrong_is_said_before_the_upgrade() {
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
        "whoever may not is told no more"
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

#[test]
fn limits_hold_for_all_transports_together() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).server("max_subscribers = 2").start();
    let _stream = relay.subscribe();
    let socket = relay.socket(SOCKET);
    let (head, _wire) = websocket::ask(relay.public, SOCKET, &[]);
    assert_eq!(head.status(), 503);
    assert!(head.field("retry-after").is_some());
    relay.wait_for_metric("autoplay_relay_shed_total", &[("reason", "max_subscribers")], 1.0);
    assert_eq!(relay.status()["subscribers"][PRODUCT]["ws"], 1, "{}", relay.status());
    drop(socket);
    wait_for_sockets(&relay, 0.0);
    relay.socket(SOCKET);
    let relay = Setup::behind(&connector).server("max_subscribers_per_ip = 1").start();
    let _socket = relay.socket(SOCKET);
    assert_eq!(websocket::ask(relay.public, SOCKET, &[]).0.status(), 429);
}

#[test]
fn a_drain_closes_with_1012_behind_everything_that_is_in_the_log() {
    const EVENTS: usize = 400;
    let connector = Connector::new();
    let mut relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut behind = relay.socket(SOCKET);
    let mut mute = relay.socket(&format!("{SOCKET}?session_id=nobody"));
    let session = "x".repeat(8000);
    (0..EVENTS).for_each(|n| link.event(event_of(&session, n)));
    relay.wait_for_events(EVENTS);
    let begin = Instant::now();
    relay.process.signal("TERM");
    assert_eq!(mute.close_code_unanswered(), 1012);
    assert!(behind.numbers(EVENTS).into_iter().eq(0..EVENTS));
    assert_eq!(behind.close_code(), 1012);
    mute.wire.rest();
    assert!(
        begin.elapsed() < Duration::from_secs(4),
        "who does not answer is cut off: {:?}",
        begin.elapsed()
    );
    assert_eq!(relay.process.exit_code(), Some(0));
}

#[test]
fn while_draining_newcomers_are_turned_away() {
    let connector = Connector::new();
    let mut relay = Setup::behind(&connector).server("drain_window = '5s'").start();
    let mut sockets: Vec<_> = (0..6).map(|_| relay.socket(SOCKET)).collect();
    relay.process.signal("TERM");
    relay.process.log_line("leaving; a second signal ends the process at once");
    common::wait::until("newcomers are turned away", || {
        websocket::ask(relay.public, SOCKET, &[]).0.status() == 503
    });
    for socket in &mut sockets {
        assert_eq!(socket.close_code(), 1012);
    }
    assert_eq!(relay.process.exit_code(), Some(0));
}

#[test]
fn a_connection_of_a_certain_age_is_closed_with_1012() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).server("max_connection_age = '1s'").start();
    let mut socket = relay.socket(SOCKET);
    assert_eq!(socket.close_code(), 1012);
    wait_for_disconnects(&relay, "rotated", 1.0);
}

#[test]
fn who_takes_nothing_is_disconnected_while_all_others_get_everything_in_order() {
    const EVENTS: usize = 1500;
    let connector = Connector::new();
    let relay = Setup::behind(&connector).server("write_timeout = '1s'").start();
    let mut link = connector.stream();
    let _stalled = relay.socket(SOCKET);
    let mut others: Vec<_> = (0..3).map(|_| relay.socket(SOCKET)).collect();
    let mut stream = relay.subscribe();
    let session = "x".repeat(8000);
    std::thread::scope(|scope| {
        let readers: Vec<_> = others
            .iter_mut()
            .map(|other| scope.spawn(|| other.numbers(EVENTS).into_iter().eq(0..EVENTS)))
            .collect();
        let stream = scope.spawn(|| stream.numbers(EVENTS).into_iter().eq(0..EVENTS));
        (0..EVENTS).for_each(|n| link.event(event_of(&session, n)));
        assert!(readers.into_iter().all(|reader| reader.join().unwrap()) && stream.join().unwrap());
    });
    wait_for_disconnects(&relay, "stalled", 1.0);
    wait_for_sockets(&relay, 3.0);
}

#[test]
fn who_sends_pings_and_takes_no_answer_is_disconnected() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).server("write_timeout = '4s'").start();
    let mut socket = relay.socket(SOCKET);
    let pings = websocket::frame(PING, true, &[0; 125]).repeat(1000);
    // Until the relay takes no more: what it does not write, it does not read.
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut taken = 0;
    while std::io::Write::write_all(&mut socket.wire.socket, &pings).is_ok() {
        assert!(Instant::now() < deadline, "it takes everything");
        taken += pings.len();
    }
    assert!(taken < 32 << 20, "it has read {taken} bytes of pings: more than sockets hold");
    wait_for_disconnects(&relay, "stalled", 1.0);
}
