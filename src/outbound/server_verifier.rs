//! Verification of server certificates.
//!
//! In: roots, and a server's certificate chain. Out: trust, or the reason against it. rustls'
//! own rules apply, with one exception: a self-signed certificate that the operator listed
//! among the roots is trusted when a server shows that very certificate, even if it calls itself
//! an authority. `openssl req -x509` makes such certificates by default, and webpki rejects an
//! authority's certificate as a server's.
//!
//! May use: `error_chain`.

use std::{collections::HashSet, sync::Arc};

use aws_lc_rs::digest::{SHA256, digest};
use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};

use crate::error_chain::find_in_chain;

/// Verifier of the certificates of upstreams and webhooks' endpoints.
#[derive(Debug)]
pub(super) struct ListedServerVerifier {
    roots: RootCertStore,
    /// SHA-256 of each listed certificate: 32 bytes instead of a second copy of all roots.
    listed: HashSet<[u8; 32]>,
    provider: Arc<CryptoProvider>,
}

impl ListedServerVerifier {
    /// Creates a verifier that trusts `listed`, of which `roots` has those that can sign.
    pub(super) fn new(
        roots: RootCertStore,
        listed: &[CertificateDer<'_>],
        provider: Arc<CryptoProvider>,
    ) -> Self {
        let listed = listed.iter().filter_map(sha256).collect();
        Self { roots, listed, provider }
    }

    fn is_listed_itself(&self, certificate: &CertificateDer<'_>) -> bool {
        let is_self_signed = webpki::EndEntityCert::try_from(certificate)
            .is_ok_and(|certificate| certificate.issuer() == certificate.subject());
        is_self_signed && sha256(certificate).is_some_and(|digest| self.listed.contains(&digest))
    }
}

impl ServerCertVerifier for ListedServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        match verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        ) {
            // webpki checks the validity before it asks whether this is an authority, so the time
            // is right here. That the server has the key shows in the handshake's signature.
            Err(error) if blames_authority(&error) && self.is_listed_itself(end_entity) => {}
            verified => verified?,
        }
        verify_server_name(&certificate, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn blames_authority(error: &Error) -> bool {
    match error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(cause))) => {
            matches!(find_in_chain(&**cause), Some(webpki::Error::CaUsedAsEndEntity))
        }
        _ => false,
    }
}

fn sha256(certificate: &CertificateDer<'_>) -> Option<[u8; 32]> {
    digest(&SHA256, certificate).as_ref().try_into().ok()
}

#[cfg(test)]
mod tests {
    use std::{process::Command, time::Duration};

    use rustls::pki_types::pem::PemObject;
    use tempfile::TempDir;

    use super::*;
    use crate::outbound::tls_problem::describe_tls_problem;

    /// Folder in which openssl makes certificates.
    struct Workshop(TempDir);

    impl Workshop {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        /// Makes `NAME.pem` and its key, self-signed, with openssl's defaults.
        fn self_signed(&self, name: &str, names: &str) -> CertificateDer<'static> {
            self.openssl(&format!(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
                 -keyout {name}.key -out {name}.pem -subj /CN=receiver.test{names}"
            ))
            .read(name)
        }

