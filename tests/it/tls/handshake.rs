//! Handshakes that are slow, broken off, or no TLS.

use std::{
    io::Write,
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use super::{Scene, hello};
use crate::common::{STREAM, events::event, http::Wire, tls::TlsClient, wait::TIMEOUT};
use rustls::{ClientConnection, StreamOwned};

#[test]
fn an_unfinished_handshake_and_an_idle_connection_after_it_are_closed() {
    let scene = Scene::new("head_timeout = '600ms'");
    let to = scene.relay.public;
    let hello = hello(&scene.authority.client(&["h2"]));
    let beginnings: [&[u8]; 4] = [b"", &hello[..1], &hello[..hello.len() / 2], &hello];
    let in_time = |what: &str, begin: Instant| {
        let after = begin.elapsed();
        assert!(
            (Duration::from_millis(400)..Duration::from_secs(5)).contains(&after),
            "{what} after {after:?}"
        );
    };
    thread::scope(|scope| {
        for beginning in beginnings {
            scope.spawn(move || {
                let begin = Instant::now();
                let mut wire = Wire::connect(to);
                wire.send(beginning);
                wire.rest();
                in_time(&format!("{} bytes of a hello", beginning.len()), begin);
            });
        }
        for protocols in [&["h2"][..], &["http/1.1"]] {
            let config = scene.authority.client(protocols);
            scope.spawn(move || {
                let mut secure = TlsClient::connect(to, &config);
                let begin = Instant::now();
                secure.rest();
                in_time(&format!("a handshake for {protocols:?}"), begin);
            });
        }
        scope.spawn(|| {
            let begin = Instant::now();
            let mut wire = Wire::connect(to);
            for byte in &hello {
                if wire.socket.write_all(&[*byte]).is_err()
                    || wire.look(Instant::now() + Duration::from_millis(20))
                        == crate::common::http::Look::End
                {
                    break;
                }
            }
            in_time("a hello byte by byte", begin);
        });
    });
}

#[test]
fn first_byte_handshake_and_request_have_a_deadline_each() {
    let scene = Scene::new("head_timeout = '2s'");
    let (to, config) = (scene.relay.public, scene.authority.client(&["http/1.1"]));
    // Two of these pauses exceed the deadline of one step.
    let a_while = || thread::sleep(Duration::from_millis(1300));
    let mut socket = TcpStream::connect(to).unwrap();
    socket.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut connection = ClientConnection::new(config, to.ip().into()).unwrap();
    a_while();
    connection.write_tls(&mut socket).unwrap();
    connection.read_tls(&mut socket).unwrap();
    a_while();
    while connection.is_handshaking() {
        connection.process_new_packets().unwrap();
        connection.complete_io(&mut socket).unwrap();
    }
    a_while();
    let mut secure = TlsClient::of(StreamOwned::new(connection, socket));
    assert_eq!(secure.ask(to, "/nothing", &[]).status(), 404);
}

#[test]
fn a_client_without_tls_is_closed_at_once_and_disturbs_no_other() {
    let mut scene = Scene::new("");
    let mut connected = scene.secure();
    assert_eq!(connected.ask(scene.relay.public, STREAM, &[]).status(), 200);
    let stranger = |bytes: &[u8]| {
        let mut wire = Wire::connect(scene.relay.public);
        wire.send(bytes);
        let begin = Instant::now();
        let answer = wire.rest();
        assert!(begin.elapsed() < Duration::from_secs(5));
        answer
    };
    for bytes in [
        format!("GET {STREAM} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").as_bytes(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        &[0x16; 600],
    ] {
        let answer = stranger(bytes);
        assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    }
    scene.link.event(event(1));
    connected.through(event(1).as_bytes());
}
