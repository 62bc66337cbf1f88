//! Hostile webhook receivers beside good ones, which must not notice them.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use super::peers::{
    HostilePeer, Usage, Waits, drip, for_an_attack, hold, read_request, repeat, reset,
};
use crate::common::{
    PRODUCT,
    connector::{Connector, Link},
    events::event_of,
    frames::{
        ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, INITIAL_WINDOW_SIZE,
        PING, PREFACE, RST_STREAM, SETTINGS, WINDOW_UPDATE, frame, settings,
    },
    receiver::Receiver,
    relay::{Relay, Setup},
    tls::Authority,
    wait::TIMEOUT,
    webhooks::{SECRET, table},
};

type Behaviour = fn(&mut TcpStream);

/// Ways in which a receiver misbehaves that has read the request, and the outcome of each attempt.
const OVER_HTTP1: [(&str, &str, Behaviour); 24] = [
    ("says-nothing", "timeout", |to| hold(to)),
    ("slow-head", "timeout", |to| drip(to, b"HTTP/1.1 200 OK")),
    ("slow-body", "accepted", |to| drip(to, with_length(1000, "").as_bytes())),
    ("endless-body", "accepted", |to| {
        send(to, with_length(usize::MAX >> 1, ""));
        repeat(to, [b'x'; 4096], Duration::ZERO);
    }),
    ("endless-chunks", "accepted", |to| {
        send(to, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        repeat(to, "1\r\nx\r\n".repeat(1000), Duration::ZERO);
    }),
    ("endless-head", "connect", |to| {
        send(to, "HTTP/1.1 200 OK\r\n");
        repeat(to, "X: y\r\n".repeat(1000), Duration::ZERO);
    }),
    ("interim-answers", "failed", |to| {
        repeat(to, "HTTP/1.1 100 Continue\r\n\r\n".repeat(100), Duration::ZERO);
    }),
    ("slow-interim-answers", "timeout", |to| {
        repeat(to, "HTTP/1.1 102 Wait\r\n\r\n", Duration::from_millis(200));
    }),
    ("switches-protocols", "failed", |to| {
        send(to, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n");
        hold(to);
    }),
    ("redirects", "failed", |to| {
        send(to, "HTTP/1.1 301 Go\r\nLocation: /\r\nContent-Length: 0\r\n\r\n");
    }),
    ("asks-to-wait-for-ever", "refused", |to| {
        let wait = "Retry-After: 99999999999999999999\r\nContent-Length: 0\r\n";
        send(to, format!("HTTP/1.1 429 Slow\r\n{wait}\r\n"));
    }),
    ("is-gone", "refused", |to| send(to, "HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n")),
    ("resets", "connect", |to| reset(to)),
    ("closes", "connect", |_| ()),
    ("closes-one-side", "connect", |to| {
        let _ = to.shutdown(Shutdown::Write);
        hold(to);
    }),
    ("closes-after-a-promise", "accepted", |to| {
        send(to, "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n");
    }),
    ("answers-twice", "accepted", |to| {
        send(to, with_length(0, "").repeat(2));
        hold(to);
    }),
    ("length-too-long", "accepted", |to| send(to, with_length(1000, "ok"))),
    ("length-too-short", "accepted", |to| send(to, with_length(1, "longer"))),
    ("gzip-bomb", "accepted", |to| {
        let fields = "Content-Encoding: gzip\r\nContent-Length: 99999999\r\n";
        send(to, format!("HTTP/1.1 200 OK\r\n{fields}\r\n\x1F\u{8B}\x08"));
        repeat(to, [0; 4096], Duration::ZERO);
    }),
    ("wrong-chunks", "accepted", |to| {
        send(to, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n");
    }),
    ("no-http", "connect", |to| send(to, "\x15\x03\x03\0\x02\x02\x28")),
    ("http-0.9", "connect", |to| send(to, "ok\n")),
    ("http-2-unasked", "connect", |to| {
        let _ = to.write_all(&settings(&[]));
        hold(to);
    }),
];

type Secure = StreamOwned<ServerConnection, TcpStream>;

type BehaviourOverHttp2 = fn(&mut Secure, u32);

/// Ways in which a receiver misbehaves over HTTP/2, from the first request on: its frames, sent
/// once or again and again.
const OVER_HTTP2: [(&str, &str, BehaviourOverHttp2); 18] = [
    ("h2-says-nothing", "timeout", |to, _| hold(to)),
    ("h2-interim-answers", "failed", |to, stream| flood(to, &status(stream, 0, "103"))),
    ("h2-pings", "failed", |to, _| flood(to, &frame(PING, 0, 0, b"whatever"))),
    ("h2-replies", "failed", |to, _| flood(to, &frame(PING, ACK, 0, b"whatever"))),
    ("h2-settings", "failed", |to, _| flood(to, &settings(&[]))),
    ("h2-windows", "failed", |to, _| flood(to, &frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]))),
    ("h2-unknown-frames", "failed", |to, _| flood(to, &frame(0x55, 0, 0, b""))),
    ("h2-goaways", "failed", |to, stream| {
        flood(to, &frame(GOAWAY, 0, 0, &[stream.to_be_bytes(), [0; 4]].concat()));
    }),
    ("h2-continuations", "connect", |to, stream| {
        send(to, frame(HEADERS, 0, stream, &[0x88]));
        flood(to, &frame(CONTINUATION, 0, stream, b"\0\x01a\x01b"));
    }),
    ("h2-resets", "connect", |to, stream| {
        send(to, frame(RST_STREAM, 0, stream, &[0, 0, 0, 2]));
        hold(to);
    }),
    ("h2-goes-away", "connect", |to, stream| {
        send(to, frame(GOAWAY, 0, 0, &[stream.to_be_bytes(), [0; 4]].concat()));
    }),
    ("h2-promises", "connect", |to, stream| {
        send(to, frame(5, END_HEADERS, stream, b"\0\0\0\x02\x82\x86\x84\x41\x01a"));
        hold(to);
    }),
    ("h2-another-stream", "connect", |to, stream| {
        send(to, status(stream + 100, END_STREAM, "200"));
        hold(to);
    }),
    ("h2-data-beyond-all-windows", "accepted", |to, stream| {
        send(to, status(stream, 0, "200"));
        flood(to, &frame(DATA, 0, stream, &[b'x'; 100]));
    }),
    ("h2-endless-trailers", "accepted", |to, stream| {
        send(to, status(stream, 0, "200"));
        flood(to, &frame(HEADERS, END_HEADERS, stream, b"\0\x01a\x01b"));
    }),
    ("h2-window-that-never-opens", "timeout", |to, _| {
        send(to, settings(&[(INITIAL_WINDOW_SIZE, 0)]));
        hold(to);
    }),
    ("h2-no-stream-allowed", "timeout", |to, _| {
        send(to, settings(&[(MAX_CONCURRENT_STREAMS, 0)]));
        hold(to);
    }),
    ("h2-resets-after-the-head", "accepted", |to, stream| {
        send(to, status(stream, 0, "200"));
        send(to, frame(RST_STREAM, 0, stream, &[0, 0, 0, 2]));
        hold(to);
    }),
];

#[test]
fn hostile_receivers_delay_no_delivery_to_others_and_cost_little() {
    let authority = Authority::new();
    let hostile = hostile_receivers(&authority);
    let hostile_tables = hostile.iter().map(|(name, _, scheme, peer)| {
        format!(
            "\n[[webhooks]]\nid = '{name}'\nproduct_id = '{PRODUCT}'\n\
             url = '{scheme}://{}/'\nsecret = '{SECRET}'\ntypes = []\ntimeout = '2s'\n\
             initial_backoff = '1s'\nmax_backoff = '2s'\nmax_in_flight = 1\n",
            peer.address
        )
    });
    let ca_file = authority.root().display().to_string();
    let mut attacked = Good::new(&hostile_tables.collect::<String>(), &ca_file);
    let mut control = Good::new("", &ca_file);
    let mut waits = Waits::default();
    let mut usage = Usage::of(&attacked.relay);
    for_an_attack(|number| {
        waits.add(
            deliver(&mut attacked.link, &attacked.receivers, number),
            deliver(&mut control.link, &control.receivers, number),
        );
        usage.sample();
    });
    usage.assert_bounded(MAX_GROWTH_KIB, MAX_CORES, hostile.len() * MAX_LINES);
    waits.assert_alike();
    // Each outcome comes sooner or later, on a busy machine after attempts without an answer in
    // time.
    let mut unexpected = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < TIMEOUT {
        unexpected = without_outcome(&attacked.relay, &hostile);
        if unexpected.is_empty() {
            break;
        }
    }
    assert_eq!(unexpected, [""; 0], "each has attempts of its outcome");
}

/// Returns the hostile receivers none of whose attempts has had the expected outcome yet, each with
/// the outcomes of its attempts.
fn without_outcome(relay: &Relay, hostile: &[Hostile]) -> Vec<String> {
    let metrics = relay.metrics();
    let count = |name: &str, outcome: &str| {
        let labels = [("webhook", name), ("outcome", outcome)];
        metrics.value("autoplay_relay_webhook_attempts_total", &labels).unwrap_or(0.0)
    };
    let unexpected = hostile.iter().filter(|(name, outcome, ..)| count(name, outcome) == 0.0);
    let described = unexpected.map(|(name, outcome, ..)| {
        let counts = OUTCOMES.map(|outcome| (outcome, count(name, outcome)));
        format!("{name} without {outcome}: {counts:?}")
    });
    described.collect()
}

/// A relay with good receivers of each event.
struct Good {
    relay: Relay,
    link: Link,
    receivers: Vec<Receiver>,
    _connector: Connector,
}

impl Good {
    fn new(more: &str, ca_file: &str) -> Self {
        let (connector, receivers) =
            (Connector::new(), (0..GOOD).map(|_| Receiver::accepting()).collect::<Vec<_>>());
        let tables = receivers.iter().enumerate();
        let tables: String =
            tables.map(|(nth, receiver)| table(&format!("good-{nth}"), receiver, "")).collect();
        let egress = format!("[egress]\nallow_networks = ['127.0.0.0/8']\nca_file = '{ca_file}'\n");
        let relay = Setup::behind(&connector).more(&(tables + more + &egress)).start();
        Self { link: connector.stream(), relay, receivers, _connector: connector }
    }
}

/// Sends an event, and returns how long it took to all receivers.
fn deliver(link: &mut Link, receivers: &[Receiver], number: usize) -> Duration {
    let begin = Instant::now();
    link.event(event_of(&format!("s{number}"), number));
    for receiver in receivers {
        receiver.wait_for(number + 1);
    }
    begin.elapsed()
}

/// Starts every hostile receiver. Returns each with its name, the outcome of its attempts, and the
/// scheme of its URL.
fn hostile_receivers(authority: &Authority) -> Vec<Hostile> {
    authority.issue_as("expired", "IP:127.0.0.1", EXPIRED);
    let expired = (
        vec![authority.certificate("expired")],
        PrivateKeyDer::from_pem_file(authority.path("expired.key")).unwrap(),
    );
    let unknown = Authority::new().issue("IP:127.0.0.1");
    let known = || authority.issue("IP:127.0.0.1");
    let over_http1 = OVER_HTTP1.map(|(name, outcome, behave)| {
        let peer = HostilePeer::new(move |mut socket| {
            if read_request(&mut socket) {
                behave(&mut socket);
            }
        });
        (name, outcome, "http", peer)
    });
    let unread = HostilePeer::new(|mut socket| {
        send(&mut socket, with_length(0, ""));
        hold(&mut socket);
    });
    let over_http2 = OVER_HTTP2.map(|(name, outcome, behave)| {
        (name, outcome, "https", secure(known(), "h2", move |stream| serve_http2(stream, behave)))
    });
    let handshakes = [
        ("tls-silence", "timeout", "https", HostilePeer::new(|mut socket| hold(&mut socket))),
        ("tls-expired", "connect", "https", secure(expired, "h2", hold)),
        ("tls-unknown-authority", "connect", "https", secure(unknown, "h2", hold)),
        ("tls-another-protocol", "connect", "https", secure(known(), "spdy/3", hold)),
        ("answers-unasked", "connect", "http", unread),
    ];
    over_http1.into_iter().chain(over_http2).chain(handshakes).collect()
}

/// Name, outcome of the attempts, scheme of the URL, server.
type Hostile = (&'static str, &'static str, &'static str, HostilePeer);

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Starts a server that hands each connection to `behave` once TLS is established.
fn secure(
    (chain, key): Identity,
    protocol: &str,
    behave: impl Fn(&mut Secure) + Send + Sync + 'static,
) -> HostilePeer {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider);
    let mut config = builder
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let config = Arc::new(config);
    HostilePeer::new(move |socket| {
        let mut stream =
            StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), socket);
        if stream.conn.complete_io(&mut stream.sock).is_ok() {
            behave(&mut stream);
        }
    })
}

