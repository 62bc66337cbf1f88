//! Streams over TLS: protocol selection, stalled and slow subscribers, drain.

use std::{io::Write, thread, time::Duration};

use super::{Scene, next_number, subscribe};
use crate::common::{
    PRODUCT, SOCKET, STREAM,
    events::{event, event_of, number},
    http::{self, Head},
    process::Process,
    relay::Setup,
    tls::TlsClient,
    wait::TIMEOUT,
    websocket::{self, TEXT, UPGRADE},
};
use http_body_util::BodyExt;
use tokio::time::timeout;

#[test]
fn alpn_selects_the_protocol_and_http1_is_the_default() {
    let scene = Scene::new("");
    let protocol = |protocols: &[&str]| {
        let secure = TlsClient::connect(scene.relay.public, &scene.authority.client(protocols));
        secure.stream.conn.alpn_protocol().map(|name| String::from_utf8(name.to_vec()).unwrap())
    };
    assert_eq!(protocol(&["h2", "http/1.1"]).as_deref(), Some("h2"));
    assert_eq!(protocol(&["http/1.1", "h2"]).as_deref(), Some("h2"), "HTTP/2 is preferred");
    assert_eq!(protocol(&["http/1.1"]).as_deref(), Some("http/1.1"));
    assert_eq!(protocol(&[]), None);
    let strange = TlsClient::try_connect(scene.relay.public, &scene.authority.client(&["spdy/3"]));
    assert!(strange.err().unwrap().to_string().contains("NoApplicationProtocol"));
    let mut plain = TlsClient::connect(scene.relay.public, &scene.authority.client(&[]));
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
fn the_reply_to_a_filter_precedes_its_events_over_tls() {
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

#[test]
fn a_subscriber_that_reads_nothing_over_tls_is_disconnected_on_every_transport() {
    let mut scene = Scene::new("write_timeout = '1s'");
    let to = scene.relay.public;
    let mut sse = scene.secure();
    assert_eq!(sse.ask(to, STREAM, &[]).status(), 200);
    let mut socket = scene.secure();
    assert_eq!(socket.ask(to, SOCKET, &UPGRADE).status(), 101);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // The runtime does not run from here on, so this connection is not read.
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
fn a_subscriber_that_reads_slowly_over_tls_gets_everything_whole_and_in_order() {
    const EVENTS: usize = 300;
    const FRAMING: usize = 500; // of an event, and of heartbeats between two events
    let mut scene = Scene::new("write_timeout = '2s'");
    let to = scene.relay.public;
    let mut slow = scene.secure();
    assert_eq!(slow.ask(to, STREAM, &[]).status(), 200);
    scene.relay.wait_for_subscribers(1.0);
    // Sizes from several events per record to a dozen records per event; far more in all than
    // sockets hold.
    let sessions: Vec<_> =
        [10, 1000, 16_000, 17_000, 40_000, 200_000].map(|length| "x".repeat(length)).into();
    let sent: Vec<_> = (0..EVENTS).map(|n| event_of(&sessions[n % sessions.len()], n)).collect();
    thread::scope(|scope| {
        let link = &mut scene.link;
        scope.spawn(|| sent.iter().for_each(|event| link.event(event.clone())));
        for (n, event) in sent.iter().enumerate() {
            let seen = slow.through(event.as_bytes()).len();
            assert!(seen < event.len() + FRAMING, "event {n} follows unexpected bytes");
            if n % 60 == 59 {
                // The reader's script: each pause is far shorter than the time-out, all together
                // are longer.
                thread::sleep(Duration::from_millis(500));
            }
        }
    });
    // Replayed events arrive in large writes.
    let mut late = scene.secure();
    assert_eq!(late.ask(to, STREAM, &[("Last-Event-ID", "0-0")]).status(), 200);
    for (n, event) in sent.iter().enumerate() {
        let seen = late.through(event.as_bytes()).len();
        assert!(seen < event.len() + FRAMING, "event {n} follows unexpected bytes");
    }
}

#[test]
fn a_client_that_ends_tls_and_keeps_its_socket_is_disconnected() {
    let scene = Scene::new("");
    let (mut ended, mut strange) = (scene.secure(), scene.secure());
    for secure in [&mut ended, &mut strange] {
        assert_eq!(secure.ask(scene.relay.public, STREAM, &[]).status(), 200);
        // The client sends bytes that the relay ignores.
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
fn a_leaf_and_tail_and_healthcheck_trust_the_root_of_an_https_relay() {
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
        "the admin listener needs no TLS"
    );
    let answered = healthcheck(&format!("https://{}/readyz", scene.relay.public));
    assert!(answered.stderr.contains("404"), "the request passed TLS: {answered:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_gives_streams_over_tls_a_proper_end() {
    let mut scene = Scene::new("");
    let (mut client, _) = scene.http2().await;
    let stream = subscribe(&mut client, scene.relay.public).await;
    let mut secure = scene.secure();
    assert_eq!(secure.ask(scene.relay.public, STREAM, &[]).status(), 200);
    scene.relay.wait_for_subscribers(2.0);
    scene.relay.process.signal("TERM");
    let whole = timeout(TIMEOUT, stream.incoming.collect()).await.unwrap().unwrap().to_bytes();
    assert!(whole.starts_with(b"retry: "), "{whole:?}");
    assert!(secure.rest().ends_with(b"0\r\n\r\n"), "the last chunk");
    assert_eq!(scene.relay.process.exit_code(), Some(0));
}
