//! One lane, turned by hand.

use std::{
    io::{ErrorKind, Read},
    net::{Ipv4Addr, TcpListener},
    pin::pin,
    sync::atomic::AtomicBool,
};

use bytes::Bytes;
use dashmap::DashMap;
use hyper::HeaderMap;
use tokio::{task::yield_now, time::Instant};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    auth::{Access, Holder, Proof},
    config::{AllowAnonymous, Config, Environment},
    event::{Draft, Kind, ProductId, Scope, Start},
    fanout::Fanout,
    http::{
        Relay,
        credential::Places,
        lane::Shards,
        page::Pages,
        publish::Bodies,
        request::Wish,
        sse::{Events, Side, Stream},
        subscribers::{Limits, Subscribers},
    },
    log::{Bounds, Log, Numbering},
    metrics::{Metrics, Transport},
    net::Place,
};

/// A lane and two products on it.
struct Stage {
    relay: Relay,
    crowd: Crowd,
}

impl Stage {
    fn new() -> Self {
        let text = "[server]\nlisten = '127.0.0.1:0'\n[[upstreams]]\nproduct_id = 'one'\nurl = 'http://127.0.0.1:1/stream/p'\n[auth]\nallow_anonymous = true";
        let config = Config::parse(text, "test", &Environment::default(), AllowAnonymous::OnLoopback).unwrap();
        let metrics = Arc::new(Metrics::new().unwrap());
        let access = Arc::new(Access::new(&config.auth));
        let products = PRODUCTS.map(|name| product(name, &metrics)).map(|it| (it.id.clone(), it));
        let relay = Relay {
            products: Arc::new(DashMap::from_iter(products)),
            places: Places::new(&config.auth, &[]),
            subscribers: Subscribers::new(Limits::at_most(1000), Arc::clone(&access), Arc::clone(&metrics)),
            access,
            shards: Shards::new(1, WRITE_TIMEOUT),
            pages: Pages::default(),
            bodies: Bodies::default(),
            wheel: Wheel::new(),
            heartbeat_interval: Duration::from_secs(30),
            max_connection_age: None,
            trusted_proxies: Vec::new(),
            is_draining: Arc::new(AtomicBool::new(false)),
            store: None,
            metrics,
        };
        let crowd = Crowd::new(&Arc::new(Shard::new(0)), WRITE_TIMEOUT, &relay.wheel);
        Self { relay, crowd }
    }

    fn product(&self, name: &str) -> Arc<Product> {
        Arc::clone(&self.relay.products.get(&ProductId::new(name).unwrap()).unwrap())
    }

    /// Lets in a follower, and has it get everything there is.
    async fn follow(&mut self, name: &str) -> std::net::TcpStream {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.set_nonblocking(true).unwrap();
        let socket = listener.accept().unwrap().0;
        socket.set_nonblocking(true).unwrap();
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
        let wish = Wish { scope: Scope::EVERYTHING, start: Start::Now };
        let (product, peer) = (self.product(name), Ipv4Addr::LOCALHOST.into());
        let events = Events::open(&self.relay, &side, &product, wish, peer, &HeaderMap::new(), None).unwrap();
        let introduce = Box::new(|socket| Box::new(Stream::new(socket, events)) as Box<dyn Follower>);
        self.crowd.let_in(Newcomer { socket, place: Place::of_nobody(), introduce });
        yield_now().await; // the runtime finds out that its socket can be written
        self.crowd.poll_some();
        client
    }

    /// An event comes, and is left for the lane.
    fn publish(&self, name: &str, text: &'static str) {
        let product = self.product(name);
        let payload = Bytes::from_static(text.as_bytes());
        let received = Instant::now();
        product.log.append(Draft { kind: Kind::new("x"), session: None, forwarded_at: None, payload, received });
        let run = pin!(product.fanout.run(CancellationToken::new()));
        assert!(run.poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
}

fn product(name: &str, metrics: &Arc<Metrics>) -> Arc<Product> {
    let id = ProductId::new(name).unwrap();
    let log = Log::new(id.clone(), Bounds { events: 100, bytes: u64::MAX }, metrics.log(&id));
    log.numbered_by(Numbering::Own);
    let log = Arc::new(log);
    Arc::new(Product {
        fanout: Arc::new(Fanout::new(Arc::clone(&log), 1)),
        log,
        lane: 0,
        sse: metrics.deliveries(&id, Transport::Sse),
        ws: metrics.deliveries(&id, Transport::WebSocket),
        envelopes: Arc::default(),
        paged: metrics.delivered(&id, Transport::Page),
        published: metrics.published(&id),
        max_publish_bytes: 0,
        upstream: String::new(),
        metrics: Arc::clone(metrics),
        id,
    })
}

/// The payloads that have come.
fn payloads(mut client: &std::net::TcpStream) -> Vec<String> {
    let mut bytes = Vec::new();
    match client.read_to_end(&mut bytes) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
        other => panic!("the stream stands: {other:?}"),
    }
    let text = String::from_utf8(bytes).unwrap();
    text.lines().filter_map(|line| line.strip_prefix("data: ").map(str::to_owned)).collect()
}

#[tokio::test]
async fn the_number_of_one_who_has_gone_stands_for_nobody_of_another_product() {
    let mut stage = Stage::new();
    let mut clients = Vec::new();
    for _ in 0..TURN + 8 {
        clients.push(stage.follow("one").await);
    }
    stage.publish("one", "first");
    stage.crowd.look_for_arrivals();
    stage.crowd.give_some();
    // Some wait for the next turn. One of them goes, and who comes gets its number, and something of its own.
    let flock = stage.crowd.flocks.iter().next().unwrap().0;
    let waiting = *stage.crowd.flocks[flock].concerned.front().unwrap();
    stage.crowd.remove(waiting);
    let newcomer = stage.follow("two").await;
    assert_ne!(stage.crowd.members[waiting].flock, flock);
    stage.publish("two", "hello");
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
    stage.publish("one", "first");
    stage.crowd.turn(&Context::from_waker(Waker::noop()));
    assert_eq!(payloads(&client), ["first"]);
    assert!(stage.crowd.flocks.iter().all(|(_, flock)| flock.keeps_nothing()));
}

#[tokio::test]
async fn a_mistake_in_the_work_of_one_stream_is_told_and_no_others() {
    assert_eq!(shielded(|| 7), Some(7));
    assert_eq!(shielded(|| panic!("a mistake")), None::<u8>);
}

const PRODUCTS: [&str; 2] = ["one", "two"];

const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
