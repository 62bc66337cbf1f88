//! Errors of the store's file, sorted by what its owner can do about them.
//!
//! May use: no other module.

use std::{
    io,
    path::{Path, PathBuf},
};

use rusqlite::ErrorCode;

/// Why the file could not be used. Unless the call says otherwise, nothing of what was asked for
/// has been done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// Its content is not what SQLite or we wrote. It should be set aside and a new one begun.
    #[error("the store's file {path} is damaged")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// How it showed.
        source: FileFault,
    },
    /// It is a database, but not one of ours. It has not been changed.
    #[error("{path} is no store of this relay: its application id is {found}")]
    Foreign {
        /// Which file.
        path: PathBuf,
        /// The application id it has; 0 for none.
        found: i64,
    },
    /// A newer relay has written it. It has not been changed.
    #[error(
        "{path} is from a newer version: its schema has version {found}, the newest known here is {known}"
    )]
    NewerVersion {
        /// Which file.
        path: PathBuf,
        /// The version of its schema.
        found: i64,
        /// The newest version this relay knows.
        known: i64,
    },
    /// Anything else: no room, no access, a failing disk, a lock. Trying again later may help.
    #[error("cannot {doing} {path}")]
    Unavailable {
        /// What was to be done to it.
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// What came in the way.
        source: FileFault,
    },
}

/// What went wrong, before it is known in which file and during what.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileFault {
    /// SQLite, or a value of a type or range that we never write.
    #[error(transparent)]
    Sqlite(#[from] rusqlite::Error),
    /// The file system.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A stored value that we never write, or a finding of SQLite's own check.
    #[error("{0}")]
    Damage(Box<str>),
    /// What was asked for cannot be done.
    #[error("{0}")]
    Refused(&'static str),
    /// The application id is another's.
    #[error("its application id is {0}")]
    Foreign(i64),
    /// The schema's version is not known here.
    #[error("its schema has version {found}, the newest known here is {known}")]
    Newer {
        /// The version of its schema.
        found: i64,
        /// The newest version this relay knows.
        known: i64,
    },
}

impl FileError {
    /// Whether it may go by itself and leaves the file as it was.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { source, .. } if source.is_transient())
    }
}

impl FileFault {
    /// A stored value that we never write.
    pub(crate) fn damage(what: &str) -> Self {
        Self::Damage(what.into())
    }

    /// The error for whoever uses the file, when it happened while `doing` something to `path`.
    pub(crate) fn at(self, path: &Path, doing: &'static str) -> FileError {
        let path = path.to_owned();
        match self {
            Self::Foreign(found) => FileError::Foreign { path, found },
            Self::Newer { found, known } => FileError::NewerVersion { path, found, known },
            source if source.is_damage() => FileError::Damaged { path, source },
            source => FileError::Unavailable { doing, path, source },
        }
    }

    /// Whether it may go by itself and leaves the file as it was: somebody was in the way, or there
    /// was no room.
    pub(crate) fn is_transient(&self) -> bool {
        let transient = [ErrorCode::DatabaseBusy, ErrorCode::DatabaseLocked, ErrorCode::DiskFull];
        match self {
            Self::Sqlite(error) => {
                error.sqlite_error_code().is_some_and(|code| transient.contains(&code))
            }
            Self::Refused(_) => true,
            Self::Io(_) | Self::Damage(_) | Self::Foreign(_) | Self::Newer { .. } => false,
        }
    }

    fn is_damage(&self) -> bool {
        match self {
            Self::Sqlite(error) => shows_damage(error),
            Self::Damage(_) => true,
            Self::Io(_) | Self::Refused(_) | Self::Foreign(_) | Self::Newer { .. } => false,
        }
    }
}

/// Whether the file must hold something that neither SQLite nor we have written.
fn shows_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::Error as E;
    match error {
        E::FromSqlConversionFailure(..) | E::InvalidColumnType(..) => true,
        E::IntegralValueOutOfRange(..) | E::Utf8Error(..) | E::QueryReturnedNoRows => true,
        other => matches!(
            other.sqlite_error_code(),
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase)
        ),
    }
}
