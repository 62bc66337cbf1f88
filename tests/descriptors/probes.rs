//! Clients without a key that occupy the listeners of operators, and probes beside them.

use std::{
    io::Write,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use crate::common::{
    STREAM,
    connector::Connector,
    events::event,
    http::{self, Look, Wire},
    relay::{Relay, Setup},
    store::DataDir,
    subscriber::Subscriber,
    wait,
};

#[test]
fn idle_sockets_on_the_listeners_of_operators_make_no_probe_fail() {
    let relay = with_probe(Setup::new());
    for to in [relay.admin, relay.probe.unwrap()] {
        for beginning in ["", "G", "GET /healthz HTTP/1.1\r\nHost: a\r\nX: ", PREFACE] {
            assert_probes_pass(&relay, to, beginning.as_bytes());
        }
    }
}

/// Each attacker asks for something, and does not take the answer or does not send its body.
#[test]
fn clients_that_ask_and_do_not_go_on_make_no_probe_fail() {
    let relay = with_probe(Setup::new());
    for to in [relay.admin, relay.probe.unwrap()] {
        let unread = format!("GET /metrics HTTP/1.1\r\nHost: {to}\r\n\r\n").repeat(20);
        let bodiless =
            format!("POST /products HTTP/1.1\r\nHost: {to}\r\nContent-Length: 9\r\n\r\n");
        for beginning in [unread, bodiless] {
            assert_probes_pass(&relay, to, beginning.as_bytes());
        }
    }
}

#[test]
fn an_operators_stream_and_a_kept_connection_stay_beside_idle_sockets() {
    let connector = Connector::new();
    let relay = with_probe(Setup::behind(&connector));
    let mut link = connector.stream();
    let mut tail = Subscriber::open(relay.admin, "/api/v1/stream/prod_abc", &[]);
    // Their requests are later than that of the stream, which would have to give way before them.
    let request = http::request(relay.admin, "GET", "/healthz", &[]);
    let mut idle = connect(relay.admin, request.as_bytes());
    wait::until("the first socket has given way", || idle[0].look(Instant::now()) == Look::End);
    // Fewer than an address may have: none of them gives way.
    let mut kept = Wire::connect(relay.probe.unwrap());
    let _few: Vec<_> = (0..20).map(|_| Wire::connect(relay.probe.unwrap())).collect();
    for n in 0..3 {
        link.event(event(n));
        assert_eq!(tail.numbers(1), [n]);
        kept.send(http::request(relay.probe.unwrap(), "GET", "/healthz", &[]));
        let head = kept.head();
        assert_eq!(head.status(), 200);
        kept.body(head.field("content-length").unwrap().parse().unwrap());
    }
}

#[test]
fn a_connection_without_a_first_byte_is_closed_after_two_seconds_for_operators_only() {
    let relay = with_probe(Setup::new());
    let began = Instant::now();
    let mut public = Wire::connect(relay.public);
    for to in [relay.admin, relay.probe.unwrap()] {
        assert_eq!(Wire::connect(to).rest(), b"");
    }
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    assert_eq!(public.look(Instant::now()), Look::Nothing, "it has head_timeout, 10 s");
}

#[test]
fn the_store_goes_on_while_clients_occupy_every_connection_of_a_low_descriptor_limit() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let setup = data.setup(&connector, "").server("probe_listen = '127.0.0.1:0'");
    let relay = setup.start_under("prlimit --nofile=256:256");
    let mut link = connector.stream();
    let mut connected = relay.subscribe();
    let subscribe = http::request(relay.public, "GET", STREAM, &[]);
    let occupied: Vec<Vec<Wire>> =
        [(relay.public, &subscribe[..]), (relay.admin, ""), (relay.probe.unwrap(), "")]
            .map(|(to, beginning)| connect(to, beginning.as_bytes()))
            .into();
    wait::until("the public listener is full", || relay.shed("max_connections") > 0.0);
    // A round of the syncer for each.
    for n in 0..4 {
        link.event(event(n));
        assert_eq!(connected.numbers(1), [n]);
        relay.wait_until_persisted(n + 1);
        thread::sleep(Duration::from_secs(1)); // the rounds are a second apart
    }
    assert!(relay.process.open_descriptors() < 200, "{}", relay.process.open_descriptors());
    assert_eq!(relay.shed("no_file_descriptor"), 0.0);
    assert_eq!(relay.metrics().value("autoplay_relay_log_degraded", &[]), Some(0.0));
    let log = relay.process.stderr.so_far().join("\n");
    assert!(!log.contains("may not have reached the disk"), "{log}");
    drop(occupied);
}

/// Opens connections again and again, 600 each time, and checks that `/healthz` answers meanwhile,
/// and in time.
fn assert_probes_pass(relay: &Relay, to: SocketAddr, beginning: &[u8]) {
    let mut waves = Vec::new();
    for wave in 0..3 {
        waves.push(connect(to, beginning));
        for _ in 0..5 {
            let began = Instant::now();
            assert_eq!(http::get(to, "/healthz", &[]).status(), 200, "wave {wave}");
            assert!(began.elapsed() < Duration::from_secs(1), "kubelet waits for a second");
        }
    }
    drop(waves);
    assert!(relay.process.open_descriptors() < 1000);
}

/// Opens 600 connections that send these bytes and nothing more.
fn connect(to: SocketAddr, beginning: &[u8]) -> Vec<Wire> {
    let open = |_| {
        let wire = Wire::connect(to);
        let _ = wire.socket().write_all(beginning); // the relay may have closed it
        wire
    };
    (0..600).map(open).collect()
}

fn with_probe(setup: Setup) -> Relay {
    setup.server("probe_listen = '127.0.0.1:0'").start()
}

const PREFACE: &str = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
