//! Addresses that no webhook may reach, in every spelling: no attempt may open a connection to the
//! canary.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use socket2::{Domain, Socket, Type};
use tokio::{net::TcpStream, task::JoinSet};

use super::*;

/// URLs whose addresses the operating system resolves; `PORT` is the canary's.
const SPELLINGS: &[&str] = &[
    // Loopback, as it is usually written.
    "http://127.0.0.1:PORT/",
    "https://127.0.0.1:PORT/",
    "http://localhost:PORT/",
    "http://LOCALHOST:PORT/",
    "http://LocalHost.:PORT/",
    "http://[::1]:PORT/",
    "https://[::1]:PORT/",
    "http://[0:0:0:0:0:0:0:1]:PORT/",
    "http://[0000:0000:0000:0000:0000:0000:0000:0001]:PORT/",
    "http://[0::1]:PORT/",
    // Elsewhere in 127/8.
    "http://127.0.0.2:PORT/",
    "http://127.1.2.3:PORT/",
    "http://127.255.255.254:PORT/",
    // Fewer parts, other bases.
    "http://127.1:PORT/",
    "http://127.0.1:PORT/",
    "http://2130706433:PORT/",
    "http://0x7f000001:PORT/",
    "http://0X7F000001:PORT/",
    "http://0x7f.1:PORT/",
    "http://0x7f.0x0.0x0.0x1:PORT/",
    "http://0177.0.0.1:PORT/",
    "http://0177.1:PORT/",
    "http://017700000001:PORT/",
    "http://00000177.0.0.1:PORT/",
    "http://127.0x1:PORT/",
    "http://0x7f.0.01:PORT/",
    "http://127.00.00.01:PORT/",
    "http://127.0.0.1.:PORT/",
    "http://2130706434:PORT/",
    // The unspecified address is dialled as loopback.
    "http://0.0.0.0:PORT/",
    "http://0:PORT/",
    "http://0x0:PORT/",
    "http://00:PORT/",
    "http://0.1:PORT/",
    "http://0.0.0.1:PORT/",
    "http://[::]:PORT/",
    // IPv4 inside IPv6.
    "http://[::ffff:127.0.0.1]:PORT/",
    "http://[::ffff:7f00:1]:PORT/",
    "http://[::FFFF:7F00:0001]:PORT/",
    "http://[0:0:0:0:0:ffff:127.0.0.1]:PORT/",
    "http://[::ffff:0.0.0.0]:PORT/",
    "http://[::127.0.0.1]:PORT/",
    "http://[::7f00:1]:PORT/",
    "http://[::ffff:0:127.0.0.1]:PORT/",
    "http://[64:ff9b::127.0.0.1]:PORT/",
    "http://[64:ff9b::7f00:1]:PORT/",
    "http://[64:ff9b:1::127.0.0.1]:PORT/",
    "http://[2002:7f00:1::1]:PORT/",
    "http://[2001:0:7f00:1::1]:PORT/",
    // Metadata services.
    "http://169.254.169.254:PORT/latest/meta-data/",
    "http://[::ffff:169.254.169.254]:PORT/",
    "http://2852039166:PORT/",
    "http://0xa9fea9fe:PORT/",
    "http://0251.0376.0251.0376:PORT/",
    "http://169.254.43518:PORT/",
    "http://169.254.170.2:PORT/v2/credentials/",
    "http://[fd00:ec2::254]:PORT/",
    "http://[64:ff9b::a9fe:a9fe]:PORT/",
    "http://[2002:a9fe:a9fe::1]:PORT/",
    "http://100.100.100.200:PORT/",
    "http://168.63.129.16:PORT/",
    "http://192.0.0.192:PORT/",
    // Private, shared, link-local, multicast, reserved.
    "http://10.0.0.1:PORT/",
    "http://10.1:PORT/",
    "http://0xa000001:PORT/",
    "http://167772161:PORT/",
    "http://172.16.0.1:PORT/",
    "http://172.31.255.255:PORT/",
    "http://192.168.0.1:PORT/",
    "http://192.168.257:PORT/",
    "http://100.64.0.1:PORT/",
    "http://198.18.0.1:PORT/",
    "http://224.0.0.1:PORT/",
    "http://240.0.0.1:PORT/",
    "http://255.255.255.255:PORT/",
    "http://4294967295:PORT/",
    "http://[fc00::1]:PORT/",
    "http://[fd12:3456::1]:PORT/",
    "http://[fe80::1]:PORT/",
    "http://[fec0::1]:PORT/",
    "http://[ff02::1]:PORT/",
    "http://[2001:db8::1]:PORT/",
];

