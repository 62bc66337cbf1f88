//! Reads entries back from the store's file, on a connection of its own beside the writer's.
//!
//! ```text
//! everything    one pass over the rows; payloads are read of admitted rows only
//! few sessions  session_index ─┐
//! few users     user_index ────┤
//!               gaps ──────────┴─ positions, merged and cut ─ rows by key; one pass over the rows that
//!                                 the index does not have yet
//! ```
//!
//! Every position of a range has a row, or is recorded as erased. A pass over the rows therefore
//! finds each row that is gone, whatever has led SQLite past it: a page's damaged count of rows, a
//! damaged key. An index can leave out rows in silence, so indices are used only once the check
//! has found each row in them.
//!
//! A read sees one state of the file; it neither waits for the writer nor delays it. It waits for
//! the disk.
//!
//! May use: `event`, `log`.

mod checks;
mod chunk;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use rusqlite::{CachedStatement, Connection, InterruptHandle, OpenFlags, params};

use self::chunk::{ChunkBuilder, RowFit};
pub(crate) use super::sqlite::Indices;
use super::sqlite::{
    FileError, FileFault,
    checksum::entry_sum,
    name_index::indexed_through,
    rows::{read_unsigned, signed},
    schema::{self, MAX_POSITION, SchemaIdentity, entry_key, position_of},
};
use crate::{
    event::{NarrowestLimit, Only, Scope},
    log::backing::{ReadRequest, StoredChunk},
};

/// Connection that reads. Each thread has its own.
#[derive(Debug)]
pub(crate) struct StoreReader {
    connection: Connection,
    path: PathBuf,
}

impl StoreReader {
    /// Opens the file. The writer must have opened it before: it alone creates tables and migrates
    /// the schema.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or its schema is not the one of this version.
    pub(crate) fn open(path: &Path) -> Result<Self, FileError> {
        let opened = Self::try_open(path).map_err(|fault| fault.at(path, "open"))?;
        Ok(Self { connection: opened, path: path.to_owned() })
    }

