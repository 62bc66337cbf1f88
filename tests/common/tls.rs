//! Certificates made by openssl, and a blocking TLS client.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Instant,
};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tempfile::TempDir;

use super::{
    http::{self, Head},
    relay::Setup,
    wait::TIMEOUT,
};

/// A certificate authority of one test.
pub(crate) struct Authority(TempDir);

impl Authority {
    pub(crate) fn new() -> Self {
        let authority = Self(tempfile::tempdir().unwrap());
        authority.openssl("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -keyout ca.key -out ca.pem -subj /CN=test-root");
        authority
    }

    /// Returns the path of its own certificate.
    pub(crate) fn root(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// Returns the path of a file in the authority's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Issues a certificate for these names, and returns it with its key.
    pub(crate) fn issue(
        &self,
        names: &str,
    ) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        self.issue_as("leaf", names, "-days 2");
        let certificate = CertificateDer::from_pem_file(self.path("leaf.pem")).unwrap();
        (vec![certificate], PrivateKeyDer::from_pem_file(self.path("leaf.key")).unwrap())
    }

    /// Issues a certificate for these names as `NAME.pem` and `NAME.key`.
    pub(crate) fn issue_as(&self, name: &str, names: &str, validity: &str) {
        std::fs::write(self.path("names"), format!("subjectAltName={names}\n")).unwrap();
        self.openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {name}.key -out {name}.csr -subj /CN=test-leaf"
        ));
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial {validity} -extfile names -out {name}.pem"
        ));
    }

    /// Makes a self-signed certificate for these names and its key, also as `NAME.pem` and
    /// `NAME.key`. It is marked as an authority, as openssl does by default.
    pub(crate) fn self_sign(
        &self,
        name: &str,
        names: &str,
    ) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        self.openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -keyout {name}.key -out {name}.pem -subj /CN=test-server -addext subjectAltName={names}"
        ));
        let key = PrivateKeyDer::from_pem_file(self.path(&format!("{name}.key"))).unwrap();
        (vec![self.certificate(name)], key)
    }

    /// Reads the certificate `NAME.pem`.
    pub(crate) fn certificate(&self, name: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.path(&format!("{name}.pem"))).unwrap()
    }

    /// Replaces the certificate and the key of `name` by those of another name.
    pub(crate) fn replace(&self, name: &str, by: &str) {
        for ending in ["pem", "key"] {
            self.replace_file(&format!("{name}.{ending}"), &format!("{by}.{ending}"));
        }
    }

    /// Replaces a file atomically by the contents of another one.
    pub(crate) fn replace_file(&self, name: &str, by: &str) {
        std::fs::copy(self.path(by), self.path("replacement")).unwrap();
        std::fs::rename(self.path("replacement"), self.path(name)).unwrap();
    }

    /// Returns the configuration of a client that trusts this authority and offers these protocols.
    pub(crate) fn client(&self, protocols: &[&str]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.root()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap();
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols =
            protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    fn openssl(&self, arguments: &str) {
        let done = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(self.0.path())
            .output()
            .unwrap();
        assert!(
            done.status.success(),
            "openssl {arguments}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
    }
}

impl Setup {
    /// Sets the certificate and the key of the public listener.
    pub(crate) fn with_tls(self, cert: &Path, key: &Path) -> Self {
        self.server(&format!(
            "tls_cert_file = '{}'\ntls_key_file = '{}'",
            cert.display(),
            key.display()
        ))
    }
}

/// A TLS connection, and the decrypted bytes that no caller has taken.
pub(crate) struct TlsClient {
    pub(crate) stream: StreamOwned<ClientConnection, TcpStream>,
    seen: Vec<u8>,
}

impl TlsClient {
    /// Connects, and completes the handshake.
    pub(crate) fn connect(to: SocketAddr, config: &Arc<ClientConfig>) -> Self {
        Self::try_connect(to, config).unwrap()
    }

    /// Connects, and completes the handshake or returns its error.
    pub(crate) fn try_connect(to: SocketAddr, config: &Arc<ClientConfig>) -> std::io::Result<Self> {
        let mut socket = TcpStream::connect_timeout(&to, TIMEOUT)?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.set_write_timeout(Some(TIMEOUT))?;
        let mut connection = ClientConnection::new(Arc::clone(config), to.ip().into()).unwrap();
        while connection.is_handshaking() {
            connection.complete_io(&mut socket)?;
        }
        Ok(Self::of(StreamOwned::new(connection, socket)))
    }

    /// Wraps a connection whose handshake is complete.
    pub(crate) fn of(stream: StreamOwned<ClientConnection, TcpStream>) -> Self {
        Self { stream, seen: Vec::new() }
    }

    /// Sends a request, and waits for the response head.
    pub(crate) fn ask(&mut self, to: SocketAddr, path: &str, fields: &[(&str, &str)]) -> Head {
        self.stream.write_all(http::request(to, "GET", path, fields).as_bytes()).unwrap();
        Head::parse(&self.through(b"\r\n\r\n"))
    }

    /// Waits for the bytes up to and including `mark`.
    pub(crate) fn through(&mut self, mark: &[u8]) -> Vec<u8> {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            if let Some(at) = self.seen.windows(mark.len()).position(|window| window == mark) {
                return self.seen.drain(..at + mark.len()).collect();
            }
            assert!(
                Instant::now() < deadline,
                "more comes: {:?}",
                String::from_utf8_lossy(&self.seen)
            );
            assert!(self.read_some(), "the connection has ended");
        }
    }

    /// Waits until the peer closes the connection, and returns the bytes before the end.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        while self.read_some() {}
        std::mem::take(&mut self.seen)
    }

    /// Waits for more bytes, and returns false if the connection has ended, properly or not.
    fn read_some(&mut self) -> bool {
        let mut chunk = [0; 16 * 1024];
        match self.stream.read(&mut chunk) {
            Ok(0) => false,
            Ok(count) => {
                self.seen.extend_from_slice(&chunk[..count]);
                true
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                panic!("the peer neither sends nor closes")
            }
            Err(_) => false,
        }
    }

    /// Returns the certificate of the server.
    pub(crate) fn certificate(&self) -> CertificateDer<'static> {
        self.stream.conn.peer_certificates().unwrap()[0].clone().into_owned()
    }
}
