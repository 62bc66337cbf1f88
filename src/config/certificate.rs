//! The certificate of the public listener, and its key.
//!
//! In: two PEM files. Out: a matching pair, or what is wrong with which of the files. The pair is
//! read with the configuration, so that an invalid one is found before clients depend on it, and
//! again whenever the files change.
//!
//! May use: no other module.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_lc_rs::digest::{Context, SHA256};
use rustls::{
    CertificateError, RootCertStore,
    client::verify_server_cert_signed_by_trust_anchor,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject},
    server::ParsedCertificate,
    sign::CertifiedKey,
};
use toml::Value;

use super::{
    keys::{ConfigKey, ConfigValue},
    masked::MaskedToml,
    pem,
};

/// Paths of the certificate and its key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct TlsFiles {
    /// Certificate chain in PEM, the server's own certificate first.
    pub(crate) cert_file: PathBuf,
    /// Private key in PEM.
    pub(crate) key_file: PathBuf,
}

impl TlsFiles {
    /// Reads both files. Blocks on the file system.
    ///
    /// # Errors
    ///
    /// The fault, and the file that has it. A pair is only returned as a whole.
    pub(crate) fn read(&self) -> Result<TlsIdentity, TlsIdentityError> {
        let (cert_file, key_file) = (self.cert_file.display(), self.key_file.display());
        let cert_error = |message: String| TlsIdentityError { key: CERT_FILE_KEY, message };
        let key_error = |message: String| TlsIdentityError { key: KEY_FILE_KEY, message };
        let cert_pem = pem::read_pem_file(&self.cert_file).map_err(cert_error)?;
        let key_pem = pem::read_pem_file(&self.key_file).map_err(key_error)?;

        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&cert_pem).collect();
        let chain = chain.map_err(|_| cert_error(format!("{cert_file} is not valid PEM")))?;
        let leaf = chain.first().ok_or_else(|| {
            let hint = "write the server's certificate in PEM, then its intermediate certificates";
            cert_error(format!("{cert_file} holds no CERTIFICATE block; {hint}"))
        })?;
        let not_after = not_after(leaf).map_err(|error| {
            cert_error(format!(
                "the first certificate in {cert_file} cannot be used: {error}; the server's own certificate comes first"
            ))
        })?;
        let key = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|_| {
            key_error(format!("{key_file} holds no private key that can be read; write it in PEM, without a password"))
        })?;
        let key = default_provider().key_provider.load_private_key(key).map_err(|_| {
            key_error(format!(
                "the key in {key_file} cannot be used for TLS; make it RSA of 2048 bits or more, P-256, P-384 or Ed25519"
            ))
        })?;
        let key = CertifiedKey::new(chain, key);
        key.keys_match().map_err(|_| {
            key_error(format!(
                "{key_file} holds another key than that of the first certificate in {cert_file}"
            ))
        })?;
        let mut digest = Context::new(&SHA256);
        [cert_pem, key_pem].iter().for_each(|pem| digest.update(pem));
        Ok(TlsIdentity { key: Arc::new(key), not_after, digest: digest.finish().as_ref().into() })
    }
}

impl ConfigValue for Option<TlsFiles> {
    fn to_toml(&self) -> Option<Value> {
        let files = self.as_ref()?;
        Some(format!("{}, {}", files.cert_file.display(), files.key_file.display()).into())
    }

    fn path(ConfigKey { section, .. }: ConfigKey<'_>) -> String {
        format!("{section}.{CERT_FILE_KEY}, {section}.{KEY_FILE_KEY}")
    }

    fn write(&self, key: ConfigKey<'_>, document: &mut MaskedToml) {
        let files = self.clone().map(|files| (files.cert_file, files.key_file)).unzip();
        files.0.write(ConfigKey { name: CERT_FILE_KEY, ..key }, document);
        files.1.write(ConfigKey { name: KEY_FILE_KEY, ..key }, document);
    }
}

/// A certificate with its chain and its key.
#[derive(Debug)]
pub(crate) struct TlsIdentity {
    /// The pair in the form that rustls takes.
    pub(crate) key: Arc<CertifiedKey>,
    /// Expiry of the certificate.
    pub(crate) not_after: SystemTime,
    digest: Box<[u8]>,
}

impl TlsIdentity {
    /// Returns whether both were read from files with the same contents.
    pub(crate) fn has_same_contents(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

/// Reason for which two files are no usable pair.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
#[error("server.{key}: {message}")]
pub(crate) struct TlsIdentityError {
    key: &'static str,
    message: String,
}

impl TlsIdentityError {
    /// Returns whether the fault is in the file of the private key rather than in that of the
    /// certificate.
    pub(super) fn is_key_file_error(&self) -> bool {
        self.key == KEY_FILE_KEY
    }

    /// Returns the file, what is wrong with it and what to do, without the configuration key.
    pub(super) fn message(&self) -> &str {
        &self.message
    }
}

/// Returns the expiry of a certificate.
///
/// rustls has a parser that reveals the expiry only of expired certificates. So the certificate is
/// verified at the latest possible time, which saves a dependency on an X.509 crate (about twenty
/// crates).
fn not_after(certificate: &CertificateDer<'_>) -> Result<SystemTime, rustls::Error> {
    let parsed = ParsedCertificate::try_from(certificate)?;
    let end_of_time = UnixTime::since_unix_epoch(Duration::from_secs(u64::MAX));
    match verify_server_cert_signed_by_trust_anchor(
        &parsed,
        &RootCertStore::empty(),
        &[],
        end_of_time,
        &[],
    ) {
        Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext {
            not_after,
            ..
        })) => {
            let end = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(not_after.as_secs()));
            end.ok_or_else(|| CertificateError::BadEncoding.into())
        }
        Err(error) => Err(error),
        Ok(()) => Err(CertificateError::BadEncoding.into()),
    }
}