/// Names that a test resolves, with the address of each.
const NAMES: &[(&str, &str)] = &[
    ("http://loopback.test:PORT/", "127.0.0.1"),
    ("http://LoopBack.Test.:PORT/", "127.0.0.1"),
    ("https://loopback.test:PORT/", "127.0.0.1"),
    ("http://127.0.0.1.nip.test:PORT/", "127.0.0.1"),
    ("http://unspecified.test:PORT/", "0.0.0.0"),
    ("http://six.test:PORT/", "::1"),
    ("http://mapped.test:PORT/", "::ffff:127.0.0.1"),
    ("http://unspecified-six.test:PORT/", "::"),
    ("http://metadata.test:PORT/", "169.254.169.254"),
    ("http://inner.test:PORT/", "10.0.0.1"),
];

/// Listens on every address of this machine, and records each peer.
struct Canary {
    port: u16,
    hosts: Vec<IpAddr>,
    peers: Arc<Mutex<Vec<SocketAddr>>>,
    tasks: JoinSet<()>,
}

impl Canary {
    fn new() -> Self {
        let four = listener(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))).unwrap();
        let port = four.local_addr().unwrap().port();
        // A machine may have no IPv6.
        let six = listener(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).ok();
        let loopback =
            [Some(Ipv4Addr::LOCALHOST.into()), six.as_ref().map(|_| Ipv6Addr::LOCALHOST.into())];
        let mut canary = Self {
            port,
            hosts: loopback.into_iter().flatten().collect(),
            peers: Arc::default(),
            tasks: JoinSet::new(),
        };
        for listener in [Some(four), six].into_iter().flatten() {
            let peers = Arc::clone(&canary.peers);
            canary.tasks.spawn(async move {
                while let Ok((_, peer)) = listener.accept().await {
                    peers.lock().unwrap().push(peer);
                }
            });
        }
        canary
    }

    /// Returns how many connections were opened. A connection of the canary's own to each listener
    /// shows that the listener is alive and has accepted all connections before it.
    async fn connection_count(&self) -> usize {
        for host in &self.hosts {
            let sentinel =
                TcpStream::connect((*host, self.port)).await.unwrap().local_addr().unwrap();
            while !self.peers.lock().unwrap().contains(&sentinel) {
                tokio::task::yield_now().await;
            }
        }
        self.peers.lock().unwrap().len() - self.hosts.len()
    }
}

fn listener(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    TcpListener::from_std(socket.into())
}

/// Returns a resolver that gives these answers call by call and then starts again, and a counter of
/// its calls.
fn stub_resolver(answers: &[&[&str]]) -> (Resolver, Arc<AtomicUsize>) {
    let parsed = |answer: &&[&str]| answer.iter().map(|text| text.parse().unwrap()).collect();
    let answers: Vec<Vec<IpAddr>> = answers.iter().map(parsed).collect();
    let (calls, counted) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counter = Arc::clone(&counted);
    let resolve = move |_: &str| {
        counter.fetch_add(1, Ordering::SeqCst);
        answers[calls.fetch_add(1, Ordering::SeqCst) % answers.len()].clone()
    };
    (Resolver::Stub(Arc::new(resolve)), counted)
}

fn sender_with(resolver: Resolver, url: &str, allow: &[&str], keys: &str) -> WebhookSender {
    let webhook = webhook(url, keys);
    let connector = EgressConnector::new(guard(allow), webhook.timeout).with_resolver(resolver);
    WebhookSender::with_connector(connector, &webhook, None, &tls(), 4)
}

#[tokio::test]
async fn no_spelling_of_an_inner_address_is_reached() {
    assert!(SPELLINGS.len() >= 60);
    let (canary, guard, tls) = (Canary::new(), guard(&[]), tls());
    let mut wrong = Vec::new();
    for url in SPELLINGS {
        let webhook = webhook(&url.replace("PORT", &canary.port.to_string()), "timeout = '2s'");
        let (attempt, disposition) =
            WebhookSender::new(&webhook, None, Arc::clone(&guard), None, &tls)
                .send("7-1", Bytes::new())
                .await;
        let is_refused =
            attempt.outcome == Outcome::EgressRefused && disposition == Disposition::Forbidden;
        if !is_refused && attempt.outcome != Outcome::Dns {
            wrong.push((url, attempt));
        }
    }
    assert_eq!((canary.connection_count().await, wrong), (0, Vec::new()));
}

