//! Retention: deletes the oldest entries when they are too old or take too much of the file.
//!
//! Retention goes in small steps, so that the writer commits between them. An owed entry that
//! retention deletes becomes a dead letter, see `expire_owed`. Dead letters have a bound of their
//! own, so their part of the file does not count here.
//!
//! May use: no other module.

#[cfg(test)]
mod tests;

use rusqlite::{Connection, OptionalExtension, params};

use super::{
    FileError, StoreFile, SyncMode,
    checksum::entry_sum,
    dead_letters,
    error::FileFault,
    expire_owed::{self, ExpiredDeliveries},
    name_index,
    rows::{read_unsigned, signed},
    schema::{MAX_POSITION, entry_key, position_of},
};

impl StoreFile {
    /// Deletes some of the oldest entries if the oldest of all was kept before `oldest_kept_at`, in
    /// Unix milliseconds, or if the file uses more than `max_bytes` beside dead letters. Returns
    /// `None` when there is nothing to do. Owed deliveries of them are dead letters as of `now`.
    /// One small step; the caller calls again.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or written; then nothing is deleted.
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
        let is_index_complete = !self.has_former_rows();
        let retired = self.in_transaction(SyncMode::Normal, |connection| {
            let cut = oldest.find_cut(connection, oldest_kept_at, excess, usage.page_bytes)?;
            oldest.retire(connection, &cut, is_index_complete, now)
        });
        retired.map(Some)
    }

    /// Gives entries that a wrong clock has stamped later than `latest` the time `now`, both in
    /// Unix milliseconds, once such an entry is the oldest of its product: it would hold all
    /// entries behind it until its time comes. One small step, from the entry `from`; returns the
    /// next one if there are more.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or written; then nothing is changed.
    pub(crate) fn restamp_future(
        &mut self,
        from: Option<i64>,
        latest: u64,
        now: u64,
    ) -> Result<Option<i64>, FileError> {
        let restamped = self.try_restamp_future(from, signed(latest), signed(now));
        restamped.map_err(|fault| fault.at(&self.path, "correct times of"))
    }

    fn try_restamp_future(
        &mut self,
        from: Option<i64>,
        latest: i64,
        now: i64,
    ) -> Result<Option<i64>, FileFault> {
        let from = match from {
            None => find_future_head(&self.connection, latest)?,
            from => from,
        };
        let Some(first) = from else { return Ok(None) };
        self.in_transaction(SyncMode::Normal, |connection| {
            let (last, rows) = find_future_run(connection, first, latest)?;
            // The sum of a damaged row stays one that does not fit.
            let mut update = connection.prepare_cached(concat!(
                "UPDATE entries SET kept_at = ?3, head_sum = iif(head_sum IS ",
                entry_sum!(),
                ", row_sum(entry, epoch, sequence, suffix, ?3, gap, after_or_user, kind, session), head_sum) \
                 WHERE entry BETWEEN ?1 AND ?2"
            ))?;
            update.execute([first, last, now])?;
            Ok((rows == RETENTION_STEP_ROWS).then_some(last + 1))
        })
    }

    /// Returns the bytes of the file that are in use, without dead letters. [`StoreFile::retire`]
    /// compares them with its bound.
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

/// Entries that one step of retention has deleted.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct RetentionStep {
    /// Number of the product.
    pub(crate) product_number: u32,
    /// Last position that is deleted, with all before it.
    pub(crate) evicted_through: u64,
    /// Number of rows.
    pub(crate) events: u64,
    /// Bytes of their payloads, sessions, users and kinds.
    pub(crate) bytes: u64,
    /// Deliveries that expired with them, by webhook.
    pub(crate) expired: Vec<ExpiredDeliveries>,
}

/// Part of the file that is in use, without dead letters.
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
        let row = rows.next()?.ok_or_else(|| FileFault::damage("the page count is missing"))?;
        let bytes =
            read_unsigned(row, 0)?.saturating_sub(dead_letters::dead_letter_bytes(connection)?);
        Ok(Self { bytes, page_bytes: read_unsigned(row, 1)? })
    }
}

