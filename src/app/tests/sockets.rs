//! WebSockets as the public listener serves them, in cases that a whole process would hide.
//!
//! The kernel has a write deadline of its own, and a connection hardly ever comes at the moment at
//! which the shards end.

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::either::Either;

use super::*;
use crate::{
    event::{Draft, Kind},
    http::Product,
    log::Numbering,
    metrics::Transport,
    net::tests::{certificate, client},
};

/// Public listener whose peers the kernel never gives up.
struct WebSocketHarness {
    relay: Arc<Relay>,
    tls: Option<Arc<rustls::ClientConfig>>,
    address: SocketAddr,
    stop: StopTokens,
    stop_shards: CancellationToken,
    tasks: JoinSet<()>,
}

impl WebSocketHarness {
    fn open(is_secure: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut text = "[server]\nlisten = '127.0.0.1:0'\nwrite_timeout = '300ms'\n".to_owned();
        let tls = is_secure.then(|| {
            let files = certificate(folder.path());
            let [cert, key] = [&files.cert_file, &files.key_file].map(|file| file.display());
            text.push_str(&format!("tls_cert_file = '{cert}'\ntls_key_file = '{key}'\n"));
            client(&files.cert_file, "http/1.1")
        });
        text.push_str("[auth]\nallow_anonymous = true\n");
        let AdminHarness { config, relay, routes, .. } = AdminHarness::with(&text);
        let read = |files| ServedCertificate::read(files, &relay.metrics).unwrap();
        let certificate = config.server.tls.as_ref().map(read);
        let listener = Listener::bind(config.server.listen, WEBSOCKET_TEST_NEVER_REACHED).unwrap();
        let (address, stop, stop_shards) =
            (listener.address(), StopTokens::default(), CancellationToken::new());
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_public(
            &config,
            &relay,
            listener,
            certificate.as_deref(),
            &routes,
            &stop,
        ));
        // In the relay one token ends all of these.
        let (wheel, end) = (Arc::clone(&relay.wheel), stop_shards.clone());
        tasks.spawn(async move { wheel.run(end).await });
        let (fanout, end) = (Arc::clone(&product(&relay).feed.fanout), stop_shards.clone());
        tasks.spawn(async move { fanout.run(end).await });
        let (relay_of_shard, end) = (Arc::clone(&relay), stop_shards.clone());
        tasks.spawn(async move {
            relay_of_shard
                .shards
                .run([&Handle::current()].into_iter(), &relay_of_shard.wheel, end)
                .await;
        });
        Self { relay, tls, address, stop, stop_shards, tasks }
    }

    /// Appends more events than sockets hold.
    fn fill_log(&self) {
        let log = &product(&self.relay).feed.log;
        log.set_numbering(Numbering::Own);
        let payload = Bytes::from(format!("\"{}\"", "x".repeat(8000)));
        for _ in 0..1500 {
            let (kind, payload, received) = (Kind::new("x"), payload.clone(), Instant::now());
            log.append(Draft {
                kind,
                session: None,
                user: None,
                forwarded_at: None,
                payload,
                received,
            });
        }
    }

    /// Opens a WebSocket for all events, and reads the head of the response.
    async fn connect(&self) -> Either<TcpStream, Box<TlsStream<TcpStream>>> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let mut socket = match &self.tls {
            None => Either::Left(stream),
            Some(config) => {
                let connector = TlsConnector::from(Arc::clone(config));
                Either::Right(Box::new(
                    connector.connect(self.address.ip().into(), stream).await.unwrap(),
                ))
            }
        };
        socket.write_all(UPGRADE).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(timeout(WEBSOCKET_TEST_TIMEOUT, socket.read_u8()).await.unwrap().unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
        socket
    }

    fn disconnects(&self, reason: &'static str) -> u64 {
        self.relay.metrics.disconnects(Transport::WebSocket, reason).get()
    }

    async fn close(mut self) {
        self.stop_shards.cancel();
        self.stop.serving.cancel();
        join_all(&mut self.tasks).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_that_accepts_nothing_is_closed_by_the_relay_with_tls_and_without() {
    for is_secure in [false, true] {
        let harness = WebSocketHarness::open(is_secure);
        harness.fill_log();
        let _takes_nothing = harness.connect().await;
        let begin = Instant::now();
        while harness.disconnects("stalled") == 0 {
            assert!(
                begin.elapsed() < WEBSOCKET_TEST_TIMEOUT,
                "the stall is not noticed: TLS {is_secure}"
            );
            sleep(Duration::from_millis(10)).await;
        }
        harness.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_that_is_opened_when_the_shards_have_ended_is_closed_with_1012() {
    let mut harness = WebSocketHarness::open(false);
    harness.stop_shards.cancel();
    assert!(harness.tasks.join_next().await.unwrap().is_ok(), "the shard has ended");
    let mut socket = harness.connect().await;
    harness.relay.subscribers.disconnect_all(DisconnectReason::Drain);
    let mut close = [0; 4];
    timeout(WEBSOCKET_TEST_TIMEOUT, socket.read_exact(&mut close)).await.unwrap().unwrap();
    assert_eq!(close, [0x88, 2, 0x03, 0xF4], "1012, which a handshake follows");
    socket.write_all(&[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xF4]).await.unwrap();
    assert_eq!(timeout(WEBSOCKET_TEST_TIMEOUT, socket.read(&mut close)).await.unwrap().unwrap(), 0);
    harness.close().await;
}

fn product(relay: &Relay) -> Arc<Product> {
    Arc::clone(&relay.products.iter().find(|known| known.feed.id.as_str() == "p").unwrap())
}

const UPGRADE: &[u8] = b"GET /ws/p?last_event_id=0 HTTP/1.1\r\nHost: 127.0.0.1\r\n\
                         Connection: Upgrade\r\nUpgrade: websocket\r\n\
                         Sec-WebSocket-Version: 13\r\n\
                         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

const WEBSOCKET_TEST_NEVER_REACHED: Duration = Duration::from_secs(3600);

const WEBSOCKET_TEST_TIMEOUT: Duration = Duration::from_secs(15);