pub(super) const CERT_FILE_KEY: &str = "tls_cert_file";

pub(super) const KEY_FILE_KEY: &str = "tls_key_file";

#[cfg(test)]
pub(super) mod tests {
    use std::process::Command;

    use tempfile::TempDir;

    use super::*;

    /// Returns the files of a certificate that openssl makes with these options, and of its key.
    pub(in crate::config) fn generate_certificate(options: &str) -> (TempDir, TlsFiles) {
        let folder = tempfile::tempdir().unwrap();
        let arguments =
            format!("req -x509 -nodes -keyout key.pem -out cert.pem -subj /CN=localhost {options}");
        let done = Command::new("openssl")
            .args(arguments.split_whitespace())
            .current_dir(&folder)
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let files = TlsFiles {
            cert_file: folder.path().join("cert.pem"),
            key_file: folder.path().join("key.pem"),
        };
        (folder, files)
    }

    pub(in crate::config) const P256_OPTIONS: &str =
        "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days 30";

    fn read_error(files: &TlsFiles) -> String {
        files.read().unwrap_err().to_string()
    }

    #[test]
    fn keys_of_every_usual_kind_are_read_with_the_expiry_of_their_certificates() {
        let day = Duration::from_secs(86_400);
        let kinds = [
            "rsa:2048",
            "ed25519",
            "ec -pkeyopt ec_paramgen_curve:prime256v1",
            "ec -pkeyopt ec_paramgen_curve:secp384r1",
        ];
        for kind in kinds {
            let (_folder, files) = generate_certificate(&format!("-newkey {kind} -days 30"));
            let left = files.read().unwrap().not_after.duration_since(SystemTime::now()).unwrap();
            assert!((day * 29..=day * 30).contains(&left), "{kind}: {left:?}");
        }
        let (_folder, files) = generate_certificate(&P256_OPTIONS.replace("30", "400000"));
        let end = files.read().unwrap().not_after;
        assert!(
            end > SystemTime::now() + day * 365 * 1000,
            "written as another type of time since 2050: {end:?}"
        );
    }

    #[test]
    fn an_error_names_the_key_and_the_file() {
        let ((one, files), (other, _)) =
            (generate_certificate(P256_OPTIONS), generate_certificate(P256_OPTIONS));
        let swapped = TlsFiles { key_file: other.path().join("key.pem"), ..files.clone() };
        let found = read_error(&swapped);
        assert!(
            found.starts_with("server.tls_key_file: ") && found.contains("holds another key than"),
            "{found}"
        );
        let reversed =
            TlsFiles { cert_file: files.key_file.clone(), key_file: files.cert_file.clone() };
        assert!(
            read_error(&reversed).starts_with("server.tls_cert_file: "),
            "{}",
            read_error(&reversed)
        );
        assert!(
            read_error(&reversed).contains("key.pem holds no CERTIFICATE block"),
            "{}",
            read_error(&reversed)
        );
        let keyless = TlsFiles { key_file: files.cert_file.clone(), ..files.clone() };
        assert!(
            read_error(&keyless).contains("cert.pem holds no private key"),
            "{}",
            read_error(&keyless)
        );
        let gone = TlsFiles { key_file: one.path().join("none"), ..files.clone() };
        assert!(
            read_error(&gone).contains("server.tls_key_file: cannot read"),
            "{}",
            read_error(&gone)
        );
        std::fs::write(&files.cert_file, "x".repeat(2 << 20)).unwrap();
        assert!(read_error(&files).contains("larger than 1 MiB"));
        std::fs::write(
            &files.cert_file,
            "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
        )
        .unwrap();
        assert!(read_error(&files).contains("the first certificate in "), "{}", read_error(&files));
    }

    #[test]
    fn a_file_cut_off_anywhere_is_no_pair_and_no_panic() {
        let (_folder, files) = generate_certificate(P256_OPTIONS);
        for path in [&files.cert_file, &files.key_file] {
            let contents = std::fs::read(path).unwrap();
            for length in 0..contents.len() - 1 {
                std::fs::write(path, &contents[..length]).unwrap();
                assert!(files.read().is_err(), "{} cut at {length}", path.display());
            }
            std::fs::write(path, contents).unwrap();
        }
        files.read().unwrap();
    }

    #[test]
    fn the_same_contents_are_the_same_pair() {
        let ((_one, files), (_other, others)) =
            (generate_certificate(P256_OPTIONS), generate_certificate(P256_OPTIONS));
        let pair = files.read().unwrap();
        assert!(pair.has_same_contents(&files.read().unwrap()));
        assert!(!pair.has_same_contents(&others.read().unwrap()));
    }
}
