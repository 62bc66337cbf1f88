//! Connections by the thousand, and descriptors that run out: newcomers are turned away,
//! subscribers go on.

use std::{
    io::Write,
    thread,
    time::{Duration, Instant},
};

use crate::common::{
    STREAM,
    connector::Connector,
    events::event,
    http::{self, Wire},
    relay::{Relay, Setup},
    subscriber::Subscriber,
    wait,
};

#[test]
fn a_relay_without_free_descriptors_sheds_newcomers_while_subscribers_continue() {
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
    let shed = relay.shed("no_file_descriptor"); // asked now: operators need a file, too
    assert!((250.0..=CROWD as f64).contains(&shed), "each once: {shed}");
    let mut newcomer = relay.subscribe();
    link.event(event(20));
    assert_eq!((seated.numbers(1), newcomer.numbers(1)), (vec![20], vec![20]));
}

#[test]
fn connections_beyond_the_limit_are_answered_503_and_then_closed() {
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
    relay.wait_for_shed("max_connections", 2.0);
    relay.wait_for_shed("max_subscribers", 0.0);

    let mut being_told: Vec<Wire> = (0..SURPLUS).map(|_| Wire::connect(relay.public)).collect();
    let mut beyond = Wire::connect(relay.public);
    assert_eq!(beyond.rest(), b"", "closed without a word");
    relay.wait_for_shed("max_connections", 3.0);
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
fn idle_connections_of_one_address_are_free_again_after_the_head_timeout() {
    let connector = Connector::new();
    let relay =
        Setup::behind(&connector).server("max_subscribers = 2\nhead_timeout = '2s'").start();
    let mut link = connector.stream();
    let mut seated = relay.subscribe();
    let mut idle: Vec<Wire> =
        (0..PASSING_BY + 1 + SURPLUS).map(|_| Wire::connect(relay.public)).collect();
    wait::until("all places are taken", || {
        Wire::connect(relay.public);
        relay.shed("max_connections") > 0.0
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
fn the_descriptor_limit_bounds_subscribers_and_leaves_the_relay_its_own() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector)
        .server("head_timeout = '60s'")
        .start_by("prlimit --nofile=400:400");
    let line = relay.process.log_line(TOO_FEW_FILES);
    assert_eq!((line["level"].as_str(), line["connections"].as_u64()), (Some("INFO"), Some(200)));
    let link = connector.stream();
    let mut seated = relay.subscribe();
    let crowd: Vec<Wire> = (0..300).map(|_| Wire::connect(relay.public)).collect();
    wait::until("some are turned away", || relay.shed("max_connections") >= 30.0);
    assert_eq!(relay.shed("no_file_descriptor"), 0.0);
    link.reset();
    let mut link = connector.stream();
    assert_eq!(seated.gap().reason(), "upstream_reconnect", "there is a file for the upstream");
    link.event(event(1));
    assert_eq!(seated.numbers(1), [1]);
    drop(crowd);
}

#[test]
fn a_low_descriptor_limit_is_raised_as_far_as_allowed() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).start_by("prlimit --nofile=64:1000");
    let most = relay.metrics().value("process_max_fds", &[]);
    assert_eq!(most, Some(1000.0));
}

/// Connections that are let in beside `max_subscribers`.
const PASSING_BY: usize = 1024;

/// Connections that are told that there is no place.
const SURPLUS: usize = 64;

const TOO_FEW_FILES: &str = "the limit on open files leaves room for fewer subscribers than server.max_subscribers; raise it (ulimit -n, LimitNOFILE)";
