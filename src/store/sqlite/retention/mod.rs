//! Deletes entries from the file: the oldest when there are too many or too old, and one session's
//! on request.
//!
//! Retention goes in small steps, so that the writer's thread gets back to writing between them. An
//! owed entry that retention deletes becomes a dead letter: see `expire_owed`. Dead letters have a
//! bound of their own, so their part of the file does not count here.
//!
//! May use: no other module.

#[cfg(test)]
mod tests;

use rusqlite::{Connection, params};

use super::{
    FileError, StoreFile, SyncMode, dead_letters,
    error::FileFault,
    expire_owed::{self, ExpiredDeliveries},
    rows::{read_unsigned, signed},
    schema::{MAX_POSITION, entry_key, position_of},
};
impl StoreFile {
    /// Takes away some of the oldest entries if the oldest of all was kept before `oldest_kept_at`,
    /// in Unix milliseconds, or if the file uses more than `max_bytes` beside dead letters; none
    /// when there is nothing to do. What is owed of them is dead from `now` on. One small step:
    /// call it again.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or written; then nothing has gone.
    pub(crate) fn retire(
        &mut self,
        oldest_kept_at: u64,
        max_bytes: u64,
        now: u64,
    ) -> Result<Option<RetentionStep>, FileError> {
        let retired = self.try_retire(signed(oldest_kept_at), max_bytes, signed(now));
        retired.map_err(|fault| fault.at(&self.path, "retire entries of"))
    }

    fn try_retire(
        &mut self,
        oldest_kept_at: i64,
        max_bytes: u64,
        now: i64,
    ) -> Result<Option<RetentionStep>, FileFault> {
        let usage = FileUsage::read(&self.connection)?;
        let Some(oldest) = OldestEntry::find(&self.connection)? else { return Ok(None) };
        let excess = usage.bytes.saturating_sub(max_bytes);
        if excess == 0 && oldest.kept_at >= oldest_kept_at {
            return Ok(None);
        }
        let retired = self.in_transaction(SyncMode::Normal, |connection| {
            let cut = oldest.find_cut(connection, oldest_kept_at, excess, usage.page_bytes)?;
            oldest.retire(connection, &cut, now)
        });
        retired.map(Some)
    }

    /// Bytes of the file that are in use, dead letters aside: what [`StoreFile::retire`] holds
    /// against its bound.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub(crate) fn used_bytes(&self) -> Result<u64, FileError> {
        let usage =
            FileUsage::read(&self.connection).map_err(|fault| fault.at(&self.path, "measure"))?;
        Ok(usage.bytes)
    }
}

/// What one step of retention has taken away.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct RetentionStep {
    /// Of which product.
    pub(crate) product_number: u32,
    /// Everything up to this place is gone now.
    pub(crate) evicted_through: u64,
    /// Rows.
    pub(crate) events: u64,
    /// Bytes of their payloads, sessions and kinds.
    pub(crate) bytes: u64,
    /// What that means to webhooks.
    pub(crate) expired: Vec<ExpiredDeliveries>,
}

/// How much of the file is in use, dead letters aside.
struct FileUsage {
    bytes: u64,
    page_bytes: u64,
}

impl FileUsage {
    fn read(connection: &Connection) -> Result<Self, FileFault> {
        let mut statement = connection.prepare_cached(
            "SELECT (page_count - freelist_count) * page_size, page_size \
             FROM pragma_page_count, pragma_freelist_count, pragma_page_size",
        )?;
        let mut rows = statement.query([])?;
        let row = rows.next()?.ok_or_else(|| FileFault::damage("the page count is gone"))?;
        let bytes =
            read_unsigned(row, 0)?.saturating_sub(dead_letters::dead_letter_bytes(connection)?);
        Ok(Self { bytes, page_bytes: read_unsigned(row, 1)? })
    }
}

/// The oldest row of the product whose oldest row is the oldest.
struct OldestEntry {
    product_number: u32,
    evicted_through: u64,
    kept_at: i64,
}

impl OldestEntry {
    /// One look at the index for each product.
    fn find(connection: &Connection) -> Result<Option<Self>, FileFault> {
        let mut statement = connection.prepare_cached(
            "SELECT number, evicted_through, kept_at FROM products CROSS JOIN entries ON entry = ( \
                 SELECT min(entry) FROM entries \
                 WHERE entry > (number << 40) + evicted_through AND entry < (number + 1) << 40 \
             ) WHERE events > 0 ORDER BY kept_at, number LIMIT 1",
        )?;
        let mut rows = statement.query([])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        Ok(Some(Self {
            product_number: row.get(0)?,
            evicted_through: read_unsigned(row, 1)?,
            kept_at: row.get(2)?,
        }))
    }

