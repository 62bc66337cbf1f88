//! An upstream over TLS: which certificates the relay trusts.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::Arc,
    time::Duration,
};

use crate::common::{
    PRODUCT,
    connector::STREAM_HEAD,
    events::event,
    relay::{Relay, Setup, TOKEN},
    tls::Authority,
    wait,
};
use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer},
};

#[test]
fn an_upstream_certificate_signed_by_a_listed_root_is_trusted() {
    let authority = Authority::new();
    let server = TlsServer::new(&authority, "DNS:localhost,IP:127.0.0.1");
    for host in ["127.0.0.1", "localhost"] {
        let relay = server.relay(host, Some(&authority.root()));
        let mut subscriber = relay.subscribe();
        let mut stream = server.accept().expect("a request over TLS");
        let head = read_head(&mut stream);
        assert!(head.contains(&format!("Bearer {TOKEN}")), "{head}");
        stream.write_all(format!("{STREAM_HEAD}data: {}\n\n", event(1)).as_bytes()).unwrap();
        assert_eq!(subscriber.numbers(1), [1]);
    }
}

#[test]
fn ssl_cert_file_may_name_the_root() {
    let authority = Authority::new();
    let server = TlsServer::new(&authority, "IP:127.0.0.1");
    let root = authority.root();
    let relay =
        server.setup("127.0.0.1", None).start_with(&[("SSL_CERT_FILE", root.to_str().unwrap())]);
    let mut stream = server.accept().expect("a request over TLS");
    read_head(&mut stream);
    stream.write_all(STREAM_HEAD.as_bytes()).unwrap();
    relay.wait_for_upstream("connected");
}

#[test]
fn an_unknown_authority_is_not_trusted_and_sees_no_token() {
    let authority = Authority::new();
    let server = TlsServer::new(&authority, "IP:127.0.0.1");
    let other = Authority::new();
    for root in [None, Some(other.root())] {
        let relay = server.relay("127.0.0.1", root.as_deref());
        assert!(server.accept().is_none(), "no request is sent on an untrusted connection");
        wait_for_failure(&relay);
    }
}

#[test]
fn a_certificate_for_another_host_is_not_trusted() {
    let authority = Authority::new();
    let server = TlsServer::new(&authority, "DNS:other.test");
    let relay = server.relay("localhost", Some(&authority.root()));
    assert!(server.accept().is_none());
    wait_for_failure(&relay);
}

/// Waits until a connection is counted as failed. The state is not enough: the first backoff may
/// end within a millisecond, and then the relay connects to a server that accepts no more.
pub(super) fn wait_for_failure(relay: &Relay) {
    let failed = [("product_id", PRODUCT), ("outcome", "failed")];
    wait::until("a connection has failed", || {
        relay
            .metrics()
            .value("autoplay_relay_upstream_connects_total", &failed)
            .is_some_and(|count| count >= 1.0)
    });
}

#[test]
fn a_redirect_from_https_to_http_goes_without_the_token() {
    let authority = Authority::new();
    let server = TlsServer::new(&authority, "IP:127.0.0.1");
    let plain = crate::common::connector::Connector::new();
    let _relay = server.relay("127.0.0.1", Some(&authority.root()));
    let mut stream = server.accept().expect("a request over TLS");
    read_head(&mut stream);
    let answer = format!(
        "HTTP/1.1 302 Found\r\nLocation: {}\r\nContent-Length: 0\r\n\r\n",
        plain.url("moved")
    );
    stream.write_all(answer.as_bytes()).unwrap();
    assert_eq!(plain.accept().request.field("authorization"), None);
}

/// A connector behind TLS.
pub(super) struct TlsServer {
    listener: TcpListener,
    config: Arc<ServerConfig>,
}

impl TlsServer {
    fn new(authority: &Authority, names: &str) -> Self {
        Self::with(authority.issue(names))
    }

    /// Returns a server with this certificate and key.
    pub(super) fn with(
        (chain, key): (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>),
    ) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Self { listener, config: Arc::new(config) }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    pub(super) fn setup(&self, host: &str, root: Option<&Path>) -> Setup {
        let url = format!(
            "https://{host}:{}/stream/{PRODUCT}",
            self.listener.local_addr().unwrap().port()
        );
        let setup = Setup::new().upstream(PRODUCT, &url, &format!("token = '{TOKEN}'"));
        match root {
            Some(root) => setup.more(&format!("[egress]\nca_file = '{}'\n", root.display())),
            None => setup,
        }
    }

    pub(super) fn relay(&self, host: &str, root: Option<&Path>) -> Relay {
        self.setup(host, root).start()
    }

    /// Waits for the next connection, and returns it if the handshake succeeds and a first byte
    /// arrives.
    pub(super) fn accept(&self) -> Option<StreamOwned<ServerConnection, TcpStream>> {
        let socket = wait::value("the relay connects", || match self.listener.accept() {
            Ok((socket, _)) => Some(socket),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        });
        socket.set_nonblocking(false).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let connection = ServerConnection::new(Arc::clone(&self.config)).unwrap();
        let mut stream = StreamOwned::new(connection, socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).ok()?;
        }
        // With TLS 1.3 the client's refusal arrives after the server's last handshake message.
        let mut first = [0];
        stream.read_exact(&mut first).ok()?;
        assert!(b"GP".contains(&first[0]), "a GET, or a POST to a webhook");
        Some(stream)
    }
}

/// Reads the rest of a request head.
pub(super) fn read_head(stream: &mut impl Read) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}
