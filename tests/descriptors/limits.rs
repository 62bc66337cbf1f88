//! The connection limit and the descriptor limit: new clients are shed, subscribers continue.

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
    page::PAGES,
    relay::{Relay, Setup},
    wait,
};

#[test]
fn a_relay_without_free_descriptors_sheds_new_clients_while_subscribers_continue() {
    const CONNECTIONS: usize = 300;
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut connected = relay.subscribe();
    link.event(event(0));
    assert_eq!(connected.numbers(1), [0]);
    let limit = relay.process.open_descriptors() + 5;
    relay.process.limit_descriptors(limit + 5);
    let used_before = relay.process.processor_time();
    let mut connections: Vec<Wire> =
        (0..CONNECTIONS).map(|_| Wire::connect(relay.public)).collect();
    wait::until("all but a few are closed at once", || {
        connections.iter_mut().filter_map(|wire| is_closed(wire).then_some(())).count()
            >= CONNECTIONS - 15
    });
    relay.process.log_line(
        "no file is left for connections; newcomers are turned away (shed_total counts them)",
    );
    for n in 1..20 {
        link.event(event(n));
        assert_eq!(connected.numbers(1), [n]);
    }
    thread::sleep(Duration::from_secs(1)); // a busy loop would show in this time
    let used = relay.process.processor_time() - used_before;
    assert!(used < Duration::from_millis(900), "busy loop: {used:?}");
    drop(connections);
    wait::until("the connections are closed", || relay.process.open_descriptors() < limit);
    let shed = relay.shed("no_file_descriptor"); // asked now: the admin request needs a descriptor, too
    assert!((250.0..=CONNECTIONS as f64).contains(&shed), "each once: {shed}");
    let mut newcomer = relay.subscribe();
    link.event(event(20));
    assert_eq!((connected.numbers(1), newcomer.numbers(1)), (vec![20], vec![20]));
}

#[test]
fn connections_beyond_the_limit_are_answered_503_and_then_closed() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector)
        .auth("allow_anonymous = true\nanonymous_permissions = ['subscribe', 'publish']")
        .server("max_subscribers = 2\nhead_timeout = '60s'")
        .start();
    let mut link = connector.stream();
    let mut connected = relay.subscribe();
    // Each with a request in work: its body is on the way.
    let fields = [("Content-Length", "99"), ("Expect", "100-continue")];
    let publish = http::request(relay.public, "POST", PAGES, &fields);
    let mut extra: Vec<Wire> = (0..EXTRA_CONNECTIONS + 1)
        .map(|_| {
            let mut wire = Wire::connect(relay.public);
            wire.send(&publish);
            wire
        })
        .collect();
    // One that no handler works for yet would give way.
    for wire in &mut extra {
        assert_eq!(wire.head().status(), 100);
    }
    let answer = wait::value("the connection limit is reached", || {
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

    // Idle connections keep no other client from its 503, either.
    let mut silent: Vec<Wire> =
        (0..2 * REFUSED_CONNECTIONS).map(|_| Wire::connect(relay.public)).collect();
    assert_eq!(relay.get(STREAM, &[]).status(), 503);
    wait::until("half of the idle ones have given way", || {
        silent.iter_mut().filter_map(|wire| is_closed(wire).then_some(())).count()
            > REFUSED_CONNECTIONS
    });
    link.event(event(1));
    assert_eq!(connected.numbers(1), [1]);
    drop((extra, silent));
    wait::until("the connections are closed", || {
        relay.process.open_descriptors() < EXTRA_CONNECTIONS
    });
    relay.subscribe();
}

#[test]
fn the_descriptor_limit_bounds_subscribers_and_leaves_the_relay_its_own() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector)
        .server("head_timeout = '60s'")
        .start_under("prlimit --nofile=400:400");
    let line = relay.process.log_line(TOO_FEW_FILES);
    assert_eq!((line["level"].as_str(), line["connections"].as_u64()), (Some("INFO"), Some(139)));
    let link = connector.stream();
    let mut connected = relay.subscribe();
    let subscribe = http::request(relay.public, "GET", STREAM, &[]);
    let connections: Vec<Wire> = (0..300)
        .map(|_| {
            let mut wire = Wire::connect(relay.public);
            let _ = wire.socket().write_all(subscribe.as_bytes()); // the relay may close early
            // A connection whose request has not come yet would give way to the next one.
            wire.look(Instant::now() + wait::SLACK);
            wire
        })
        .collect();
    wait::until("some connections are shed", || relay.shed("max_connections") >= 30.0);
    assert_eq!(relay.shed("no_file_descriptor"), 0.0);
    link.reset();
    let mut link = connector.stream();
    assert_eq!(connected.gap().reason(), "upstream_reconnect", "the upstream has a descriptor");
    link.event(event(1));
    assert_eq!(connected.numbers(1), [1]);
    drop(connections);
}

#[test]
fn a_low_descriptor_limit_is_raised_as_far_as_allowed() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).start_under("prlimit --nofile=64:1000");
    let max = relay.metrics().value("process_max_fds", &[]);
    assert_eq!(max, Some(1000.0));
}

fn is_closed(wire: &mut Wire) -> bool {
    wire.look(Instant::now()) == http::Look::End
}

/// Connections admitted in addition to `max_subscribers`.
const EXTRA_CONNECTIONS: usize = 1024;

/// Connections beyond these that are answered 503.
const REFUSED_CONNECTIONS: usize = 64;

const TOO_FEW_FILES: &str = "the limit on open files leaves room for fewer subscribers than server.max_subscribers; raise it (ulimit -n, LimitNOFILE)";
