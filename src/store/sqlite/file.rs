//! The connection that writes: opening, transactions, checkpoint, closing.
//!
//! The process has one such connection. Readers and checkpoints open connections of their own.
//!
//! May use: no other module.

use std::{
    cell::Cell,
    fs, io,
    path::{Path, PathBuf},
};

use rusqlite::{Connection, OpenFlags, TransactionBehavior, config::DbConfig};

use super::{
    audit,
    error::{FileError, FileFault},
    files::{MAX_WAL_BYTES, create_private, put_in_place, remove_leftovers, unfinished, wal_bytes},
    former_index::FormerIndexCursor,
    rows::signed,
    schema::{self, SchemaIdentity},
    unread_users,
};

/// Connection that writes to the store's file.
#[derive(Debug)]
pub(crate) struct StoreFile {
    pub(super) connection: Connection,
    pub(super) path: PathBuf,
    /// Mode that the connection is set to.
    sync: SyncMode,
    was_left_open: bool,
    needs_scrub: bool,
    /// Progress of copying the index by session of a former version; `None` if there is none.
    pub(super) former_index: Option<FormerIndexCursor>,
    /// Whether the file has rows of a former version whose users are still to be read.
    pub(super) has_unread_users: bool,
    /// Damaged dead letters that were found, until the caller takes their number. A cell, because
    /// reading finds them.
    pub(super) damaged_dead_letters: Cell<u64>,
}

impl StoreFile {
    /// Opens the file, or creates it with access for its owner alone, and marks it as open.
    ///
    /// # Errors
    ///
    /// `Foreign`, `NewerVersion` and `UnknownVersion` leave the file as it is. `Damaged` also for a
    /// file that is empty, or lacks a table: a new file gets its name once it is complete.
    pub(crate) fn open(path: &Path) -> Result<Self, FileError> {
        Self::try_open(path).map_err(|fault| fault.at(path, "open"))
    }

    fn try_open(path: &Path) -> Result<Self, FileFault> {
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => create(path)?,
            Err(error) => return Err(error.into()),
            Ok(_) => {}
        }
        let mut connection = open_for_writing(path)?;
        // Set until the file is known to be a store: if this call fails, dropping the connection
        // must not checkpoint and delete the write-ahead log of another application.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        let version = match schema::identify(&connection)? {
            SchemaIdentity::Fresh => return Err(FileFault::damage("it is empty")),
            SchemaIdentity::Ours(version) => version,
        };
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
        schema::configure_writer(&connection)?;
        schema::migrate_to_newest(&mut connection, version)?;
        schema::require_complete(&connection)?;
        audit::require_consistent(&connection)?;
        let state = "SELECT is_open, needs_scrub FROM state";
        let (was_left_open, needs_scrub) =
            connection.query_row(state, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
        let former_index = FormerIndexCursor::find(&connection)?;
        let has_unread_users = unread_users::exist(&connection)?;
        let path = path.to_owned();
        let mut file = Self {
            connection,
            path,
            sync: SyncMode::Normal,
            was_left_open,
            needs_scrub,
            former_index,
            has_unread_users,
            damaged_dead_letters: Cell::new(0),
        };
        // Synced before the first write: after a power cut the file must say that it was open.
        file.in_transaction(SyncMode::Full, |connection| set_open(connection, true))?;
        Ok(file)
    }

    /// Opens a database in memory, which ends with the process.
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
                former_index: None,
                has_unread_users: false,
                damaged_dead_letters: Cell::new(0),
            }),
            Err(fault) => Err(fault.at(&path, "open")),
        }
    }

    /// Returns whether the database is in memory.
    pub(crate) fn is_in_memory(&self) -> bool {
        self.path.as_os_str() == IN_MEMORY_PATH
    }

    fn try_in_memory() -> Result<Connection, FileFault> {
        let mut connection = Connection::open_in_memory()?;
        schema::configure(&connection, WRITER_CACHE_KIBIBYTES)?;
        connection.pragma_update(None, "secure_delete", true)?;
        schema::migrate_to_newest(&mut connection, 0)?;
        Ok(connection)
    }

    /// Returns whether the indices do not have all rows of a former version yet.
    pub(super) fn has_former_rows(&self) -> bool {
        self.former_index.is_some() || self.has_unread_users
    }

    /// Returns whether the process that had the file open before did not close it.
    pub(crate) fn was_left_open(&self) -> bool {
        self.was_left_open
    }

    /// Returns whether copies of erased rows may be left in the file, see [`StoreFile::scrub`].
    pub(crate) fn needs_scrub(&self) -> bool {
        self.needs_scrub
    }

    /// Moves the write-ahead log into the database, as far as no reader still needs it there, on a
    /// connection of its own. Returns how far it has come, or `None` while another checkpoint runs.
    ///
    /// # Errors
    ///
    /// When SQLite cannot do so. The write-ahead log then still has everything that it had.
    pub(crate) fn checkpoint(path: &Path) -> Result<Option<CheckpointProgress>, FileError> {
        Self::try_checkpoint(path).map_err(|fault| fault.at(path, "checkpoint"))
    }

    fn try_checkpoint(path: &Path) -> Result<Option<CheckpointProgress>, FileFault> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        // If every other connection was closed meanwhile, this one is the last. It must not move
        // and delete the write-ahead log then: the writer may have abandoned the file after an
        // error, and the next open recovers from the log.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        // NORMAL syncs the write-ahead log before its pages are copied, and the database before the
        // log is begun anew. PASSIVE waits for neither readers nor the writer.
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        let run = |pragma| {
            connection.query_row(pragma, [], |row| {
                let (is_busy, frames, moved): (bool, i64, i64) =
                    (row.get(0)?, row.get(1)?, row.get(2)?);
                Ok((!is_busy).then_some(CheckpointProgress { frames, moved }))
            })
        };
        let progress = run("PRAGMA wal_checkpoint(PASSIVE)")?;
        if progress.is_some_and(CheckpointProgress::is_complete) && wal_bytes(path) > MAX_WAL_BYTES
        {
            // Everything is in the database, but SQLite gives the room back with the next commit
            // only, and there may be none for hours. This connection has no busy time-out: if a
            // reader or the writer is in the way, the room stays taken until a later checkpoint.
            run("PRAGMA wal_checkpoint(TRUNCATE)")?;
        }
        Ok(progress)
    }

    /// Marks the file as closed, with everything on the disk, and closes it.
    ///
    /// # Errors
    ///
    /// When the file cannot be marked, or SQLite cannot close the connection.
    pub(crate) fn close(mut self) -> Result<(), FileError> {
        let marked = self.in_transaction(SyncMode::Full, |connection| set_open(connection, false));
        let closed = self.connection.close().map_err(|(_, error)| FileFault::from(error));
        marked.and(closed).map_err(|fault| fault.at(&self.path, "close"))
    }

    /// Closes the file after an error, without another attempt to bring data to the disk: pages
    /// that the operating system has dropped by then would count as written.
    pub(crate) fn abandon(self) {
        // By default the last connection that is closed moves the write-ahead log into the database
        // and deletes it.
        if let Err(error) =
            self.connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)
        {
            tracing::debug!(%error, "the file is closed as usual");
        }
    }

    /// Does `work` in one transaction, which is rolled back if `work` or the commit fails.
    pub(super) fn in_transaction<T>(
        &mut self,
        sync: SyncMode,
        work: impl FnOnce(&Connection) -> Result<T, FileFault>,
    ) -> Result<T, FileFault> {
        if sync != self.sync {
            self.connection.pragma_update(None, "synchronous", sync.as_pragma())?;
            self.sync = sync;
        }
        // Immediate: a transaction that takes the write lock only at its first write may then fail
        // with `SQLITE_BUSY_SNAPSHOT`, which the busy time-out does not cover.
        let transaction =
            self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let done = work(&transaction)?;
        transaction.commit()?;
        Ok(done)
    }
}

