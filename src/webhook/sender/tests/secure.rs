//! The sender against receivers behind TLS.

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::Command,
    sync::Mutex,
};

use hyper::{Response, Version, server::conn::http1, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::{CertifiedKey, SingleCertAndKey},
};
use tokio::{io::AsyncWriteExt, task::JoinSet};
use tokio_rustls::TlsAcceptor;

use super::*;

/// A self-signed certificate for `receiver.test`, and its key.
pub(super) struct TestCertificate(tempfile::TempDir);

impl TestCertificate {
    pub(super) fn new() -> Self {
        let certificate = Self(tempfile::tempdir().unwrap());
        let arguments = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
                         -days 2 -keyout key.pem -out certificate.pem -subj /CN=hush \
                         -addext subjectAltName=DNS:receiver.test \
                         -addext basicConstraints=critical,CA:FALSE";
        let words = arguments.split_ascii_whitespace();
        let done =
            Command::new("openssl").args(words).current_dir(certificate.0.path()).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        certificate
    }

    fn certificate(&self) -> PathBuf {
        self.0.path().join("certificate.pem")
    }

    pub(super) fn server(&self, protocols: &[&str]) -> ServerConfig {
        let chain = vec![CertificateDer::from_pem_file(self.certificate()).unwrap()];
        let key = PrivateKeyDer::from_pem_file(self.0.path().join("key.pem")).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap();
        let mut config = builder.with_no_client_auth().with_single_cert(chain, key).unwrap();
        config.alpn_protocols =
            protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        config
    }
}

/// Server name of each connection; version and body of each request.
#[derive(Default)]
struct TlsReceiverLog {
    names: Vec<Option<String>>,
    requests: Vec<(Version, Bytes)>,
}

/// Answers every request with 200, over the protocol that the client has chosen among `protocols`.
struct TlsReceiver {
    address: SocketAddr,
    seen: Arc<Mutex<TlsReceiverLog>>,
    _tasks: JoinSet<()>,
}

impl TlsReceiver {
    async fn new(certificate: &TestCertificate, protocols: &[&str]) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(certificate.server(protocols)));
        let (address, seen, mut tasks) =
            (listener.local_addr().unwrap(), Arc::default(), JoinSet::new());
        let seen_by_tasks = Arc::clone(&seen);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let stream = listener.accept().await.unwrap().0;
                connections.spawn(serve_tls(acceptor.clone(), stream, Arc::clone(&seen_by_tasks)));
            }
        });
        Self { address, seen, _tasks: tasks }
    }

    fn sender(&self, host: &str, root: Option<&TestCertificate>) -> WebhookSender {
        sender_to(self.address, host, root, "")
    }
}

/// Returns a sender that resolves `host` to `address`, and trusts `root` besides the platform's
/// roots.
pub(super) fn sender_to(
    address: SocketAddr,
    host: &str,
    root: Option<&TestCertificate>,
    keys: &str,
) -> WebhookSender {
    let webhook = webhook(&format!("https://{host}:{}/events?token=hush", address.port()), keys);
    let resolver = Resolver::Stub(Arc::new(|_| vec![Ipv4Addr::LOCALHOST.into()]));
    let connector =
        EgressConnector::new(guard(&["127.0.0.1"]), webhook.timeout).with_resolver(resolver);
    let root = root.map(TestCertificate::certificate);
    let tls = tls_client_config(root.as_deref()).unwrap();
    WebhookSender::with_connector(connector, &webhook, None, &tls, 4)
}

async fn serve_tls(
    acceptor: TlsAcceptor,
    stream: tokio::net::TcpStream,
    seen: Arc<Mutex<TlsReceiverLog>>,
) {
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let connection = &stream.get_ref().1;
    let is_h2 = connection.alpn_protocol() == Some(b"h2");
    seen.lock().unwrap().names.push(connection.server_name().map(str::to_owned));
    let service = service_fn(move |request: Request<Incoming>| {
        let seen = Arc::clone(&seen);
        async move {
            let version = request.version();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            seen.lock().unwrap().requests.push((version, body));
            Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"ok"))))
        }
    });
    let stream = TokioIo::new(stream);
    let _ = match is_h2 {
        true => http2::Builder::new(TokioExecutor::new()).serve_connection(stream, service).await,
        false => http1::Builder::new().serve_connection(stream, service).await,
    };
}

#[tokio::test]
async fn http2_is_used_where_it_is_offered_and_its_connection_is_shared() {
    let certificate = TestCertificate::new();
    let receiver = TlsReceiver::new(&certificate, &["h2", "http/1.1"]).await;
    let sender = receiver.sender("receiver.test", Some(&certificate));
    assert_eq!(post(&sender).await.1, Disposition::Accepted);
    let (one, other) = tokio::join!(post(&sender), post(&sender));
    assert_eq!((one.1, other.1), (Disposition::Accepted, Disposition::Accepted));
    let seen = receiver.seen.lock().unwrap();
    assert_eq!(seen.requests, vec![(Version::HTTP_2, Bytes::from_static(BODY)); 3]);
    assert_eq!(seen.names, [Some("receiver.test".to_owned())]);
}

