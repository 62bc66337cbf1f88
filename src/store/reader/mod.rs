//! Reads entries back from the store's file, on a connection of its own beside the writer's.
//!
//! ```text
//! any session     one pass over the rows; payloads are read of admitted rows only
//! few sessions    by_session ─┐
//!                 gaps ───────┴─ positions, merged and cut ─ rows by key
//! ```
//!
//! A read sees one state of the file; it neither waits for the writer nor delays it. It waits for
//! the disk.
//!
//! May use: `event`, `log`.

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use rusqlite::{CachedStatement, Connection, InterruptHandle, OpenFlags, Row, params};

use super::sqlite::{
    FileError, FileFault, read_event_id,
    schema::{self, MAX_POSITION, SchemaIdentity, entry_key, position_of, read_unsigned, signed},
};
use crate::{
    event::{Entry, Event, Gap, GapReason, Kind, Only, ProductId, Scope, SessionId},
    log::ReadLimits,
};

/// A connection that reads. Each thread has its own.
#[derive(Debug)]
pub(crate) struct StoreReader {
    connection: Connection,
    path: PathBuf,
}

impl StoreReader {
    /// Opens the file, which its writer must have opened before.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or has another schema than the one of this version.
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
            SchemaIdentity::Ours(version) if version == schema::MIGRATIONS.len() => Ok(connection),
            SchemaIdentity::Ours(_) | SchemaIdentity::Fresh => {
                Err(FileFault::Refused("its writer has not set it up"))
            }
        }
    }

    /// Reads the next entries of a product that a scope admits.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or [`StoreReader::interrupt_handle`] has been used.
    pub(crate) fn fetch(&self, request: &ReadRequest) -> Result<StoredChunk, FileError> {
        self.try_fetch(request).map_err(|fault| fault.at(&self.path, "read entries from"))
    }

    fn try_fetch(&self, request: &ReadRequest) -> Result<StoredChunk, FileFault> {
        // Without it, retention could take a row away between the index and the table.
        let _snapshot = self.connection.unchecked_transaction()?;
        let evicted_through = self.evicted_through(request)?;
        self.require_persisted(request)?;
        let range = request.key_range()?;
        let mut chunk = ChunkBuilder::new(request, self.connection.prepare_cached(SELECT_PAYLOAD)?);
        let limit = request.max_rows();
        let pending = request.through.saturating_sub(request.after);
        let rows_read = match &request.scope.sessions {
            Only::These(sessions) if pending > sessions.len() as u64 => {
                let keys = self.keys_of_sessions(sessions, range, limit)?;
                self.read_rows(&keys, &mut chunk)?;
                keys.len()
            }
            _ => self.scan_range(range, limit, &mut chunk)?,
        };
        Ok(StoredChunk { evicted_through, ..chunk.finish(rows_read == limit) })
    }

    /// How far retention has come. A file that was, or has been, set aside may know the product
    /// under another number, or has not got what is asked for: it must not look as if there was
    /// nothing.
    fn evicted_through(&self, request: &ReadRequest) -> Result<u64, FileFault> {
        let mut product = self.connection.prepare_cached(SELECT_PRODUCT)?;
        let mut rows = product.query(params![request.product_number, request.product.as_str()])?;
        let row = rows
            .next()?
            .ok_or(FileFault::Refused("it does not know the product under this number"))?;
        if read_unsigned(row, 1)? < request.through {
            return Err(FileFault::Refused("it has not got what is asked for"));
        }
        read_unsigned(row, 0)
    }

    /// Of what the log has asked for, nothing was missing at the time. If it is now, the file has
    /// been begun anew meanwhile.
    fn require_persisted(&self, request: &ReadRequest) -> Result<(), FileFault> {
        let mut select_holes = self.connection.prepare_cached(SELECT_HOLES)?;
        let (after, through) = (signed(request.after), signed(request.through));
        match select_holes.exists(params![request.product_number, after, through])? {
            true => Err(FileFault::Refused("it has lost what is asked for")),
            false => Ok(()),
        }
    }

    /// Looks at the first `limit` rows in the range, or fewer if they are too many to take, and
    /// returns how many.
    fn scan_range(
        &self,
        range: (i64, i64),
        limit: usize,
        chunk: &mut ChunkBuilder<'_>,
    ) -> Result<usize, FileFault> {
        let mut headers = self.connection.prepare_cached(SELECT_HEADERS)?;
        let mut rows = headers.query(params![range.0, range.1, limit as i64])?;
        let mut rows_read = 0;
        while !chunk.is_full
            && let Some(row) = rows.next()?
        {
            chunk.add_row(row)?;
            rows_read += 1;
        }
        Ok(rows_read)
    }

    /// Looks at rows by their keys, unless they are too many to take.
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

    /// Keys of the first `limit` entries in the range that are of these sessions, or gaps.
    fn keys_of_sessions(
        &self,
        sessions: &BTreeSet<SessionId>,
        range: (i64, i64),
        limit: usize,
    ) -> Result<BTreeSet<i64>, FileFault> {
        let mut first = FirstKeys { keys: BTreeSet::new(), limit, range };
        first.add(&mut self.connection.prepare_cached(SELECT_GAP_KEYS)?, None)?;
        let mut by_session = self.connection.prepare_cached(SELECT_SESSION_KEYS)?;
        for session in sessions {
            first.add(&mut by_session, Some(session))?;
        }
        Ok(first.keys)
    }

    /// Looks whether the file is sound. Reads all of it.
    ///
    /// # Errors
    ///
    /// `Damaged` with the first finding, others when it cannot be read or
    /// [`StoreReader::interrupt_handle`] has been used.
    pub(crate) fn check(&self) -> Result<(), FileError> {
        self.try_check().map_err(|fault| fault.at(&self.path, "check"))
    }

    fn try_check(&self) -> Result<(), FileFault> {
        let finding: String =
            self.connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if finding == "ok" { Ok(()) } else { Err(FileFault::Damage(finding.into())) }
    }

    /// Stops what this reader is doing, from any thread.
    pub(crate) fn interrupt_handle(&self) -> InterruptHandle {
        self.connection.get_interrupt_handle()
    }
}

