//! Limits: who comes too many is told so, a browser in the only way that it bears.
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test states its expectations by panicking, and its helpers do as well"
)]

mod common;

use std::{
    io::Write,
    thread,
    time::{Duration, Instant},
};

use common::{
    PRODUCT, STREAM,
    connector::Connector,
    events::event,
    http::{self, Wire},
    relay::{Relay, Setup},
    subscriber::Subscriber,
    wait,
};

#[test]
fn beyond_max_subscribers_newcomers_are_503_until_a_seat_is_given_back() {
    let relay = limited("max_subscribers = 3");
    let mut seated: Vec<Subscriber> = (0..3).map(|_| relay.subscribe()).collect();
    let answer = relay.get(STREAM, &[]).problem(503);
    assert!(answer.field("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
    assert_shed(&relay, "max_subscribers", 1.0);
    seated.pop();
    relay.wait_for_subscribers(2.0);
    seated.push(relay.subscribe());
    relay.get(STREAM, &[]).problem(503);
    assert_shed(&relay, "max_subscribers", 2.0);
}

#[test]
fn many_who_come_at_one_moment_do_not_get_past_the_limit_together() {
    const CROWD: usize = 120;
    let relay = limited("max_subscribers = 5");
    let request = http::request(relay.public, "GET", STREAM, &[]);
    let mut wires: Vec<Wire> = (0..CROWD).map(|_| Wire::connect(relay.public)).collect();
    wires.iter_mut().for_each(|wire| wire.send(&request));
    let let_in =
        wires.iter_mut().map(|wire| wire.head().status()).filter(|status| *status == 200).count();
    assert_eq!(let_in, 5);
    assert_shed(&relay, "max_subscribers", (CROWD - 5) as f64);
}

#[test]
fn a_browser_past_a_limit_gets_200_a_retry_line_and_a_close() {
    let relay = limited("max_subscribers = 1");
    let _seated = relay.subscribe();
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
    assert_shed(&relay, "max_subscribers", 5.0);
}

#[test]
fn beyond_max_subscribers_per_ip_newcomers_are_429() {
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
        "what the client wrote itself is not believed"
    );
    assert_shed(&relay, "per_ip", 2.0);
    assert_eq!(from("198.51.100.2"), 200);
    assert_eq!(from("2001:db8::1"), 200);
    let browser = [("X-Forwarded-For", "198.51.100.1"), ("Sec-Fetch-Mode", "cors")];
    assert_eq!(http::status(relay.public, STREAM, &browser), 200);
    assert_shed(&relay, "per_ip", 3.0);
}

#[test]
fn without_trusted_proxies_what_a_client_says_of_its_address_does_not_count() {
    let relay = limited("max_subscribers_per_ip = 1");
    let one = Subscriber::open(relay.public, STREAM, &[("X-Forwarded-For", "198.51.100.1")]);
    relay.get(STREAM, &[("X-Forwarded-For", "198.51.100.2")]).problem(429);
    drop(one);
    relay.wait_for_subscribers(0.0);
    relay.subscribe();
}

#[test]
fn beyond_max_subscribers_per_key_newcomers_are_429() {
    let relay = Setup::new()
        .upstream(PRODUCT, NO_CONNECTOR, "")
        .server("max_subscribers_per_key = 1")
        .auth("[[auth.keys]]\nname = 'a'\nkey = 'key-a'\nproducts = ['*']\npermissions = ['subscribe']\n[[auth.keys]]\nname = 'b'\nkey = 'key-b'\nproducts = ['*']\npermissions = ['subscribe']")
        .start();
    let (a, b) = ([("Authorization", "Bearer key-a")], [("Authorization", "Bearer key-b")]);
    let seated = Subscriber::open(relay.public, STREAM, &a);
    let answer = relay.get(STREAM, &a).problem(429);
    assert!(answer.field("retry-after").is_some());
    assert_eq!(http::status(relay.public, STREAM, &b), 200);
    assert_shed(&relay, "per_key", 1.0);
    drop(seated);
    relay.wait_for_subscribers(0.0);
    Subscriber::open(relay.public, STREAM, &a);
}

#[test]
fn more_connects_in_a_second_than_allowed_are_503_and_later_ones_are_not() {
    let relay = limited("max_connects_per_second = 2");
    let begin = Instant::now();
    let mut turned_away = 0.0;
    let mut let_in = 0;
    for _ in 0..20 {
        match http::status(relay.public, STREAM, &[]) {
            200 => let_in += 1,
            503 => turned_away += 1.0,
            other => panic!("{other}"),
        }
    }
    let most = 2 * (begin.elapsed().as_secs() + 2);
    assert!((2..=most).contains(&let_in), "{let_in} of 20 within {:?}", begin.elapsed());
    assert_shed(&relay, "connect_rate", turned_away);
    wait::until("somebody is let in again", || http::status(relay.public, STREAM, &[]) == 200);
}

#[test]
fn who_is_turned_away_by_a_check_takes_no_seat() {
    let relay = limited("max_subscribers = 1\nmax_subscribers_per_ip = 1");
    for _ in 0..3 {
        relay.get("/stream/prod_xyz", &[]).problem(404);
        relay.get(STREAM, &[("Authorization", "Bearer x")]).problem(401);
        relay.get("/stream/prod_abc?type=", &[]).problem(400);
    }
    relay.subscribe();
}

#[test]
fn a_connection_that_sends_no_whole_request_is_closed_after_the_head_timeout() {
    let relay = limited("head_timeout = '600ms'");
    let seated = relay.subscribe();
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
    let mut seated = seated;
    seated.expect_nothing(Duration::from_millis(20));
}

#[test]
fn a_connection_that_stays_after_an_answer_and_asks_no_more_is_closed() {
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
fn a_head_that_comes_byte_by_byte_is_not_waited_for_longer() {
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
fn a_head_beyond_all_measure_is_refused() {
    let relay = limited("");
    for (length, is_read_whole) in [(17_000, true), (100_000, false)] {
        let mut wire = Wire::connect(relay.public);
        let head = format!(
            "GET {STREAM} HTTP/1.1\r\nHost: 127.0.0.1\r\nX: {}\r\n\r\n",
            "x".repeat(length)
        );
        // The relay need not take all of it before it closes.
        let _ = wire.socket.write_all(head.as_bytes());
        let answer = String::from_utf8(wire.rest()).unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 431 ") || (answer.is_empty() && !is_read_whole),
            "{length}: {answer}"
        );
    }
    relay.subscribe();
}

#[test]
fn without_a_free_file_newcomers_are_turned_away_while_subscribers_go_on_and_are_served_when_there_is_room_again()
 {
    const CROWD: usize = 300;
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut seated = relay.subscribe();
    link.event(event(0));
    assert_eq!(seated.numbers(1), [0]);
    let room = relay.process.open_files() + 5;
    relay.process.limit_files(room + 5);
    let used_before = relay.process.processor_time();
    let mut crowd: Vec<Wire> = (0..CROWD).map(|_| Wire::connect(relay.public)).collect();
    let closed = |wire: &mut Wire| wire.look(Instant::now()) == http::Look::End;
    wait::until("all but a few are closed at once", || {
        crowd.iter_mut().filter_map(|wire| closed(wire).then_some(())).count() >= CROWD - 15
    });
    relay.process.log_line(
        "no file is left for connections; newcomers are turned away (shed_total counts them)",
    );
    for n in 1..20 {
        link.event(event(n));
        assert_eq!(seated.numbers(1), [n]);
    }
    thread::sleep(Duration::from_secs(1)); // what would spin has time to show it
    let used = relay.process.processor_time() - used_before;
    assert!(used < Duration::from_millis(900), "it spins: {used:?}");
    drop(crowd);
    wait::until("they have gone", || relay.process.open_files() < room);
    let shed = shed(&relay, "no_file_descriptor"); // asked now: operators need a file, too
    assert!((250.0..=CROWD as f64).contains(&shed), "each once: {shed}");
    let mut newcomer = relay.subscribe();
    link.event(event(20));
    assert_eq!((seated.numbers(1), newcomer.numbers(1)), (vec![20], vec![20]));
}

#[test]
fn beyond_the_places_for_connections_newcomers_are_told_and_then_turned_away_and_subscribers_go_on()
{
    let connector = Connector::new();
    let relay =
        Setup::behind(&connector).server("max_subscribers = 2\nhead_timeout = '60s'").start();
    let mut link = connector.stream();
    let mut seated = relay.subscribe();
    let passing_by: Vec<Wire> = (0..PASSING_BY + 1).map(|_| Wire::connect(relay.public)).collect();
    let answer = wait::value("the places are taken", || {
        let mut wire = Wire::connect(relay.public);
        wire.send(http::request(relay.public, "GET", STREAM, &[]));
        let head = wire.head();
        (head.status() == 503).then_some(head)
    });
    assert!(
        answer.field("retry-after").is_some() && answer.field("connection") == Some("close"),
        "{answer:?}"
    );
    let mut browser = Wire::connect(relay.public);
    browser.send(http::request(relay.public, "GET", STREAM, &[("Sec-Fetch-Mode", "cors")]));
    let answer = String::from_utf8(browser.rest()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("\r\n\r\nretry: "), "{answer}");
    assert_shed(&relay, "max_connections", 2.0);
    assert_shed(&relay, "max_subscribers", 0.0);

    let mut being_told: Vec<Wire> = (0..SURPLUS).map(|_| Wire::connect(relay.public)).collect();
    let mut beyond = Wire::connect(relay.public);
    assert_eq!(beyond.rest(), b"", "closed without a word");
    assert_shed(&relay, "max_connections", 3.0);
    assert!(
        being_told.iter_mut().all(|wire| wire.look(Instant::now()) == http::Look::Nothing),
        "these may still ask"
    );
    link.event(event(1));
    assert_eq!(seated.numbers(1), [1]);
    drop((passing_by, being_told));
    wait::until("they have gone", || relay.process.open_files() < PASSING_BY);
    relay.subscribe();
}

#[test]
fn places_that_one_address_has_taken_with_idle_connections_are_free_again_after_the_head_timeout() {
    let connector = Connector::new();
    let relay =
        Setup::behind(&connector).server("max_subscribers = 2\nhead_timeout = '2s'").start();
    let mut link = connector.stream();
    let mut seated = relay.subscribe();
    let mut idle: Vec<Wire> =
        (0..PASSING_BY + 1 + SURPLUS).map(|_| Wire::connect(relay.public)).collect();
    wait::until("all places are taken", || {
        Wire::connect(relay.public);
        shed(&relay, "max_connections") > 0.0
    });
    let mut newcomer = wait::value("a place is free again, though nobody has left", || {
        let mut wire = Wire::connect(relay.public);
        wire.socket.write_all(http::request(relay.public, "GET", STREAM, &[]).as_ref()).ok()?;
        let is_answered = wire.look(Instant::now() + wait::LATE) == http::Look::Bytes;
        (is_answered && wire.seen().starts_with(b"HTTP/1.1 200 ")).then(|| Subscriber::on(wire))
    });
    link.event(event(1));
    assert_eq!((seated.numbers(1), newcomer.numbers(1)), (vec![1], vec![1]));
    wait::until("they are all closed", || {
        idle.iter_mut().all(|wire| wire.look(Instant::now()) == http::Look::End)
    });
}

#[test]
fn what_the_limit_on_files_leaves_to_subscribers_is_all_there_is_and_the_relay_keeps_the_rest() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector)
        .server("head_timeout = '60s'")
        .start_by("prlimit --nofile=400:400");
    let line = relay.process.log_line(TOO_FEW_FILES);
    assert_eq!((line["level"].as_str(), line["connections"].as_u64()), (Some("INFO"), Some(200)));
    let link = connector.stream();
    let mut seated = relay.subscribe();
    let crowd: Vec<Wire> = (0..300).map(|_| Wire::connect(relay.public)).collect();
    wait::until("some are turned away", || shed(&relay, "max_connections") >= 30.0);
    assert_eq!(shed(&relay, "no_file_descriptor"), 0.0);
    link.reset();
    let mut link = connector.stream();
    assert_eq!(seated.gap().reason(), "upstream_reconnect", "there is a file for the upstream");
    link.event(event(1));
    assert_eq!(seated.numbers(1), [1]);
    drop(crowd);
}

#[test]
fn a_low_limit_on_files_is_raised_as_far_as_it_may_be() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).start_by("prlimit --nofile=64:1000");
    let most = relay.metrics().value("process_max_fds", &[]);
    assert_eq!(most, Some(1000.0));
}

fn shed(relay: &Relay, reason: &str) -> f64 {
    relay.metrics().value("autoplay_relay_shed_total", &[("reason", reason)]).unwrap()
}

fn limited(server: &str) -> Relay {
    Setup::new().upstream(PRODUCT, NO_CONNECTOR, "").server(server).start()
}

fn assert_shed(relay: &Relay, reason: &str, count: f64) {
    relay.wait_for_metric("autoplay_relay_shed_total", &[("reason", reason)], count);
}

/// Nobody listens there.
const NO_CONNECTOR: &str = "http://127.0.0.1:1/stream/prod_abc";

/// Connections that are let in beside `max_subscribers`.
const PASSING_BY: usize = 1024;

/// Connections that are told that there is no place.
const SURPLUS: usize = 64;

const TOO_FEW_FILES: &str = "the limit on open files leaves room for fewer subscribers than server.max_subscribers; raise it (ulimit -n, LimitNOFILE)";
