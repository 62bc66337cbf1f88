//! Erases one session from the file, and rewrites the file without the bytes of deleted rows.
//!
//! May use: `event`.

use rusqlite::{Connection, params};

use super::{
    FileError, StoreFile, SyncMode,
    checksum::entry_sum,
    error::FileFault,
    rows::{read_unsigned, signed},
    schema::{MAX_POSITION, entry_key},
    session_index,
};
use crate::event::SessionId;

/// Whether a read may rely on the indices by session and of gaps.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Indices {
    /// Every row has been found in them.
    Trusted,
    /// They may leave out rows: rows are read one after the other.
    Unchecked,
}

impl Indices {
    /// Returns how a statement reads its table: by this index, or row by row.
    fn hint(self, index: &str) -> String {
        match self {
            Self::Trusted => format!("INDEXED BY {index}"),
            Self::Unchecked => "NOT INDEXED".to_owned(),
        }
    }
}

impl StoreFile {
    /// Deletes a session's events, owed deliveries and dead letters in one transaction, and returns
    /// their numbers. Of the dead letters, those count whose event is neither in the file nor
    /// behind `in_memory_from`.
    ///
    /// No read finds the rows any more. Their bytes stay in the write-ahead log until it begins
    /// anew, and even with `secure_delete` SQLite leaves parts of rows where it has moved them from
    /// one page to another. [`StoreFile::scrub`] removes both.
    ///
    /// # Errors
    ///
    /// When the file cannot be written. `Damaged` when an index of owed deliveries or dead letters
    /// leaves out a row of the session. The session index is trusted as far as the check has found
    /// it whole, at the start or after a repair.
    pub(crate) fn erase(
        &mut self,
        number: u32,
        session: &SessionId,
        in_memory_from: u64,
        indices: Indices,
    ) -> Result<ErasedSession, FileError> {
        let erased = self.in_transaction(SyncMode::Normal, |connection| {
            let dead_letters = erase_owed(connection, number, session, in_memory_from, indices)?;
            let (events, bytes) = erase_entries(connection, number, session, indices)?;
            Ok(ErasedSession { events, bytes, dead_letters })
        });
        erased.map_err(|fault| fault.at(&self.path, "erase a session in"))
    }

    /// Rewrites the file, so that no byte of a deleted row stays in it or beside it. Takes time in
    /// proportion to the file, during which nothing can be written, and up to three times its size
    /// on the disk.
    ///
    /// # Errors
    ///
    /// Fails if there is no space, or a reader keeps the write-ahead log in use. No row is lost in
    /// either case.
    pub(crate) fn scrub(&mut self) -> Result<(), FileError> {
        let mark_scrubbed = |connection: &Connection| {
            Ok(connection.execute("UPDATE state SET needs_scrub = 0", [])?)
        };
        // In this order: the rewrite goes through the write-ahead log, whose old commits hold the
        // deleted rows; the mark is removed once both are done.
        let scrubbed = self
            .vacuum()
            .and_then(|()| self.truncate_wal())
            .and_then(|()| self.in_transaction(SyncMode::Normal, mark_scrubbed));
        scrubbed.map(drop).map_err(|fault| fault.at(&self.path, "scrub"))
    }

    fn vacuum(&self) -> Result<(), FileFault> {
        // The copy may be larger than memory, so it is a temporary file. It is put beside the
        // database, the one directory that is known to be writable. It holds no deleted row.
        self.connection.pragma_update(None, "temp_store", "FILE")?;
        if let Some(directory) = self.path.parent().and_then(|directory| directory.to_str()) {
            self.connection.pragma_update(None, "temp_store_directory", directory)?;
        }
        let vacuumed = self.connection.execute_batch("VACUUM");
        self.connection.pragma_update(None, "temp_store", "MEMORY")?;
        vacuumed.map_err(FileFault::from)
    }

    /// Moves the whole write-ahead log into the database and truncates it to nothing.
    pub(super) fn truncate_wal(&self) -> Result<(), FileFault> {
        let is_busy: bool =
            self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        if is_busy {
            Err(FileFault::Refused("a reader keeps the write-ahead log in use"))
        } else {
            Ok(())
        }
    }
}

/// Rows of a session that has been erased.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct ErasedSession {
    /// Number of events.
    pub(crate) events: u64,
    /// Bytes of their payloads, sessions and kinds.
    pub(crate) bytes: u64,
    /// Number of further events of which only dead letters were left.
    pub(crate) dead_letters: u64,
}

