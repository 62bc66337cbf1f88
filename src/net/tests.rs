use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    path::Path,
    pin::Pin,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body, extract::Request as AxumRequest};
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{Request, body::Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex},
    net::TcpStream,
    sync::{broadcast, mpsc},
    time::{Instant, sleep, timeout},
};
use tokio_rustls::TlsConnector;
use tokio_stream::{StreamExt, wrappers::BroadcastStream};
use tokio_util::sync::CancellationToken;

pub(crate) use super::detached::tests::shake_hands;
use super::{
    accept::{ConnectionServer, HTTP2_PREFACE},
    connection::ConnectionTasks,
    detach::ConnectionState,
    displacement::{ConnectionTable, TableEntry},
    handshake_turns::HandshakeTurns,
    *,
};
use crate::{config::TlsFiles, timer_wheel::TimerWheel};

/// The kernel's own time-out, which would hide that the socket's is missing, is out of reach here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_that_accepts_nothing_is_closed_under_every_protocol() {
    let folder = tempfile::tempdir().unwrap();
    let files = certificate(folder.path());
    let tls = Arc::new(ReloadableTls::new(&files.read().unwrap()).unwrap());
    for (is_secure, protocol, request) in [
        (false, "http/1.1", HTTP1_REQUEST.to_vec()),
        (false, "h2", http2_requests(1)),
        (false, "h2", http2_requests(2)),
        (true, "http/1.1", HTTP1_REQUEST.to_vec()),
        (true, "h2", http2_requests(1)),
        (true, "h2", http2_requests(2)),
    ] {
        let (to, mut states) = serve_endless_body(is_secure.then(|| Arc::clone(&tls)));
        let mut socket = TcpStream::connect(to).await.unwrap();
        let _takes_nothing: Box<dyn std::any::Any> = if is_secure {
            let client = TlsConnector::from(client(&files.cert_file, protocol));
            let mut socket = client.connect(ServerName::from(to.ip()), socket).await.unwrap();
            socket.write_all(&request).await.unwrap();
            Box::new(socket)
        } else {
            socket.write_all(&request).await.unwrap();
            Box::new(socket)
        };
        let state = timeout(NET_TEST_TIMEOUT, states.recv()).await.unwrap().unwrap();
        let begin = Instant::now();
        while !state.is_stalled() {
            assert!(
                begin.elapsed() < NET_TEST_TIMEOUT,
                "the stall is not noticed: TLS {is_secure}, {protocol}"
            );
            sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Runs on a worker, where the task woken last runs first, as in the relay: the connection before
/// the streams that were woken with the one that woke it.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn simultaneous_frames_of_many_streams_are_sent_in_few_writes() {
    let many = tokio::spawn(async {
        let mut many = Http2BroadcastHarness::new(50).await;
        for _ in 0..3 {
            // Four for 50 KiB, and a margin for a client's task that runs in between.
            let writes = many.publish().await;
            assert!(writes <= 6, "{writes}");
        }
    });
    many.await.unwrap();
    let one =
        tokio::spawn(async { assert_eq!(Http2BroadcastHarness::new(1).await.publish().await, 1) });
    one.await.unwrap();
}

/// Waker that records whether it was called.
#[derive(Default)]
pub(super) struct WakeFlag(pub(super) AtomicBool);

impl std::task::Wake for WakeFlag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// HTTP/2 connection whose streams all get each published event.
struct Http2BroadcastHarness {
    publisher: broadcast::Sender<Bytes>,
    writes: Arc<AtomicUsize>,
    bodies: Vec<Incoming>,
}

impl Http2BroadcastHarness {
    async fn new(streams: usize) -> Self {
        let publisher = broadcast::Sender::<Bytes>::new(1);
        let source = publisher.clone();
        let routes = Routes::new(Router::new().fallback(move |request: AxumRequest| {
            let name = request.uri().path().to_owned();
            let events = BroadcastStream::new(source.subscribe());
            async {
                Body::from_stream(
                    events.map(move |event| event.map(|event| [name.as_bytes(), &event].concat())),
                )
            }
        }));
        let (wheel, tasks) = (TimerWheel::new(), Arc::<ConnectionTasks>::default());
        let state = Arc::new(ConnectionState::new(&wheel));
        let peer = ([127, 0, 0, 1], 1).into();
        let connection =
            Connection { place: place_of(&state), peer, state, is_over_limit: false, tasks };
        let tasks = Arc::clone(&connection.tasks);
        let (settings, handshake_turns) = (lenient_settings(&wheel), HandshakeTurns::new());
        let server = ConnectionServer { routes, settings, tasks, handshake_turns };
        let (near, far) = duplex(1 << 20);
        let writes = Arc::new(AtomicUsize::new(0));
        let io = WriteCountingIo { io: far, writes: Arc::clone(&writes) };
        tokio::spawn(async move { server.serve_http2(io, connection).await });
        let client =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(near));
        let (mut client, driver) = client.await.unwrap();
        tokio::spawn(driver);
        let mut bodies = Vec::new();
        for stream in 0..streams {
            let request =
                Request::get(format!("http://relay/{stream}")).body(Body::empty()).unwrap();
            bodies.push(client.send_request(request).await.unwrap().into_body());
        }
        Self { publisher, writes, bodies }
    }

    /// Publishes 1 KiB, and returns how many writes that took.
    async fn publish(&mut self) -> usize {
        let before = self.writes.load(Ordering::SeqCst);
        let event = Bytes::from(vec![b'x'; 1024]);
        self.publisher.send(event.clone()).unwrap();
        for (stream, body) in self.bodies.iter_mut().enumerate() {
            let expected = [format!("/{stream}").as_bytes(), &event].concat();
            let mut received = Vec::new();
            while received.len() < expected.len() {
                let frame =
                    timeout(NET_TEST_TIMEOUT, body.frame()).await.unwrap().unwrap().unwrap();
                received.extend(frame.into_data().unwrap());
            }
            assert_eq!(received, expected);
        }
        self.writes.load(Ordering::SeqCst) - before
    }
}

