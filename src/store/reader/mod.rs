//! Reading entries back from the store's file, beside the connection that writes it.
//!
//! ```text
//! any session     one walk over the rows; payloads are read of those that are admitted
//! few sessions    by_session ─┐
//!                 gaps ───────┴─ places, merged and cut ─ rows by key
//! ```
//!
//! A reading sees one state of the file, and neither waits for the writer nor keeps it waiting. It waits for the disk.
//!
//! May use: `event`, `log`'s shared words, `log::store::file`.

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use rusqlite::{CachedStatement, Connection, InterruptHandle, OpenFlags, Row, params};

use super::sqlite::{
    Fault, FileError, read_id,
    schema::{self, Identity, MAX_PLACE, address, count, place_of, signed},
};
use crate::{
    event::{Entry, Event, Gap, GapReason, Kind, Only, ProductId, Scope, SessionId},
    log::Limits,
};

/// A connection that reads. Each thread has its own.
#[derive(Debug)]
pub(crate) struct Reader {
    connection: Connection,
    path: PathBuf,
}

impl Reader {
    /// Opens the file, which its writer must have opened before.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or has another schema than the one of this version.
    pub(crate) fn open(path: &Path) -> Result<Self, FileError> {
        let opened = Self::try_open(path).map_err(|fault| fault.at(path, "open"))?;
        Ok(Self { connection: opened, path: path.to_owned() })
    }

    fn try_open(path: &Path) -> Result<Connection, Fault> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        schema::configure(&connection, READER_CACHE_KIBIBYTES)?;
        connection.pragma_update(None, "query_only", true)?;
        match schema::identify(&connection)? {
            Identity::Ours(version) if version == schema::MIGRATIONS.len() => Ok(connection),
            Identity::Ours(_) | Identity::Fresh => Err(Fault::Refused("its writer has not set it up")),
        }
    }

    /// Reads the next entries of a product that a scope admits.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or [`Reader::interrupt_handle`] has been used.
    pub(crate) fn fetch(&self, wanted: &Wanted) -> Result<Chunk, FileError> {
        self.try_fetch(wanted).map_err(|fault| fault.at(&self.path, "read entries from"))
    }

    fn try_fetch(&self, wanted: &Wanted) -> Result<Chunk, Fault> {
        // Without it, retention could take a row away between the index and the table.
        let _one_state = self.connection.unchecked_transaction()?;
        let evicted_through = self.evicted_through(wanted)?;
        self.has_not_lost(wanted)?;
        let range = wanted.range()?;
        let mut taker = Taker::new(wanted, self.connection.prepare_cached(PAYLOAD)?);
        let most = wanted.most_rows();
        let pending = wanted.through.saturating_sub(wanted.after);
        let looked_at = match &wanted.scope.sessions {
            Only::These(sessions) if pending > sessions.len() as u64 => {
                let entries = self.entries_of(sessions, range, most)?;
                self.read_each(&entries, &mut taker)?;
                entries.len()
            }
            _ => self.walk(range, most, &mut taker)?,
        };
        Ok(Chunk { evicted_through, ..taker.into_chunk(looked_at == most) })
    }

    /// How far retention has come. A file that was, or has been, set aside may know the product under another number, or has
    /// not got what is asked for: it must not look as if there was nothing.
    fn evicted_through(&self, wanted: &Wanted) -> Result<u64, Fault> {
        let mut product = self.connection.prepare_cached(PRODUCT)?;
        let mut rows = product.query(params![wanted.number, wanted.product.as_str()])?;
        let row = rows.next()?.ok_or(Fault::Refused("it does not know the product under this number"))?;
        if count(row, 1)? < wanted.through {
            return Err(Fault::Refused("it has not got what is asked for"));
        }
        count(row, 0)
    }

    /// Of what the log has asked for, nothing was missing at the time. If it is now, the file has been begun anew meanwhile.
    fn has_not_lost(&self, wanted: &Wanted) -> Result<(), Fault> {
        let mut missing = self.connection.prepare_cached(MISSING)?;
        let (after, through) = (signed(wanted.after), signed(wanted.through));
        match missing.exists(params![wanted.number, after, through])? {
            true => Err(Fault::Refused("it has lost what is asked for")),
            false => Ok(()),
        }
    }

    /// Looks at the first `most` rows in the range, or fewer if they are too many to take, and returns how many.
    fn walk(&self, range: (i64, i64), most: usize, taker: &mut Taker<'_>) -> Result<usize, Fault> {
        let mut heads = self.connection.prepare_cached(HEADS)?;
        let mut rows = heads.query(params![range.0, range.1, most as i64])?;
        let mut looked_at = 0;
        while !taker.is_full
            && let Some(row) = rows.next()?
        {
            taker.look_at(row)?;
            looked_at += 1;
        }
        Ok(looked_at)
    }

    /// Looks at rows by their keys, unless they are too many to take.
    fn read_each(&self, entries: &BTreeSet<i64>, taker: &mut Taker<'_>) -> Result<(), Fault> {
        let mut head = self.connection.prepare_cached(HEAD)?;
        for entry in entries {
            if taker.is_full {
                break;
            }
            let mut rows = head.query([entry])?;
            let row = rows.next()?.ok_or_else(|| Fault::found("an index names a row that is not there"))?;
            taker.look_at(row)?;
        }
        Ok(())
    }

    /// Keys of the first `most` entries in the range that are of these sessions, or gaps.
    fn entries_of(
        &self,
        sessions: &BTreeSet<SessionId>,
        range: (i64, i64),
        most: usize,
    ) -> Result<BTreeSet<i64>, Fault> {
        let mut first = First { entries: BTreeSet::new(), most, range };
        first.add(&mut self.connection.prepare_cached(GAPS)?, None)?;
        let mut by_session = self.connection.prepare_cached(BY_SESSION)?;
        for session in sessions {
            first.add(&mut by_session, Some(session))?;
        }
        Ok(first.entries)
    }

    /// Looks whether the file is sound. Reads all of it.
    ///
    /// # Errors
    ///
    /// `Damaged` with the first finding, others when it cannot be read or [`Reader::interrupt_handle`] has been used.
    pub(crate) fn check(&self) -> Result<(), FileError> {
        self.try_check().map_err(|fault| fault.at(&self.path, "check"))
    }

    fn try_check(&self) -> Result<(), Fault> {
        let finding: String = self.connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if finding == "ok" { Ok(()) } else { Err(Fault::Found(finding.into())) }
    }

    /// Stops what this reader is doing, from any thread.
    pub(crate) fn interrupt_handle(&self) -> InterruptHandle {
        self.connection.get_interrupt_handle()
    }
}