        /// Makes `NAME.pem`, signed by `issuer`.
        fn signed_by(&self, issuer: &str, name: &str, extensions: &str) -> CertificateDer<'static> {
            std::fs::write(self.0.path().join("extensions"), extensions).unwrap();
            self.openssl(&format!(
                "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {name}.key \
                 -out {name}.csr -subj /CN={name}"
            ))
            .openssl(&format!(
                "x509 -req -in {name}.csr -CA {issuer}.pem -CAkey {issuer}.key -CAcreateserial \
                 -days 2 -extfile extensions -out {name}.pem"
            ))
            .read(name)
        }

        fn openssl(&self, arguments: &str) -> &Self {
            let mut openssl = Command::new("openssl");
            openssl.args(arguments.split_ascii_whitespace()).current_dir(self.0.path());
            let done = openssl.output().unwrap();
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            self
        }

        fn read(&self, name: &str) -> CertificateDer<'static> {
            CertificateDer::from_pem_file(self.0.path().join(format!("{name}.pem"))).unwrap()
        }
    }

    /// Verifies a certificate of a server at `host`, `days` from now. Returns the reason as text.
    fn judge(
        listed: &[&CertificateDer<'static>],
        shown: &CertificateDer<'_>,
        host: &str,
        days: i64,
    ) -> Result<(), String> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(listed.iter().map(|listed| (*listed).clone()));
        let listed: Vec<_> = listed.iter().map(|listed| (*listed).clone()).collect();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = ListedServerVerifier::new(roots, &listed, provider);
        let now = UnixTime::now().as_secs().checked_add_signed(days * 86_400).unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
        let host = ServerName::try_from(host.to_owned()).unwrap();
        match verifier.verify_server_cert(shown, &[], &host, &[], now) {
            Ok(_) => Ok(()),
            Err(error) => Err(describe_tls_problem(&error).unwrap()),
        }
    }

    const NAMES: &str = " -addext subjectAltName=DNS:receiver.test,IP:10.1.2.3";

    #[test]
    fn a_listed_self_signed_certificate_is_trusted_for_its_own_names() {
        let workshop = Workshop::new();
        let own = workshop.self_signed("own", NAMES);
        let other = workshop.self_signed("other", "");
        assert_eq!(judge(&[&own], &own, "receiver.test", 0), Ok(()));
        assert_eq!(judge(&[&other, &own], &own, "10.1.2.3", 1), Ok(()));
        let plain = format!("{NAMES} -addext basicConstraints=critical,CA:FALSE");
        let plain = workshop.self_signed("plain", &plain);
        assert_eq!(judge(&[&plain], &plain, "receiver.test", 0), Ok(()), "it was before, too");
        let signed = workshop.signed_by("own", "signed", "subjectAltName=DNS:signed.test");
        assert_eq!(judge(&[&own], &signed, "signed.test", 0), Ok(()), "it was before, too");
    }

    #[test]
    fn a_listed_self_signed_certificate_is_trusted_for_nothing_else() {
        let workshop = Workshop::new();
        let own = workshop.self_signed("own", NAMES);
        let nameless = workshop.self_signed("nameless", "");
        let same_name = workshop.self_signed("same-name", NAMES);
        let authority = "subjectAltName=DNS:receiver.test\nbasicConstraints=critical,CA:TRUE";
        let signed_authority = workshop.signed_by("own", "signed-authority", authority);
        let signed = workshop.signed_by("own", "signed", "subjectAltName=DNS:signed.test");
        for (listed, shown, host, days, reason) in [
            (vec![&own], &own, "other.test", 0, "is for another name"),
            (vec![&own], &own, "10.1.2.4", 0, "is for another name"),
            (vec![&own], &own, "receiver.test", 3, "has expired"),
            (vec![&own], &own, "receiver.test", -1, "is not valid yet"),
            (vec![&own], &same_name, "receiver.test", 0, "CA:TRUE"),
            (vec![], &own, "receiver.test", 0, "CA:TRUE"),
            (vec![&nameless], &nameless, "receiver.test", 0, "no subjectAltName"),
            (vec![&own], &signed_authority, "receiver.test", 0, "CA:TRUE"),
            // Not self-signed: it must be signed by a root, and may be no authority.
            (vec![&signed_authority], &signed_authority, "receiver.test", 0, "CA:TRUE"),
            (vec![&own], &signed, "receiver.test", 0, "is for another name"),
            (vec![&same_name], &signed, "signed.test", 0, "give the root that has signed it"),
            (vec![&nameless], &signed, "signed.test", 0, "give the root that has signed it"),
            (vec![], &signed, "signed.test", 0, "egress.ca_file"),
        ] {
            let error = judge(&listed, shown, host, days).unwrap_err();
            assert!(error.contains(reason), "{host}, {days}: {error}");
        }
    }
}
