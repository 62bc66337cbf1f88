//! A stream is detached from the HTTP server after its head, which no client can notice.

use std::{io::Write, net::Shutdown, time::Duration};

use crate::common::{
    PRODUCT,
    connector::Connector,
    events::{event, number},
    http::{self, Wire},
    relay::{Relay, Setup},
    subscriber::Subscriber,
};

#[test]
fn a_stream_may_follow_pipelined_requests_on_its_connection() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    relay.publish(&mut link, 0..3);
    let to = relay.public;
    let page = http::request(to, "GET", &format!("/events/{PRODUCT}"), &[]);
    let stream = http::request(to, "GET", &format!("/stream/{PRODUCT}?last_event_id=0"), &[]);
    let mut wire = Wire::connect(to);
    // Three requests in one packet: the relay answers them in order.
    wire.send([page.clone(), page, stream].concat());
    for _ in 0..2 {
        let head = wire.head();
        assert_eq!(head.status(), 200);
        let length = head.field("content-length").unwrap().parse().unwrap();
        let page: serde_json::Value = serde_json::from_slice(&wire.body(length)).unwrap();
        assert_eq!(page["events"].as_array().unwrap().len(), 3);
    }
    let mut subscriber = Subscriber::on(wire);
    assert_eq!(
        subscriber.head.field("connection"),
        Some("close"),
        "the stream is the last response"
    );
    assert_eq!(subscriber.numbers(3), [0, 1, 2]);
    relay.publish(&mut link, 3..5);
    assert_eq!(subscriber.numbers(2), [3, 4]);
}

#[test]
fn input_on_a_stream_is_ignored_and_a_half_close_ends_the_stream() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).server("heartbeat_interval = '1s'").start();
    let mut link = connector.stream();
    let mut sender = relay.subscribe();
    let mut other = relay.subscribe();
    relay.wait_for_subscribers(2.0);
    for n in 0..20 {
        sender.wire.send(vec![b'x'; 2_000]);
        link.event(event(n));
        assert_eq!(number(&sender.event().data), n);
    }
    assert_eq!(other.numbers(20), (0..20).collect::<Vec<_>>());
    sender.wire.socket().shutdown(Shutdown::Write).unwrap();
    relay.wait_for_subscribers(1.0);
    let client = [("transport", "sse"), ("reason", "client")];
    relay.wait_for_metric("autoplay_relay_subscriber_disconnects_total", &client, 1.0);
    link.event(event(20));
    assert_eq!(other.numbers(1), [20]);
}

#[test]
fn a_client_that_sends_without_end_is_not_read_and_still_gets_its_events() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).server("heartbeat_interval = '1s'").start();
    let mut link = connector.stream();
    let mut sender = relay.subscribe();
    relay.wait_for_subscribers(1.0);
    let socket = sender.wire.socket();
    // The relay does not read, so the buffers fill up after a while.
    socket.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut sent = 0;
    while let Ok(bytes) = (&*socket).write(&[b'x'; 100_000]) {
        sent += bytes;
        assert!(sent < BEYOND_BUFFERS, "the relay reads the input");
    }
    for n in 0..20 {
        link.event(event(n));
        assert_eq!(number(&sender.event().data), n);
    }
    drop(sender);
    // The relay notices the closed connection when it writes.
    relay.wait_for_subscribers(0.0);
}

/// More than the buffers of both ends of a loopback connection hold, however the kernel has let
/// them grow.
const BEYOND_BUFFERS: usize = 64 << 20;