/// Transport that counts the writes to it.
struct WriteCountingIo {
    io: DuplexStream,
    writes: Arc<AtomicUsize>,
}

impl AsyncRead for WriteCountingIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl AsyncWrite for WriteCountingIo {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

/// Serves more than any socket takes on every request, and reports the state of each request's
/// connection.
fn serve_endless_body(
    tls: Option<Arc<ReloadableTls>>,
) -> (SocketAddr, mpsc::UnboundedReceiver<Arc<ConnectionState>>) {
    let (state_sender, states) = mpsc::unbounded_channel();
    let routes = Routes::new(Router::new().fallback(move |request: AxumRequest| {
        state_sender
            .send(Arc::clone(&request.extensions().get::<Connection>().unwrap().state))
            .unwrap();
        let pieces = std::iter::repeat_n(Bytes::from_static(&[b'x'; 1024]), 16 << 10);
        async { Body::from_stream(tokio_stream::iter(pieces.map(Ok::<_, Infallible>))) }
    }));
    let wheel = TimerWheel::new();
    let settings = ConnectionSettings {
        head_timeout: NET_TEST_TIMEOUT,
        write_timeout: Duration::from_millis(300),
        wheel: Arc::clone(&wheel),
        first_byte_timeout: NET_TEST_TIMEOUT,
        max_connections: 10,
        max_over_limit: 0,
        shares: ConnectionShares::UNTIL_FULL,
        tls,
    };
    let listener = Listener::bind(([127, 0, 0, 1], 0).into(), NET_TEST_NEVER_REACHED).unwrap();
    let (to, never) = (listener.address(), CancellationToken::new());
    let stop = never.clone();
    tokio::spawn(async move { wheel.run(stop).await });
    tokio::spawn(serve(listener, routes, settings, never, |_| {}));
    (to, states)
}

/// Returns settings without any deadline that a test could reach.
pub(super) fn lenient_settings(wheel: &Arc<TimerWheel>) -> ConnectionSettings {
    ConnectionSettings {
        head_timeout: NET_TEST_NEVER_REACHED,
        write_timeout: NET_TEST_NEVER_REACHED,
        wheel: Arc::clone(wheel),
        first_byte_timeout: NET_TEST_NEVER_REACHED,
        max_connections: 1,
        max_over_limit: 0,
        shares: ConnectionShares::UNTIL_FULL,
        tls: None,
    }
}

/// Returns the place of a connection in a table of its own, where it never has to give way.
fn place_of(state: &Arc<ConnectionState>) -> Arc<TableEntry> {
    let table = ConnectionTable::new(ConnectionShares::UNTIL_FULL);
    Arc::clone(table.admit([127, 0, 0, 1].into(), state).entry())
}

/// Creates a certificate for this machine, its own root, and its key.
pub(crate) fn certificate(folder: &Path) -> TlsFiles {
    let arguments = "req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days 2 \
                     -keyout key.pem -out cert.pem -subj /CN=localhost \
                     -addext subjectAltName=IP:127.0.0.1 \
                     -addext basicConstraints=critical,CA:FALSE";
    let done = Command::new("openssl")
        .args(arguments.split_whitespace())
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    TlsFiles { cert_file: folder.join("cert.pem"), key_file: folder.join("key.pem") }
}

/// Returns the configuration of a client that trusts `root` and offers `protocol`.
pub(crate) fn client(root: &Path, protocol: &str) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(root).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    Arc::new(config)
}

const HTTP1_REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n";

/// Returns the preface, the largest windows for streams (RFC 9113, section 6.5) and for the
/// connection, and requests for `/`.
fn http2_requests(streams: u8) -> Vec<u8> {
    let settings = b"\0\0\x06\x04\0\0\0\0\0\0\x04\x7F\xFF\xFF\xFF";
    let window = b"\0\0\x04\x08\0\0\0\0\0\x7F\xFE\0\0";
    let requests = (0..streams).map(|stream| {
        let (head, id) = (b"\0\0\x0E\x01\x05\0\0\0", [1 + 2 * stream]);
        [&head[..], &id, b"\x82\x84\x87\x41\x09127.0.0.1"].concat()
    });
    [HTTP2_PREFACE, &settings[..], window, &requests.collect::<Vec<_>>().concat()].concat()
}

const NET_TEST_NEVER_REACHED: Duration = Duration::from_secs(3600);

const NET_TEST_TIMEOUT: Duration = Duration::from_secs(15);