#[tokio::test]
async fn http_1_is_used_elsewhere() {
    let certificate = TestCertificate::new();
    for protocols in [&["http/1.1"][..], &[]] {
        let receiver = TlsReceiver::new(&certificate, protocols).await;
        let sender = receiver.sender("receiver.test", Some(&certificate));
        assert_eq!(post(&sender).await.1, Disposition::Accepted);
        assert_eq!(
            receiver.seen.lock().unwrap().requests,
            [(Version::HTTP_11, Bytes::from_static(BODY))]
        );
    }
}

#[tokio::test]
async fn a_certificate_that_does_not_prove_the_host_is_refused_with_the_reason() {
    let certificate = TestCertificate::new();
    let receiver = TlsReceiver::new(&certificate, &["h2"]).await;
    for (host, root, reason) in [
        ("receiver.test", None, "egress.ca_file"),
        ("other.test", Some(&certificate), "is for another name"),
    ] {
        let (attempt, disposition) = post(&receiver.sender(host, root)).await;
        assert_eq!(
            (attempt.outcome, attempt.status, disposition),
            (Outcome::Connect, None, PLAIN_RETRY),
            "{host}"
        );
        let error = attempt.error.unwrap();
        assert!(error.contains(reason) && !error.contains("receiver.test"), "{error}");
    }
    assert!(receiver.seen.lock().unwrap().requests.is_empty());
}

/// Answers each connection's first request with these bytes, and closes the connection as Python's
/// `http.server` does over `ssl`: without `close_notify`.
async fn answer_and_close_abruptly(
    certificate: &TestCertificate,
    answer: &'static [u8],
) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(certificate.server(&["http/1.1"])));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            let stream = listener.accept().await.unwrap().0;
            let mut stream = acceptor.accept(stream).await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(BODY) {
                assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0);
            }
            stream.write_all(answer).await.unwrap();
            stream.flush().await.unwrap();
        }
    });
    (address, tasks)
}

#[tokio::test]
async fn an_answer_that_ends_without_close_notify_counts_by_its_head() {
    let certificate = TestCertificate::new();
    for (answer, expected) in [
        (&b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"[..], Outcome::Accepted),
        (b"HTTP/1.0 200 OK\r\nServer: SimpleHTTP\r\n\r\nok", Outcome::Accepted),
        (b"HTTP/1.1 204 No Content\r\n\r\n", Outcome::Accepted),
        (b"HTTP/1.1 422 No\r\nConnection: close\r\n\r\n", Outcome::Refused),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n", Outcome::Connect),
    ] {
        let (address, _tasks) = answer_and_close_abruptly(&certificate, answer).await;
        let sender = sender_to(address, "receiver.test", Some(&certificate), "");
        for _ in 0..2 {
            let (attempt, _) = post(&sender).await;
            assert_eq!(attempt.outcome, expected, "{}", answer.escape_ascii());
        }
    }
}

#[tokio::test]
async fn a_trusted_certificate_without_its_key_is_refused() {
    let (certificate, other) = (TestCertificate::new(), TestCertificate::new());
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let key = PrivateKeyDer::from_pem_file(other.0.path().join("key.pem")).unwrap();
        let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap();
        let chain = vec![CertificateDer::from_pem_file(certificate.certificate()).unwrap()];
        let pair = CertifiedKey::new(chain, key);
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(pair)));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let sender = sender_to(address, "receiver.test", Some(&certificate), "");
        let accepts = async {
            let stream = listener.accept().await.unwrap().0;
            TlsAcceptor::from(Arc::new(server)).accept(stream).await.err()
        };
        let ((attempt, disposition), refused) = tokio::join!(post(&sender), accepts);
        assert_eq!((attempt.outcome, disposition), (Outcome::Connect, PLAIN_RETRY));
        assert!(refused.is_some(), "{version:?}");
    }
}

#[tokio::test]
async fn a_receiver_that_speaks_no_tls_is_tried_again() {
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let sender = sender(&format!("https://{}/", plain.local_addr().unwrap()), "");
    let answers = async {
        let mut stream = plain.accept().await.unwrap().0;
        stream.write_all(OK.as_bytes()).await.unwrap();
        stream
    };
    let ((attempt, disposition), _open) = tokio::join!(post(&sender), answers);
    assert_eq!((attempt.outcome, disposition), (Outcome::Connect, PLAIN_RETRY));
    assert!(attempt.error.unwrap().starts_with("no TLS on the connection"));
}

#[tokio::test]
async fn a_connection_lost_in_tls_is_tried_again() {
    let closing = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let sender = sender(&format!("https://{}/", closing.local_addr().unwrap()), "");
    let ((attempt, disposition), _) =
        tokio::join!(post(&sender), async { drop(closing.accept().await) });
    assert_eq!((attempt.outcome, disposition), (Outcome::Connect, PLAIN_RETRY));
    assert_eq!(attempt.error.as_deref(), Some("no TLS on the connection: it was lost on the way"));
}

#[tokio::test]
async fn a_receiver_that_hangs_in_tls_costs_the_timeout() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let sender = sender(&format!("https://{}/", silent.local_addr().unwrap()), SHORT_TIMEOUT);
    let (attempt, disposition) = post(&sender).await;
    assert_eq!((attempt.outcome, disposition), (Outcome::Timeout, PLAIN_RETRY));
}
