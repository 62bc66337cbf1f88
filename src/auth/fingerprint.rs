//! Digests that replace keys and tokens.
//!
//! In: a secret. Out: its SHA-256, which is compared and kept instead of the secret.
//!
//! May use: no other module.

use aws_lc_rs::digest::{SHA256, digest};

/// Returns the SHA-256 of `secret`. Digests are equally long, which the comparison in constant time
/// needs, however long the offered credential is.
pub(super) fn fingerprint(secret: &[u8]) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, secret).as_ref());
    bytes
}
