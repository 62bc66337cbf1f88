//! HTTPS: who is served by which protocol, the certificate while it is replaced, and peers that stall on the way.
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test states its expectations by panicking, and its helpers do as well"
)]

mod common;

use std::{
    io::Write,
    net::{SocketAddr, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use common::{
    PRODUCT, SOCKET, STREAM,
    connector::{Connector, Link},
    events::{event, event_of, number},
    http::{self, Head, Wire},
    process::{Finished, Process},
    relay::{Relay, Setup, TOKEN},
    subscriber::Frame,
    tls::{Authority, Secure},
    wait::{self, PATIENCE},
    websocket::{self, TEXT, UPGRADE},
};
use http_body_util::{BodyExt, Empty};
use hyper::{Request, Version, body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, StreamOwned, pki_types::ServerName};
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, client::TlsStream};

#[test]
fn the_protocol_is_what_alpn_says_and_http1_without_it() {
    let scene = Scene::new("");
    let protocol = |protocols: &[&str]| {
        let secure = Secure::connect(scene.relay.public, &scene.authority.client(protocols));
        secure.stream.conn.alpn_protocol().map(|name| String::from_utf8(name.to_vec()).unwrap())
    };
    assert_eq!(protocol(&["h2", "http/1.1"]).as_deref(), Some("h2"));
    assert_eq!(
        protocol(&["http/1.1", "h2"]).as_deref(),
        Some("h2"),
        "the faster one, if both will do"
    );
    assert_eq!(protocol(&["http/1.1"]).as_deref(), Some("http/1.1"));
    assert_eq!(protocol(&[]), None);
    let strange = Secure::try_connect(scene.relay.public, &scene.authority.client(&["spdy/3"]));
    assert!(strange.err().unwrap().to_string().contains("NoApplicationProtocol"));
    let mut plain = Secure::connect(scene.relay.public, &scene.authority.client(&[]));
    let head = plain.ask(scene.relay.public, STREAM, &[]);
    assert_eq!((head.status(), head.first_line.split(' ').next()), (200, Some("HTTP/1.1")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_streams_share_one_http2_connection_and_all_get_the_event() {
    let mut scene = Scene::new("");
    let (mut client, _) = scene.http2().await;
    let mut streams = Vec::new();
    for _ in 0..50 {
        streams.push(subscribe(&mut client, scene.relay.public).await);
    }
    let mut over_http1 = scene.secure();
    assert_eq!(over_http1.ask(scene.relay.public, STREAM, &[]).status(), 200);
    scene.relay.wait_for_subscribers(51.0);
    scene.link.event(event(7));
    for stream in &mut streams {
        assert_eq!(next_number(stream).await, 7);
    }
    over_http1.through(event(7).as_bytes());
}

#[test]
fn a_websocket_opens_over_tls() {
    let mut scene = Scene::new("");
    let mut secure = scene.secure();
    let own = format!("https://{}", scene.relay.public);
    let fields: Vec<_> = UPGRADE.iter().chain(&[("Origin", own.as_str())]).copied().collect();
    assert_eq!(secure.ask(scene.relay.public, SOCKET, &fields).status(), 101);
    scene.relay.wait_for_metric(
        "autoplay_relay_subscribers",
        &[("product_id", PRODUCT), ("transport", "ws")],
        1.0,
    );
    scene.link.event(event(3));
    secure.through(event(3).as_bytes());
}

#[test]
fn the_answer_to_a_filter_goes_before_what_it_shows_over_tls_too() {
    let mut scene = Scene::new("");
    (0..3).for_each(|n| scene.link.event(event(n)));
    scene.relay.wait_for_events(3);
    let mut secure = scene.secure();
    let head =
        http::request(scene.relay.public, "GET", &format!("{SOCKET}?last_event_id=0"), &UPGRADE);
    let filter = websocket::frame(TEXT, true, br#"{"subscribe":{"types":[]}}"#);
    secure.stream.write_all(&[head.as_bytes(), &filter].concat()).unwrap();
    assert_eq!(Head::parse(&secure.through(b"\r\n\r\n")).status(), 101);
    let first = secure.through(event(0).as_bytes());
    assert!(String::from_utf8_lossy(&first).contains("subscribed"), "{first:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_certificate_is_shown_to_newcomers_and_standing_streams_go_on() {
    let mut scene = Scene::new("");
    let mut before = scene.secure();
    assert_eq!(before.ask(scene.relay.public, STREAM, &[]).status(), 200);
    let (mut client, _) = scene.http2().await;
    let mut stream = subscribe(&mut client, scene.relay.public).await;
    let ends = |relay: &Relay| {
        relay.metrics().value("autoplay_relay_certificate_not_after_timestamp_seconds", &[])
    };
    let former_end = ends(&scene.relay).unwrap();
    // One that has a ticket of its last connection.
    let knowing = scene.authority.client(&["http/1.1"]);
    let visit = || {
        let mut secure = Secure::connect(scene.relay.public, &knowing);
        assert_eq!(secure.ask(scene.relay.public, "/nothing", &[]).status(), 404);
        (secure.stream.conn.handshake_kind().unwrap(), secure.certificate())
    };
    let former = scene.authority.certificate("relay");
    assert_eq!(visit(), (HandshakeKind::Full, former.clone()));
    assert_eq!(visit(), (HandshakeKind::Resumed, former));

    scene.authority.issue_as("next", "IP:127.0.0.1", "-days 9");
    scene.authority.replace("relay", "next");
    let next = scene.authority.certificate("next");
    wait::until("newcomers are shown the new one", || scene.secure().certificate() == next);
    assert_eq!(visit(), (HandshakeKind::Full, next), "the ticket of the former one opens nothing");
    let later = ends(&scene.relay).unwrap() - former_end;
    assert!((6.9..7.1).contains(&(later / 86_400.0)), "{later} s");
    scene.link.event(event(5));
    before.through(event(5).as_bytes());
    assert_eq!(next_number(&mut stream).await, 5);
    let again = subscribe(&mut client, scene.relay.public).await;
    assert_eq!(again.buffer, b"", "a new stream on the standing connection");
}

#[test]
fn a_pair_that_is_none_is_refused_whole_and_taken_once_it_is_one() {
    let scene = Scene::new("");
    let shown = || scene.secure().certificate();
    let (former, authority) = (scene.authority.certificate("relay"), &scene.authority);
    authority.issue_as("next", "IP:127.0.0.1", "-days 9");
    authority.replace_file("relay.pem", "next.pem"); // its key is still to come
    let line = scene.relay.process.log_line(REFUSED);
    let error = line["error"].as_str().unwrap();
    assert!(
        error.contains("server.tls_key_file: ") && error.contains("holds another key"),
        "{error}"
    );
    assert_eq!(shown(), former);
    authority.replace_file("relay.key", "next.key");
    wait::until("the pair is taken", || shown() == authority.certificate("next"));

    std::fs::remove_file(authority.path("relay.pem")).unwrap();
    wait::until("the missing file is told", || {
        scene
            .relay
            .process
            .stderr
            .so_far()
            .iter()
            .any(|line| line.contains("cannot read") && line.contains("relay.pem"))
    });
    assert_eq!(shown(), authority.certificate("next"));
    authority.issue_as("third", "IP:127.0.0.1", "-days 9");
    authority.replace("relay", "third");
    wait::until("the third is taken", || shown() == authority.certificate("third"));
    let refusals =
        scene.relay.process.stderr.so_far().iter().filter(|line| line.contains(REFUSED)).count();
    assert!(refusals <= 4, "told once for each reason: {refusals}");
}

#[test]
fn a_certificate_behind_links_as_kubernetes_writes_them_is_replaced() {
    let authority = Authority::new();
    for (folder, name) in [("..1", "one"), ("..2", "two")] {
        authority.issue_as(name, "IP:127.0.0.1", "-days 2");
        std::fs::create_dir(authority.path(folder)).unwrap();
        std::fs::rename(
            authority.path(&format!("{name}.pem")),
            authority.path(&format!("{folder}/tls.crt")),
        )
        .unwrap();
        std::fs::rename(
            authority.path(&format!("{name}.key")),
            authority.path(&format!("{folder}/tls.key")),
        )
        .unwrap();
    }
    let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, authority.path(name)).unwrap();
    link("..1", "..data");
    link("..data/tls.crt", "tls.crt");
    link("..data/tls.key", "tls.key");
    let connector = Connector::new();
    let setup =
        Setup::behind(&connector).with_tls(&authority.path("tls.crt"), &authority.path("tls.key"));
    let relay = setup.start();
    let shown = || Secure::connect(relay.public, &authority.client(&[])).certificate();
    let former = shown();
    link("..2", "..data_tmp");
    std::fs::rename(authority.path("..data_tmp"), authority.path("..data")).unwrap();
    wait::until("the other one is shown", || shown() != former);
}

#[test]
fn a_certificate_that_has_ended_is_served_and_warned_of() {
    let authority = Authority::new();
    authority.issue_as("relay", "IP:127.0.0.1", "-days 0");
    let connector = Connector::new();
    let setup = Setup::behind(&connector)
        .with_tls(&authority.path("relay.pem"), &authority.path("relay.key"));
    let relay = setup.start();
    let line = relay.process.log_line("the certificate has ended, and clients refuse it; renew it");
    assert_eq!(line["level"], "WARN");
    let refused = || {
        Secure::try_connect(relay.public, &authority.client(&[]))
            .err()
            .map(|error| error.to_string())
    };
    wait::until("clients refuse it", || refused().is_some_and(|error| error.contains("xpired")));
    let ended = relay
        .metrics()
        .value("autoplay_relay_certificate_not_after_timestamp_seconds", &[])
        .unwrap();
    assert!((0.0..60.0).contains(&(common::token::now() - ended)), "{ended}");
}

#[test]
fn files_that_are_no_pair_are_a_configuration_error_that_names_file_and_key() {
    let authority = Authority::new();
    ["one", "two"].iter().for_each(|name| authority.issue_as(name, "IP:127.0.0.1", "-days 2"));
    let setup = Setup::new().with_tls(&authority.path("one.pem"), &authority.path("two.key"));
    let (_directory, file) = setup.write();
    for command in ["check", "serve"] {
        let done = Process::run(&[command, "--config", file.to_str().unwrap()], &[]);
        let Finished { code, stdout, stderr } = &done;
        assert_eq!((*code, stdout.as_str()), (Some(2), ""), "{done:?}");
        let names_all = ["server.tls_key_file: ", "two.key", "one.pem", "holds another key"]
            .iter()
            .all(|it| stderr.contains(it));
        assert!(names_all, "{stderr}");
    }
    let good = Setup::new().with_tls(&authority.path("one.pem"), &authority.path("one.key"));
    let (_directory, file) = good.write();
    let done = Process::run(&["check", "--config", file.to_str().unwrap()], &[]);
    assert!(done.code == Some(0) && done.stdout.contains("one.key"), "{done:?}");
    assert!(!done.stdout.contains("PRIVATE"), "the file's name, not what is in it");
}

#[test]
fn who_does_not_get_through_the_handshake_or_asks_nothing_after_it_is_closed() {
    let scene = Scene::new("head_timeout = '600ms'");
    let to = scene.relay.public;
    let hello = hello(&scene.authority.client(&["h2"]));
    let beginnings: [&[u8]; 4] = [b"", &hello[..1], &hello[..hello.len() / 2], &hello];
    let in_time = |what: &str, begin: Instant| {
        let after = begin.elapsed();
        assert!(
            (Duration::from_millis(400)..Duration::from_secs(5)).contains(&after),
            "{what} after {after:?}"
        );
    };
    thread::scope(|scope| {
        for beginning in beginnings {
            scope.spawn(move || {
                let begin = Instant::now();
                let mut wire = Wire::connect(to);
                wire.send(beginning);
                wire.rest();
                in_time(&format!("{} bytes of a hello", beginning.len()), begin);
            });
        }
        for protocols in [&["h2"][..], &["http/1.1"]] {
            let config = scene.authority.client(protocols);
            scope.spawn(move || {
                let mut secure = Secure::connect(to, &config);
                let begin = Instant::now();
                secure.rest();
                in_time(&format!("a handshake for {protocols:?}"), begin);
            });
        }
        scope.spawn(|| {
            let begin = Instant::now();
            let mut wire = Wire::connect(to);
            for byte in &hello {
                if wire.socket.write_all(&[*byte]).is_err()
                    || wire.look(Instant::now() + Duration::from_millis(20))
                        == common::http::Look::End
                {
                    break;
                }
            }
            in_time("a hello byte by byte", begin);
        });
    });
}

#[test]
fn first_byte_handshake_and_request_have_a_time_each() {
    let scene = Scene::new("head_timeout = '2s'");
    let (to, config) = (scene.relay.public, scene.authority.client(&["http/1.1"]));
    let a_while = || thread::sleep(Duration::from_millis(1300)); // two of them are more than one has
    let mut socket = TcpStream::connect(to).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut connection = ClientConnection::new(config, to.ip().into()).unwrap();
    a_while();
    connection.write_tls(&mut socket).unwrap();
    connection.read_tls(&mut socket).unwrap();
    a_while();
    while connection.is_handshaking() {
        connection.process_new_packets().unwrap();
        connection.complete_io(&mut socket).unwrap();
    }
    a_while();
    let mut secure = Secure::of(StreamOwned::new(connection, socket));
    assert_eq!(secure.ask(to, "/nothing", &[]).status(), 404);
}

#[test]
fn who_speaks_no_tls_is_closed_at_once_and_disturbs_nobody() {
    let mut scene = Scene::new("");
    let mut seated = scene.secure();
    assert_eq!(seated.ask(scene.relay.public, STREAM, &[]).status(), 200);
    let stranger = |bytes: &[u8]| {
        let mut wire = Wire::connect(scene.relay.public);
        wire.send(bytes);
        let begin = Instant::now();
        let answer = wire.rest();
        assert!(begin.elapsed() < Duration::from_secs(5));
        answer
    };
    for bytes in [
        format!("GET {STREAM} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").as_bytes(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        &[0x16; 600],
    ] {
        let answer = stranger(bytes);
        assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    }
    scene.link.event(event(1));
    seated.through(event(1).as_bytes());
}

#[test]
fn who_takes_nothing_over_tls_is_disconnected_whatever_it_speaks() {
    let mut scene = Scene::new("write_timeout = '1s'");
    let to = scene.relay.public;
    let mut sse = scene.secure();
    assert_eq!(sse.ask(to, STREAM, &[]).status(), 200);
    let mut socket = scene.secure();
    assert_eq!(socket.ask(to, SOCKET, &UPGRADE).status(), 101);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // The runtime stands still from here on, and with it whatever reads this connection.
    let http2 = runtime.block_on(async {
        let (mut client, driver) = scene.http2().await;
        (subscribe(&mut client, to).await, client, driver)
    });
    let gauge = |transport| [("product_id", PRODUCT), ("transport", transport)];
    scene.relay.wait_for_metric("autoplay_relay_subscribers", &gauge("ws"), 1.0);
    scene.relay.wait_for_subscribers(2.0);
    let session = "x".repeat(8000);
    (0..1500).for_each(|n| scene.link.event(event_of(&session, n)));
    for (transport, count) in [("sse", 2.0), ("ws", 1.0)] {
        let labels = [("transport", transport), ("reason", "stalled")];
        scene.relay.wait_for_metric("autoplay_relay_subscriber_disconnects_total", &labels, count);
    }
    drop(http2);
}

#[test]
fn who_reads_slowly_over_tls_gets_everything_whole_and_in_order() {
    const EVENTS: usize = 300;
    const FRAMING: usize = 500; // of it, and of what else may stand between two events
    let mut scene = Scene::new("write_timeout = '2s'");
    let to = scene.relay.public;
    let mut slow = scene.secure();
    assert_eq!(slow.ask(to, STREAM, &[]).status(), 200);
    scene.relay.wait_for_subscribers(1.0);
    // From one that fits into a record with others to one that takes a dozen; far more, all in all, than sockets hold.
    let sessions: Vec<_> =
        [10, 1000, 16_000, 17_000, 40_000, 200_000].map(|length| "x".repeat(length)).into();
    let sent: Vec<_> = (0..EVENTS).map(|n| event_of(&sessions[n % sessions.len()], n)).collect();
    thread::scope(|scope| {
        let link = &mut scene.link;
        scope.spawn(|| sent.iter().for_each(|event| link.event(event.clone())));
        for (n, event) in sent.iter().enumerate() {
            let seen = slow.through(event.as_bytes()).len();
            assert!(seen < event.len() + FRAMING, "event {n} comes behind what is not its own");
            if n % 60 == 59 {
                // The script of this reader: each pause is far shorter than the time-out, all together are longer.
                thread::sleep(Duration::from_millis(500));
            }
        }
    });
    // What was missed while nobody listened comes in large writes.
    let mut late = scene.secure();
    assert_eq!(late.ask(to, STREAM, &[("Last-Event-ID", "0-0")]).status(), 200);
    for (n, event) in sent.iter().enumerate() {
        let seen = late.through(event.as_bytes()).len();
        assert!(seen < event.len() + FRAMING, "event {n} comes behind what is not its own");
    }
}

#[test]
fn a_client_that_ends_tls_and_keeps_its_socket_is_gone() {
    let scene = Scene::new("");
    let (mut ended, mut strange) = (scene.secure(), scene.secure());
    for secure in [&mut ended, &mut strange] {
        assert_eq!(secure.ask(scene.relay.public, STREAM, &[]).status(), 200);
        // It says more than was asked of it.
        secure.stream.write_all(&[b'x'; 5000]).unwrap();
    }
    scene.relay.wait_for_subscribers(2.0);
    ended.stream.conn.send_close_notify();
    ended.stream.flush().unwrap();
    scene.relay.wait_for_subscribers(1.0);
    strange.stream.sock.write_all(&[0x17, 3, 3, 0, 20]).unwrap();
    strange.stream.sock.write_all(&[0; 20]).unwrap();
    scene.relay.wait_for_subscribers(0.0);
    for secure in [&mut ended, &mut strange] {
        secure.rest();
    }
}

#[test]
fn a_relay_behind_an_https_relay_and_tail_and_healthcheck_trust_its_root() {
    let mut scene = Scene::new("");
    let root = scene.authority.root();
    let url = format!("https://{}{STREAM}", scene.relay.public);
    let leaf = Setup::new()
        .upstream(PRODUCT, &url, "")
        .more(&format!("[egress]\nca_file = '{}'\n", root.display()));
    let leaf = leaf.start();
    leaf.wait_for_upstream("connected");
    leaf.wait_for_end_of_replay();
    let mut subscriber = leaf.subscribe();
    let trusting = [("SSL_CERT_FILE", root.to_str().unwrap())];
    let mut tail = Process::start(&["tail", &url, "--json", "--count", "1"], &trusting);
    scene.relay.wait_for_subscribers(2.0);
    scene.link.event(event(9));
    assert_eq!(subscriber.numbers(1), [9]);
    assert_eq!(tail.exit_code(), Some(0));
    let line: serde_json::Value = serde_json::from_str(tail.stdout.whole().trim()).unwrap();
    assert_eq!(number(line["data"].to_string().as_bytes()), 9);
    let healthcheck = |url: &str| Process::run(&["healthcheck", "--url", url], &trusting);
    assert_eq!(
        healthcheck(&format!("http://{}/readyz", scene.relay.admin)).code,
        Some(0),
        "operators need no TLS"
    );
    let answered = healthcheck(&format!("https://{}/readyz", scene.relay.public));
    assert!(answered.stderr.contains("404"), "it came through TLS: {answered:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_streams_over_tls_in_order() {
    let mut scene = Scene::new("");
    let (mut client, _) = scene.http2().await;
    let stream = subscribe(&mut client, scene.relay.public).await;
    let mut secure = scene.secure();
    assert_eq!(secure.ask(scene.relay.public, STREAM, &[]).status(), 200);
    scene.relay.wait_for_subscribers(2.0);
    scene.relay.process.signal("TERM");
    let whole = timeout(PATIENCE, stream.incoming.collect()).await.unwrap().unwrap().to_bytes();
    assert!(whole.starts_with(b"retry: "), "{whole:?}");
    assert!(secure.rest().ends_with(b"0\r\n\r\n"), "the last chunk");
    assert_eq!(scene.relay.process.exit_code(), Some(0));
}

/// A relay that speaks TLS, behind a connector.
struct Scene {
    authority: Authority,
    relay: Relay,
    link: Link,
    _connector: Connector,
}

impl Scene {
    fn new(server: &str) -> Self {
        let authority = Authority::new();
        authority.issue_as("relay", "IP:127.0.0.1,DNS:localhost", "-days 2");
        let connector = Connector::new();
        let setup =
            Setup::new().upstream(PRODUCT, &connector.url(PRODUCT), &format!("token = '{TOKEN}'"));
        let setup = setup.with_tls(&authority.path("relay.pem"), &authority.path("relay.key"));
        let relay = setup.server(server).start();
        let link = connector.stream();
        Self { authority, relay, link, _connector: connector }
    }

    /// A connection for HTTP/1.1.
    fn secure(&self) -> Secure {
        Secure::connect(self.relay.public, &self.authority.client(&["http/1.1"]))
    }

    /// A connection for HTTP/2.
    async fn http2(
        &self,
    ) -> (http2::SendRequest<Empty<bytes::Bytes>>, tokio::task::JoinHandle<()>) {
        let stream = connect(self.relay.public, self.authority.client(&["h2"])).await;
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(1 << 30).initial_connection_window_size(1 << 30);
        let (client, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
        let driver = tokio::spawn(async { drop(connection.await) });
        (client, driver)
    }
}

async fn connect(to: SocketAddr, config: Arc<ClientConfig>) -> TlsStream<tokio::net::TcpStream> {
    let socket = tokio::net::TcpStream::connect(to).await.unwrap();
    TlsConnector::from(config).connect(ServerName::from(to.ip()), socket).await.unwrap()
}

/// The body of a stream over HTTP/2.
struct Body {
    incoming: Incoming,
    buffer: Vec<u8>,
}

async fn subscribe(client: &mut http2::SendRequest<Empty<bytes::Bytes>>, to: SocketAddr) -> Body {
    let request = Request::get(format!("https://{to}{STREAM}")).body(Empty::new()).unwrap();
    let response = timeout(PATIENCE, client.send_request(request)).await.unwrap().unwrap();
    assert_eq!((response.status().as_u16(), response.version()), (200, Version::HTTP_2));
    Body { incoming: response.into_body(), buffer: Vec::new() }
}

/// The number of the next event.
async fn next_number(body: &mut Body) -> usize {
    loop {
        if let Some(end) = body.buffer.windows(2).position(|window| window == b"\n\n") {
            let block: Vec<u8> = body.buffer.drain(..end + 2).collect();
            let block = match block.starts_with(b"retry: ") {
                true => block.splitn(2, |byte| *byte == b'\n').nth(1).unwrap().to_vec(),
                false => block,
            };
            let frame = Frame::parse(&block);
            if frame.event.is_none() {
                return number(&frame.data);
            }
            continue;
        }
        let frame =
            timeout(PATIENCE, body.incoming.frame()).await.expect("more comes").unwrap().unwrap();
        body.buffer.extend_from_slice(&frame.into_data().unwrap());
    }
}

/// What a client sends first.
fn hello(config: &Arc<ClientConfig>) -> Vec<u8> {
    let mut connection =
        ClientConnection::new(Arc::clone(config), "localhost".try_into().unwrap()).unwrap();
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).unwrap();
    hello
}

const REFUSED: &str =
    "the new certificate is refused, and tried again; the former one is still served";
