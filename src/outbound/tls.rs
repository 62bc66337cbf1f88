//! TLS as a client: the roots of trust for upstreams and webhooks.
//!
//! May use: `config`.

use std::{io, path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

use super::server_verifier::ListedServerVerifier;
use crate::config::pem_contents;

/// Reasons for which a TLS client could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// The file of additional roots cannot be used.
    #[error("egress.ca_file: cannot read certificates from {path}")]
    CaFile {
        /// Path of the file.
        path: String,
        /// Error of the file system or of the parser.
        #[source]
        source: io::Error,
    },
    /// The TLS library refuses its own defaults.
    #[error("cannot set up TLS")]
    Setup(#[from] rustls::Error),
}

/// Returns a client's TLS configuration that trusts the platform's roots (and `SSL_CERT_FILE`,
/// `SSL_CERT_DIR`), and those in `ca_file`; self-signed ones among them also as the certificates of
/// servers.
///
/// Reads files, and may block.
///
/// # Errors
///
/// When `ca_file` cannot be read as PEM certificates.
pub(crate) fn tls_client_config(ca_file: Option<&Path>) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let (roots, listed) = root_certificates(ca_file)?;
    let verifier = ListedServerVerifier::new(roots, &listed, Arc::clone(&provider));
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous() // rustls calls every verifier so that is not its own
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok(config)
}

/// Returns the roots, and all certificates that were listed as such.
fn root_certificates(
    ca_file: Option<&Path>,
) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), TlsError> {
    let mut roots = RootCertStore::empty();
    let native = rustls_native_certs::load_native_certs();
    // Not fatal: one unreadable file of the platform must not keep the relay from its start.
    for error in &native.errors {
        tracing::warn!(%error, "cannot read some of the platform's root certificates");
    }
    let mut listed = native.certs;
    roots.add_parsable_certificates(listed.iter().cloned());
    if let Some(path) = ca_file {
        let unreadable = |reason: String| TlsError::CaFile {
            path: path.display().to_string(),
            source: io::Error::other(reason),
        };
        let pem = pem_contents(path).map_err(unreadable)?;
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|error| unreadable(error.to_string()))?;
            roots.add(certificate.clone()).map_err(|error| unreadable(error.to_string()))?;
            listed.push(certificate);
        }
    }
    Ok((roots, listed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_file_of_roots_no_more_is_read_than_one_may_have() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(tls_client_config(Some(file.path())).is_ok());
        file.as_file().set_len(2 << 20).unwrap();
        let Err(TlsError::CaFile { source, .. }) = tls_client_config(Some(file.path())) else {
            panic!("it is read")
        };
        assert!(source.to_string().contains("is larger than 1 MiB"), "{source}");
    }
}
