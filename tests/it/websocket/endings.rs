//! Limits, drains and stalled clients: how the relay refuses or closes a WebSocket.

use std::time::{Duration, Instant};

use super::{wait_for_disconnects, wait_for_sockets};
use crate::common::{
    PRODUCT, SOCKET,
    connector::Connector,
    events::event_of,
    relay::{Relay, Setup},
    websocket::{self, PING},
};

#[test]
fn limits_count_all_transports_together() {
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
fn a_drain_closes_with_1012_after_every_logged_event() {
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
        "a client that does not answer the close is cut off: {:?}",
        begin.elapsed()
    );
    assert_eq!(relay.process.exit_code(), Some(0));
}

#[test]
fn a_draining_relay_sheds_new_subscribers() {
    let connector = Connector::new();
    let mut relay = Setup::behind(&connector).server("drain_window = '5s'").start();
    let mut sockets: Vec<_> = (0..6).map(|_| relay.socket(SOCKET)).collect();
    relay.process.signal("TERM");
    relay.process.log_line("leaving; a second signal ends the process at once");
    crate::common::wait::until("newcomers are shed", || {
        websocket::ask(relay.public, SOCKET, &[]).0.status() == 503
    });
    for socket in &mut sockets {
        assert_eq!(socket.close_code(), 1012);
    }
    assert_eq!(relay.process.exit_code(), Some(0));
}

#[test]
fn a_websocket_is_closed_with_1012_at_its_maximum_age() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).server("max_connection_age = '1s'").start();
    let mut socket = relay.socket(SOCKET);
    assert_eq!(socket.close_code(), 1012);
    wait_for_disconnects(&relay, "rotated", 1.0);
}

#[test]
fn a_subscriber_that_reads_nothing_is_disconnected_while_the_others_get_everything_in_order() {
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
fn a_client_that_sends_pings_and_reads_no_reply_is_disconnected() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).server("write_timeout = '4s'").start();
    let mut socket = relay.socket(SOCKET);
    let pings = websocket::frame(PING, true, &[0; 125]).repeat(1000);
    // The client sends until the relay stops reading: a relay that cannot write its replies reads
    // no further pings.
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut taken = 0;
    while std::io::Write::write_all(&mut socket.wire.socket, &pings).is_ok() {
        assert!(Instant::now() < deadline, "the relay reads everything");
        taken += pings.len();
    }
    assert!(taken < 32 << 20, "the relay has read {taken} bytes of pings, more than sockets hold");
    wait_for_disconnects(&relay, "stalled", 1.0);
}
