//! Errors of the store's file, sorted by the reaction that they call for.
//!
//! May use: no other module.

use std::{
    io,
    path::{Path, PathBuf},
};

use rusqlite::ErrorCode;

/// Error of a call on the file. Unless the call says otherwise, it has changed nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// The content was written neither by SQLite nor by this crate. The caller should set the file
    /// aside and begin a new one.
    #[error("the store's file {path} is damaged")]
    Damaged {
        /// Path of the file.
        path: PathBuf,
        /// Finding.
        source: FileFault,
    },
    /// The file is a database of another application. It has not been changed.
    #[error("{path} is no store of this relay: its application id is {found}")]
    Foreign {
        /// Path of the file.
        path: PathBuf,
        /// Application id of the file; 0 for none.
        found: i64,
    },
    /// A newer relay has written the file. It has not been changed.
    #[error(
        "{path} is from a newer version: its schema has version {found}, the newest known here is {known}"
    )]
    NewerVersion {
        /// Path of the file.
        path: PathBuf,
        /// Version of its schema.
        found: i64,
        /// Newest version that this relay knows.
        known: i64,
    },
    /// The file says that its schema has a version that no relay writes. It has not been changed.
    #[error(
        "{path} says that its schema has version {found}; a store has a version from 1 to {known}"
    )]
    UnknownVersion {
        /// Path of the file.
        path: PathBuf,
        /// Version of its schema.
        found: i64,
        /// Newest version that this relay knows.
        known: i64,
    },
    /// Any other cause: no space, no access, a failing disk, a lock. Trying again later may help.
    #[error("cannot {doing} {path}")]
    Unavailable {
        /// Operation that failed, as a verb before the path.
        doing: &'static str,
        /// Path of the file.
        path: PathBuf,
        /// Cause.
        source: FileFault,
    },
}

/// Fault of one operation, without the path and the name of the operation.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileFault {
    /// Error of SQLite, or a stored value of a type or range that this crate never writes.
    #[error(transparent)]
    Sqlite(rusqlite::Error),
    /// Error of the file system.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A stored value that this crate never writes, or a finding of SQLite's own check.
    #[error("{0}")]
    Damage(Box<str>),
    /// The index by session does not fit the rows, which may be whole.
    #[error("{0}")]
    DamagedIndex(&'static str),
    /// The request cannot be done in the file's state.
    #[error("{0}")]
    Refused(&'static str),
    /// The application id is that of another application.
    #[error("its application id is {0}")]
    Foreign(i64),
    /// The schema's version is newer than this relay knows.
    #[error("its schema has version {found}, the newest known here is {known}")]
    Newer {
        /// Version of its schema.
        found: i64,
        /// Newest version that this relay knows.
        known: i64,
    },
    /// The schema's version is one that no relay writes.
    #[error("its schema has version {found}; a store has a version from 1 to {known}")]
    UnknownVersion {
        /// Version of its schema.
        found: i64,
        /// Newest version that this relay knows.
        known: i64,
    },
}

impl From<rusqlite::Error> for FileFault {
    /// Drops the statement, which would be a page of SQL in an operator's log.
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(match error {
            rusqlite::Error::SqlInputError { error, msg, .. } => {
                rusqlite::Error::SqliteFailure(error, Some(msg))
            }
            other => other,
        })
    }
}

impl FileError {
    /// Returns whether the cause may pass by itself and the file is as it was.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { source, .. } if source.is_transient())
    }

    /// Returns whether an index is damaged, so that the rows may be whole.
    pub(crate) fn is_of_index(&self) -> bool {
        match self {
            Self::Damaged { source: FileFault::DamagedIndex(_), .. } => true,
            Self::Damaged { source: FileFault::Sqlite(error), .. } => error
                .sqlite_error()
                .is_some_and(|error| error.extended_code == rusqlite::ffi::SQLITE_CORRUPT_INDEX),
            _ => false,
        }
    }

    /// Returns what an operator is to do so that the store can be written again.
    pub(crate) fn remedy(&self) -> &'static str {
        let code = match self {
            Self::Unavailable { source: FileFault::Sqlite(error), .. } => error.sqlite_error_code(),
            Self::Unavailable { source: FileFault::Io(error), .. } => match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    Some(ErrorCode::DiskFull)
                }
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                    Some(ErrorCode::ReadOnly)
                }
                _ => None,
            },
            _ => None,
        };
        match code {
            Some(ErrorCode::DiskFull) => "make room on the disk of log.data_dir",
            Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
                "make log.data_dir and all files in it writable for the relay, and check that its disk is \
                 mounted for writing"
            }
            _ => "check the disk and the files of log.data_dir",
        }
    }
}

impl FileFault {
    /// Returns the fault of a stored value that this crate never writes.
    pub(crate) fn damage(what: &str) -> Self {
        Self::Damage(what.into())
    }

    /// Returns the error for callers of the file; the fault occurred while `doing` something to
    /// `path`.
    pub(crate) fn at(self, path: &Path, doing: &'static str) -> FileError {
        let path = path.to_owned();
        match self {
            Self::Foreign(found) => FileError::Foreign { path, found },
            Self::Newer { found, known } => FileError::NewerVersion { path, found, known },
            Self::UnknownVersion { found, known } => {
                FileError::UnknownVersion { path, found, known }
            }
            source if source.is_damage() => FileError::Damaged { path, source },
            source => FileError::Unavailable { doing, path, source },
        }
    }

    /// Returns whether the cause may pass by itself and the file is as it was: another connection
    /// held a lock, or the disk was full.
    pub(crate) fn is_transient(&self) -> bool {
        let transient = [ErrorCode::DatabaseBusy, ErrorCode::DatabaseLocked, ErrorCode::DiskFull];
        match self {
            Self::Sqlite(error) => {
                error.sqlite_error_code().is_some_and(|code| transient.contains(&code))
            }
            Self::Refused(_) => true,
            Self::Io(_)
            | Self::Damage(_)
            | Self::DamagedIndex(_)
            | Self::Foreign(_)
            | Self::Newer { .. }
            | Self::UnknownVersion { .. } => false,
        }
    }

    /// Returns whether the fault proves content that neither SQLite nor this crate has written.
    pub(super) fn is_damage(&self) -> bool {
        match self {
            Self::Sqlite(error) => shows_damage(error),
            Self::Damage(_) | Self::DamagedIndex(_) => true,
            Self::Io(_)
            | Self::Refused(_)
            | Self::Foreign(_)
            | Self::Newer { .. }
            | Self::UnknownVersion { .. } => false,
        }
    }
}

/// Returns whether the error proves content that neither SQLite nor this crate has written.
fn shows_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::Error as E;
    match error {
        E::FromSqlConversionFailure(..) | E::InvalidColumnType(..) => true,
        E::IntegralValueOutOfRange(..) | E::Utf8Error(..) | E::QueryReturnedNoRows => true,
        // This crate's statements fit its schema: a table or an index that is missing by now was
        // taken out by others.
        E::SqliteFailure(_, Some(message)) if message.starts_with("no such ") => true,
        other => matches!(
            other.sqlite_error_code(),
            // No statement of this crate breaks a constraint in a file that is as it was written.
            Some(
                ErrorCode::DatabaseCorrupt
                    | ErrorCode::NotADatabase
                    | ErrorCode::ConstraintViolation
            )
        ),
    }
}
