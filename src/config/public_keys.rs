//! The public keys that verify scoped tokens.
//!
//! In: a PEM file. Out: its keys, or what is wrong with which of them. They are read with the
//! configuration, so that an invalid file is found before a token depends on it.
//!
//! May use: no other module.

use std::path::Path;

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256,
    VerificationAlgorithm,
};
use rustls::pki_types::pem::{PemObject, SectionKind};

use super::pem;

/// A signature algorithm with a public key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum PublicKeyAlgorithm {
    /// Ed25519.
    EdDsa,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// RSA PKCS#1 v1.5 with SHA-256.
    Rs256,
}

/// A public key: a SubjectPublicKeyInfo in DER (RFC 5280, section 4.1.2.7).
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct PublicKey(Vec<u8>);

impl PublicKey {
    /// Returns the DER bytes.
    pub(crate) fn as_der(&self) -> &[u8] {
        &self.0
    }
}

/// Reads all keys of a file.
///
/// # Errors
///
/// A message that names the fault: no key, too many keys, a key for another algorithm, or a private
/// key.
pub(super) fn read_public_keys(
    path: &Path,
    algorithm: PublicKeyAlgorithm,
) -> Result<Vec<PublicKey>, String> {
    let file = path.display();
    let pem = pem::read_pem_file(path)?;
    let mut keys = Vec::new();
    for block in <(SectionKind, Vec<u8>)>::pem_slice_iter(&pem) {
        let number = keys.len() + 1;
        let (kind, der) = block.map_err(|_| format!("{file}: key {number} is not valid PEM"))?;
        match kind {
            SectionKind::PublicKey => {
                keys.push(
                    check_key(der, algorithm).map_err(|it| format!("{file}: key {number} {it}"))?,
                );
            }
            SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey => {
                return Err(format!("{file} holds a private key; only public keys belong there"));
            }
            _ => return Err(format!("{file} holds other blocks than PUBLIC KEY")),
        }
    }
    match keys.len() {
        0 => Err(format!("{file} holds no PUBLIC KEY block; write the keys in PEM")),
        1..=MAX_PUBLIC_KEYS => Ok(keys),
        _ => Err(format!("{file} holds more than {MAX_PUBLIC_KEYS} keys")),
    }
}

/// Returns the key if it fits the algorithm.
fn check_key(der: Vec<u8>, algorithm: PublicKeyAlgorithm) -> Result<PublicKey, String> {
    let (verification, expected): (&'static dyn VerificationAlgorithm, _) = match algorithm {
        PublicKeyAlgorithm::EdDsa => (&ED25519, "an Ed25519 key"),
        PublicKeyAlgorithm::Es256 => (&ECDSA_P256_SHA256_FIXED, "a P-256 key"),
        PublicKeyAlgorithm::Rs256 => (&RSA_PKCS1_2048_8192_SHA256, "an RSA key"),
    };
    let _ = ParsedPublicKey::new(verification, &der).map_err(|_| format!("is not {expected}"))?;
    if algorithm == PublicKeyAlgorithm::Rs256 && der.len() < MIN_RSA_DER_BYTES {
        // `RSA_PKCS1_2048_8192_SHA256` would accept no signature of a shorter key.
        return Err("has less than 2048 bits".to_owned());
    }
    Ok(PublicKey(der))
}

/// Maximum number of keys: a token is tried with each key, and any client may send tokens.
const MAX_PUBLIC_KEYS: usize = 8;

/// Minimum length of an RSA key in DER: 256 bytes of modulus (2048 bits), and at least 36 bytes
/// around it.
const MIN_RSA_DER_BYTES: usize = 256 + 36;

#[cfg(test)]
impl PublicKey {
    /// Wraps a key that a test has generated.
    pub(crate) fn from_der(der: &[u8]) -> Self {
        Self(der.to_vec())
    }
}