/// Deletes a session's owed deliveries and dead letters, and returns the number of events of which
/// only dead letters were left.
fn erase_owed(
    connection: &Connection,
    number: u32,
    session: &SessionId,
    in_memory_from: u64,
    indices: Indices,
) -> Result<u64, FileFault> {
    let (dead, owed) = (indices.hint("dead_by_session"), indices.hint("owed_by_session"));
    let parameters = params![session.as_str(), number];
    let dead_letters = connection.query_row_and_then(
        &format!(
            "SELECT count(DISTINCT place) FROM dead_letters {dead} WHERE {OF_SESSION} AND place <= ?3 \
             AND NOT EXISTS (SELECT 1 FROM entries WHERE entry = ?4 + place)"
        ),
        params![session.as_str(), number, signed(in_memory_from), entry_key(number, 0)?],
        |row| read_unsigned(row, 0),
    )?;
    for statement in [
        // Overwritten in place first, see `erase_entries`.
        format!(
            "UPDATE dead_letters {dead} SET payload = zeroblob(octet_length(payload)) WHERE {OF_SESSION}"
        ),
        format!("DELETE FROM dead_letters {dead} WHERE {OF_SESSION}"),
        format!("DELETE FROM owed {owed} WHERE {OF_SESSION}"),
    ] {
        connection.execute(&statement, parameters)?;
    }
    Ok(dead_letters)
}

/// Deletes the entries of a session, and returns their number and bytes.
fn erase_entries(
    connection: &Connection,
    number: u32,
    session: &SessionId,
    indices: Indices,
) -> Result<(u64, u64), FileFault> {
    // In both cases the statements have the same parameters.
    let rows = match indices {
        Indices::Trusted => INDEXED_OR_IN_TAIL,
        Indices::Unchecked => ROW_BY_ROW,
    };
    let (first, last) = (entry_key(number, 0)?, entry_key(number, MAX_POSITION)?);
    let indexed = match indices {
        Indices::Trusted => entry_key(number, session_index::indexed_through(connection, number)?)?,
        Indices::Unchecked => first,
    };
    let parameters = params![session.as_str(), first, last, indexed];
    let (events, bytes): (i64, i64) = connection.query_row(
        &format!("SELECT count(*), ifnull(sum({CONTENT_BYTES}), 0) FROM {rows}"),
        parameters,
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    // Overwritten in place first: deleting a row may make SQLite move adjacent rows to another
    // page, and copies of their payloads would stay behind.
    let set_zero = "SET payload = zeroblob(octet_length(payload)) WHERE";
    connection.execute(&format!("UPDATE {}", rows.replacen("WHERE", set_zero, 1)), parameters)?;
    // A position without a row that is not recorded here counts as lost, see `reader`.
    connection.execute(
        &format!(
            "INSERT OR REPLACE INTO erased SELECT number, place, place, row_sum(number, place, place) \
             FROM (SELECT entry >> 40 AS number, entry & {MAX_POSITION} AS place FROM {rows})"
        ),
        parameters,
    )?;
    connection.execute(&format!("DELETE FROM {rows}"), parameters)?;
    let index = "DELETE FROM session_index WHERE session = ?1 AND entry BETWEEN ?2 AND ?3";
    connection.execute(index, params![session.as_str(), first, last])?;
    connection.execute("UPDATE state SET needs_scrub = 1", [])?;
    let counters = "UPDATE products SET events = events - ?2, bytes = bytes - ?3, \
                    sum = row_sum(number, id, newest, evicted_through, events - ?2, bytes - ?3, highest_epoch) \
                    WHERE number = ?1";
    connection.execute(counters, params![number, events, bytes])?;
    Ok((events.cast_unsigned(), bytes.cast_unsigned()))
}

/// Rows of a webhook's table that belong to the session ?1 of the product ?2.
const OF_SESSION: &str =
    "session = ?1 AND webhook IN (SELECT number FROM webhooks WHERE product = ?2)";

/// Bytes that a row counts for.
const CONTENT_BYTES: &str = "ifnull(octet_length(session), 0) + ifnull(octet_length(kind), 0) \
     + ifnull(octet_length(payload), 0)";

/// Rows of the session ?1 with keys from ?2 to ?3: up to ?4 those that the index names, also where
/// the row itself is damaged, and behind ?4 those that a look at each row finds.
const INDEXED_OR_IN_TAIL: &str = concat!(
    "entries NOT INDEXED WHERE entry IN ( \
         SELECT entry FROM session_index WHERE session = ?1 AND entry BETWEEN ?2 AND ?4 \
         UNION ALL \
         SELECT entry FROM entries AS tail NOT INDEXED WHERE session = ?1 AND entry > ?4 AND entry <= ?3 \
     ) AND (session = ?1 OR head_sum IS NOT ",
    entry_sum!(),
    ")"
);

/// The same rows without the index. ?4 is not used.
const ROW_BY_ROW: &str =
    "entries NOT INDEXED WHERE session = ?1 AND entry BETWEEN ?2 AND ?3 AND ?4 IS NOT NULL";