/// What to read: entries behind `after` up to `through` that the scope admits.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// The product, as gaps name it.
    pub(crate) product: ProductId,
    /// The product's number in the file.
    pub(crate) number: u32,
    /// The place behind which to begin.
    pub(crate) after: u64,
    /// The last place. Must be higher than `after`.
    pub(crate) through: u64,
    /// Who may see what.
    pub(crate) scope: Scope,
    /// How much to return.
    pub(crate) limits: Limits,
}

impl Wanted {
    /// The keys of the range: behind the first, up to the second.
    fn range(&self) -> Result<(i64, i64), Fault> {
        Ok((address(self.number, self.after.min(MAX_PLACE))?, address(self.number, self.through.min(MAX_PLACE))?))
    }

    /// Rows to look at, at the most. One more than may be returned tells whether there is more, unless a filter on
    /// kinds leaves out some of them.
    fn most_rows(&self) -> usize {
        match &self.scope.kinds {
            Only::Everything => self.limits.entries.saturating_add(1).clamp(2, MOST_ROWS),
            Only::These(_) => MOST_ROWS,
        }
    }
}

/// What one reading has found.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// In order.
    pub(crate) entries: Vec<Entry>,
    /// Everything that the scope admits up to this place is in `entries`. Always beyond `after`.
    pub(crate) through: u64,
    /// Retention had taken everything up to this place by then. If that is beyond `after`, entries may be missing.
    pub(crate) evicted_through: u64,
}

/// The first few entries of several lists.
struct First {
    entries: BTreeSet<i64>,
    most: usize,
    range: (i64, i64),
}

impl First {
    /// Adds a session's entries, or the gaps, as far as they belong to the first.
    fn add(&mut self, list: &mut CachedStatement<'_>, session: Option<&SessionId>) -> Result<(), Fault> {
        let (after, through) = self.range;
        let mut rows = list.query(params![after, through, self.most as i64, session.map(SessionId::as_str)])?;
        while let Some(row) = rows.next()? {
            self.entries.insert(row.get(0)?);
        }
        while self.entries.len() > self.most {
            self.entries.pop_last();
        }
        if let Some(last) = self.entries.last().filter(|_| self.entries.len() == self.most) {
            self.range.1 = *last;
        }
        Ok(())
    }
}

/// One reading while it goes on.
struct Taker<'a> {
    wanted: &'a Wanted,
    payload: CachedStatement<'a>,
    entries: Vec<Entry>,
    bytes: usize,
    /// Everything that the scope admits up to here has been taken.
    through: u64,
    /// An entry did not fit any more.
    is_full: bool,
}

impl<'a> Taker<'a> {
    fn new(wanted: &'a Wanted, payload: CachedStatement<'a>) -> Self {
        Self { wanted, payload, entries: Vec::new(), bytes: 0, through: wanted.after, is_full: false }
    }

    /// Takes the entry of a row if the scope admits it and it fits.
    fn look_at(&mut self, row: &Row<'_>) -> Result<(), Fault> {
        let place = place_of(row.get(0)?);
        if let Some(entry) = self.admit(row, place)? {
            let bytes = self.bytes + entry.wire_bytes();
            if !self.entries.is_empty() && bytes > self.wanted.limits.bytes {
                self.is_full = true;
            } else {
                self.bytes = bytes;
                self.entries.push(entry);
            }
        }
        self.through = if self.is_full { place - 1 } else { place };
        Ok(())
    }

