//! Hostile upstreams beside good ones, which must not notice them.

use std::{
    io::Write,
    net::{Shutdown, TcpStream},
    time::{Duration, Instant},
};

use super::peers::{
    HostilePeer, Usage, Waits, drip, for_an_attack, hold, read_request, repeat, reset,
};
use crate::common::{
    connector::{Connector, Link, STREAM_HEAD},
    events::number,
    frames::settings,
    relay::{Relay, Setup},
    subscriber::Subscriber,
};

type Behaviour = fn(&mut TcpStream);

/// Ways in which an upstream misbehaves, once it has read the request.
const BEHAVIOURS: [(&str, Behaviour); 34] = [
    ("says-nothing", |to| hold(to)),
    ("endless-head", |to| {
        send(to, "HTTP/1.1 200 OK\r\n");
        repeat(to, "X-Filler: y\r\n".repeat(100), PACE);
    }),
    ("slow-head", |to| drip(to, STREAM_HEAD.trim_end().as_bytes())),
    ("endless-interim-answers", |to| repeat(to, "HTTP/1.1 100 Continue\r\n\r\n", Duration::ZERO)),
    ("wrong-content-type", |to| {
        send(to, "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n");
        repeat(to, EVENT, PACE);
    }),
    ("no-content", |to| send(to, "HTTP/1.1 204 No Content\r\n\r\n")),
    ("switching-protocols", |to| {
        send(to, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n");
        repeat(to, EVENT, PACE);
    }),
    ("endless-line", |to| stream_of(to, "data: ", "x".repeat(BLOCK))),
    ("comments", |to| stream_of(to, "", ": comment\n".repeat(BLOCK / 10))),
    ("empty-lines", |to| stream_of(to, "", "\n".repeat(BLOCK))),
    ("retries", |to| stream_of(to, "", "retry: 1\nretry: 99999999999\n".repeat(BLOCK / 27))),
    ("ids-with-nul", |to| stream_of(to, "", "id: a\0b\ndata: {\"type\":\"a\"}\n\n".repeat(100))),
    ("heartbeats", |to| stream_of(to, "", "event: heartbeat\ndata:\n\n".repeat(BLOCK / 24))),
    ("invalid-events", |to| stream_of(to, "", "data: hello\n\n".repeat(BLOCK / 13))),
    ("other-products", |to| {
        stream_of(to, "", "data: {\"type\":\"a\",\"product_id\":\"other\"}\n\n".repeat(200));
    }),
    ("mark-and-invalid-utf-8", |to| {
        send(to, STREAM_HEAD);
        repeat(to, b"\xEF\xBB\xBFdata: {\"type\":\"\xFF\"}\n\n".repeat(200), PACE);
    }),
    ("deep-nesting", |to| {
        let deep = "[{\"a\":".repeat(1000);
        stream_of(to, "", format!("data: {{\"type\":\"a\",\"x\":{deep}\n\n"));
    }),
    ("too-large-events", |to| stream_of(to, "data: ", "x".repeat(BLOCK) + "\n\n")),
    ("byte-by-byte", |to| {
        send(to, STREAM_HEAD);
        drip(to, EVENT.repeat(100).as_bytes());
    }),
    ("gzip", |to| {
        let gzip = "Content-Type: text/event-stream\r\nContent-Encoding: gzip\r\n";
        send(to, &format!("HTTP/1.1 200 OK\r\n{gzip}\r\n"));
        repeat(to, b"\x1F\x8B\x08\0\0\0\0\0", PACE);
    }),
    ("wrong-chunks", |to| chunked(to, "5\r\ndata: {}\r\n")),
    ("sizes-that-are-none", |to| chunked(to, "zz\r\n")),
    ("sizes-beyond-all", |to| chunked(to, "ffffffffffffffffff\r\n")),
    ("endless-chunk-extension", |to| {
        chunked(to, "1");
        repeat(to, ";x=y".repeat(1000), PACE);
    }),
    ("length-too-long", |to| send(to, &with_length(1000, EVENT))),
    ("length-too-short", |to| send(to, &with_length(5, EVENT))),
    ("reset-in-an-event", |to| {
        send(to, &format!("{STREAM_HEAD}data: {{\"type\":"));
        reset(to);
    }),
    ("closes-after-each-event", |to| send(to, &format!("{STREAM_HEAD}{EVENT}"))),
    ("closes-one-side", |to| {
        send(to, STREAM_HEAD);
        to.shutdown(Shutdown::Write).unwrap_or_default();
        hold(to);
    }),
    ("asks-to-wait-for-ever", |to| {
        send(
            to,
            "HTTP/1.1 429 Slow\r\nRetry-After: 99999999999999999999\r\nContent-Length: 0\r\n\r\n",
        );
    }),
    ("refuses", |to| send(to, "HTTP/1.1 401 No\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n")),
    ("no-http", |to| send(to, "\x16\x03\x01\x02\0\x01\0\x01\u{FC}\x03\x03")),
    ("http-0.9", |to| repeat(to, EVENT, PACE)),
    ("http-2", |to| {
        let _ = to.write_all(&settings(&[]));
        hold(to);
    }),
];

#[test]
fn hostile_upstreams_delay_no_event_of_others_and_cost_little() {
    let redirecting = HostilePeer::new(|mut socket| {
        let here = socket.local_addr().unwrap();
        if read_request(&mut socket) {
            send(&mut socket, &format!("HTTP/1.1 302 Go\r\nLocation: http://{here}/\r\n\r\n"));
        }
    });
    let relays = HostilePeer::new(|mut socket| {
        if read_request(&mut socket) {
            let head = STREAM_HEAD.replacen("\r\n", "\r\nAutoplay-Relay: resume\r\n", 1);
            let id = "18446744073709551615-1";
            send(&mut socket, &head);
            repeat(&mut socket, format!("id: {id}\n{EVENT}").repeat(100), PACE);
        }
    });
    let of_table = BEHAVIOURS.map(|(name, behave)| (name, 1, served(behave)));
    let more = [("redirects-to-itself", 6, redirecting), ("a-relay-of-the-future", 1, relays)];
    let hostile: Vec<_> = of_table.into_iter().chain(more).collect();
    let setup = hostile.iter().fold(Setup::new(), |setup, (name, _, peer)| {
        setup.upstream(name, &format!("http://{}/", peer.address), "max_event_bytes = '64KiB'")
    });
    let mut attacked = Good::new(setup);
    let mut control = Good::new(Setup::new());
    let mut waits = Waits::default();
    {
        let relay = &attacked.relay;
        let mut usage = Usage::of(relay);
        for_an_attack(|number| {
            waits.add(
                deliver(&mut attacked.products, number),
                deliver(&mut control.products, number),
            );
            usage.sample();
        });
        usage.assert_bounded(MAX_GROWTH_KIB, MAX_CORES, hostile.len() * MAX_ATTEMPTS * 2);
    }
    waits.assert_alike();
    for (name, per_attempt, peer) in &hostile {
        let attempts = peer.connections() / per_attempt;
        assert!((1..MAX_ATTEMPTS).contains(&attempts), "{name}: {attempts} attempts");
    }
}

/// A relay with good upstreams, each with a subscriber.
struct Good {
    relay: Relay,
    products: Vec<(Link, Subscriber)>,
}

impl Good {
    fn new(setup: Setup) -> Self {
        let connectors: Vec<_> = (0..GOOD).map(|_| Connector::new()).collect();
        let named = connectors.iter().enumerate();
        let setup = named.fold(setup.log("memory_bytes = '1MiB'"), |setup, (nth, connector)| {
            let product = format!("good-{nth}");
            setup.upstream(&product, &connector.url(&product), "")
        });
        let relay = setup.start();
        let products = connectors.iter().enumerate().map(|(nth, connector)| {
            (connector.stream(), relay.subscribe_to(&format!("/stream/good-{nth}")))
        });
        Self { products: products.collect(), relay }
    }
}

/// Sends an event of each product, and returns how long all of them took.
fn deliver(products: &mut [(Link, Subscriber)], count: usize) -> Duration {
    let begin = Instant::now();
    for (link, _) in &mut *products {
        link.event(format!("{{\"type\":\"actions\",\"count\":{count}}}"));
    }
    for (_, subscriber) in products {
        assert_eq!(number(&subscriber.event().data), count);
    }
    begin.elapsed()
}

fn served(behave: Behaviour) -> HostilePeer {
    HostilePeer::new(move |mut socket| {
        if read_request(&mut socket) {
            behave(&mut socket);
        }
    })
}

/// Sends bytes, which the relay may refuse to take.
fn send(to: &mut TcpStream, text: &str) {
    let _ = to.write_all(text.as_bytes());
}

/// Sends the head of a stream and these beginnings, and then the rest again and again.
fn stream_of(to: &mut TcpStream, begin: &str, rest: String) {
    send(to, STREAM_HEAD);
    send(to, begin);
    repeat(to, rest, PACE);
}

fn chunked(to: &mut TcpStream, chunk: &str) {
    let fields = "Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n";
    send(to, &format!("HTTP/1.1 200 OK\r\n{fields}\r\n{chunk}"));
}

fn with_length(length: usize, body: &str) -> String {
    let fields = format!("Content-Type: text/event-stream\r\nContent-Length: {length}\r\n");
    format!("HTTP/1.1 200 OK\r\n{fields}\r\n{body}")
}

const EVENT: &str = "data: {\"type\":\"actions\"}\n\n";

/// Good products.
const GOOD: usize = 4;

/// An upstream that floods costs what it sends: the test's floods send 4 KiB twenty times a second,
/// so that a relay that spins is seen, and one on a busy machine keeps up.
const BLOCK: usize = 4 * 1024;
const PACE: Duration = Duration::from_millis(50);

/// The backoff allows five or six attempts on average.
const MAX_ATTEMPTS: usize = 25;

/// Logs of up to 1 MiB, and buffers, of all products.
const MAX_GROWTH_KIB: u64 = 64 * 1024;

/// A loop without a wait takes a whole processor, and all floods together a tenth of it in a build
/// without optimisation.
const MAX_CORES: f64 = 1.1;
