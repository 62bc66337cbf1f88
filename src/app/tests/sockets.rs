//! WebSockets as the public listener serves them, where a whole process would hide what is looked at: the kernel has a write deadline
//! of its own, and hardly anybody comes at the moment at which lanes end.

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

/// A public listener whose peers the kernel never gives up.
struct House {
    relay: Arc<Relay>,
    tls: Option<Arc<rustls::ClientConfig>>,
    address: SocketAddr,
    stop: Stops,
    lanes: CancellationToken,
    tasks: JoinSet<()>,
}

impl House {
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
        let Stage { config, relay, doors, .. } = Stage::with(&text);
        let read = |files| Certificate::read(files, &relay.metrics).unwrap();
        let certificate = config.server.tls.as_ref().map(read);
        let listener = Listener::bind(config.server.listen, FAR_AWAY).unwrap();
        let (address, stop, lanes) = (listener.address(), Stops::default(), CancellationToken::new());
        let mut tasks = JoinSet::new();
        tasks.spawn(serve_public(&config, &relay, listener, certificate.as_deref(), &doors, &stop));
        // One token ends these three in the relay, too.
        let (wheel, end) = (Arc::clone(&relay.wheel), lanes.clone());
        tasks.spawn(async move { wheel.run(end).await });
        let (fanout, end) = (Arc::clone(&product(&relay).fanout), lanes.clone());
        tasks.spawn(async move { fanout.run(end).await });
        let (writing, end) = (Arc::clone(&relay), lanes.clone());
        tasks.spawn(async move { writing.shards.run([&Handle::current()].into_iter(), &writing.wheel, end).await });
        Self { relay, tls, address, stop, lanes, tasks }
    }

    /// Events are in the log, more than sockets hold.
    fn fill(&self) {
        let log = &product(&self.relay).log;
        log.numbered_by(Numbering::Own);
        let payload = Bytes::from(format!("\"{}\"", "x".repeat(8000)));
        for _ in 0..1500 {
            let (kind, payload, received) = (Kind::new("x"), payload.clone(), Instant::now());
            log.append(Draft { kind, session: None, forwarded_at: None, payload, received });
        }
    }

    /// A WebSocket that gets everything, of whose answer the head has been read.
    async fn socket(&self) -> Either<TcpStream, Box<TlsStream<TcpStream>>> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let mut socket = match &self.tls {
            None => Either::Left(stream),
            Some(config) => {
                let connector = TlsConnector::from(Arc::clone(config));
                Either::Right(Box::new(connector.connect(self.address.ip().into(), stream).await.unwrap()))
            }
        };
        socket.write_all(UPGRADE).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(timeout(PATIENCE, socket.read_u8()).await.unwrap().unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
        socket
    }

    fn gone(&self, reason: &'static str) -> u64 {
        self.relay.metrics.disconnects(Transport::WebSocket, reason).get()
    }

    async fn close(mut self) {
        self.lanes.cancel();
        self.stop.serving.cancel();
        end(&mut self.tasks).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_that_takes_nothing_is_given_up_by_the_relay_itself_with_tls_and_without() {
    for is_secure in [false, true] {
        let house = House::open(is_secure);
        house.fill();
        let _takes_nothing = house.socket().await;
        let begin = Instant::now();
        while house.gone("stalled") == 0 {
            assert!(begin.elapsed() < PATIENCE, "nobody notices: TLS {is_secure}");
            sleep(Duration::from_millis(10)).await;
        }
        house.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_that_comes_when_the_lanes_have_ended_is_closed_with_1012() {
    let mut house = House::open(false);
    house.lanes.cancel();
    assert!(house.tasks.join_next().await.unwrap().is_ok(), "the lane has ended");
    let mut socket = house.socket().await;
    house.relay.subscribers.dismiss_all(Leave::Drain);
    let mut close = [0; 4];
    timeout(PATIENCE, socket.read_exact(&mut close)).await.unwrap().unwrap();
    assert_eq!(close, [0x88, 2, 0x03, 0xF4], "1012, which a handshake follows");
    socket.write_all(&[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xF4]).await.unwrap();
    assert_eq!(timeout(PATIENCE, socket.read(&mut close)).await.unwrap().unwrap(), 0);
    house.close().await;
}

fn product(relay: &Relay) -> Arc<Product> {
    Arc::clone(&relay.products.iter().next().unwrap())
}

const UPGRADE: &[u8] =
    b"GET /ws/p?last_event_id=0 HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

const FAR_AWAY: Duration = Duration::from_secs(3600);

const PATIENCE: Duration = Duration::from_secs(15);