/// Creates a store under another name, and renames it once it is complete and on the disk. An empty
/// or incomplete file under the store's own name is therefore never one that was being created.
fn create(path: &Path) -> Result<(), FileFault> {
    let unfinished = unfinished(path);
    remove_leftovers(&unfinished)?;
    create_private(&unfinished)?;
    let mut connection = open_for_writing(&unfinished)?;
    schema::configure_writer(&connection)?;
    schema::migrate_to_newest(&mut connection, 0)?;
    // The last connection moves the write-ahead log into the database, which is synced with that.
    connection.close().map_err(|(_, error)| FileFault::from(error))?;
    Ok(put_in_place(&unfinished, path)?)
}

fn open_for_writing(path: &Path) -> Result<Connection, FileFault> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    schema::configure(&connection, WRITER_CACHE_KIBIBYTES)?;
    Ok(connection)
}

/// Progress of a checkpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct CheckpointProgress {
    /// Pages in the write-ahead log.
    pub(crate) frames: i64,
    /// Pages of them that are in the database.
    pub(crate) moved: i64,
}

impl CheckpointProgress {
    /// Returns whether the database has everything: no reader still needs the write-ahead log as it
    /// was before.
    pub(crate) fn is_complete(self) -> bool {
        self.moved >= self.frames
    }
}

/// Event that a commit waits for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum SyncMode {
    /// The operating system has the data.
    Normal,
    /// The disk has the data, and everything committed before.
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

/// Records whether the file is open. Counts a sync, see [`set_synced`].
fn set_open(connection: &Connection, is_open: bool) -> Result<(), FileFault> {
    connection.execute("UPDATE state SET is_open = ?1, syncs = syncs + 1", [is_open])?;
    Ok(())
}

/// Records a sync at `now`, in Unix milliseconds, within a transaction of [`SyncMode::Full`].
pub(super) fn set_synced(connection: &Connection, now: u64) -> Result<(), FileFault> {
    // SQLite writes and syncs nothing for a commit that changes nothing, and the time alone may
    // equal that of the last sync. The counter makes every such commit change a page.
    let mut update =
        connection.prepare_cached("UPDATE state SET synced_at = ?1, syncs = syncs + 1")?;
    update.execute([signed(now)])?;
    Ok(())
}

/// SQLite's path of a database in memory.
pub(crate) const IN_MEMORY_PATH: &str = ":memory:";

/// Page cache of the writer: the inner pages of the table and its indices, and the pages that a few
/// commits change.
const WRITER_CACHE_KIBIBYTES: i64 = 4 << 10;
