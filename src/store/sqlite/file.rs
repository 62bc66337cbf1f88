//! The connection that writes: opening, transactions, checkpoint, closing.
//!
//! May use: no other module.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, TransactionBehavior, config::DbConfig};

use super::{
    error::{FileError, FileFault},
    files::create_private,
    rows::signed,
    schema::{self, SchemaIdentity},
};

/// The connection that writes.
#[derive(Debug)]
pub(crate) struct StoreFile {
    pub(super) connection: Connection,
    pub(super) path: PathBuf,
    sync: SyncMode,
    was_left_open: bool,
    needs_scrub: bool,
}

impl StoreFile {
    /// Opens the file, or creates it for its owner alone, and marks it as open. An empty file is a
    /// new one.
    ///
    /// # Errors
    ///
    /// `Foreign` and `NewerVersion` leave the file as it is.
    pub(crate) fn open(path: &Path) -> Result<Self, FileError> {
        Self::try_open(path).map_err(|fault| fault.at(path, "open"))
    }

    fn try_open(path: &Path) -> Result<Self, FileFault> {
        create_private(path)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = Connection::open_with_flags(path, flags)?;
        schema::configure(&connection, WRITER_CACHE_KIBIBYTES)?;
        // A file that turns out to be another's keeps its write-ahead log when it is closed.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        let version = match schema::identify(&connection)? {
            SchemaIdentity::Fresh => 0,
            SchemaIdentity::Ours(version) => version,
        };
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
        schema::configure_writer(&connection)?;
        schema::migrate(&mut connection, version, schema::MIGRATIONS)?;
        let state = "SELECT is_open, needs_scrub FROM state";
        let (was_left_open, needs_scrub) =
            connection.query_row(state, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let path = path.to_owned();
        let mut file =
            Self { connection, path, sync: SyncMode::Normal, was_left_open, needs_scrub };
        file.in_transaction(SyncMode::Full, |connection| set_open(connection, true))?;
        Ok(file)
    }

    /// A store without a file, which ends with the process.
    ///
    /// # Errors
    ///
    /// When there is no memory.
    pub(crate) fn in_memory() -> Result<Self, FileError> {
        let path = PathBuf::from(IN_MEMORY_PATH);
        match Self::try_in_memory() {
            Ok(connection) => Ok(Self {
                connection,
                path,
                sync: SyncMode::Normal,
                was_left_open: false,
                needs_scrub: false,
            }),
            Err(fault) => Err(fault.at(&path, "open")),
        }
    }

    /// Whether it is such a store.
    pub(crate) fn is_in_memory(&self) -> bool {
        self.path.as_os_str() == IN_MEMORY_PATH
    }

    fn try_in_memory() -> Result<Connection, FileFault> {
        let mut connection = Connection::open_in_memory()?;
        schema::configure(&connection, WRITER_CACHE_KIBIBYTES)?;
        connection.pragma_update(None, "secure_delete", true)?;
        schema::migrate(&mut connection, 0, schema::MIGRATIONS)?;
        Ok(connection)
    }

    /// Whether whoever had it open before did not close it.
    pub(crate) fn was_left_open(&self) -> bool {
        self.was_left_open
    }

    /// Whether copies of what was erased may be left in the file: see [`StoreFile::scrub`].
    pub(crate) fn needs_scrub(&self) -> bool {
        self.needs_scrub
    }

    /// Moves what is in the write-ahead log into the database, as far as no reader needs it there,
    /// on a connection of its own.
    ///
    /// # Errors
    ///
    /// When it could not be done. The log has everything that it had.
    pub(crate) fn checkpoint(path: &Path) -> Result<(), FileError> {
        Self::try_checkpoint(path).map_err(|fault| fault.at(path, "checkpoint"))
    }

    fn try_checkpoint(path: &Path) -> Result<(), FileFault> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        // Should everybody else have closed it meanwhile, the log is left to whoever opens it next.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
        Ok(())
    }

    /// Marks the file as closed, with everything on the disk, and closes it.
    ///
    /// # Errors
    ///
    /// When the mark could not be made, or SQLite cannot close.
    pub(crate) fn close(mut self) -> Result<(), FileError> {
        let marked = self.in_transaction(SyncMode::Full, |connection| set_open(connection, false));
        let closed = self.connection.close().map_err(|(_, error)| FileFault::from(error));
        marked.and(closed).map_err(|fault| fault.at(&self.path, "close"))
    }

    /// Closes a file after an error, without another try to bring anything to the disk: what the
    /// operating system has dropped by then would count as written.
    pub(crate) fn abandon(self) {
        // Without it, SQLite would move the write-ahead log into the database, and delete it.
        if let Err(error) =
            self.connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        {
            tracing::debug!(%error, "the file is closed as usual");
        }
    }

    /// Does `work` in one transaction, which is undone if any of it fails.
    pub(super) fn in_transaction<T>(
        &mut self,
        sync: SyncMode,
        work: impl FnOnce(&Connection) -> Result<T, FileFault>,
    ) -> Result<T, FileFault> {
        if sync != self.sync {
            self.connection.pragma_update(None, "synchronous", sync.as_pragma())?;
            self.sync = sync;
        }
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let done = work(&transaction)?;
        transaction.commit()?;
        Ok(done)
    }
}

/// What a commit waits for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum SyncMode {
    /// The operating system has it.
    Normal,
    /// The disk has it, and everything before it.
    Full,
}

impl SyncMode {
    fn as_pragma(self) -> &'static str {
        match self {
            Self::Normal => "NORMAL",
            Self::Full => "FULL",
        }
    }
}

fn set_open(connection: &Connection, is_open: bool) -> Result<(), FileFault> {
    connection.execute("UPDATE state SET is_open = ?1, syncs = syncs + 1", [is_open])?;
    Ok(())
}

pub(super) fn set_synced(connection: &Connection, now: u64) -> Result<(), FileFault> {
    // A commit that changes nothing writes nothing and waits for nothing: the time alone may be
    // that of the last one.
    let mut update =
        connection.prepare_cached("UPDATE state SET synced_at = ?1, syncs = syncs + 1")?;
    update.execute([signed(now)])?;
    Ok(())
}

/// Stands where a path would.
pub(crate) const IN_MEMORY_PATH: &str = ":memory:";

/// Holds the inner pages of the table and its indices, and what a few commits change.
const WRITER_CACHE_KIBIBYTES: i64 = 4 << 10;