#[tokio::test]
async fn no_name_leads_to_an_inner_address() {
    let canary = Canary::new();
    for (url, address) in NAMES {
        let url = url.replace("PORT", &canary.port.to_string());
        let sender = sender_with(stub_resolver(&[&[address]]).0, &url, &[], "timeout = '2s'");
        let (attempt, disposition) = post(&sender).await;
        assert_eq!(
            (attempt.outcome, disposition),
            (Outcome::EgressRefused, Disposition::Forbidden),
            "{url} {address}"
        );
        let error = attempt.error.unwrap();
        assert!(error.starts_with(address) && error.contains("egress.allow_networks"), "{error}");
    }
    assert_eq!(canary.connection_count().await, 0);
}

#[tokio::test]
async fn one_inner_address_among_public_ones_is_enough_to_refuse() {
    let canary = Canary::new();
    let url = format!("http://mixed.test:{}/", canary.port);
    for answer in [
        &["127.0.0.2", "127.0.0.1"][..],
        &["127.0.0.1", "127.0.0.2"],
        &["127.0.0.2", "::1", "127.0.0.2"],
    ] {
        // 127.0.0.2 represents a public address: the guard admits it, and a connection to it would
        // reach the canary.
        let sender = sender_with(stub_resolver(&[answer]).0, &url, &["127.0.0.2"], "");
        assert_eq!(post(&sender).await.1, Disposition::Forbidden, "{answer:?}");
    }
    assert_eq!(canary.connection_count().await, 0);
}

#[tokio::test]
async fn a_name_that_changes_its_address_is_dialled_where_it_was_checked() {
    let receiver =
        ScriptedReceiver::bind(Ipv4Addr::new(127, 0, 0, 2), OK, AfterAnswer::Close).await;
    let url = format!("http://rebinding.test:{}/", receiver.address.port());
    let (resolver, calls) = stub_resolver(&[&["127.0.0.2"], &["127.0.0.1"]]);
    for round in 0..6 {
        // A new sender has no pooled connection, so each attempt resolves the name.
        let sender = sender_with(resolver.clone(), &url, &["127.0.0.2"], "");
        let expected = if round % 2 == 0 { Disposition::Accepted } else { Disposition::Forbidden };
        assert_eq!(post(&sender).await.1, expected, "{round}");
        assert_eq!(calls.load(Ordering::SeqCst), round + 1, "one question for one connection");
    }
    assert_eq!(receiver.connections(), 3);
}

#[tokio::test]
async fn an_allowed_network_is_reached_by_every_spelling_of_it() {
    let receiver = ScriptedReceiver::new(OK, AfterAnswer::KeepOpen).await;
    for host in ["127.0.0.1", "localhost", "0x7f.1", "2130706433", "[::ffff:127.0.0.1]"] {
        let url = format!("http://{host}:{}/", receiver.address.port());
        let webhook = webhook(&url, "");
        // Whether `localhost` also resolves to ::1 depends on the machine.
        let sender = WebhookSender::new(&webhook, None, guard(&["127.0.0.1", "::1"]), None, &tls());
        assert_eq!(post(&sender).await.1, Disposition::Accepted, "{host}");
    }
}

#[tokio::test]
async fn an_address_that_does_not_answer_leaves_time_for_the_next() {
    let (receiver, _deaf) = loop {
        let address = Ipv4Addr::new(127, 0, 0, 2);
        let receiver = ScriptedReceiver::bind(address, OK, AfterAnswer::KeepOpen).await;
        // The port is free on one address, and may be taken on the other.
        match UnresponsiveListener::bind(receiver.address.port()) {
            Ok(deaf) => break (receiver, deaf),
            Err(error) => assert_eq!(error.kind(), ErrorKind::AddrInUse),
        }
    };
    let port = receiver.address.port();
    let (resolver, _) = stub_resolver(&[&["127.0.0.3", "127.0.0.4", "127.0.0.2"]]);
    let sender = sender_with(
        resolver,
        &format!("http://two.test:{port}/"),
        &["127.0.0.0/8"],
        "timeout = '3s'",
    );
    let (attempt, disposition) = post(&sender).await;
    assert_eq!(disposition, Disposition::Accepted, "{attempt:?}");
    assert!(
        attempt.duration_ms >= 1000,
        "the first address was waited for: {}",
        attempt.duration_ms
    );
}

/// Accepts no connection on 127.0.0.3: its backlog is full.
struct UnresponsiveListener {
    _listener: Socket,
    _waiting: Vec<Socket>,
}

impl UnresponsiveListener {
    fn bind(port: u16) -> io::Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::new(127, 0, 0, 3), port)).into();
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener.bind(&address)?;
        listener.listen(0)?;
        let waiting = (0..3).map(|_| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            let _ = socket.connect(&address);
            socket
        });
        Ok(Self { _waiting: waiting.collect(), _listener: listener })
    }
}
