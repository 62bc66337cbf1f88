//! Limits on subscribers and connections, and the answers to clients beyond them. Browsers get a
//! response after which an EventSource reconnects.

use std::{
    io::Write,
    net::{Shutdown, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use socket2::SockRef;

use crate::common::{
    PRODUCT, STREAM,
    frames::{PREFACE, settings},
    http::{self, Wire},
    relay::{KEYS, Relay, Setup},
    subscriber::Subscriber,
    wait,
};

#[test]
fn a_subscriber_beyond_max_subscribers_gets_503_until_a_permit_is_free() {
    let relay = limited("max_subscribers = 3");
    let mut connected: Vec<Subscriber> = (0..3).map(|_| relay.subscribe()).collect();
    let answer = relay.get(STREAM, &[]).problem(503);
    assert!(answer.field("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
    relay.wait_for_shed("max_subscribers", 1.0);
    connected.pop();
    relay.wait_for_subscribers(2.0);
    connected.push(relay.subscribe());
    relay.get(STREAM, &[]).problem(503);
    relay.wait_for_shed("max_subscribers", 2.0);
}

#[test]
fn simultaneous_connects_do_not_exceed_max_subscribers() {
    const CONNECTIONS: usize = 120;
    let relay = limited("max_subscribers = 5");
    let request = http::request(relay.public, "GET", STREAM, &[]);
    let mut wires: Vec<Wire> = (0..CONNECTIONS).map(|_| Wire::connect(relay.public)).collect();
    wires.iter_mut().for_each(|wire| wire.send(&request));
    let admitted =
        wires.iter_mut().map(|wire| wire.head().status()).filter(|status| *status == 200).count();
    assert_eq!(admitted, 5);
    relay.wait_for_shed("max_subscribers", (CONNECTIONS - 5) as f64);
}

#[test]
fn a_browser_beyond_a_limit_gets_200_a_retry_line_and_a_close() {
    let relay = limited("max_subscribers = 1");
    let _connected = relay.subscribe();
    let mut waits = std::collections::BTreeSet::new();
    for _ in 0..5 {
        let mut wire = Wire::connect(relay.public);
        wire.send(http::request(relay.public, "GET", STREAM, &[("Sec-Fetch-Mode", "cors")]));
        let answer = String::from_utf8(wire.rest()).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.to_ascii_lowercase().contains("content-type: text/event-stream"), "{head}");
        let wait = body.strip_prefix("retry: ").and_then(|rest| rest.strip_suffix('\n')).unwrap();
        waits.insert(wait.parse::<u32>().unwrap());
    }
    assert!(waits.len() > 1, "jittered: {waits:?}");
    relay.wait_for_shed("max_subscribers", 5.0);
}

#[test]
fn a_subscriber_beyond_max_subscribers_per_ip_gets_429() {
    let relay =
        limited("max_subscribers_per_ip = 2\ntrusted_proxies = ['127.0.0.0/8', '10.0.0.0/8']");
    let from = |hops: &str| http::status(relay.public, STREAM, &[("X-Forwarded-For", hops)]);
    let stay = |hops: &str| Subscriber::open(relay.public, STREAM, &[("X-Forwarded-For", hops)]);
    let _two = [stay("198.51.100.1"), stay("10.9.9.9, 198.51.100.1, 10.1.2.3")];
    assert_eq!(from("198.51.100.1"), 429);
    let answer =
        relay.get(STREAM, &[("X-Forwarded-For", "203.0.113.5, 198.51.100.1")]).problem(429);
    assert!(
        answer.field("retry-after").unwrap().parse::<u32>().unwrap() >= 1,
        "addresses before the trusted hops are ignored"
    );
    relay.wait_for_shed("per_ip", 2.0);
    assert_eq!(from("198.51.100.2"), 200);
    assert_eq!(from("2001:db8::1"), 200);
    let browser = [("X-Forwarded-For", "198.51.100.1"), ("Sec-Fetch-Mode", "cors")];
    assert_eq!(http::status(relay.public, STREAM, &browser), 200);
    relay.wait_for_shed("per_ip", 3.0);
}

#[test]
fn an_address_is_one_client_however_it_is_spelt() {
    let relay = limited("max_subscribers_per_ip = 1\ntrusted_proxies = ['127.0.0.1', '::1']");
    let from = |hops: &str| http::status(relay.public, STREAM, &[("X-Forwarded-For", hops)]);
    let _one =
        Subscriber::open(relay.public, STREAM, &[("X-Forwarded-For", "::ffff:198.51.100.1")]);
    for spelling in [
        "198.51.100.1",
        "198.51.100.1:4711",
        "[::ffff:198.51.100.1]",
        "[::ffff:c633:6401]:443",
        " 198.51.100.1 , ",
        "203.0.113.1, 198.51.100.1,,",
    ] {
        assert_eq!(from(spelling), 429, "{spelling}");
    }
    assert_eq!(from("[::ffff:198.51.100.2]:443"), 200, "another one");
    // Not by the proxy's own address, which the first of these would have used up.
    for other in ["[2001:db8:1::1]", "[2001:db8:2::1]:443", "192.0.2.7:80,"] {
        assert_eq!(from(other), 200, "{other}");
    }
}

#[test]
fn addresses_of_one_64_are_one_client() {
    let relay = limited("max_subscribers_per_ip = 2\ntrusted_proxies = ['127.0.0.1']");
    let stay = |hop: &str| Subscriber::open(relay.public, STREAM, &[("X-Forwarded-For", hop)]);
    let from = |hop: &str| http::status(relay.public, STREAM, &[("X-Forwarded-For", hop)]);
    let _two = [stay("2001:db8:0:1::1"), stay("[2001:db8:0:1:ffff::2]:443")];
    assert_eq!(from("2001:db8:0:1:aaaa:bbbb:cccc:dddd"), 429);
    assert_eq!(from("2001:db8:0:2::1"), 200);
    relay.wait_for_shed("per_ip", 1.0);
}

#[test]
fn a_peer_is_one_client_over_a_socket_of_either_family() {
    let relay = Setup::new()
        .upstream(PRODUCT, NO_CONNECTOR, "")
        .server("listen = '[::]:0'\nmax_subscribers_per_ip = 1\ntrusted_proxies = ['127.0.0.2']")
        .auth(KEYS)
        .start();
    let over =
        |host: &str| -> SocketAddr { format!("{host}:{}", relay.public.port()).parse().unwrap() };
    let key = ("Authorization", "Bearer key-of-agent-a");
    let _one = Subscriber::open(over("127.0.0.1"), STREAM, &[key]);
    assert_eq!(http::status(over("127.0.0.1"), STREAM, &[key]), 429);
    assert_eq!(http::status(over("[::1]"), STREAM, &[key]), 200, "IPv6 is served, and another one");
    // Not `::ffff:127.0.0.1`: lists, logs and trusted proxies know the one spelling.
    let subscribers = relay.ask_admin("/api/v1/subscribers").json();
    assert_eq!(subscribers["subscribers"][0]["address"], "127.0.0.1");
}

#[test]
fn x_forwarded_for_is_ignored_without_trusted_proxies() {
    let relay = limited("max_subscribers_per_ip = 1");
    let one = Subscriber::open(relay.public, STREAM, &[("X-Forwarded-For", "198.51.100.1")]);
    relay.get(STREAM, &[("X-Forwarded-For", "198.51.100.2")]).problem(429);
    drop(one);
    relay.wait_for_subscribers(0.0);
    relay.subscribe();
}

#[test]
fn a_subscriber_beyond_max_subscribers_per_key_gets_429() {
    let relay = Setup::new()
        .upstream(PRODUCT, NO_CONNECTOR, "")
        .server("max_subscribers_per_key = 1")
        .auth("[[auth.keys]]\nname = 'a'\nkey = 'key-a'\nproducts = ['*']\npermissions = ['subscribe']\n[[auth.keys]]\nname = 'b'\nkey = 'key-b'\nproducts = ['*']\npermissions = ['subscribe']")
        .start();
    let (a, b) = ([("Authorization", "Bearer key-a")], [("Authorization", "Bearer key-b")]);
    let connected = Subscriber::open(relay.public, STREAM, &a);
    let answer = relay.get(STREAM, &a).problem(429);
    assert!(answer.field("retry-after").is_some());
    assert_eq!(http::status(relay.public, STREAM, &b), 200);
    relay.wait_for_shed("per_key", 1.0);
    drop(connected);
    relay.wait_for_subscribers(0.0);
    Subscriber::open(relay.public, STREAM, &a);
}

#[test]
fn connects_beyond_the_rate_get_503_and_later_ones_succeed() {
    let relay = limited("max_connects_per_second = 2");
    let begin = Instant::now();
    let mut shed = 0.0;
    let mut admitted = 0;
    for _ in 0..20 {
        match http::status(relay.public, STREAM, &[]) {
            200 => admitted += 1,
            503 => shed += 1.0,
            other => panic!("{other}"),
        }
    }
    let max = 2 * (begin.elapsed().as_secs() + 2);
    assert!((2..=max).contains(&admitted), "{admitted} of 20 within {:?}", begin.elapsed());
    relay.wait_for_shed("connect_rate", shed);
    wait::until("a subscriber is admitted again", || {
        http::status(relay.public, STREAM, &[]) == 200
    });
}

#[test]
fn a_refused_request_takes_no_permit() {
    let relay = limited("max_subscribers = 1\nmax_subscribers_per_ip = 1");
    for _ in 0..3 {
        relay.get("/stream/prod_xyz", &[]).problem(404);
        relay.get(STREAM, &[("Authorization", "Bearer x")]).problem(401);
        relay.get("/stream/prod_abc?type=", &[]).problem(400);
    }
    relay.subscribe();
}

#[test]
fn a_connection_without_a_whole_request_is_closed_after_the_head_timeout() {
    let relay = limited("head_timeout = '600ms'");
    let connected = relay.subscribe();
    let beginnings: [&[u8]; 6] = [
        b"",
        b"GET /stream/prod_abc HTTP/1.1\r\nHost: 127.0.0.1\r\n",
        b"G",
        b"PRI * HTT",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
    ];
    thread::scope(|scope| {
        for beginning in beginnings {
            let to = relay.public;
            scope.spawn(move || {
                let begin = Instant::now();
                let mut wire = Wire::connect(to);
                wire.send(beginning);
                wire.rest();
                let after = begin.elapsed();
                let beginning = String::from_utf8_lossy(beginning);
                assert!(after >= Duration::from_millis(400), "{beginning:?} after {after:?}");
                assert!(after < Duration::from_secs(5), "{beginning:?} after {after:?}");
            });
        }
    });
    let mut connected = connected;
    connected.expect_nothing(Duration::from_millis(20));
}

#[test]
fn a_part_of_a_preface_costs_nothing_while_it_waits_and_does_not_outlive_its_client() {
    let relay = limited("head_timeout = '60s'");
    let at_first = relay.process.open_sockets();
    for beginning in [b"P".as_slice(), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r"] {
        let wires: Vec<_> = (0..400)
            .map(|_| {
                let mut wire = Wire::connect(relay.public);
                wire.send(beginning);
                wire
            })
            .collect();
        wait::until("all connections are accepted", || {
            relay.process.open_sockets() >= at_first + wires.len()
        });
        let before = relay.process.processor_time();
        wait::holds("they wait", Duration::from_secs(2), || wires.len() == 400);
        let used = relay.process.processor_time() - before;
        assert!(used < Duration::from_millis(150), "{used:?} for waiting");
        drop(wires);
        wait::until("their connections are gone", || relay.process.open_sockets() <= at_first);
        // Half closed, and reset.
        let mut half_closed = Wire::connect(relay.public);
        half_closed.send(beginning);
        half_closed.socket().shutdown(Shutdown::Write).unwrap();
        half_closed.rest();
        let reset = Wire::connect(relay.public);
        SockRef::from(reset.socket()).set_linger(Some(Duration::ZERO)).unwrap();
        let mut reset = reset;
        reset.send(beginning);
        drop(reset);
        drop(half_closed);
        wait::until("no connection is left", || relay.process.open_sockets() <= at_first);
    }
}

#[test]
fn a_preface_that_arrives_in_pieces_is_one() {
    let relay = limited("");
    for piece in [1, 5, 23] {
        let mut wire = Wire::connect(relay.public);
        wire.socket().set_nodelay(true).unwrap();
        for bytes in PREFACE.chunks(piece) {
            wire.send(bytes);
            // Paces the pieces: sent together, they would arrive as one.
            thread::sleep(Duration::from_millis(5));
        }
        wire.send(settings(&[]));
        let first = wait::value("the relay's settings", || {
            wire.look(Instant::now() + Duration::from_millis(50));
            wire.take(9)
        });
        assert_eq!(first[3], 4, "{piece}: a frame of type SETTINGS");
    }
    let mut other = Wire::connect(relay.public);
    other.send("P");
    other.send(http::request(relay.public, "OST", "/nothing", &[]));
    assert_eq!(other.head().status(), 404, "another method that begins alike");
}

#[test]
fn a_connection_without_a_further_request_is_closed_after_the_head_timeout() {
    let relay = limited("head_timeout = '600ms'");
    for next in ["", "GET /stream/prod_abc HTTP/1.1\r\n"] {
        let mut wire = Wire::connect(relay.public);
        wire.send(http::request(relay.public, "GET", "/nothing", &[]));
        assert_eq!(wire.head().status(), 404);
        wire.send(next);
        let begin = Instant::now();
        wire.rest();
        assert!(begin.elapsed() < Duration::from_secs(5), "{next:?}: {:?}", begin.elapsed());
    }
}

#[test]
fn the_head_timeout_covers_a_head_that_arrives_byte_by_byte() {
    let relay = limited("head_timeout = '600ms'");
    let mut wire = Wire::connect(relay.public);
    let begin = Instant::now();
    let head = b"GET /stream/prod_abc HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Filler: "
        .iter()
        .chain([b'x'; 200].iter());
    for byte in head {
        if wire.socket.write_all(&[*byte]).is_err() {
            break;
        }
        if wire.look(Instant::now() + Duration::from_millis(20)) == http::Look::End {
            break;
        }
    }
    let after = begin.elapsed();
    assert!(after < Duration::from_secs(4), "it was kept for {after:?}");
}

#[test]
fn a_head_beyond_the_limit_is_refused() {
    let relay = limited("");
    for (length, is_read_whole) in [(17_000, true), (100_000, false)] {
        let mut wire = Wire::connect(relay.public);
        let head = format!(
            "GET {STREAM} HTTP/1.1\r\nHost: 127.0.0.1\r\nX: {}\r\n\r\n",
            "x".repeat(length)
        );
        // The relay may close before it has taken the whole head.
        let _ = wire.socket.write_all(head.as_bytes());
        let answer = String::from_utf8(wire.rest()).unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 431 ") || (answer.is_empty() && !is_read_whole),
            "{length}: {answer}"
        );
    }
    relay.subscribe();
}

fn limited(server: &str) -> Relay {
    Setup::new().upstream(PRODUCT, NO_CONNECTOR, "").server(server).start()
}

/// No process listens there.
const NO_CONNECTOR: &str = "http://127.0.0.1:1/stream/prod_abc";