    fn try_open(path: &Path) -> Result<Connection, FileFault> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        schema::configure(&connection, READER_CACHE_KIBIBYTES)?;
        connection.pragma_update(None, "query_only", true)?;
        match schema::identify(&connection)? {
            SchemaIdentity::Ours(version) if version == schema::NEWEST_VERSION => Ok(connection),
            SchemaIdentity::Ours(_) | SchemaIdentity::Fresh => {
                Err(FileFault::Refused("its writer has not set it up"))
            }
        }
    }

    /// Reads the next entries of a product that a scope admits.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or [`StoreReader::interrupt_handle`] was used. Damage that is
    /// found with `Indices::Trusted` may be that of an index alone.
    pub(crate) fn fetch(
        &self,
        request: &ReadRequest,
        indices: Indices,
    ) -> Result<StoredChunk, FileError> {
        self.try_fetch(request, indices).map_err(|fault| fault.at(&self.path, "read entries from"))
    }

    fn try_fetch(&self, request: &ReadRequest, indices: Indices) -> Result<StoredChunk, FileFault> {
        // One snapshot for all statements: retention could otherwise remove a row between the index
        // and the table. Rolled back on drop, which is right for a transaction that only reads.
        let _snapshot = self.connection.unchecked_transaction()?;
        let evicted_through = self.evicted_through(request)?;
        if evicted_through > request.after {
            // The rows at the begin are gone, which is no damage. The reader announces that.
            let entries = Vec::new();
            return Ok(StoredChunk {
                entries,
                through: request.after,
                evicted_through,
                damaged: None,
            });
        }
        self.require_persisted(request)?;
        let payload = self.connection.prepare_cached(SELECT_PAYLOAD)?;
        let mut chunk = ChunkBuilder::new(request, payload);
        let read = self.read_range(request, indices, &mut chunk);
        // Rows before the fault count first: it may be damage that follows from theirs.
        let may_have_more = chunk.end_before_damaged_payload() || read?;
        Ok(StoredChunk { evicted_through, ..chunk.finish(may_have_more) })
    }

    /// Reads rows of the range until the chunk is full. Returns whether there may be more of them.
    fn read_range(
        &self,
        request: &ReadRequest,
        indices: Indices,
        chunk: &mut ChunkBuilder<'_>,
    ) -> Result<bool, FileFault> {
        let (mut room, mut scannable) = (request.max_rows(), request.max_scanned_rows());
        if let Some(through) = self.indexed_part(request, indices)? {
            let range = key_range(request, request.after, through)?;
            let keys = self.keys_of_names(&request.scope, range, room)?;
            chunk.is_indexed = true;
            self.read_rows(&keys, chunk)?;
            chunk.is_indexed = false;
            (room, scannable) = (room - keys.len(), scannable.saturating_sub(keys.len()));
            if room > 0 && !chunk.is_full {
                chunk.pass(through);
            }
        }
        if room > 0 && !chunk.is_full && chunk.through() < request.through {
            let range = key_range(request, chunk.through(), request.through)?;
            room = room.max(scannable);
            room -= self.scan_range(range, room, chunk)?;
        }
        Ok(room == 0)
    }

    /// Returns the position up to which an index by session or by user serves the request; `None`
    /// if it serves no part of it.
    fn indexed_part(
        &self,
        request: &ReadRequest,
        indices: Indices,
    ) -> Result<Option<u64>, FileFault> {
        let is_by_name = matches!(
            request.scope.narrowest_limit(),
            NarrowestLimit::Sessions(_) | NarrowestLimit::Users(_)
        );
        if !is_by_name || indices != Indices::Trusted {
            return Ok(None);
        }
        let through = indexed_through(&self.connection, request.product_number)?;
        let through = through.min(request.through);
        // The index pays off only if more entries wait than names are asked for.
        let pending = through.saturating_sub(request.after);
        Ok((pending > request.scope.chain_count() as u64).then_some(through))
    }

    /// Returns how far retention has come.
    ///
    /// # Errors
    ///
    /// When the file does not know the product under this number, or ends before the range. Such a
    /// file was set aside or replaced; an empty chunk from it would look as if nothing had
    /// happened.
    fn evicted_through(&self, request: &ReadRequest) -> Result<u64, FileFault> {
        let mut product = self.connection.prepare_cached(SELECT_PRODUCT)?;
        let mut rows = product.query(params![request.product_number, request.product.as_str()])?;
        let row = rows
            .next()?
            .ok_or(FileFault::Refused("it does not know the product under this number"))?;
        if read_unsigned(row, 1)? < request.through {
            return Err(FileFault::Refused("it ends before the requested range"));
        }
        read_unsigned(row, 0)
    }

    /// Fails if entries of the range are recorded as lost. The log asked for persisted entries
    /// only, so the file must have been begun anew since.
    fn require_persisted(&self, request: &ReadRequest) -> Result<(), FileFault> {
        let mut select_holes = self.connection.prepare_cached(SELECT_HOLES)?;
        let (after, through) = (signed(request.after), signed(request.through));
        match select_holes.exists(params![request.product_number, after, through])? {
            true => Err(FileFault::Refused("it has lost entries of the requested range")),
            false => Ok(()),
        }
    }

    /// Reads the first `limit` rows of the range, or fewer if the chunk is full, and returns their
    /// number. A row under a damaged key is passed over: its position counts as lost.
    fn scan_range(
        &self,
        range: (i64, i64),
        limit: usize,
        chunk: &mut ChunkBuilder<'_>,
    ) -> Result<usize, FileFault> {
        let mut headers = self.connection.prepare_cached(SELECT_HEADERS)?;
        let mut rows = headers.query([range.0])?;
        let (mut rows_read, mut rows_skipped) = (0, 0);
        while !chunk.is_full && rows_read < limit {
            let Some(row) = rows.next()? else {
                self.pass_absent(position_of(range.1), chunk)?;
                break;
            };
            let key: i64 = row.get(0)?;
            let is_certain = RowFit::read(row)? != RowFit::Nothing;
            if is_certain && key > range.1 {
                self.pass_absent(position_of(range.1), chunk)?;
                break;
            }
            let next = entry_key(chunk.product_number(), chunk.through() + 1)?;
            if key > range.1 || key < next || (key > next && !is_certain) {
                // Under a damaged key, or before the range: damaged keys mislead SQLite's search.
                rows_skipped += 1;
                require(rows_skipped <= MAX_ROWS_PER_READ, "its rows are not in order")?;
                continue;
            }
            if key > next {
                self.pass_absent(position_of(key) - 1, chunk)?;
            }
            if !chunk.is_full {
                chunk.add_row(row)?;
                rows_read += 1;
            }
        }
        Ok(rows_read)
    }

    /// Moves the chunk up to `through`, as far as the positions are recorded as erased. Ends the
    /// chunk before the first that is neither there nor recorded.
    fn pass_absent(&self, through: u64, chunk: &mut ChunkBuilder<'_>) -> Result<(), FileFault> {
        if chunk.through() >= through {
            return Ok(());
        }
        let mut erased = self.connection.prepare_cached(SELECT_ERASED)?;
        let (first, last) = (signed(chunk.through() + 1), signed(through));
        let mut rows = erased.query(params![chunk.product_number(), first, last])?;
        for _ in 0..MAX_ROWS_PER_READ {
            let next = chunk.through() + 1;
            if next > through {
                return Ok(());
            }
            let Some(row) = rows.next()? else {
                chunk.end_before_missing(next, through);
                return Ok(());
            };
            let (first, last) = (read_unsigned(row, 0)?, read_unsigned(row, 1)?);
            if !row.get::<_, bool>(2)? || last < next {
                continue;
            }
            if first > next {
                chunk.end_before_missing(next, (first - 1).min(through));
                return Ok(());
            }
            chunk.pass(last.min(through));
        }
        // The rest is left to the next chunk.
        chunk.is_full = true;
        Ok(())
    }

    /// Reads the rows with these keys until the chunk is full.
    fn read_rows(
        &self,
        keys: &BTreeSet<i64>,
        chunk: &mut ChunkBuilder<'_>,
    ) -> Result<(), FileFault> {
        let mut header = self.connection.prepare_cached(SELECT_HEADER)?;
        for key in keys {
            if chunk.is_full {
                break;
            }
            let mut rows = header.query([key])?;
            let row = rows
                .next()?
                .ok_or_else(|| FileFault::damage("an index names a row that is not there"))?;
            chunk.add_row(row)?;
        }
        Ok(())
    }

    /// Returns the keys of the first `limit` entries of the range that are of the scope's sessions,
    /// else of its users, or gaps.
    fn keys_of_names(
        &self,
        scope: &Scope,
        range: (i64, i64),
        limit: usize,
    ) -> Result<BTreeSet<i64>, FileFault> {
        let mut first = FirstKeys { keys: BTreeSet::new(), limit, range };
        first.add(&mut self.connection.prepare_cached(SELECT_GAP_KEYS)?, None)?;
        match scope.narrowest_limit() {
            NarrowestLimit::Sessions(sessions) => {
                let mut by_session = self.connection.prepare_cached(SELECT_SESSION_KEYS)?;
                for session in sessions {
                    first.add(&mut by_session, Some(session.as_str()))?;
                }
            }
            NarrowestLimit::Users(users) => {
                let mut by_user = self.connection.prepare_cached(SELECT_USER_KEYS)?;
                for user in users {
                    first.add(&mut by_user, Some(user.as_str()))?;
                }
            }
            NarrowestLimit::Kinds(_) | NarrowestLimit::Unlimited => {}
        }
        Ok(first.keys)
    }

    /// Returns a handle that interrupts this reader from any thread.
    pub(crate) fn interrupt_handle(&self) -> InterruptHandle {
        self.connection.get_interrupt_handle()
    }
}

