//! Chained relays: one edge behind the connector, leaves behind the edge.

mod leaf;
mod middle;
mod moving;
mod passing;
mod restarts;
mod scripted;

use crate::common::{
    bridge::Bridge,
    connector::Link,
    events::{event, number},
    relay::{Relay, Setup},
    subscriber::{Frame, Subscriber},
};

/// Starts a leaf behind this edge, and waits for the end of its replay.
fn leaf_of(edge: &Relay) -> Relay {
    let leaf = Setup::behind_relay(edge.public).start();
    leaf.wait_for_end_of_replay();
    leaf
}

/// Starts a leaf behind a bridge, and waits for the end of its replay.
fn leaf_behind(bridge: &Bridge, log: &str) -> Relay {
    let leaf = setup_behind(bridge, log).start();
    leaf.wait_for_end_of_replay();
    leaf
}

fn setup_behind(bridge: &Bridge, log: &str) -> Setup {
    Setup::behind_relay(bridge.address).log(log)
}

/// Returns an address at which no process listens.
fn nowhere() -> std::net::SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Sends events, and returns the frames that a subscriber of the edge receives.
fn publish(
    link: &mut Link,
    at_edge: &mut Subscriber,
    numbers: std::ops::Range<usize>,
) -> Vec<Frame> {
    numbers
        .map(|n| {
            link.event(event(n));
            let frame = at_edge.event();
            assert_eq!(number(&frame.data), n);
            frame
        })
        .collect()
}

/// Returns the exact bytes of the next block other than a heartbeat.
fn payload_of(subscriber: &mut Subscriber) -> Vec<u8> {
    loop {
        let block = subscriber.block();
        if Frame::parse(&block).event.is_none() {
            return block;
        }
    }
}