/// What to read: entries behind `after` up to `through` that the scope admits.
#[derive(Clone, Debug)]
pub(crate) struct ReadRequest {
    /// The product, as gaps name it.
    pub(crate) product: ProductId,
    /// The product's number in the file.
    pub(crate) product_number: u32,
    /// The place behind which to begin.
    pub(crate) after: u64,
    /// The last place. Must be higher than `after`.
    pub(crate) through: u64,
    /// Who may see what.
    pub(crate) scope: Scope,
    /// How much to return.
    pub(crate) limits: ReadLimits,
}

impl ReadRequest {
    /// The keys of the range: behind the first, up to the second.
    fn key_range(&self) -> Result<(i64, i64), FileFault> {
        Ok((
            entry_key(self.product_number, self.after.min(MAX_POSITION))?,
            entry_key(self.product_number, self.through.min(MAX_POSITION))?,
        ))
    }

    /// Rows to look at, at the most. One more than may be returned tells whether there is more,
    /// unless a filter on kinds leaves out some of them.
    fn max_rows(&self) -> usize {
        match &self.scope.kinds {
            Only::Everything => self.limits.entries.saturating_add(1).clamp(2, MAX_ROWS_PER_READ),
            Only::These(_) => MAX_ROWS_PER_READ,
        }
    }
}

/// What one reading has found.
#[derive(Debug)]
pub(crate) struct StoredChunk {
    /// In order.
    pub(crate) entries: Vec<Entry>,
    /// Everything that the scope admits up to this place is in `keys`. Always beyond `after`.
    pub(crate) through: u64,
    /// Retention had taken everything up to this place by then. If that is beyond `after`, entries
    /// may be missing.
    pub(crate) evicted_through: u64,
}

/// The first few entries of several lists.
struct FirstKeys {
    keys: BTreeSet<i64>,
    limit: usize,
    range: (i64, i64),
}

impl FirstKeys {
    /// Adds a session's entries, or the gaps, as far as they belong to the first.
    fn add(
        &mut self,
        list: &mut CachedStatement<'_>,
        session: Option<&SessionId>,
    ) -> Result<(), FileFault> {
        let (after, through) = self.range;
        let mut rows =
            list.query(params![after, through, self.limit as i64, session.map(SessionId::as_str)])?;
        while let Some(row) = rows.next()? {
            self.keys.insert(row.get(0)?);
        }
        while self.keys.len() > self.limit {
            self.keys.pop_last();
        }
        if let Some(last) = self.keys.last().filter(|_| self.keys.len() == self.limit) {
            self.range.1 = *last;
        }
        Ok(())
    }
}

/// One reading while it goes on.
struct ChunkBuilder<'a> {
    request: &'a ReadRequest,
    payload: CachedStatement<'a>,
    entries: Vec<Entry>,
    bytes: usize,
    /// Everything that the scope admits up to here has been taken.
    through: u64,
    /// An entry did not fit any more.
    is_full: bool,
}

impl<'a> ChunkBuilder<'a> {
    fn new(request: &'a ReadRequest, payload: CachedStatement<'a>) -> Self {
        Self {
            request,
            payload,
            entries: Vec::new(),
            bytes: 0,
            through: request.after,
            is_full: false,
        }
    }

    /// Takes the entry of a row if the scope admits it and it fits.
    fn add_row(&mut self, row: &Row<'_>) -> Result<(), FileFault> {
        let position = position_of(row.get(0)?);
        if let Some(entry) = self.read_admitted(row, position)? {
            let bytes = self.bytes + entry.wire_bytes();
            if !self.entries.is_empty() && bytes > self.request.limits.bytes {
                self.is_full = true;
            } else {
                self.bytes = bytes;
                self.entries.push(entry);
            }
        }
        self.through = if self.is_full { position - 1 } else { position };
        Ok(())
    }

