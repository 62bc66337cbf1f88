//! Subscribers that must be unaffected by an attack on the same relay.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{
    connector::{Connector, Link},
    events::event,
    http2::Http2Subscriber,
    relay::Relay,
    subscriber::Subscriber,
    wait,
    websocket::Socket,
};

/// One subscriber of each transport and protocol, and the connector that sends their events.
pub(crate) struct Canaries {
    link: Link,
    over_sse: Subscriber,
    over_http2: Http2Subscriber,
    over_ws: Socket,
    next: usize,
}

impl Canaries {
    /// Connects the subscribers to a relay that has just been started.
    pub(crate) fn of(relay: &Relay, connector: &Connector) -> Self {
        let link = connector.stream();
        let over_http2 = Http2Subscriber::open(relay.public);
        let (over_sse, over_ws) = (relay.subscribe(), relay.socket(super::SOCKET));
        let mut canaries = Self { link, over_sse, over_http2, over_ws, next: 0 };
        canaries.deliver_event();
        canaries
    }

    /// Sends an event, and checks that each subscriber receives it next, and soon.
    pub(crate) fn deliver_event(&mut self) {
        let (number, begin) = (self.next, Instant::now());
        self.next += 1;
        self.link.event(event(number));
        let received =
            [self.over_sse.numbers(1), self.over_http2.numbers(1), self.over_ws.numbers(1)];
        assert_eq!(received, [[number], [number], [number]]);
        wait::assert_within(Duration::ZERO, begin);
    }

    /// Delivers events until `work` has ended, and one more. Checks that the relay's private memory
    /// stays within bounds meanwhile, and that a new subscriber is served afterwards.
    pub(crate) fn during(&mut self, relay: &Relay, work: impl FnOnce() + Send) {
        let before = relay.process.private_kib();
        let mut peak = before;
        thread::scope(|scope| {
            let work = scope.spawn(work);
            let mut is_over = false;
            while !is_over {
                is_over = work.is_finished();
                self.deliver_event();
                peak = peak.max(relay.process.private_kib());
            }
            work.join().unwrap();
        });
        assert!(peak < before + MAX_GROWTH_KIB, "{peak} KiB instead of {before}");
        let mut newcomer = relay.subscribe();
        self.deliver_event();
        assert_eq!(newcomer.numbers(1), [self.next - 1]);
    }
}

/// Memory that some hundred connections may take for a while.
const MAX_GROWTH_KIB: u64 = 24 * 1024;