/// Returns the keys of a range of positions: behind the first, up to the second.
fn key_range(request: &ReadRequest, after: u64, through: u64) -> Result<(i64, i64), FileFault> {
    Ok((
        entry_key(request.product_number, after.min(MAX_POSITION))?,
        entry_key(request.product_number, through.min(MAX_POSITION))?,
    ))
}

impl ReadRequest {
    /// Returns the maximum number of rows to examine. One more than may be returned tells
    /// whether the range continues, unless a further filter leaves some out: on kinds, or on the
    /// users of sessions.
    fn max_rows(&self) -> usize {
        let Scope { sessions, users, kinds } = &self.scope;
        match (sessions, users, kinds) {
            (Only::Everything, _, Only::Everything) | (_, Only::Everything, Only::Everything) => {
                self.limits.entries.saturating_add(1).clamp(2, MAX_ROWS_PER_READ)
            }
            _ => MAX_ROWS_PER_READ,
        }
    }

    /// Returns the maximum number of rows to examine in a pass over the rows, which looks at those
    /// of other sessions and users, too.
    fn max_scanned_rows(&self) -> usize {
        match self.scope.narrowest_limit() {
            NarrowestLimit::Kinds(_) | NarrowestLimit::Unlimited => self.max_rows(),
            NarrowestLimit::Sessions(_) | NarrowestLimit::Users(_) => MAX_ROWS_PER_READ,
        }
    }
}

