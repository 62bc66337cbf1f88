//! WebSocket connection on a shard, polled step by step.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Wake, Waker},
};

use hyper::HeaderMap;
use socket2::SockRef;
use tokio::{
    net::{TcpListener, TcpStream},
    task::yield_now,
};

use super::*;
use crate::{
    event::{Scope, StartPosition},
    http::tests::{product, publish, relay},
    net::tests::deadline_socket,
    shard::{DeliveryOutcome, ShardIndex, ShardSubscriber, WriteScratch},
};

#[tokio::test]
async fn a_client_that_reads_no_pongs_lags_and_is_not_polled_for_new_events() {
    let relay = relay(["one"]);
    let product = product(&relay, "one");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    SockRef::from(&client).set_recv_buffer_size(8 * 1024).unwrap();
    SockRef::from(&stream).set_send_buffer_size(8 * 1024).unwrap();
    let (socket, net_connection) = deadline_socket(stream, &relay.wheel);
    let grant = relay.access.authenticate(None).unwrap();
    let subscriber = WsSubscriber::admit(
        &relay,
        &product,
        grant,
        Scope::EVERYTHING,
        &StartPosition::Now,
        &net_connection,
        &HeaderMap::new(),
    );
    let mut connection = WsConnection::new(socket, subscriber.unwrap());
    let mut index = ShardIndex::new(&product.feed.fanout, 0, Waker::noop().clone());
    index.add(0, connection.subscription());
    let woken = Arc::new(WokenFlag::default());
    let mut scratch =
        WriteScratch { batch: VecDeque::new(), written_bytes: 0, write_timeout: Duration::MAX };
    let mut poll = |connection: &mut WsConnection<_>| {
        woken.0.store(false, Ordering::SeqCst);
        scratch.written_bytes = 0;
        let polled = connection
            .poll(&mut Context::from_waker(&Waker::from(Arc::clone(&woken))), &mut scratch);
        assert!(polled.is_pending(), "the connection stays open");
        // Whether neither the connection nor its socket has asked to be polled again.
        !woken.0.load(Ordering::SeqCst)
    };
    while !(poll(&mut connection) && connection.is_idle) {
        yield_now().await;
    }
    let entries_behind =
        || relay.subscribers.list(0, 1)[0].1.entries_behind(product.feed.log.newest_position());
    publish(&relay, "one", "first");
    assert_eq!(connection.fall_back_to_log(1), DeliveryOutcome::NeedsPoll);
    while !(poll(&mut connection) && connection.is_idle) {
        yield_now().await;
    }
    let (pings, mut sent) = (PING.repeat(100), 0);
    while !poll(&mut connection) || connection.is_idle {
        // The socket is full at times.
        sent += client.try_write(pings.split_at(sent % pings.len()).1).unwrap_or(0);
        yield_now().await;
    }
    for (position, text) in [(2, "second"), (3, "third")] {
        publish(&relay, "one", text);
        assert_eq!(connection.fall_back_to_log(position), DeliveryOutcome::Handled);
    }
    assert_eq!(entries_behind(), 2);
    let mut seen = Vec::new();
    while !(poll(&mut connection)
        && connection.is_idle
        && seen.windows(6).any(|it| it == b"third}"))
    {
        let _ = client.try_read_buf(&mut seen);
        yield_now().await;
    }
    assert_eq!(entries_behind(), 0);
}

/// Waker that records whether it has been called.
#[derive(Default)]
struct WokenFlag(AtomicBool);

impl Wake for WokenFlag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A masked ping; a mask of zeros leaves the payload as it is.
const PING: &[u8] = b"\x89\x84\0\0\0\0ping";
