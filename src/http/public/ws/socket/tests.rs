//! WebSocket connection on a shard, polled step by step.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Wake, Waker},
    time::Duration,
};

use bytes::Bytes;
use hyper::HeaderMap;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWriteExt, ReadBuf},
    net::{TcpListener, TcpStream},
    task::yield_now,
};

use super::{transport::WsTransport, *};
use crate::{
    event::StartPosition,
    http::{
        public::{
            admit::SubscriptionSource, request::SubscriptionRequest, ws::subscriber::WsSubscriber,
        },
        tests::{product, publish, relay},
    },
    metrics::Transport,
    net::{AcceptedSocket, ConnectionPermit, DetachedConnection},
    shard::{DeliveryOutcome, ShardIndex},
    subscriber::SubscriberSocket,
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
    let grant = relay.access.authenticate(None).unwrap();
    let requested = SubscriptionRequest { scope: Scope::EVERYTHING, start: StartPosition::Now };
    let connected = SubscriptionSource::public(&relay, &grant, true).admit(
        &relay,
        &product.feed,
        requested,
        (client.local_addr().unwrap().ip(), &HeaderMap::new()),
        Transport::WebSocket,
        None,
    );
    let subscriber = WsSubscriber::new(connected.unwrap(), grant);
    let mut connection = WsConnection::new(socket_of(stream), Bytes::new(), subscriber);
    let mut index = ShardIndex::new(&product.feed.fanout, 0, Waker::noop().clone());
    index.add(0, connection.parts().subscriber.subscription());
    let woken = Arc::new(WokenFlag::default());
    let mut scratch = WriteScratch::new(Duration::MAX);
    let mut poll = |connection: &mut WsConnection| {
        woken.0.store(false, Ordering::SeqCst);
        scratch.written_bytes = 0;
        let polled = connection
            .poll(&mut Context::from_waker(&Waker::from(Arc::clone(&woken))), &mut scratch);
        assert!(polled.is_pending(), "the connection stays open");
        // Whether neither the connection nor its socket has asked to be polled again.
        !woken.0.load(Ordering::SeqCst)
    };
    while !(poll(&mut connection) && connection.flow != FlowState::Busy) {
        yield_now().await;
    }
    let entries_behind =
        || relay.subscribers.list(0, 1)[0].1.entries_behind(product.feed.log.newest_position());
    publish(&relay, "one", "first");
    assert_eq!(connection.parts().fall_back_to_log(1), DeliveryOutcome::NeedsPoll);
    while !(poll(&mut connection) && connection.flow != FlowState::Busy) {
        yield_now().await;
    }
    let (pings, mut sent) = (PING.repeat(100), 0);
    while !poll(&mut connection) || connection.flow != FlowState::Busy {
        // The socket is full at times.
        sent += client.try_write(pings.split_at(sent % pings.len()).1).unwrap_or(0);
        yield_now().await;
    }
    for (position, text) in [(2, "second"), (3, "third")] {
        publish(&relay, "one", text);
        assert_eq!(connection.parts().fall_back_to_log(position), DeliveryOutcome::Handled);
    }
    assert_eq!(entries_behind(), 2);
    let mut seen = Vec::new();
    while !(poll(&mut connection)
        && connection.flow != FlowState::Busy
        && seen.windows(6).any(|it| it == b"third}"))
    {
        let _ = client.try_read_buf(&mut seen);
        yield_now().await;
    }
    assert_eq!(entries_behind(), 0);
}

#[tokio::test]
async fn a_peer_that_sends_without_end_is_read_a_budget_at_a_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    client.write_all(&[b'x'; 1000]).await.unwrap();
    stream.readable().await.unwrap();
    let mut transport = WsTransport::new(socket_of(stream), Bytes::from_static(b"more"));
    transport.set_read_budget(2);
    let woken = Arc::new(WokenFlag::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut context = Context::from_waker(&waker);
    let mut read = |transport: &mut WsTransport| {
        let mut bytes = [0; 10];
        let mut buffer = ReadBuf::new(&mut bytes);
        Pin::new(transport)
            .poll_read(&mut context, &mut buffer)
            .map(|read| read.map(|()| buffer.filled().to_vec()).unwrap())
    };
    let full = Poll::Ready(vec![b'x'; 10]);
    assert_eq!(read(&mut transport), Poll::Ready(b"more".to_vec()));
    assert_eq!((read(&mut transport), read(&mut transport)), (full.clone(), full.clone()));
    assert_eq!(
        (read(&mut transport), woken.0.load(Ordering::SeqCst)),
        (Poll::Pending, true),
        "it goes on at its next turn"
    );
    transport.set_read_budget(1);
    assert_eq!(read(&mut transport), full);
}

fn socket_of(stream: TcpStream) -> SubscriberSocket {
    let socket = AcceptedSocket { stream, permit: ConnectionPermit::uncounted() };
    SubscriberSocket::new(DetachedConnection::new(socket, None))
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