fn require(is_met: bool, damage: &str) -> Result<(), FileFault> {
    if is_met { Ok(()) } else { Err(FileFault::damage(damage)) }
}

/// Lowest keys of several lists.
struct FirstKeys {
    keys: BTreeSet<i64>,
    limit: usize,
    range: (i64, i64),
}

impl FirstKeys {
    /// Adds the keys of the entries of a session or a user, or of the gaps, as far as they are
    /// among the lowest.
    fn add(&mut self, list: &mut CachedStatement<'_>, name: Option<&str>) -> Result<(), FileFault> {
        let (after, through) = self.range;
        let mut rows = list.query(params![after, through, self.limit as i64, name])?;
        while let Some(row) = rows.next()? {
            self.keys.insert(row.get(0)?);
        }
        while self.keys.len() > self.limit {
            self.keys.pop_last();
        }
        // Once `limit` keys are known, none above the highest of them is needed: the next lists end
        // there.
        if let Some(last) = self.keys.last().filter(|_| self.keys.len() == self.limit) {
            self.range.1 = *last;
        }
        Ok(())
    }
}

const SELECT_PRODUCT: &str =
    "SELECT evicted_through, newest FROM products WHERE number = ?1 AND id = ?2";

const SELECT_HOLES: &str = "SELECT 1 FROM missing WHERE product = ?1 AND last > ?2 AND first <= ?3";

/// Columns, and a [`RowFit`]. Of the payload only what lies in the page of its row: its length is
/// known without reading it. Where the other columns do not fit, all of it is read.
macro_rules! select_header {
    ($from:literal) => {
        concat!(
            "SELECT entry, epoch, sequence, suffix, gap, after_or_user, kind, session, iif(head_sum IS ",
            entry_sum!(),
            ", 2, payload_sum IS row_sum(entry, payload)), \
             iif(octet_length(payload) <= 4096, payload, NULL), payload_sum",
            $from
        )
    };
}

/// Without an end: the row behind the range shows whether the range ends there.
const SELECT_HEADERS: &str = select_header!(" FROM entries WHERE entry > ?1 ORDER BY entry");

/// From the last range that begins before the positions or with them.
const SELECT_ERASED: &str = "SELECT first, last, sum IS row_sum(product, first, last) FROM erased \
     WHERE product = ?1 AND first <= ?3 AND first >= ifnull( \
         (SELECT max(first) FROM erased WHERE product = ?1 AND first <= ?2), ?2) ORDER BY first";

const SELECT_HEADER: &str = select_header!(" FROM entries WHERE entry = ?1");

/// Large payloads, apart from the rest of the row, so that their overflow pages are read only if
/// the scope admits them.
const SELECT_PAYLOAD: &str =
    "SELECT payload, payload_sum IS row_sum(entry, payload) FROM entries WHERE entry = ?1";

/// Takes a name, always null, so that all lists are queried with the same parameters.
const SELECT_GAP_KEYS: &str = "SELECT entry FROM entries INDEXED BY gaps \
                    WHERE gap IS NOT NULL AND entry > ?1 AND entry <= ?2 AND ?4 IS NULL ORDER BY entry LIMIT ?3";

const SELECT_SESSION_KEYS: &str = "SELECT entry FROM session_index \
                          WHERE session = ?4 AND entry > ?1 AND entry <= ?2 ORDER BY entry LIMIT ?3";

const SELECT_USER_KEYS: &str = "SELECT entry FROM user_index \
                          WHERE user = ?4 AND entry > ?1 AND entry <= ?2 ORDER BY entry LIMIT ?3";

/// Rows that one read examines: some milliseconds if none of them is in memory.
const MAX_ROWS_PER_READ: usize = 1024;

/// Page cache of a reader: the inner pages of the table and its indices, and the rows of one read.
const READER_CACHE_KIBIBYTES: i64 = 1 << 10;