    /// The entry of a row, if the scope admits it and one more may be taken.
    fn read_admitted(&mut self, row: &Row<'_>, position: u64) -> Result<Option<Entry>, FileFault> {
        let header = RowHeader::read(row)?;
        if !header.is_admitted(&self.request.scope) {
            return Ok(None);
        }
        self.is_full = self.entries.len() >= self.request.limits.entries.max(1);
        if self.is_full {
            return Ok(None);
        }
        match header {
            RowHeader::Gap { reason, after } => {
                let (product, id) = (self.request.product.clone(), read_event_id(row, 1)?);
                Ok(Some(Entry::Gap(Arc::new(Gap {
                    product,
                    reason,
                    position,
                    id,
                    after,
                    before: None,
                }))))
            }
            RowHeader::Event { kind, session } => {
                let mut rows = self.payload.query([row.get::<_, i64>(0)?])?;
                let payload = rows
                    .next()?
                    .ok_or_else(|| FileFault::damage("a row is gone while it is read"))?;
                let event = Event::restored(
                    read_event_id(row, 1)?,
                    position,
                    kind,
                    session,
                    read_payload(payload)?,
                );
                Ok(Some(Entry::Event(Arc::new(event))))
            }
        }
    }

    /// What has been taken. `is_cut` says that there may be rows that have not been looked at.
    fn finish(self, may_have_more: bool) -> StoredChunk {
        let end = self.request.through.max(self.request.after);
        let through = if self.is_full || may_have_more { self.through } else { end };
        StoredChunk { entries: self.entries, through, evicted_through: 0 }
    }
}

/// A row without its id and payload.
enum RowHeader {
    Gap { reason: GapReason, after: Option<Box<str>> },
    Event { kind: Kind, session: Option<SessionId> },
}

impl RowHeader {
    /// Reads a row of [`SELECT_HEADER`] or [`SELECT_HEADERS`].
    fn read(row: &Row<'_>) -> Result<Self, FileFault> {
        if let Some(reason) = row.get_ref(4)?.as_str_or_null().map_err(rusqlite::Error::from)? {
            let reason = GapReason::parse(reason)
                .ok_or_else(|| FileFault::damage("a gap's reason is unknown"))?;
            return Ok(Self::Gap { reason, after: row.get(5)? });
        }
        let kind = row.get_ref(6)?.as_str_or_null().map_err(rusqlite::Error::from)?;
        let session = row.get_ref(7)?.as_str_or_null().map_err(rusqlite::Error::from)?;
        let session = session.map(SessionId::new).transpose();
        Ok(Self::Event {
            kind: Kind::new(kind.ok_or_else(|| FileFault::damage("an event has no kind"))?),
            session: session
                .map_err(|error| FileFault::Damage(format!("a session's name {error}").into()))?,
        })
    }

    /// As [`Scope::admits`] says, before there is an entry.
    fn is_admitted(&self, scope: &Scope) -> bool {
        let Self::Event { kind, session } = self else { return true };
        let of_session = match &scope.sessions {
            Only::Everything => true,
            Only::These(sessions) => {
                session.as_ref().is_some_and(|session| sessions.contains(session))
            }
        };
        of_session && scope.kinds.admits(kind)
    }
}

/// Reads a row of [`SELECT_PAYLOAD`].
fn read_payload<'a>(row: &'a Row<'_>) -> Result<&'a [u8], FileFault> {
    let payload = row.get_ref(0)?.as_blob().map_err(rusqlite::Error::from)?;
    // The decoder lets none through, and the encoder would write a broken frame.
    match memchr::memchr(b'\r', payload) {
        None => Ok(payload),
        Some(_) => Err(FileFault::damage("a payload holds a carriage return")),
    }
}

const SELECT_PRODUCT: &str =
    "SELECT evicted_through, newest FROM products WHERE number = ?1 AND id = ?2";

const SELECT_HOLES: &str = "SELECT 1 FROM missing WHERE product = ?1 AND last > ?2 AND first <= ?3";

const SELECT_HEADERS: &str = "SELECT entry, epoch, sequence, suffix, gap, after, kind, session FROM entries \
                     WHERE entry > ?1 AND entry <= ?2 ORDER BY entry LIMIT ?3";

const SELECT_HEADER: &str = "SELECT entry, epoch, sequence, suffix, gap, after, kind, session FROM entries WHERE entry = ?1";

/// Apart from the rest of its row, so that the pages of a long one are read only if it is wanted.
const SELECT_PAYLOAD: &str = "SELECT payload FROM entries WHERE entry = ?1";

/// Takes the session, too, for the sake of one way to ask.
const SELECT_GAP_KEYS: &str = "SELECT entry FROM entries INDEXED BY gaps \
                    WHERE gap IS NOT NULL AND entry > ?1 AND entry <= ?2 AND ?4 IS NULL ORDER BY entry LIMIT ?3";

const SELECT_SESSION_KEYS: &str = "SELECT entry FROM entries INDEXED BY by_session \
                          WHERE session = ?4 AND entry > ?1 AND entry <= ?2 ORDER BY entry LIMIT ?3";

/// Rows that one reading looks at: some milliseconds, if none of them is in memory.
const MAX_ROWS_PER_READ: usize = 1024;

/// Holds the inner pages of the table and its indices, and what one reading goes through.
const READER_CACHE_KIBIBYTES: i64 = 1 << 10;
