//! Erases one session or user from the file, and rewrites the file without the bytes of deleted
//! rows.
//!
//! May use: `event`.

use rusqlite::{Connection, Params, params};

use super::{
    FileError, StoreFile, SyncMode,
    checksum::entry_sum,
    error::FileFault,
    name_index,
    rows::{read_unsigned, signed},
    schema::{MAX_POSITION, entry_key, position_of},
    unread_users::entry_user,
};
use crate::event::{ErasureScope, SessionId, UserId, VisitorId};

/// Whether a read may rely on the indices by session, by user and of gaps.
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
    /// Deletes the events, owed deliveries and dead letters of a session or a user in one
    /// transaction, and returns their numbers. Of the dead letters, those count whose event is
    /// neither in the file nor behind `in_memory_from`. By user, dead letters whose payload does
    /// not fit its checksum go as well: they may be the user's, and are never sent again.
    ///
    /// No read finds the rows any more. Their bytes stay in the write-ahead log until it begins
    /// anew, and even with `secure_delete` SQLite leaves parts of rows where it has moved them from
    /// one page to another. [`StoreFile::scrub`] removes both.
    ///
    /// # Errors
    ///
    /// When the file cannot be written. `Damaged` when an index of owed deliveries or dead letters
    /// leaves out a row of the session. The indices by session and by user are trusted as far as
    /// the check has found them whole, at the start or after a repair.
    pub(crate) fn erase(
        &mut self,
        number: u32,
        visitor: &VisitorId,
        in_memory_from: u64,
        indices: Indices,
    ) -> Result<ErasedRows, FileError> {
        let erased = self.in_transaction(SyncMode::Normal, |connection| {
            list_entries(connection, number, visitor, indices)?;
            let dead_letters = erase_owed(connection, number, visitor, in_memory_from, indices)?;
            let (events, bytes) = erase_entries(connection, number, visitor)?;
            Ok(ErasedRows { events, bytes, dead_letters })
        });
        erased.map_err(|fault| fault.at(&self.path, "erase a session or user in"))
    }

    /// Returns the sessions in which a user acted, as far as events and dead letters tell, and the
    /// positions of the user's events without a session.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub(crate) fn traces_of(
        &self,
        number: u32,
        user: &UserId,
        indices: Indices,
    ) -> Result<ErasureScope, FileError> {
        find_traces(&self.connection, number, user, indices)
            .map_err(|fault| fault.at(&self.path, "look for a user in"))
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

/// Rows of a session or a user that have been erased.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct ErasedRows {
    /// Number of events.
    pub(crate) events: u64,
    /// Bytes of their payloads, sessions, users and kinds.
    pub(crate) bytes: u64,
    /// Number of further events of which only dead letters were left.
    pub(crate) dead_letters: u64,
}

/// Adds the rows of a query for sessions and positions to `found`: the sessions, and the positions
/// of rows without one.
fn add_rows(
    connection: &Connection,
    query: &str,
    parameters: impl Params,
    found: &mut ErasureScope,
) -> Result<(), FileFault> {
    let mut select = connection.prepare(query)?;
    let mut rows = select.query(parameters)?;
    while let Some(row) = rows.next()? {
        match row.get_ref(0)?.as_str_or_null().map_err(rusqlite::Error::from)? {
            Some(session) => found.sessions.extend(SessionId::new(session).ok()),
            None => drop(found.positions.insert(position_of(row.get(1)?))),
        }
    }
    Ok(())
}

fn find_traces(
    connection: &Connection,
    number: u32,
    user: &UserId,
    indices: Indices,
) -> Result<ErasureScope, FileFault> {
    let rows = match indices {
        Indices::Trusted => USER_INDEXED_OR_IN_TAIL,
        Indices::Unchecked => USER_ROW_BY_ROW,
    };
    let (first, last) = (entry_key(number, 0)?, entry_key(number, MAX_POSITION)?);
    let indexed = indexed_through(connection, number, indices)?;
    let mut found = ErasureScope::default();
    let query = format!("SELECT session, entry FROM {rows}");
    add_rows(connection, &query, params![user.as_str(), first, last, indexed], &mut found)?;
    let query = format!(
        "SELECT session, place FROM dead_letters NOT INDEXED WHERE {DEAD_OF_USER} AND {DEAD_IS_WHOLE}"
    );
    add_rows(connection, &query, params![user.as_str(), number], &mut found)?;
    Ok(found)
}

/// Returns the key up to which the indices are used.
fn indexed_through(
    connection: &Connection,
    number: u32,
    indices: Indices,
) -> Result<i64, FileFault> {
    match indices {
        Indices::Trusted => entry_key(number, name_index::indexed_through(connection, number)?),
        Indices::Unchecked => entry_key(number, 0),
    }
}

