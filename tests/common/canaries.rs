//! Subscribers that must notice nothing of what goes on beside them.

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

/// One subscriber of each transport and protocol, and the connector that they hear.
pub(crate) struct Canaries {
    link: Link,
    over_sse: Subscriber,
    over_http2: Http2Subscriber,
    over_ws: Socket,
    next: usize,
}

impl Canaries {
    /// Settles them behind a relay that has just been started.
    pub(crate) fn of(relay: &Relay, connector: &Connector) -> Self {
        let link = connector.stream();
        let over_http2 = Http2Subscriber::open(relay.public);
        let (over_sse, over_ws) = (relay.subscribe(), relay.socket(super::SOCKET));
        let mut canaries = Self { link, over_sse, over_http2, over_ws, next: 0 };
        canaries.sing();
        canaries
    }

    /// Sends an event, which must be the next one for each of them, and come soon.
    pub(crate) fn sing(&mut self) {
        let (number, begin) = (self.next, Instant::now());
        self.next += 1;
        self.link.event(event(number));
        let heard = [self.over_sse.numbers(1), self.over_http2.numbers(1), self.over_ws.numbers(1)];
        assert_eq!(heard, [[number], [number], [number]]);
        wait::assert_within(Duration::ZERO, begin);
    }

    /// Has them sing until `work` is done, and once more. The relay's own memory must stay within
    /// bounds meanwhile, and newcomers be served afterwards.
    pub(crate) fn during(&mut self, relay: &Relay, work: impl FnOnce() + Send) {
        let before = relay.process.private_kib();
        let mut most = before;
        thread::scope(|scope| {
            let work = scope.spawn(work);
            let mut is_over = false;
            while !is_over {
                is_over = work.is_finished();
                self.sing();
                most = most.max(relay.process.private_kib());
            }
            work.join().unwrap();
        });
        assert!(most < before + MOST_KIB, "{most} KiB instead of {before}");
        let mut newcomer = relay.subscribe();
        self.sing();
        assert_eq!(newcomer.numbers(1), [self.next - 1]);
    }
}

/// What some hundred connections may cost for a while.
const MOST_KIB: u64 = 24 * 1024;
