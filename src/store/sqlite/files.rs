//! The files of a store: their names, modes and sizes, and setting them aside.
//!
//! May use: no other module.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Creates the file for its owner alone, unless it is there. SQLite gives those beside it the same
/// mode.
pub(super) fn create_private(path: &Path) -> io::Result<()> {
    // Never opens one that is there: closing it would release the locks that SQLite holds on it for
    // a reader.
    match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Where SQLite keeps the write-ahead log of the database at `path`.
pub(crate) fn wal_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    PathBuf::from(name)
}

/// How large that is, 0 if there is none.
pub(crate) fn wal_bytes(path: &Path) -> u64 {
    fs::metadata(wal_path(path)).map_or(0, |wal| wal.len())
}

/// Once the write-ahead log is larger, it is moved into the database. SQLite cuts it back to this
/// when it begins anew.
pub(crate) const CHECKPOINT_WAL_BYTES: u64 = 4 << 20;

/// Moves a file that is of no use out of the way, with what SQLite keeps beside it, and returns
/// where it is now. Everybody must have closed it. `now` is in Unix milliseconds and becomes
/// part of its name, or the next number whose name is free.
///
/// # Errors
///
/// When a rename fails. Calling it again moves what is left, under another name.
pub(crate) fn set_aside(path: &Path, now: u64) -> io::Result<PathBuf> {
    let mut stamp = now;
    while any_exists(&damaged_path(path, stamp))? {
        stamp += 1;
    }
    // The database goes first: without it, what stays behind after a crash is not mistaken for
    // a store.
    for suffix in FILE_SUFFIXES {
        match fs::rename(with_suffix(path, suffix), with_suffix(&damaged_path(path, stamp), suffix))
        {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    sync_directory(path)?;
    Ok(damaged_path(path, stamp))
}

fn damaged_path(path: &Path, stamp: u64) -> PathBuf {
    with_suffix(path, &format!(".damaged-{stamp}"))
}

fn any_exists(path: &Path) -> io::Result<bool> {
    for suffix in FILE_SUFFIXES {
        match fs::symlink_metadata(with_suffix(path, suffix)) {
            Ok(_) => return Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// Makes renames in the file's directory last.
fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::File::open(directory)?.sync_all()
}

/// The database, its write-ahead log and that one's index.
pub(super) const FILE_SUFFIXES: [&str; 3] = ["", "-wal", "-shm"];