/// Lists the entries of a session or a user in the table `erasing`, by their keys. The statements
/// that follow change what the rows and the indices tell.
fn list_entries(
    connection: &Connection,
    number: u32,
    visitor: &VisitorId,
    indices: Indices,
) -> Result<(), FileFault> {
    // In both cases of each the statements have the same parameters.
    let rows = match (visitor, indices) {
        (VisitorId::Session(_), Indices::Trusted) => SESSION_INDEXED_OR_IN_TAIL,
        (VisitorId::Session(_), Indices::Unchecked) => SESSION_ROW_BY_ROW,
        (VisitorId::User(_), Indices::Trusted) => USER_INDEXED_OR_IN_TAIL,
        (VisitorId::User(_), Indices::Unchecked) => USER_ROW_BY_ROW,
    };
    // A table of this connection alone, in memory.
    connection.execute_batch(
        "CREATE TEMP TABLE IF NOT EXISTS erasing (entry INTEGER PRIMARY KEY) STRICT; \
         DELETE FROM temp.erasing",
    )?;
    let (first, last) = (entry_key(number, 0)?, entry_key(number, MAX_POSITION)?);
    let indexed = indexed_through(connection, number, indices)?;
    connection.execute(
        &format!("INSERT INTO temp.erasing SELECT entry FROM {rows}"),
        params![visitor.as_str(), first, last, indexed],
    )?;
    Ok(())
}

/// Deletes owed deliveries and dead letters, and returns the number of events of which only dead
/// letters were left.
fn erase_owed(
    connection: &Connection,
    number: u32,
    visitor: &VisitorId,
    in_memory_from: u64,
    indices: Indices,
) -> Result<u64, FileFault> {
    let (dead, of_visitor) = match visitor {
        VisitorId::Session(_) => (indices.hint("dead_by_session"), OF_SESSION),
        VisitorId::User(_) => ("NOT INDEXED".to_owned(), DEAD_OF_USER),
    };
    let parameters = params![visitor.as_str(), number];
    let dead_letters = connection.query_row_and_then(
        &format!(
            "SELECT count(DISTINCT place) FROM dead_letters {dead} WHERE {of_visitor} AND place <= ?3 \
             AND NOT EXISTS (SELECT 1 FROM entries WHERE entry = ?4 + place)"
        ),
        params![visitor.as_str(), number, signed(in_memory_from), entry_key(number, 0)?],
        |row| read_unsigned(row, 0),
    )?;
    let mut select = connection
        .prepare(&format!("SELECT number FROM dead_letters {dead} WHERE {of_visitor}"))?;
    let letters = select.query_map(parameters, |row| row.get(0))?;
    let letters: Vec<i64> = letters.collect::<Result<_, _>>()?;
    for letter in letters {
        for statement in [
            // Overwritten in place first, see `erase_entries`.
            "UPDATE dead_letters SET payload = zeroblob(octet_length(payload)) WHERE number = ?1",
            "DELETE FROM dead_letters WHERE number = ?1",
        ] {
            connection.prepare_cached(statement)?.execute([letter])?;
        }
    }
    match visitor {
        VisitorId::Session(_) => {
            let owed = indices.hint("owed_by_session");
            let delete = format!("DELETE FROM owed {owed} WHERE {OF_SESSION}");
            connection.execute(&delete, parameters)?;
        }
        // The event of each owed delivery is in the file.
        VisitorId::User(_) => {
            let delete = "DELETE FROM owed WHERE (webhook, place) IN ( \
                 SELECT number, entry - ?2 FROM webhooks CROSS JOIN temp.erasing WHERE product = ?1)";
            connection.execute(delete, params![number, entry_key(number, 0)?])?;
        }
    }
    Ok(dead_letters)
}

