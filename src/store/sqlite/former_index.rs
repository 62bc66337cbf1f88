//! The index by session of version 2 of the schema: copying it to the table of version 3, and
//! dropping it.
//!
//! May use: no other module.

use rusqlite::{Connection, OptionalExtension, params};

use super::error::FileFault;

/// Place within the index of version 2 up to which its rows are copied.
#[derive(Clone, Debug, Default)]
pub(super) struct FormerIndexCursor {
    session: String,
    /// Key of an entry; 0 is before the first.
    entry: i64,
}

impl FormerIndexCursor {
    /// Returns the beginning of the former index if the file has one.
    ///
    /// # Errors
    ///
    /// When the schema cannot be read.
    pub(super) fn find(connection: &Connection) -> Result<Option<Self>, FileFault> {
        let query = "SELECT 1 FROM sqlite_schema WHERE type = 'index' AND name = 'by_session'";
        Ok(connection.prepare(query)?.exists([])?.then(Self::default))
    }

    /// Copies the next rows, in the order of both indices, and returns the place behind them if
    /// there are more.
    ///
    /// # Errors
    ///
    /// When the former index cannot be read, or the file cannot be written.
    pub(super) fn copy_step(&self, connection: &Connection) -> Result<Option<Self>, FileFault> {
        let mut rest_of_session = connection.prepare_cached(
            "SELECT session, entry FROM entries INDEXED BY by_session \
             WHERE session = ?1 AND entry > ?2 ORDER BY entry LIMIT ?3",
        )?;
        let mut later_sessions = connection.prepare_cached(
            "SELECT session, entry FROM entries INDEXED BY by_session \
             WHERE session > ?1 AND typeof(session) = 'text' ORDER BY session, entry LIMIT ?2",
        )?;
        let mut insert =
            connection.prepare_cached("INSERT OR IGNORE INTO session_index VALUES (?1, ?2)")?;
        let (mut room, mut cursor) = (COPY_STEP_ROWS, self.clone());
        let mut rows = rest_of_session.query(params![self.session, self.entry, room])?;
        while let Some(row) = rows.next()? {
            cursor = Self { session: row.get(0)?, entry: row.get(1)? };
            insert.execute(params![cursor.session, cursor.entry])?;
            room -= 1;
        }
        let mut rows = later_sessions.query(params![self.session, room])?;
        while let Some(row) = rows.next()? {
            cursor = Self { session: row.get(0)?, entry: row.get(1)? };
            insert.execute(params![cursor.session, cursor.entry])?;
            room -= 1;
        }
        Ok((room == 0).then_some(cursor))
    }
}

/// Drops the index of version 2 at once if there is nothing to copy from it, as in a new file.
///
/// # Errors
///
/// When the file cannot be read or written.
pub(super) fn drop_if_empty(connection: &Connection) -> Result<(), FileFault> {
    let first: Option<i64> = connection
        .query_row("SELECT entry FROM entries LIMIT 1", [], |row| row.get(0))
        .optional()?;
    if first.is_none() {
        drop_index(connection)?;
    }
    Ok(())
}

/// Drops the index.
///
/// # Errors
///
/// When the file cannot be written.
pub(super) fn drop_index(connection: &Connection) -> Result<(), FileFault> {
    Ok(connection.execute_batch("DROP INDEX IF EXISTS by_session")?)
}

/// Rows that one step copies from the former index: a few milliseconds, because both have the same
/// order.
const COPY_STEP_ROWS: i64 = 2048;
