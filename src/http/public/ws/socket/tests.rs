//! WebSocket connection on a shard, polled step by step.

use std::{
    io::{Read, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Wake, Waker},
    time::{Duration, Instant},
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
        state::Relay,
        tests::{product, publish, relay},
    },
    metrics::Transport,
    net::{AcceptedSocket, ConnectionPermit, DetachedConnection, TlsSession, tests::shake_hands},
    shard::{DeliveryOutcome, PendingSubscriber, ShardIndex, SteppedScheduler},
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
    let subscriber = subscriber(&relay, "one");
    let mut connection = WsConnection::new(socket_of(stream), Bytes::new(), subscriber);
    let mut index = ShardIndex::new(&product.feed.fanout, 0, Waker::noop().clone());
    index.add(0, connection.parts().connected.subscription());
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

/// The shard writes events beside the codec, which writes pongs: neither may cut the other's frames
/// in two, nor leave a TLS record behind.
#[tokio::test]
async fn pongs_and_events_come_whole_through_a_socket_that_is_full_at_times() {
    let (socket, client) = connected_sockets();
    client.set_nonblocking(true).unwrap();
    exchange_pings_and_events(socket, None, client).await;
    let (socket, client) = connected_sockets();
    let (socket, session, client) = shake_hands(socket, client).await;
    client.sock.set_nonblocking(true).unwrap();
    exchange_pings_and_events(socket, Some(session), client).await;
}

/// Returns two connected sockets, of which the first accepts little at a time.
fn connected_sockets() -> (TcpStream, std::net::TcpStream) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let socket = listener.accept().unwrap().0;
    socket.set_nonblocking(true).unwrap();
    SockRef::from(&socket).set_send_buffer_size(1).unwrap(); // the kernel's minimum
    (TcpStream::from_std(socket).unwrap(), client)
}

async fn exchange_pings_and_events(
    socket: TcpStream,
    session: Option<TlsSession>,
    mut client: impl Read + Write,
) {
    let relay = relay(["one"]);
    let mut scheduler = SteppedScheduler::new(Duration::from_secs(30), &relay.wheel);
    let subscriber = subscriber(&relay, "one");
    let factory = move |socket| {
        let socket = SubscriberSocket::new(DetachedConnection::new(socket, session));
        Box::new(WsConnection::new(socket, Bytes::new(), subscriber)) as Box<dyn ShardSubscriber>
    };
    let (socket, permit) = (socket.into_std().unwrap(), ConnectionPermit::uncounted());
    scheduler.attach(PendingSubscriber::new(socket, permit, Box::new(factory)));
    let payload = |number: usize| format!("\"{number}{}\"", "x".repeat(5000));
    let mut input: &[u8] = &[];
    let mut output = Vec::new();
    for number in 0..EVENTS {
        publish(&relay, "one", &payload(number));
        exchange(&mut client, &mut input, &mut output);
        input = if input.is_empty() { PING } else { input };
        scheduler.run_turn();
        yield_now().await;
    }
    let begin = Instant::now();
    let texts = |output: &[u8]| frames(output).into_iter().filter(|it| it.0 == 0x81).count();
    while texts(&output) < EVENTS {
        assert!(begin.elapsed() < Duration::from_secs(20), "{} events came", texts(&output));
        exchange(&mut client, &mut input, &mut output);
        scheduler.run_turn();
        yield_now().await;
    }
    let (texts, others): (Vec<_>, Vec<_>) =
        frames(&output).into_iter().partition(|(opcode, _)| *opcode == 0x81);
    for (number, (_, text)) in texts.iter().enumerate() {
        let text = str::from_utf8(text).unwrap();
        assert!(text.ends_with(&format!("\"data\":{}}}", payload(number))), "event {number}");
    }
    assert!(others.len() > 3 && others.iter().all(|it| *it == (0x8a, b"ping".to_vec())));
}

/// Sends of `input` and receives into `output` what the client's socket takes and has.
fn exchange(client: &mut (impl Read + Write), input: &mut &[u8], output: &mut Vec<u8>) {
    let sent = client.write(input).unwrap_or(0);
    *input = input.split_at(sent).1;
    let _ = client.flush();
    let mut buffer = [0; 4096];
    if let Ok(bytes) = client.read(&mut buffer) {
        output.extend_from_slice(&buffer[..bytes]);
    }
}

/// Returns the first byte and the payload of each whole frame that a server has sent.
fn frames(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut frames = Vec::new();
    while let [first, length, rest @ ..] = bytes {
        let (length, rest) = match (length, rest) {
            (126, [high, low, rest @ ..]) => (u16::from_be_bytes([*high, *low]).into(), rest),
            (short @ ..126, rest) => ((*short).into(), rest),
            _ => break,
        };
        let Some((payload, rest)) = rest.split_at_checked(length) else { break };
        frames.push((*first, payload.to_vec()));
        bytes = rest;
    }
    frames
}

/// Returns a subscriber of everything that has just been admitted.
fn subscriber(relay: &Relay, name: &str) -> WsSubscriber {
    let grant = relay.access.authenticate(None).unwrap();
    let requested = SubscriptionRequest { scope: Scope::EVERYTHING, start: StartPosition::Now };
    let connected = SubscriptionSource::public(relay, &grant, true).admit(
        relay,
        &product(relay, name).feed,
        requested,
        ([127, 0, 0, 1].into(), &HeaderMap::new()),
        Transport::WebSocket,
        None,
    );
    WsSubscriber::new(connected.unwrap(), grant)
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

/// Events of the test of a full socket.
const EVENTS: usize = 40;

/// A masked ping; a mask of zeros leaves the payload as it is.
const PING: &[u8] = b"\x89\x84\0\0\0\0ping";
