//! Hostile TLS clients: handshakes and new keys without end.

use std::{io::Write, sync::Arc, time::Instant};

use rustls::{ClientConfig, ClientConnection};

use crate::common::{
    STREAM,
    connector::Connector,
    events::event,
    http::{Look, Wire},
    process::raise_descriptor_limit,
    relay::{Relay, Setup},
    tls::{Authority, TlsClient},
    wait,
};

/// Every handshake of the flood is whole for the relay: it computes, and sends its answer.
#[test]
fn a_flood_of_handshakes_from_one_address_delays_no_handshake_of_another() {
    let scene = Scene::new();
    let hello = client_hello(&scene.config);
    raise_descriptor_limit();
    let before = scene.relay.process.private_kib();
    let mut flood: Vec<Wire> = (0..HANDSHAKES).map(|_| Wire::connect(scene.relay.public)).collect();
    let mut good = Wire::connect_from([127, 0, 0, 2], scene.relay.public);
    flood.iter_mut().for_each(|wire| wire.send(&hello));
    good.send(&hello);
    assert_eq!(good.look(Instant::now() + wait::TIMEOUT), Look::Bytes);
    let answered = flood.iter().filter(|wire| is_answered(wire)).count();
    assert!(answered < HANDSHAKES * 3 / 4, "{answered} of {HANDSHAKES} came first");
    // None of them is starved.
    wait::until("all are answered", || flood.iter().all(is_answered));
    let mut newcomer = TlsClient::connect(scene.relay.public, &scene.config);
    assert_eq!(newcomer.ask(scene.relay.public, "/nothing", &[]).status(), 404);
    let peak = scene.relay.process.private_kib();
    assert!(peak < before + 64 * HANDSHAKES as u64, "{peak} KiB instead of {before}");
}

#[test]
fn a_client_that_renews_its_keys_without_end_is_closed_and_disturbs_no_other() {
    let scene = Scene::new();
    let mut link = scene.connector.stream();
    let mut good = scene.subscribe();
    let to = scene.relay.public;
    let [idle, mut kept] = [(); 2].map(|()| TlsClient::connect(to, &scene.config));
    assert_eq!(kept.ask(to, "/nothing", &[]).status(), 404);
    for mut client in [idle, kept, scene.subscribe()] {
        let mut renewals = 0;
        wait::until("the connection is closed", || {
            renewals += 10;
            !renew_keys(&mut client, 10)
        });
        assert!(renewals < 1_000_000, "{renewals}");
    }
    link.event(event(1));
    good.through(b"\"count\":1");
    // Some are everybody's right.
    for _ in 0..3 {
        let mut modest = TlsClient::connect(to, &scene.config);
        assert!(renew_keys(&mut modest, 10));
        assert_eq!(modest.ask(to, "/nothing", &[]).status(), 404);
    }
}

struct Scene {
    connector: Connector,
    relay: Relay,
    config: Arc<ClientConfig>,
}

impl Scene {
    fn new() -> Self {
        let (authority, connector) = (Authority::new(), Connector::new());
        authority.issue_as("relay", "IP:127.0.0.1,DNS:localhost", "-days 2");
        let relay = Setup::behind(&connector)
            .with_tls(&authority.path("relay.pem"), &authority.path("relay.key"))
            .start();
        Self { connector, relay, config: authority.client(&["http/1.1"]) }
    }

    fn subscribe(&self) -> TlsClient {
        let mut client = TlsClient::connect(self.relay.public, &self.config);
        assert_eq!(client.ask(self.relay.public, STREAM, &[]).status(), 200);
        client
    }
}

/// Returns the bytes of a ClientHello. A server cannot tell a repeated one from a new one.
fn client_hello(config: &Arc<ClientConfig>) -> Vec<u8> {
    let name = "localhost".try_into().unwrap();
    let mut connection = ClientConnection::new(Arc::clone(config), name).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    hello
}

/// Returns whether bytes have come, without waiting: the others' turns go on meanwhile.
fn is_answered(wire: &Wire) -> bool {
    wire.socket.set_nonblocking(true).unwrap();
    wire.socket.peek(&mut [0]).is_ok_and(|count| count > 0)
}

/// Sends KeyUpdate messages (RFC 8446, section 4.6.3). Returns false if the relay has closed the
/// connection.
fn renew_keys(client: &mut TlsClient, count: usize) -> bool {
    for _ in 0..count {
        client.stream.conn.refresh_traffic_keys().unwrap();
    }
    while client.stream.conn.wants_write() {
        if client.stream.conn.write_tls(&mut client.stream.sock).is_err() {
            return false;
        }
    }
    client.stream.flush().is_ok()
}

const HANDSHAKES: usize = 1000;