/// Reads frames up to the head of the first request, and then misbehaves.
fn serve_http2(stream: &mut Secure, behave: BehaviourOverHttp2) {
    let mut preface = [0; PREFACE.len()];
    send(stream, settings(&[]));
    let mut is_open = stream.read_exact(&mut preface).is_ok();
    let mut head = [0; 9];
    while is_open && stream.read_exact(&mut head).is_ok() {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        is_open = stream.read_exact(&mut vec![0; length]).is_ok();
        match head[3] {
            SETTINGS if head[4] & ACK == 0 => send(stream, frame(SETTINGS, ACK, 0, b"")),
            HEADERS => {
                return behave(stream, u32::from_be_bytes([head[5], head[6], head[7], head[8]]));
            }
            _ => {}
        }
    }
}

/// Encodes the head of an answer, with its status as a literal (RFC 7541, section 6.2.2).
fn status(stream: u32, flags: u8, status: &str) -> Vec<u8> {
    let field = [&[0x08, 3], status.as_bytes()].concat();
    frame(HEADERS, END_HEADERS | flags, stream, &field)
}

/// Sends a frame as often as the relay takes it.
fn flood(to: &mut Secure, frame: &[u8]) {
    repeat(to, frame.repeat(1000), Duration::ZERO);
}

/// Sends bytes, which the relay may refuse to take.
fn send(to: &mut impl Write, bytes: impl AsRef<[u8]>) {
    let _ = to.write_all(bytes.as_ref());
    let _ = to.flush();
}

fn with_length(length: usize, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}")
}

const OUTCOMES: [&str; 5] = ["accepted", "refused", "failed", "timeout", "connect"];

/// Validity of a certificate that ends when it begins.
const EXPIRED: &str = "-days 0";

const MAX_CONCURRENT_STREAMS: u16 = 3;

/// Good receivers.
const GOOD: usize = 3;

/// Lines about one webhook: its states change a few times.
const MAX_LINES: usize = 8;

/// A window, a head and a body for each of four attempts at one time, and what is pending.
const MAX_GROWTH_KIB: u64 = 48 * 1024;

/// A receiver that makes the relay spin costs a whole processor more. Attempts cost about a half in
/// a build without optimisation: each of a flood reads 128 KiB of frames.
const MAX_CORES: f64 = 1.2;