    /// The entry of a row, if the scope admits it and one more may be taken.
    fn admit(&mut self, row: &Row<'_>, place: u64) -> Result<Option<Entry>, Fault> {
        let head = Head::read(row)?;
        if !head.is_admitted(&self.wanted.scope) {
            return Ok(None);
        }
        self.is_full = self.entries.len() >= self.wanted.limits.entries.max(1);
        if self.is_full {
            return Ok(None);
        }
        match head {
            Head::Gap { reason, after } => {
                let (product, id) = (self.wanted.product.clone(), read_id(row, 1)?);
                Ok(Some(Entry::Gap(Arc::new(Gap { product, reason, place, id, after, before: None }))))
            }
            Head::Event { kind, session } => {
                let mut rows = self.payload.query([row.get::<_, i64>(0)?])?;
                let payload = rows.next()?.ok_or_else(|| Fault::found("a row is gone while it is read"))?;
                let event = Event::restored(read_id(row, 1)?, place, kind, session, read_payload(payload)?);
                Ok(Some(Entry::Event(Arc::new(event))))
            }
        }
    }

    /// What has been taken. `is_cut` says that there may be rows that have not been looked at.
    fn into_chunk(self, is_cut: bool) -> Chunk {
        let end = self.wanted.through.max(self.wanted.after);
        let through = if self.is_full || is_cut { self.through } else { end };
        Chunk { entries: self.entries, through, evicted_through: 0 }
    }
}

/// A row without its id and payload.
enum Head {
    Gap { reason: GapReason, after: Option<Box<str>> },
    Event { kind: Kind, session: Option<SessionId> },
}

impl Head {
    /// Reads a row of [`HEAD`] or [`HEADS`].
    fn read(row: &Row<'_>) -> Result<Self, Fault> {
        if let Some(reason) = row.get_ref(4)?.as_str_or_null().map_err(rusqlite::Error::from)? {
            let reason = GapReason::parse(reason).ok_or_else(|| Fault::found("a gap's reason is unknown"))?;
            return Ok(Self::Gap { reason, after: row.get(5)? });
        }
        let kind = row.get_ref(6)?.as_str_or_null().map_err(rusqlite::Error::from)?;
        let session = row.get_ref(7)?.as_str_or_null().map_err(rusqlite::Error::from)?;
        let session = session.map(SessionId::new).transpose();
        Ok(Self::Event {
            kind: Kind::new(kind.ok_or_else(|| Fault::found("an event has no kind"))?),
            session: session.map_err(|error| Fault::Found(format!("a session's name {error}").into()))?,
        })
    }

    /// As [`Scope::admits`] says, before there is an entry.
    fn is_admitted(&self, scope: &Scope) -> bool {
        let Self::Event { kind, session } = self else { return true };
        let of_session = match &scope.sessions {
            Only::Everything => true,
            Only::These(sessions) => session.as_ref().is_some_and(|session| sessions.contains(session)),
        };
        of_session && scope.kinds.admits(kind)
    }
}

/// Reads a row of [`PAYLOAD`].
fn read_payload<'a>(row: &'a Row<'_>) -> Result<&'a [u8], Fault> {
    let payload = row.get_ref(0)?.as_blob().map_err(rusqlite::Error::from)?;
    // The decoder lets none through, and the encoder would write a broken frame.
    match memchr::memchr(b'\r', payload) {
        None => Ok(payload),
        Some(_) => Err(Fault::found("a payload holds a carriage return")),
    }
}

const PRODUCT: &str = "SELECT evicted_through, newest FROM products WHERE number = ?1 AND id = ?2";

const MISSING: &str = "SELECT 1 FROM missing WHERE product = ?1 AND last > ?2 AND first <= ?3";

const HEADS: &str = "SELECT entry, epoch, sequence, suffix, gap, after, kind, session FROM entries \
                     WHERE entry > ?1 AND entry <= ?2 ORDER BY entry LIMIT ?3";

const HEAD: &str = "SELECT entry, epoch, sequence, suffix, gap, after, kind, session FROM entries WHERE entry = ?1";

/// Apart from the rest of its row, so that the pages of a long one are read only if it is wanted.
const PAYLOAD: &str = "SELECT payload FROM entries WHERE entry = ?1";

/// Takes the session, too, for the sake of one way to ask.
const GAPS: &str = "SELECT entry FROM entries INDEXED BY gaps \
                    WHERE gap IS NOT NULL AND entry > ?1 AND entry <= ?2 AND ?4 IS NULL ORDER BY entry LIMIT ?3";

const BY_SESSION: &str = "SELECT entry FROM entries INDEXED BY by_session \
                          WHERE session = ?4 AND entry > ?1 AND entry <= ?2 ORDER BY entry LIMIT ?3";

/// Rows that one reading looks at: some milliseconds, if none of them is in memory.
const MOST_ROWS: usize = 1024;

/// Holds the inner pages of the table and its indices, and what one reading goes through.
const READER_CACHE_KIBIBYTES: i64 = 1 << 10;
