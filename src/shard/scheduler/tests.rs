//! One lane, turned by hand.

use std::{
    io::{ErrorKind, Read},
    net::{Ipv4Addr, TcpListener},
    time::Instant,
};

use hyper::HeaderMap;
use socket2::SockRef;
use tokio::task::yield_now;

use super::*;
use crate::{
    auth::{Holder, Proof},
    event::{Kind, Only, Scope, Start},
    http::{
        Relay,
        public::{
            request::Wish,
            sse::{Events, Side, Stream},
        },
        tests::{product, publish, relay},
    },
    net::{Place, Session, Wire, tests::shake_hands},
};

/// A lane and two products on it.
struct Stage {
    relay: Relay,
    crowd: Crowd,
}

impl Stage {
    fn new() -> Self {
        let relay = relay(PRODUCTS);
        let crowd = Crowd::new(&Arc::new(Shard::new(0)), WRITE_TIMEOUT, &relay.wheel);
        Self { relay, crowd }
    }

    /// Lets in a follower, and has it get everything there is.
    async fn follow(&mut self, name: &str) -> std::net::TcpStream {
        self.follow_some(name, Scope::EVERYTHING).await
    }

    /// The same, of one that wants some of it.
    async fn follow_some(&mut self, name: &str, scope: Scope) -> std::net::TcpStream {
        let (socket, client) = sockets();
        client.set_nonblocking(true).unwrap();
        self.let_in(name, scope, socket, None).await;
        client
    }

    async fn let_in(&mut self, name: &str, scope: Scope, socket: std::net::TcpStream, session: Option<Session>) {
        let side = Side {
            subscribers: &self.relay.subscribers,
            wheel: &self.relay.wheel,
            key: "anybody".into(),
            holder: Holder::Key("anybody".into()),
            proof: Arc::new(Proof::Nothing),
            max_age: None,
            farewell: None,
            shards: Some(&self.relay.shards),
            is_onlooker: false,
        };
        let wish = Wish { scope, start: Start::Now };
        let (product, peer) = (product(&self.relay, name), Ipv4Addr::LOCALHOST.into());
        let events = Events::open(&self.relay, &side, &product, wish, peer, &HeaderMap::new(), None).unwrap();
        let introduce = |socket| Box::new(Stream::new(Wire::new(socket, session), events)) as Box<dyn Follower>;
        let introduce = Box::new(introduce);
        self.crowd.let_in(Newcomer { socket, place: Place::of_nobody(), introduce });
        yield_now().await; // the runtime finds out that its socket can be written
        self.crowd.poll_some();
    }
}

/// Two that are connected; the first does not block.
fn sockets() -> (std::net::TcpStream, std::net::TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let socket = listener.accept().unwrap().0;
    socket.set_nonblocking(true).unwrap();
    (socket, client)
}

/// The payloads that have come.
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
async fn the_number_of_one_who_has_gone_stands_for_nobody_of_another_product() {
    let mut stage = Stage::new();
    let mut clients = Vec::new();
    for _ in 0..TURN + 8 {
        clients.push(stage.follow("one").await);
    }
    publish(&stage.relay, "one", "first");
    stage.crowd.look_for_arrivals();
    stage.crowd.give_some();
    // Some wait for the next turn. One of them goes, and who comes gets its number, and something of its own.
    let flock = stage.crowd.flocks.iter().next().unwrap().0;
    let waiting = *stage.crowd.flocks[flock].concerned.front().unwrap();
    stage.crowd.remove(waiting);
    let newcomer = stage.follow("two").await;
    assert_ne!(stage.crowd.members[waiting].flock, flock);
    publish(&stage.relay, "two", "hello");
    stage.crowd.look_for_arrivals();
    stage.crowd.give_some();
    assert_eq!(payloads(&newcomer), ["hello"]);
    let others = clients.iter().filter(|client| client.peek(&mut [0]).is_ok_and(|bytes| bytes > 0));
    let got: Vec<_> = others.map(payloads).collect();
    assert_eq!(got, vec![["first"]; TURN + 7]);
}

#[tokio::test]
async fn what_has_been_given_is_not_kept_for_the_next_to_come() {
    let mut stage = Stage::new();
    let client = stage.follow("one").await;
    publish(&stage.relay, "one", "first");
    stage.crowd.turn(&Context::from_waker(Waker::noop()));
    assert_eq!(payloads(&client), ["first"]);
    assert!(stage.crowd.flocks.iter().all(|(_, flock)| flock.keeps_nothing()));
}

#[tokio::test]
async fn what_concerned_nobody_any_more_is_not_left_lying() {
    let mut stage = Stage::new();
    let gone = stage.follow("one").await;
    let _other =
        stage.follow_some("one", Scope { kinds: Only::These([Kind::new("y")].into()), ..Scope::EVERYTHING }).await;
    publish(&stage.relay, "one", "first");
    stage.crowd.remove(0);
    drop(gone);
    stage.crowd.look_for_arrivals();
    // Before the lane is done with that, somebody comes, and something for it.
    let client = stage.follow("one").await;
    publish(&stage.relay, "one", "second");
    stage.crowd.look_for_arrivals();
    stage.crowd.give_some();
    assert_eq!(payloads(&client), ["second"]);
}

/// TLS takes more than its socket does: then there is nothing left to write, and something to send.
#[tokio::test]
async fn what_tls_has_taken_is_sent_once_there_is_room_though_nothing_else_happens() {
    for count in 1..=40 {
        let mut stage = Stage::new();
        let (socket, client) = sockets();
        SockRef::from(&socket).set_send_buffer_size(1).unwrap(); // the least there is
        let socket = TcpStream::from_std(socket).unwrap();
        let (socket, session, mut client) = shake_hands(socket, client).await;
        client.sock.set_nonblocking(true).unwrap();
        stage.let_in("one", Scope::EVERYTHING, socket.into_std().unwrap(), Some(session)).await;
        let payload = |number| format!("{number}{}", "x".repeat(5000));
        for number in 0..count {
            publish(&stage.relay, "one", &payload(number));
            stage.crowd.turn(&Context::from_waker(Waker::noop()));
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
            stage.crowd.turn(&Context::from_waker(Waker::noop()));
        }
        let expected: Vec<_> = (0..count).map(payload).collect();
        assert_eq!(payloads_of(&seen), expected);
    }
}

#[tokio::test]
async fn a_mistake_in_the_work_of_one_stream_is_told_and_no_others() {
    assert_eq!(shielded(|| 7), Some(7));
    assert_eq!(shielded(|| panic!("a mistake")), None::<u8>);
}

const PRODUCTS: [&str; 2] = ["one", "two"];

const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