/// Deletes the entries in `erasing`, and returns their number and bytes.
fn erase_entries(
    connection: &Connection,
    number: u32,
    visitor: &VisitorId,
) -> Result<(u64, u64), FileFault> {
    let (events, bytes): (i64, i64) = connection.query_row(
        &format!("SELECT count(*), ifnull(sum({CONTENT_BYTES}), 0) FROM {ERASING}"),
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    // A position without a row that is not recorded here counts as lost, see `reader`.
    connection.execute(
        &format!(
            "INSERT OR REPLACE INTO erased SELECT number, place, place, row_sum(number, place, place) \
             FROM (SELECT entry >> 40 AS number, entry & {MAX_POSITION} AS place FROM temp.erasing)"
        ),
        [],
    )?;
    // From the other index while the rows tell their names, from its own by the name.
    let (by_rows, by_name) = match visitor {
        VisitorId::Session(_) => (DELETE_USERS, DELETE_SESSION),
        VisitorId::User(_) => (DELETE_SESSIONS, DELETE_USER),
    };
    connection.execute(by_rows, [])?;
    let (first, last) = (entry_key(number, 0)?, entry_key(number, MAX_POSITION)?);
    connection.execute(by_name, params![visitor.as_str(), first, last])?;
    // Overwritten in place first: deleting a row may make SQLite move adjacent rows to another
    // page, and copies of their payloads would stay behind.
    let set_zero = "SET payload = zeroblob(octet_length(payload)) WHERE";
    connection.execute(&format!("UPDATE {}", ERASING.replacen("WHERE", set_zero, 1)), [])?;
    connection.execute(&format!("DELETE FROM {ERASING}"), [])?;
    connection.execute("DELETE FROM temp.erasing", [])?;
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

/// Dead letters of the product ?2 that are the user's ?1, or may be: their payload is damaged.
const DEAD_OF_USER: &str = "webhook IN (SELECT number FROM webhooks WHERE product = ?2) \
     AND octet_length(payload) > 0 \
     AND iif(payload_sum IS row_sum(webhook, place, payload), payload_user(payload) IS ?1, 1)";

const DEAD_IS_WHOLE: &str = "payload_sum IS row_sum(webhook, place, payload)";

/// Bytes that a row counts for.
const CONTENT_BYTES: &str = "ifnull(octet_length(session), 0) + ifnull(octet_length(kind), 0) \
     + iif(gap IS NULL, ifnull(octet_length(after_or_user), 0), 0) + ifnull(octet_length(payload), 0)";

const ERASING: &str = "entries NOT INDEXED WHERE entry IN (SELECT entry FROM temp.erasing)";

const DELETE_SESSION: &str =
    "DELETE FROM session_index WHERE session = ?1 AND entry BETWEEN ?2 AND ?3";

const DELETE_USER: &str = "DELETE FROM user_index WHERE user = ?1 AND entry BETWEEN ?2 AND ?3";

const DELETE_SESSIONS: &str = "DELETE FROM session_index WHERE (session, entry) IN ( \
     SELECT session, entry FROM entries NOT INDEXED WHERE entry IN (SELECT entry FROM temp.erasing))";

const DELETE_USERS: &str = concat!(
    "DELETE FROM user_index WHERE (user, entry) IN (SELECT ",
    entry_user!(),
    ", entry FROM entries NOT INDEXED WHERE entry IN (SELECT entry FROM temp.erasing))"
);

/// Rows of the session ?1 with keys from ?2 to ?3: up to ?4 those that the index names, also where
/// the row itself is damaged, and behind ?4 those that a look at each row finds.
const SESSION_INDEXED_OR_IN_TAIL: &str = concat!(
    "entries NOT INDEXED WHERE entry IN ( \
         SELECT entry FROM session_index WHERE session = ?1 AND entry BETWEEN ?2 AND ?4 \
         UNION ALL \
         SELECT entry FROM entries AS tail NOT INDEXED WHERE session = ?1 AND entry > ?4 AND entry <= ?3 \
     ) AND (session = ?1 OR head_sum IS NOT ",
    entry_sum!(),
    ")"
);

/// The same rows without the index. ?4 is not used.
const SESSION_ROW_BY_ROW: &str =
    "entries NOT INDEXED WHERE session = ?1 AND entry BETWEEN ?2 AND ?3 AND ?4 IS NOT NULL";

/// Rows of the user ?1, in the same way. A row of a version before 4 whose payload is damaged since
/// is the one that the index names.
const USER_INDEXED_OR_IN_TAIL: &str = concat!(
    "entries NOT INDEXED WHERE entry IN ( \
         SELECT entry FROM user_index WHERE user = ?1 AND entry BETWEEN ?2 AND ?4 \
         UNION ALL \
         SELECT entry FROM entries AS tail NOT INDEXED WHERE entry > ?4 AND entry <= ?3 AND ?1 = ",
    entry_user!(),
    ") AND (after_or_user IS NULL OR after_or_user = ?1 OR head_sum IS NOT ",
    entry_sum!(),
    ")"
);

/// The same rows without the index. ?4 is not used.
const USER_ROW_BY_ROW: &str = concat!(
    "entries NOT INDEXED WHERE entry BETWEEN ?2 AND ?3 AND ?4 IS NOT NULL AND ?1 = ",
    entry_user!()
);
