//! SSE connections on one shard, whose turns the tests run step by step.

use std::{
    io::{ErrorKind, Read},
    net::{Ipv4Addr, TcpListener},
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::HeaderMap;
use socket2::SockRef;
use tokio::{net::TcpStream, task::yield_now};

use super::{SseConnection, SseSubscriber};
use crate::{
    auth::{CredentialHolder, CredentialProof, StreamExpiry},
    event::{Kind, Only, Scope, StartPosition},
    http::{
        public::{admit::SubscriptionSource, request::SubscriptionRequest},
        state::Relay,
        tests::{product, publish, relay},
    },
    metrics::Transport,
    net::{ConnectionPermit, DetachedConnection, TlsSession, tests::shake_hands},
    shard::{PendingSubscriber, ShardSubscriber, SteppedScheduler},
    subscriber::SubscriberSocket,
};

/// A shard and two products on it.
pub(super) struct SchedulerHarness {
    pub(super) relay: Relay,
    pub(super) scheduler: SteppedScheduler,
}

impl SchedulerHarness {
    pub(super) fn new() -> Self {
        let relay = relay(PRODUCTS);
        let scheduler = SteppedScheduler::new(WRITE_TIMEOUT, &relay.wheel);
        Self { relay, scheduler }
    }

    /// Attaches a subscriber of everything and polls it once.
    async fn subscribe(&mut self, name: &str) -> std::net::TcpStream {
        self.subscribe_with_scope(name, Scope::EVERYTHING).await
    }

    /// Attaches a subscriber of `scope` and polls it once.
    pub(super) async fn subscribe_with_scope(
        &mut self,
        name: &str,
        scope: Scope,
    ) -> std::net::TcpStream {
        let (socket, client) = connected_sockets();
        client.set_nonblocking(true).unwrap();
        self.attach(name, scope, socket, None).await;
        client
    }

    async fn attach(
        &mut self,
        name: &str,
        scope: Scope,
        socket: std::net::TcpStream,
        session: Option<TlsSession>,
    ) {
        self.attach_until(name, scope, socket, session, None).await;
    }

    /// Attaches a subscriber whose token expires.
    async fn attach_until(
        &mut self,
        name: &str,
        scope: Scope,
        socket: std::net::TcpStream,
        session: Option<TlsSession>,
        expiry: Option<StreamExpiry>,
    ) {
        let source = SubscriptionSource {
            subscribers: &self.relay.subscribers,
            wheel: &self.relay.wheel,
            key: "anybody".into(),
            holder: CredentialHolder::Key("anybody".into()),
            proof: Arc::new(CredentialProof::Anonymous),
            max_age: None,
            expiry,
            shards: Some(&self.relay.shards),
            is_operator_tail: false,
        };
        let requested = SubscriptionRequest { scope, start: StartPosition::Now };
        let (product, peer) = (product(&self.relay, name), Ipv4Addr::LOCALHOST.into());
        let headers = HeaderMap::new();
        let from = (peer, &headers);
        let connected =
            source.admit(&self.relay, &product.feed, requested, from, Transport::Sse, None);
        let subscriber = SseSubscriber::new(connected.unwrap(), &headers);
        let factory = |socket| {
            let socket = SubscriberSocket::new(DetachedConnection::new(socket, session));
            Box::new(SseConnection::new(socket, subscriber)) as Box<dyn ShardSubscriber>
        };
        let factory = Box::new(factory);
        self.scheduler.attach(PendingSubscriber::new(
            socket,
            ConnectionPermit::uncounted(),
            factory,
        ));
        yield_now().await; // the runtime learns that the socket is writable
        self.scheduler.poll_ready();
    }
}

/// Returns two connected sockets; the first is non-blocking.
fn connected_sockets() -> (std::net::TcpStream, std::net::TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let socket = listener.accept().unwrap().0;
    socket.set_nonblocking(true).unwrap();
    (socket, client)
}

/// Returns the payloads that the client has received, and panics if the stream has ended.
fn payloads(mut client: impl Read) -> Vec<String> {
    let mut bytes = Vec::new();
    match client.read_to_end(&mut bytes) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
        other => panic!("the stream stands: {other:?}"),
    }
    payloads_of(&bytes)
}

fn payloads_of(bytes: &[u8]) -> Vec<String> {
    let text = str::from_utf8(bytes).unwrap();
    text.lines().filter_map(|line| line.strip_prefix("data: ").map(str::to_owned)).collect()
}