    /// What to take away: rows that are too old, and as many as make up for `excess` bytes, but not
    /// more.
    fn find_cut(
        &self,
        connection: &Connection,
        oldest_kept_at: i64,
        excess: u64,
        page_bytes: u64,
    ) -> Result<RetentionCut, FileFault> {
        let mut statement = connection.prepare_cached(
            "SELECT entry, kept_at, ifnull(octet_length(session), 0), ifnull(octet_length(kind), 0), \
                    ifnull(octet_length(payload), 0) \
             FROM entries WHERE entry > ?1 AND entry <= ?2 ORDER BY entry LIMIT ?3",
        )?;
        let (first, last) = (
            entry_key(self.product_number, self.evicted_through)?,
            entry_key(self.product_number, MAX_POSITION)?,
        );
        // Each may become a dead letter of each webhook that is not ahead of it.
        let affected_webhooks = expire_owed::count_affected_webhooks(
            connection,
            self.product_number,
            self.step_end(connection)?,
        )?;
        let max_rows = (RETENTION_STEP_ROWS / (1 + affected_webhooks)).max(1);
        let mut rows = statement.query(params![first, last, signed(max_rows)])?;
        let mut cut = RetentionCut { last: first, events: 0, bytes: 0 };
        let mut freed = 0;
        while let Some(row) = rows.next()? {
            let kept_at: i64 = row.get(1)?;
            if freed >= excess && kept_at >= oldest_kept_at {
                break;
            }
            let (session, kind, payload) =
                (read_unsigned(row, 2)?, read_unsigned(row, 3)?, read_unsigned(row, 4)?);
            freed += footprint(session * 2 + kind + payload + ROW_OVERHEAD_BYTES, page_bytes);
            cut = RetentionCut {
                last: row.get(0)?,
                events: cut.events + 1,
                bytes: cut.bytes + session + kind + payload,
            };
        }
        Ok(cut)
    }

    /// The place of the last row that one step may take away.
    fn step_end(&self, connection: &Connection) -> Result<u64, FileFault> {
        let mut statement = connection.prepare_cached(
            "SELECT ifnull(max(entry), ?1) FROM ( \
                 SELECT entry FROM entries WHERE entry > ?1 AND entry <= ?2 ORDER BY entry LIMIT ?3)",
        )?;
        let (first, last) = (
            entry_key(self.product_number, self.evicted_through)?,
            entry_key(self.product_number, MAX_POSITION)?,
        );
        Ok(position_of(
            statement
                .query_row(params![first, last, signed(RETENTION_STEP_ROWS)], |row| row.get(0))?,
        ))
    }

    fn retire(
        &self,
        connection: &Connection,
        cut: &RetentionCut,
        now: i64,
    ) -> Result<RetentionStep, FileFault> {
        let first = entry_key(self.product_number, self.evicted_through)?;
        let evicted_through = self.position_before_rest(connection, cut.last)?;
        let expired =
            expire_owed::expire_owed(connection, self.product_number, evicted_through, now)?;
        let mut delete =
            connection.prepare_cached("DELETE FROM entries WHERE entry > ?1 AND entry <= ?2")?;
        delete.execute([first, cut.last])?;
        let mut update = connection.prepare_cached(
            "UPDATE products SET evicted_through = ?2, events = events - ?3, bytes = bytes - ?4 WHERE number = ?1",
        )?;
        update.execute(params![
            self.product_number,
            signed(evicted_through),
            signed(cut.events),
            signed(cut.bytes)
        ])?;
        delete_holes(connection, self.product_number, evicted_through)?;
        delete_spans(connection, self.product_number, evicted_through)?;
        Ok(RetentionStep {
            product_number: self.product_number,
            evicted_through,
            events: cut.events,
            bytes: cut.bytes,
            expired,
        })
    }

    /// The place before the first row behind `last`: holes between them are no more worth knowing
    /// of.
    fn position_before_rest(&self, connection: &Connection, last: i64) -> Result<u64, FileFault> {
        let mut statement = connection
            .prepare_cached("SELECT min(entry) FROM entries WHERE entry > ?1 AND entry <= ?2")?;
        let rest: Option<i64> = statement
            .query_row([last, entry_key(self.product_number, MAX_POSITION)?], |row| row.get(0))?;
        Ok(position_of(rest.map_or(last, |entry| entry - 1)))
    }
}

/// The rows up to `last`, an entry's key.
struct RetentionCut {
    last: i64,
    events: u64,
    bytes: u64,
}

/// Bytes of the file that a row of so many takes: whole pages for a large one, an even share of one
/// for others.
fn footprint(row_bytes: u64, page_bytes: u64) -> u64 {
    match page_bytes / row_bytes.max(1) {
        0 => row_bytes.next_multiple_of(page_bytes.max(1)),
        rows => page_bytes / rows,
    }
}

fn delete_holes(
    connection: &Connection,
    product_number: u32,
    evicted_through: u64,
) -> Result<(), FileFault> {
    let mut delete =
        connection.prepare_cached("DELETE FROM missing WHERE product = ?1 AND last <= ?2")?;
    delete.execute(params![product_number, signed(evicted_through)])?;
    Ok(())
}

/// Forgets what ids the places that are gone had, except the newest: they tell an old id from an
/// unknown one.
fn delete_spans(
    connection: &Connection,
    number: u32,
    evicted_through: u64,
) -> Result<(), FileFault> {
    // The newest span that begins no later than the first place kept is the one that place is in.
    let mut delete = connection.prepare_cached(
        "DELETE FROM spans WHERE product = ?1 AND place < ( \
             SELECT place FROM spans WHERE product = ?1 AND place <= ?2 + 1 ORDER BY place DESC LIMIT 1 OFFSET ?3)",
    )?;
    delete.execute(params![number, signed(evicted_through), MAX_EVICTED_SPANS])?;
    Ok(())
}

/// Rows that one step deletes: some milliseconds.
const RETENTION_STEP_ROWS: u64 = 512;

/// Evicted spans that stay. Each is a time at which ids did not follow one another, such as a
/// restart.
const MAX_EVICTED_SPANS: i64 = 4096;

/// What SQLite and the columns of fixed size add to a row and its place in the index.
const ROW_OVERHEAD_BYTES: u64 = 64;
