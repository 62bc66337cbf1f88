//! A file of certificates or keys, read whole and within a bound: a mistaken path may lead to anything.
//!
//! May use: nothing.

use std::{fs::File, io::Read, path::Path};

/// What a file holds.
///
/// # Errors
///
/// Why it is not read, with its name.
pub(super) fn contents(path: &Path) -> Result<Vec<u8>, String> {
    let mut contents = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut contents));
    match read {
        Ok(_) if contents.len() as u64 > MOST_BYTES => Err(format!("{} is larger than 1 MiB", path.display())),
        Ok(_) => Ok(contents),
        Err(error) => Err(format!("cannot read {}: {error}", path.display())),
    }
}

/// A chain of certificates has a few kilobytes, and so have the most keys that are taken.
const MOST_BYTES: u64 = 1024 * 1024;
