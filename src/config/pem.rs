//! Bounded reading of files of certificates and keys.
//!
//! In: a path. Out: the whole file, or why it was not read. A mistaken path may lead to any file,
//! so the size has a bound.
//!
//! May use: no other module.

use std::{fs::File, io::Read, path::Path};

/// Returns the contents of a file.
///
/// # Errors
///
/// A message with the path and the reason, if the file cannot be read.
pub(crate) fn read_pem_file(path: &Path) -> Result<Vec<u8>, String> {
    let mut contents = Vec::new();
    let result =
        File::open(path).and_then(|file| file.take(MAX_PEM_BYTES + 1).read_to_end(&mut contents));
    match result {
        Ok(_) => check_size(contents.len() as u64, path).map(|()| contents),
        Err(error) => Err(format!("cannot read {}: {error}", path.display())),
    }
}

/// Checks the size of a file.
///
/// # Errors
///
/// A message with the path, if the file is too large.
pub(super) fn check_size(bytes: u64, path: &Path) -> Result<(), String> {
    let too_large = || {
        format!(
            "{} is larger than 1 MiB; name a file of certificates or keys alone",
            path.display()
        )
    };
    (bytes <= MAX_PEM_BYTES).then_some(()).ok_or_else(too_large)
}

/// Maximum size: a chain of certificates has a few kilobytes, and so has the maximum number of
/// public keys.
const MAX_PEM_BYTES: u64 = 1024 * 1024;
