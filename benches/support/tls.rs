//! The certificate of the targets with TLS, and the configuration of its clients.
//!
//! The certificate is beside the build, made by `openssl` for each target, so that load and target
//! find it without configuration.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use crate::support::Result;

/// Issues the certificate and its key.
///
/// # Errors
///
/// If there is no `openssl`, or it fails.
pub(crate) fn issue() -> Result<()> {
    fs::create_dir_all(folder())?;
    let config = folder().join("openssl.cnf");
    fs::write(&config, CONFIG)?;
    let mut openssl = Command::new("openssl");
    openssl.args(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -config"
            .split(' '),
    );
    let done =
        openssl.arg(config).arg("-keyout").arg(key()).arg("-out").arg(certificate()).output()?;
    match done.status.success() {
        true => Ok(()),
        false => {
            Err(format!("openssl makes no certificate: {}", String::from_utf8_lossy(&done.stderr))
                .into())
        }
    }
}

/// Returns the path of the certificate.
pub(crate) fn certificate() -> PathBuf {
    folder().join("certificate.pem")
}

/// Returns the path of the key.
pub(crate) fn key() -> PathBuf {
    folder().join("key.pem")
}

/// Returns the configuration of the naive server.
pub(crate) fn server() -> Result<Arc<ServerConfig>> {
    let builder = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?;
    let chain = vec![CertificateDer::from_pem_file(certificate())?];
    let mut config = builder
        .with_no_client_auth()
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(key())?)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Returns the configuration of a client with this protocol only.
pub(crate) fn client(protocol: &[u8]) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate())?)?;
    let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    // Each subscriber represents another client, so each makes a full handshake.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-tls")
}

/// A certificate that is its own root, and no authority: then a client accepts it as a server's.
const CONFIG: &str = "[req]\nprompt = no\ndistinguished_name = name\nx509_extensions = extensions\n\
    [name]\nCN = bench\n[extensions]\nsubjectAltName = IP:127.0.0.1\n";
