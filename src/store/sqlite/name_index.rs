//! The indices by session and by user: the entries that each of them has. They are written later
//! than the rows.
//!
//! The events of one commit are of as many sessions, and each session has a place of its own in an
//! index. A commit that kept the indices would write two pages for each of its events. So a commit
//! writes rows alone, and about once a second the writer adds the entries of all commits since in
//! one statement for each index, sorted by session or user.
//!
//! ```text
//! rows of a product   ├───────────── indexed ─────────────┤├── tail ──┤
//!                     evicted_through      indexed_through       newest
//! ```
//!
//! `indexed_through` is written in the transaction that adds the entries to both. A process that
//! ends between rows and indices therefore leaves a longer tail, and nothing else. Readers and
//! erasures look into an index up to that position, and at the rows behind it. Retention deletes
//! from all three.
//!
//! A file of version 2 has an SQLite index by session instead. The writer copies that in small
//! steps beside its other work (`former_index`), and drops it. Then it reads the users of the rows
//! of versions before 4 (`unread_users`). Until both are done the check waits, so readers use
//! neither index.
//!
//! May use: no other module.

use rusqlite::{Connection, params};

use super::{
    FileError, StoreFile, SyncMode,
    error::FileFault,
    former_index::{self, FormerIndexCursor},
    rows::{read_unsigned, signed},
    schema::{MAX_POSITION, entry_key, position_of},
    unread_users::{self, entry_user},
};

impl StoreFile {
    /// Adds the oldest entries of the tails to the indices, [`INDEX_STEP_ROWS`] at most, and makes
    /// a step with the rows of a former version. Returns whether there is more to do.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or written; then nothing has changed.
    pub(crate) fn index_names(&mut self) -> Result<bool, FileError> {
        let indexed = self.try_index_names();
        indexed.map_err(|fault| fault.at(&self.path, "index names in"))
    }

    fn try_index_names(&mut self) -> Result<bool, FileFault> {
        let is_copying = self.copy_former_index()? || self.read_unread_users()?;
        let tails = find_tails(&self.connection)?;
        if tails.is_empty() {
            return Ok(is_copying);
        }
        let has_more = self.in_transaction(SyncMode::Normal, |connection| {
            let mut room = INDEX_STEP_ROWS;
            for tail in &tails {
                room -= tail.index(connection, room)?.min(room);
                if room == 0 {
                    return Ok(true);
                }
            }
            Ok(false)
        })?;
        Ok(is_copying || has_more)
    }

    /// Returns whether there are rows that an index does not have.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub(crate) fn look_for_unindexed_rows(&self) -> Result<bool, FileError> {
        let tails = find_tails(&self.connection)
            .map_err(|fault| fault.at(&self.path, "look at the indices of"))?;
        Ok(self.has_former_rows() || !tails.is_empty())
    }

    /// Copies the next rows of the former index, or drops it once all are copied. Returns whether
    /// there is more to copy.
    fn copy_former_index(&mut self) -> Result<bool, FileFault> {
        let Some(cursor) = self.former_index.take() else { return Ok(false) };
        let next = self.in_transaction(SyncMode::Normal, |connection| {
            let next = cursor.copy_step(connection)?;
            if next.is_none() {
                former_index::drop_index(connection)?;
            }
            Ok(next)
        });
        // Begun anew after an error: a row that is there already is not inserted again.
        self.former_index = match &next {
            Ok(next) => next.clone(),
            Err(_) => Some(FormerIndexCursor::default()),
        };
        match next {
            // Its rows may be whole: the index is made anew from them.
            Err(fault) if fault.is_damage() => Err(DAMAGED_FORMER),
            // Behind it come the users.
            next => next.map(|next| next.is_some() || self.has_unread_users),
        }
    }

    /// Reads the users of the next rows of a former version. Returns whether there are more.
    fn read_unread_users(&mut self) -> Result<bool, FileFault> {
        if self.has_unread_users {
            self.has_unread_users =
                self.in_transaction(SyncMode::Normal, unread_users::read_step)?;
        }
        Ok(self.has_unread_users)
    }
}

/// Rows of one product that the indices do not have.
struct Tail {
    product_number: u32,
    indexed_through: u64,
    newest: u64,
}

impl Tail {
    /// Adds the oldest `max_rows` rows to the indices, and returns the number of rows.
    fn index(&self, connection: &Connection, max_rows: u64) -> Result<u64, FileFault> {
        let first = entry_key(self.product_number, self.indexed_through)?;
        let end = entry_key(self.product_number, self.newest)?;
        let mut last = connection.prepare_cached(
            "SELECT count(*), ifnull(max(entry), ?2) FROM ( \
                 SELECT entry FROM entries WHERE entry > ?1 AND entry <= ?2 ORDER BY entry LIMIT ?3)",
        )?;
        let (rows, last): (i64, i64) = last
            .query_row(params![first, end, signed(max_rows)], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })?;
        let rows = rows.cast_unsigned();
        // Positions behind the last row are erased or lost.
        let last = if rows < max_rows { end } else { last };
        let mut insert = connection.prepare_cached(
            "INSERT OR IGNORE INTO session_index SELECT session, entry FROM entries \
             WHERE entry > ?1 AND entry <= ?2 AND typeof(session) = 'text' ORDER BY session, entry",
        )?;
        insert.execute([first, last])?;
        let mut insert = connection.prepare_cached(concat!(
            "INSERT OR IGNORE INTO user_index SELECT user, entry FROM ( \
                 SELECT ",
            entry_user!(),
            " AS user, entry FROM entries WHERE entry > ?1 AND entry <= ?2) \
             WHERE typeof(user) = 'text' ORDER BY user, entry"
        ))?;
        insert.execute([first, last])?;
        set_indexed_through(connection, self.product_number, position_of(last))?;
        Ok(rows)
    }
}

