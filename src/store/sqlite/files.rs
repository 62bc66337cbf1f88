//! The files of a store on the disk: their names, modes and sizes, and setting them aside.
//!
//! May use: no other module.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Creates the file with access for its owner alone, unless it exists. SQLite gives the files
/// beside it the same mode.
pub(super) fn create_private(path: &Path) -> io::Result<()> {
    // Must not open a file that exists: POSIX advisory locks belong to the process, so closing this
    // descriptor would release the locks that SQLite holds on the file for a reader.
    match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Returns the path of the write-ahead log of the database at `path`.
pub(crate) fn wal_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push("-wal");
    PathBuf::from(name)
}

/// Returns the size of that write-ahead log, 0 if there is none.
pub(crate) fn wal_bytes(path: &Path) -> u64 {
    fs::metadata(wal_path(path)).map_or(0, |wal| wal.len())
}

/// Size of the write-ahead log beyond which the syncer moves it into the database. SQLite truncates
/// the log to this size when it begins the log anew.
pub(crate) const CHECKPOINT_WAL_BYTES: u64 = 4 << 20;

/// Size of the write-ahead log beyond which the writer runs a checkpoint itself, 16 times the size
/// at which the syncer does, and beyond which a reader that prevents it is reported.
pub(crate) const MAX_WAL_BYTES: u64 = 64 << 20;

/// Identity of the files under a store's names, which tells whether others have taken their place.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct FilesInPlace {
    /// Device and inode of the database; `None` if there is no file.
    pub(crate) database: Option<(u64, u64)>,
    /// The same of its write-ahead log.
    pub(crate) wal: Option<(u64, u64)>,
}

impl FilesInPlace {
    /// Looks up the files of the database at `path`. Opens none of them: to close a descriptor of
    /// the database would release SQLite's locks on it.
    ///
    /// # Errors
    ///
    /// When the file system does not tell.
    pub(crate) fn find(path: &Path) -> io::Result<Self> {
        Ok(Self { database: identity(path)?, wal: identity(&wal_path(path))? })
    }
}

fn identity(path: &Path) -> io::Result<Option<(u64, u64)>> {
    match fs::metadata(path) {
        Ok(file) => Ok(Some((file.dev(), file.ino()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes the write-ahead log at `path` and its index if it is the one of `files`, whose database
/// has another name by now or none: SQLite would write that log into the database at `path`.
///
/// # Errors
///
/// When the files cannot be looked up or removed.
pub(crate) fn remove_stale_wal(path: &Path, files: FilesInPlace) -> io::Result<()> {
    if files.wal.is_some() && FilesInPlace::find(path)?.wal == files.wal {
        remove_if_there(&wal_path(path))?;
        remove_if_there(&with_suffix(path, "-shm"))?;
    }
    Ok(())
}

/// Renames a damaged database and the files that SQLite keeps beside it, and returns the new path.
/// The writer must have closed it. `now`, in Unix milliseconds, becomes part of the name, or the
/// next number whose name is free.
///
/// # Errors
///
/// When a rename fails. Calling it again moves the files that are left, under another name.
pub(crate) fn set_aside(path: &Path, now: u64) -> io::Result<PathBuf> {
    let mut stamp = now;
    while any_exists(&damaged_path(path, stamp))? {
        stamp += 1;
    }
    // The database is renamed first. If a crash leaves the others behind, they are no store without
    // it; a database without its write-ahead log would lose commits silently.
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

/// Returns the name of a store while it is created.
pub(super) fn unfinished(path: &Path) -> PathBuf {
    with_suffix(path, ".new")
}

/// Removes a database and the files beside it, as far as they exist.
pub(super) fn remove_leftovers(path: &Path) -> io::Result<()> {
    FILE_SUFFIXES.iter().try_for_each(|suffix| remove_if_there(&with_suffix(path, suffix)))
}

/// Gives a complete database, which no connection has open, its name.
pub(super) fn put_in_place(unfinished: &Path, path: &Path) -> io::Result<()> {
    // Of a database that was removed: SQLite would write that write-ahead log into this one.
    remove_if_there(&with_suffix(path, "-wal"))?;
    remove_if_there(&with_suffix(path, "-shm"))?;
    fs::rename(unfinished, path)?;
    sync_directory(path)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
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

/// Brings renames in the file's directory to the disk: a rename alone may be lost in a power cut.
fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::File::open(directory)?.sync_all()
}

/// Suffixes of the database, of its write-ahead log and of the log's index.
pub(super) const FILE_SUFFIXES: [&str; 3] = ["", "-wal", "-shm"];
