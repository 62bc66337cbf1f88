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
    relay::{Relay, Setup},
    subscriber::Subscriber,
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
    let closed = |wire: &mut Wire| wire.look(Instant::now()) == http::Look::End;
    wait::until("all but a few are closed at once", || {
        connections.iter_mut().filter_map(|wire| closed(wire).then_some(())).count()
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
    let relay =
        Setup::behind(&connector).server("max_subscribers = 2\nhead_timeout = '60s'").start();
    let mut link = connector.stream();
    let mut connected = relay.subscribe();
    let extra: Vec<Wire> =
        (0..EXTRA_CONNECTIONS + 1).map(|_| Wire::connect(relay.public)).collect();
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

    let mut refused: Vec<Wire> =
        (0..REFUSED_CONNECTIONS).map(|_| Wire::connect(relay.public)).collect();
    let mut beyond = Wire::connect(relay.public);
    assert_eq!(beyond.rest(), b"", "closed without a response");
    relay.wait_for_shed("max_connections", 3.0);
    assert!(
        refused.iter_mut().all(|wire| wire.look(Instant::now()) == http::Look::Nothing),
        "these connections are still open"
    );
    link.event(event(1));
    assert_eq!(connected.numbers(1), [1]);
    drop((extra, refused));
    wait::until("the connections are closed", || {
        relay.process.open_descriptors() < EXTRA_CONNECTIONS
    });
    relay.subscribe();
}

#[test]
fn idle_connections_of_one_address_are_free_again_after_the_head_timeout() {
    let connector = Connector::new();
    let relay =
        Setup::behind(&connector).server("max_subscribers = 2\nhead_timeout = '2s'").start();
    let mut link = connector.stream();
    let mut connected = relay.subscribe();
    let mut idle: Vec<Wire> = (0..EXTRA_CONNECTIONS + 1 + REFUSED_CONNECTIONS)
        .map(|_| Wire::connect(relay.public))
        .collect();
    wait::until("the connection limit is reached", || {
        Wire::connect(relay.public);
        relay.shed("max_connections") > 0.0
    });
    let mut newcomer = wait::value("a connection is free again", || {
        let mut wire = Wire::connect(relay.public);
        wire.socket.write_all(http::request(relay.public, "GET", STREAM, &[]).as_ref()).ok()?;
        let is_answered = wire.look(Instant::now() + wait::SLACK) == http::Look::Bytes;
        (is_answered && wire.seen().starts_with(b"HTTP/1.1 200 ")).then(|| Subscriber::on(wire))
    });
    link.event(event(1));
    assert_eq!((connected.numbers(1), newcomer.numbers(1)), (vec![1], vec![1]));
    wait::until("the idle connections are closed", || {
        idle.iter_mut().all(|wire| wire.look(Instant::now()) == http::Look::End)
    });
}

#[test]
fn the_descriptor_limit_bounds_subscribers_and_leaves_the_relay_its_own() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector)
        .server("head_timeout = '60s'")
        .start_under("prlimit --nofile=400:400");
    let line = relay.process.log_line(TOO_FEW_FILES);
    assert_eq!((line["level"].as_str(), line["connections"].as_u64()), (Some("INFO"), Some(172)));
    let link = connector.stream();
    let mut connected = relay.subscribe();
    let connections: Vec<Wire> = (0..300).map(|_| Wire::connect(relay.public)).collect();
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

/// Connections admitted in addition to `max_subscribers`.
const EXTRA_CONNECTIONS: usize = 1024;

/// Connections beyond these that are answered 503.
const REFUSED_CONNECTIONS: usize = 64;

const TOO_FEW_FILES: &str = "the limit on open files leaves room for fewer subscribers than server.max_subscribers; raise it (ulimit -n, LimitNOFILE)";