/// Oldest entry of all products.
struct OldestEntry {
    product_number: u32,
    evicted_through: u64,
    kept_at: i64,
}

impl OldestEntry {
    /// Finds the oldest entry by one look-up per product.
    fn find(connection: &Connection) -> Result<Option<Self>, FileFault> {
        let mut statement = connection.prepare_cached(
            "SELECT number, evicted_through, iif(typeof(kept_at) = 'integer', kept_at, 0) AS kept_at \
             FROM products CROSS JOIN entries ON entry = ( \
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

    /// Returns the rows to delete: rows that are too old, and as many as make up for `excess`
    /// bytes, but at most one step's worth.
    fn find_cut(
        &self,
        connection: &Connection,
        oldest_kept_at: i64,
        excess: u64,
        page_bytes: u64,
    ) -> Result<RetentionCut, FileFault> {
        let mut statement = connection.prepare_cached(
            "SELECT entry, iif(typeof(kept_at) = 'integer', kept_at, 0), ifnull(octet_length(session), 0), ifnull(octet_length(kind), 0), \
                    ifnull(octet_length(payload), 0), iif(gap IS NULL, ifnull(octet_length(after_or_user), 0), 0) \
             FROM entries WHERE entry > ?1 AND entry <= ?2 ORDER BY entry LIMIT ?3",
        )?;
        let (first, last) = (
            entry_key(self.product_number, self.evicted_through)?,
            entry_key(self.product_number, MAX_POSITION)?,
        );
        // Each row may become a dead letter of each affected webhook, so that a step with many
        // webhooks deletes fewer rows.
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
            let user = read_unsigned(row, 5)?;
            // The names of session and user stand in their indices as well.
            let in_file = (session + user) * 2 + kind + payload + ROW_OVERHEAD_BYTES;
            freed += footprint(in_file, page_bytes);
            cut = RetentionCut {
                last: row.get(0)?,
                events: cut.events + 1,
                bytes: cut.bytes + session + user + kind + payload,
            };
        }
        Ok(cut)
    }

    /// Returns the position of the last row that one step may delete.
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
        is_index_complete: bool,
        now: i64,
    ) -> Result<RetentionStep, FileFault> {
        let first = entry_key(self.product_number, self.evicted_through)?;
        let evicted_through = self.position_before_rest(connection, cut.last)?;
        let expired =
            expire_owed::expire_owed(connection, self.product_number, evicted_through, now)?;
        name_index::retire(connection, (first, cut.last), is_index_complete)?;
        let mut delete =
            connection.prepare_cached("DELETE FROM entries WHERE entry > ?1 AND entry <= ?2")?;
        delete.execute([first, cut.last])?;
        let mut update = connection.prepare_cached(
            "UPDATE products SET evicted_through = ?2, events = events - ?3, bytes = bytes - ?4, \
             sum = row_sum(number, id, newest, ?2, events - ?3, bytes - ?4, highest_epoch) WHERE number = ?1",
        )?;
        update.execute(params![
            self.product_number,
            signed(evicted_through),
            signed(cut.events),
            signed(cut.bytes)
        ])?;
        delete_absent(connection, self.product_number, evicted_through)?;
        delete_spans(connection, self.product_number, evicted_through)?;
        Ok(RetentionStep {
            product_number: self.product_number,
            evicted_through,
            events: cut.events,
            bytes: cut.bytes,
            expired,
        })
    }

    /// Returns the position before the first row behind `last`: holes between the two are evicted,
    /// too.
    fn position_before_rest(&self, connection: &Connection, last: i64) -> Result<u64, FileFault> {
        let mut statement = connection
            .prepare_cached("SELECT min(entry) FROM entries WHERE entry > ?1 AND entry <= ?2")?;
        let rest: Option<i64> = statement
            .query_row([last, entry_key(self.product_number, MAX_POSITION)?], |row| row.get(0))?;
        Ok(position_of(rest.map_or(last, |entry| entry - 1)))
    }
}