/// Returns the products whose indices end before their newest position.
fn find_tails(connection: &Connection) -> Result<Vec<Tail>, FileFault> {
    let mut statement = connection.prepare_cached(
        "SELECT number, ifnull(position, 0), newest, product IS NULL OR indexed_through.sum IS row_sum(product, position) \
         FROM products LEFT JOIN indexed_through ON product = number \
         WHERE newest <> ifnull(position, 0)",
    )?;
    let tails = statement.query_and_then([], |row| {
        if !row.get::<_, bool>(3)? {
            return Err(UNKNOWN_EXTENT);
        }
        Ok(Tail {
            product_number: row.get(0)?,
            indexed_through: read_unsigned(row, 1)?,
            newest: read_unsigned(row, 2)?,
        })
    })?;
    tails.collect()
}

fn set_indexed_through(
    connection: &Connection,
    product_number: u32,
    position: u64,
) -> Result<(), FileFault> {
    let mut replace = connection.prepare_cached(
        "INSERT OR REPLACE INTO indexed_through VALUES (?1, ?2, row_sum(?1, ?2))",
    )?;
    replace.execute(params![product_number, signed(position)])?;
    Ok(())
}

/// Returns the position up to which the indices have the entries of a product.
///
/// # Errors
///
/// `DamagedIndex` when the file does not tell; others when it cannot be read.
pub(crate) fn indexed_through(
    connection: &Connection,
    product_number: u32,
) -> Result<u64, FileFault> {
    let mut select = connection.prepare_cached(
        "SELECT position, sum IS row_sum(product, position) FROM indexed_through WHERE product = ?1",
    )?;
    let mut rows = select.query([product_number])?;
    let Some(row) = rows.next()? else { return Ok(0) };
    if row.get(1)? { read_unsigned(row, 0) } else { Err(UNKNOWN_EXTENT) }
}

/// Takes the entries of a product behind `first`, up to `last`, out of the indices, before their
/// rows are deleted.
///
/// # Errors
///
/// `DamagedIndex` with `is_complete` when an index does not have each of them; others when the file
/// cannot be written. The caller rolls the transaction back.
pub(super) fn retire(
    connection: &Connection,
    (first, last): (i64, i64),
    is_complete: bool,
) -> Result<(), FileFault> {
    let product_number = u32::try_from(first >> POSITION_BITS).unwrap_or(u32::MAX);
    let indexed = entry_key(product_number, indexed_through(connection, product_number)?)?;
    for (delete, count) in [(DELETE_SESSIONS, COUNT_SESSIONS), (DELETE_USERS, COUNT_USERS)] {
        let deleted = connection.prepare_cached(delete)?.execute([first, last])? as u64;
        // A name that has changed in its row since would stay in the index for good.
        let mut count = connection.prepare_cached(count)?;
        let mut rows = count.query([first, last.min(indexed)])?;
        let expected = rows.next()?.map_or(Ok(0), |row| read_unsigned(row, 0))?;
        if is_complete && deleted < expected {
            return Err(FileFault::DamagedIndex("an index leaves out a row"));
        }
    }
    Ok(())
}

const DELETE_SESSIONS: &str = "DELETE FROM session_index WHERE (session, entry) IN ( \
     SELECT session, entry FROM entries WHERE entry > ?1 AND entry <= ?2)";

const COUNT_SESSIONS: &str = "SELECT count(*) FROM ( \
     SELECT DISTINCT session, entry FROM entries \
     WHERE entry > ?1 AND entry <= ?2 AND typeof(session) = 'text')";

const DELETE_USERS: &str = concat!(
    "DELETE FROM user_index WHERE (user, entry) IN (SELECT ",
    entry_user!(),
    ", entry FROM entries WHERE entry > ?1 AND entry <= ?2)"
);

const COUNT_USERS: &str = concat!(
    "SELECT count(*) FROM (SELECT DISTINCT ",
    entry_user!(),
    " AS user, entry FROM entries WHERE entry > ?1 AND entry <= ?2) WHERE typeof(user) = 'text'"
);

/// Makes the indices anew from the rows, in one pass over all of them for each, which a damaged key
/// does not mislead.
///
/// # Errors
///
/// When the rows cannot be read, or the file cannot be written.
pub(super) fn rebuild(connection: &Connection) -> Result<(), FileFault> {
    connection.execute_batch(concat!(
        "DROP INDEX IF EXISTS by_session; \
         DELETE FROM session_index; \
         DELETE FROM user_index; \
         DELETE FROM indexed_through; \
         INSERT OR IGNORE INTO session_index \
         SELECT session, entry FROM entries NOT INDEXED \
         WHERE typeof(session) = 'text' ORDER BY session, entry; \
         INSERT OR IGNORE INTO user_index \
         SELECT user, entry FROM (SELECT ",
        entry_user!(),
        " AS user, entry FROM entries NOT INDEXED) WHERE typeof(user) = 'text' ORDER BY user, entry; \
         INSERT INTO indexed_through SELECT number, newest, row_sum(number, newest) FROM products"
    ))?;
    unread_users::drop_mark(connection)
}

/// The row that tells how far the indices go is damaged: all of them are made anew.
const UNKNOWN_EXTENT: FileFault = FileFault::DamagedIndex("the extent of an index is unknown");

const DAMAGED_FORMER: FileFault = FileFault::DamagedIndex("the former index cannot be read");

/// Rows that one step adds to the indices: some tens of milliseconds if each is on a page of its
/// own.
pub(crate) const INDEX_STEP_ROWS: u64 = 4096;

/// Bits of an entry's key that hold the position.
const POSITION_BITS: u32 = MAX_POSITION.trailing_ones();
