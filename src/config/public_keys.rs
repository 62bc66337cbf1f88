//! The public keys that scoped tokens are checked with.
//!
//! In: a PEM file. Out: its keys as the verification takes them, or what is wrong with which of
//! them. They are read with the configuration, so that a wrong file is found before anybody relies
//! on it.
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
    /// Its bytes.
    pub(crate) fn as_der(&self) -> &[u8] {
        &self.0
    }
}

/// Reads all keys of a file.
///
/// # Errors
///
/// What is wrong with it: no key, too many, a key for something else, a private one.
pub(super) fn read_public_keys(
    path: &Path,
    algorithm: PublicKeyAlgorithm,
) -> Result<Vec<PublicKey>, String> {
    let file = path.display();
    let pem = pem::read_pem_file(path)?;
    let mut keys = Vec::new();
    for block in <(SectionKind, Vec<u8>)>::pem_slice_iter(&pem) {
        let number = keys.len() + 1;
        let (kind, der) =
            block.map_err(|_| format!("{file}: key {number} is not PEM as it must be"))?;
        match kind {
            SectionKind::PublicKey => {
                keys.push(
                    check_key(der, algorithm).map_err(|it| format!("{file}: key {number} {it}"))?,
                );
            }
            SectionKind::PrivateKey | SectionKind::RsaPrivateKey | SectionKind::EcPrivateKey => {
                return Err(format!("{file} holds a private key; only public keys belong there"));
            }
            _ => return Err(format!("{file} holds something else than PUBLIC KEY blocks")),
        }
    }
    match keys.len() {
        0 => Err(format!("{file} holds no PUBLIC KEY block; write the keys in PEM")),
        1..=MAX_PUBLIC_KEYS => Ok(keys),
        _ => Err(format!("{file} holds more than {MAX_PUBLIC_KEYS} keys")),
    }
}

/// A key that fits the algorithm.
fn check_key(der: Vec<u8>, algorithm: PublicKeyAlgorithm) -> Result<PublicKey, String> {
    let (verification, expected): (&'static dyn VerificationAlgorithm, _) = match algorithm {
        PublicKeyAlgorithm::EdDsa => (&ED25519, "an Ed25519 key"),
        PublicKeyAlgorithm::Es256 => (&ECDSA_P256_SHA256_FIXED, "a P-256 key"),
        PublicKeyAlgorithm::Rs256 => (&RSA_PKCS1_2048_8192_SHA256, "an RSA key"),
    };
    let _ = ParsedPublicKey::new(verification, &der).map_err(|_| format!("is not {expected}"))?;
    if algorithm == PublicKeyAlgorithm::Rs256 && der.len() < MIN_RSA_DER_BYTES {
        // such a signature would never be accepted
        return Err("has less than 2048 bits".to_owned());
    }
    Ok(PublicKey(der))
}

/// A token is tried with each of them, and anybody may send tokens.
const MAX_PUBLIC_KEYS: usize = 8;

/// A modulus of 2048 bits has 256 bytes, and around it stand 36 or more.
const MIN_RSA_DER_BYTES: usize = 256 + 36;

#[cfg(test)]
impl PublicKey {
    /// A key that a test has made.
    pub(crate) fn from_der(der: &[u8]) -> Self {
        Self(der.to_vec())
    }
}