/// Returns the oldest entry of a product whose oldest entry was kept later than `latest`.
fn find_future_head(connection: &Connection, latest: i64) -> Result<Option<i64>, FileFault> {
    let mut statement = connection.prepare_cached(
        "SELECT entry FROM products CROSS JOIN entries ON entry = ( \
             SELECT min(entry) FROM entries \
             WHERE entry > (number << 40) + evicted_through AND entry < (number + 1) << 40 \
         ) WHERE events > 0 AND kept_at > ?1 LIMIT 1",
    )?;
    Ok(statement.query_row([latest], |row| row.get(0)).optional()?)
}

/// Returns the last of the product's entries from `first` on that were all kept later than
/// `latest`, and their number, at most [`RETENTION_STEP_ROWS`].
fn find_future_run(
    connection: &Connection,
    first: i64,
    latest: i64,
) -> Result<(i64, u64), FileFault> {
    let mut statement = connection.prepare_cached(
        "SELECT entry, kept_at FROM entries WHERE entry BETWEEN ?1 AND ?2 ORDER BY entry LIMIT ?3",
    )?;
    let end = first | signed(MAX_POSITION);
    let mut rows = statement.query(params![first, end, signed(RETENTION_STEP_ROWS)])?;
    let (mut last, mut count) = (first - 1, 0);
    while let Some(row) = rows.next()?
        && row.get::<_, i64>(1)? > latest
    {
        (last, count) = (row.get(0)?, count + 1);
    }
    Ok((last, count))
}

/// Rows to delete: up to `last`, an entry's key.
struct RetentionCut {
    last: i64,
    events: u64,
    bytes: u64,
}

/// Returns the bytes of the file that a row of this size takes: whole pages for a large one, an
/// even share of a page for a small one.
fn footprint(row_bytes: u64, page_bytes: u64) -> u64 {
    match page_bytes / row_bytes.max(1) {
        0 => row_bytes.next_multiple_of(page_bytes.max(1)),
        rows => page_bytes / rows,
    }
}

/// Deletes holes and erased positions up to `evicted_through`.
fn delete_absent(
    connection: &Connection,
    product_number: u32,
    evicted_through: u64,
) -> Result<(), FileFault> {
    let mut delete =
        connection.prepare_cached("DELETE FROM missing WHERE product = ?1 AND last <= ?2")?;
    delete.execute(params![product_number, signed(evicted_through)])?;
    let mut delete =
        connection.prepare_cached("DELETE FROM erased WHERE product = ?1 AND last <= ?2")?;
    delete.execute(params![product_number, signed(evicted_through)])?;
    Ok(())
}

/// Deletes spans of evicted positions, except the newest of them: they tell an evicted id from an
/// unknown one.
fn delete_spans(
    connection: &Connection,
    number: u32,
    evicted_through: u64,
) -> Result<(), FileFault> {
    // The newest span that begins at the first position kept or before it contains that position.
    let mut delete = connection.prepare_cached(
        "DELETE FROM spans WHERE product = ?1 AND place < ( \
             SELECT place FROM spans WHERE product = ?1 AND place <= ?2 + 1 ORDER BY place DESC LIMIT 1 OFFSET ?3)",
    )?;
    delete.execute(params![number, signed(evicted_through), MAX_EVICTED_SPANS])?;
    // A client with an id of such an epoch gets the oldest entries either way.
    let mut delete =
        connection.prepare_cached("DELETE FROM empty_epochs WHERE product = ?1 AND place <= ?2")?;
    delete.execute(params![number, signed(evicted_through)])?;
    Ok(())
}

/// Rows that one step deletes: it takes some milliseconds.
const RETENTION_STEP_ROWS: u64 = 512;

/// Number of evicted spans that stay. Each begins where ids did not follow one another, as after a
/// restart.
const MAX_EVICTED_SPANS: i64 = 4096;

/// Bytes that SQLite and the columns of fixed size add to a row and its entry in the index.
const ROW_OVERHEAD_BYTES: u64 = 64;