#[tokio::test]
async fn a_reused_slot_key_gets_no_event_of_the_previous_subscribers_product() {
    let mut harness = SchedulerHarness::new();
    let mut clients = Vec::new();
    for _ in 0..SteppedScheduler::MAX_SUBSCRIBERS_PER_TURN + 8 {
        clients.push(harness.subscribe("one").await);
    }
    publish(&harness.relay, "one", "first");
    harness.scheduler.collect_events();
    harness.scheduler.deliver_queued();
    // Some recipients wait for the next turn. One is removed, and a subscriber of the other product
    // gets its slot key, and an event of its own.
    let (group, waiting) = harness.scheduler.first_recipient();
    harness.scheduler.remove(waiting);
    let second_client = harness.subscribe("two").await;
    assert_ne!(harness.scheduler.group_of_slot(waiting), group);
    publish(&harness.relay, "two", "hello");
    harness.scheduler.collect_events();
    harness.scheduler.deliver_queued();
    assert_eq!(payloads(&second_client), ["hello"]);
    let others = clients.iter().filter(|client| client.peek(&mut [0]).is_ok_and(|bytes| bytes > 0));
    let got: Vec<_> = others.map(payloads).collect();
    assert_eq!(got, vec![["first"]; SteppedScheduler::MAX_SUBSCRIBERS_PER_TURN + 7]);
}

#[tokio::test]
async fn delivered_events_are_not_retained_until_the_next_event() {
    let mut harness = SchedulerHarness::new();
    let client = harness.subscribe("one").await;
    publish(&harness.relay, "one", "first");
    harness.scheduler.run_turn();
    assert_eq!(payloads(&client), ["first"]);
    assert!(harness.scheduler.holds_no_events());
}

#[tokio::test]
async fn a_batch_whose_recipients_are_gone_does_not_hold_up_the_next_event() {
    let mut harness = SchedulerHarness::new();
    let gone = harness.subscribe("one").await;
    let _other = harness
        .subscribe_with_scope(
            "one",
            Scope { kinds: Only::These([Kind::new("y")].into()), ..Scope::EVERYTHING },
        )
        .await;
    publish(&harness.relay, "one", "first");
    harness.scheduler.remove(0);
    drop(gone);
    harness.scheduler.collect_events();
    // Before the shard has finished that batch, a subscriber comes, and an event for it.
    let client = harness.subscribe("one").await;
    publish(&harness.relay, "one", "second");
    harness.scheduler.collect_events();
    harness.scheduler.deliver_queued();
    assert_eq!(payloads(&client), ["second"]);
}

/// Fills a TLS session beyond its socket: nothing is left to write then, but records to send.
#[tokio::test]
async fn unsent_tls_records_are_sent_once_the_socket_is_writable_without_another_event() {
    for count in 1..=40 {
        let mut harness = SchedulerHarness::new();
        let (socket, client) = connected_sockets();
        SockRef::from(&socket).set_send_buffer_size(1).unwrap(); // the kernel's minimum
        let socket = TcpStream::from_std(socket).unwrap();
        let (socket, session, mut client) = shake_hands(socket, client).await;
        client.sock.set_nonblocking(true).unwrap();
        harness.attach("one", Scope::EVERYTHING, socket.into_std().unwrap(), Some(session)).await;
        let payload = |number| format!("{number}{}", "x".repeat(5000));
        for number in 0..count {
            publish(&harness.relay, "one", &payload(number));
            harness.scheduler.run_turn();
        }
        let mut seen = Vec::new();
        let deadline = Instant::now() + Duration::from_secs(15);
        while seen.iter().filter(|byte| **byte == b'x').count() < count * 5000 {
            assert!(Instant::now() < deadline, "{count} events: only {} bytes came", seen.len());
            let mut buffer = [0; 4096];
            if let Ok(bytes) = client.read(&mut buffer) {
                seen.extend_from_slice(&buffer[..bytes]);
            }
            yield_now().await;
            harness.scheduler.run_turn();
        }
        let expected: Vec<_> = (0..count).map(payload).collect();
        assert_eq!(payloads_of(&seen), expected);
    }
}

#[tokio::test]
async fn a_full_socket_whose_token_has_expired_asks_for_no_turn_before_its_end() {
    let mut harness = SchedulerHarness::new();
    let (socket, _client) = connected_sockets();
    let now = tokio::time::Instant::now();
    let (disconnect_at, expires_at) =
        (now + Duration::from_millis(300), now + Duration::from_secs(3600));
    let expiry = Some(StreamExpiry { disconnect_at, expires_at });
    harness.attach_until("one", Scope::EVERYTHING, socket, None, expiry).await;
    let payload = "x".repeat(100_000);
    for _ in 0..100 {
        publish(&harness.relay, "one", &payload);
        harness.scheduler.run_turn();
        yield_now().await;
    }
    tokio::time::sleep_until(disconnect_at).await;
    harness.scheduler.wake_all();
    for _ in 0..3 {
        harness.scheduler.run_turn();
        yield_now().await;
    }
    assert!(harness.scheduler.is_at_rest());
}

const PRODUCTS: [&str; 2] = ["one", "two"];

pub(super) const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
