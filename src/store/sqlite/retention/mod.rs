//! Taking entries out of the store: the oldest when there are too many or too old, and one session's on request.
//!
//! Retention goes in small steps, so that the writer's thread gets back to writing between them; the rest takes its time. What
//! goes although it is owed to a webhook becomes a dead letter: see `expiry`. Dead letters have a bound of their own, so what
//! they take of the file does not count here.
//!
//! May use: `event`.

#[cfg(test)]
mod tests;

use rusqlite::{Connection, params};

use super::{
    Erased, File, FileError, Retired, Sync, dead_letters,
    error::Fault,
    expire_owed,
    schema::{MAX_PLACE, address, count, place_of, signed},
};
use crate::event::SessionId;

impl File {
    /// Takes away some of the oldest entries if the oldest of all was kept before `oldest_kept_at`, in Unix
    /// milliseconds, or if the file uses more than `most_bytes` beside dead letters; none when there is nothing to do. What is
    /// owed of them is dead from `now` on. One small step: call it again.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or written; then nothing has gone.
    pub(crate) fn retire(
        &mut self,
        oldest_kept_at: u64,
        most_bytes: u64,
        now: u64,
    ) -> Result<Option<Retired>, FileError> {
        let retired = self.try_retire(signed(oldest_kept_at), most_bytes, signed(now));
        retired.map_err(|fault| fault.at(&self.path, "retire entries of"))
    }

    fn try_retire(&mut self, oldest_kept_at: i64, most_bytes: u64, now: i64) -> Result<Option<Retired>, Fault> {
        let usage = Usage::read(&self.connection)?;
        let Some(oldest) = Oldest::find(&self.connection)? else { return Ok(None) };
        let excess = usage.bytes.saturating_sub(most_bytes);
        if excess == 0 && oldest.kept_at >= oldest_kept_at {
            return Ok(None);
        }
        let retired = self.commit(Sync::Normal, |connection| {
            let cut = oldest.cut(connection, oldest_kept_at, excess, usage.page_bytes)?;
            oldest.retire(connection, &cut, now)
        });
        retired.map(Some)
    }

    /// Bytes of the file that are in use, dead letters aside: what [`File::retire`] holds against its bound.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub(crate) fn used_bytes(&self) -> Result<u64, FileError> {
        let usage = Usage::read(&self.connection).map_err(|fault| fault.at(&self.path, "measure"))?;
        Ok(usage.bytes)
    }

    /// Deletes a session's events and what webhooks have of them, all or none, and returns how much there was. Of the dead
    /// letters, those count whose event is neither here nor behind `in_memory_from`. No reading finds them any more. But the write-ahead log has them until it begins anew, and even with `secure_delete` SQLite leaves parts of rows
    /// where it has moved them from one page to another: [`File::scrub`] removes those.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub(crate) fn erase(&mut self, number: u32, session: &SessionId, in_memory_from: u64) -> Result<Erased, FileError> {
        let erased = self.commit(Sync::Normal, |connection| {
            let letters = erase_owed(connection, number, session, in_memory_from)?;
            let (events, bytes) = erase_rows(connection, number, session)?;
            Ok(Erased { events, bytes, letters })
        });
        erased.map_err(|fault| fault.at(&self.path, "erase a session in"))
    }

    /// Rewrites the file, so that no byte of what was ever deleted stays in it or beside it. Takes time in proportion
    /// to the file, during which nothing can be written, and up to three times its room.
    ///
    /// # Errors
    ///
    /// When there is no room, or a reader is in the way. What is kept is kept in any case.
    pub(crate) fn scrub(&mut self) -> Result<(), FileError> {
        let done = |connection: &Connection| Ok(connection.execute("UPDATE state SET needs_scrub = 0", [])?);
        let scrubbed = self.vacuum().and_then(|()| self.empty_wal()).and_then(|()| self.commit(Sync::Normal, done));
        scrubbed.map(drop).map_err(|fault| fault.at(&self.path, "scrub"))
    }

    fn vacuum(&self) -> Result<(), Fault> {
        // The copy may be larger than memory. It holds nothing that has been deleted, and lies beside the file: there is room
        // for the one place that is sure to be writable.
        self.connection.pragma_update(None, "temp_store", "FILE")?;
        if let Some(directory) = self.path.parent().and_then(|directory| directory.to_str()) {
            self.connection.pragma_update(None, "temp_store_directory", directory)?;
        }
        let vacuumed = self.connection.execute_batch("VACUUM");
        self.connection.pragma_update(None, "temp_store", "MEMORY")?;
        vacuumed.map_err(Fault::from)
    }

    /// Moves everything from the write-ahead log into the file and cuts it to nothing.
    fn empty_wal(&self) -> Result<(), Fault> {
        let is_busy: bool = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        if is_busy { Err(Fault::Refused("a reader keeps the write-ahead log in use")) } else { Ok(()) }
    }
}

/// How much of the file is in use, dead letters aside.
struct Usage {
    bytes: u64,
    page_bytes: u64,
}

impl Usage {
    fn read(connection: &Connection) -> Result<Self, Fault> {
        let mut statement = connection.prepare_cached(
            "SELECT (page_count - freelist_count) * page_size, page_size \
             FROM pragma_page_count, pragma_freelist_count, pragma_page_size",
        )?;
        let mut rows = statement.query([])?;
        let row = rows.next()?.ok_or_else(|| Fault::found("the page count is gone"))?;
        let bytes = count(row, 0)?.saturating_sub(dead_letters::bytes(connection)?);
        Ok(Self { bytes, page_bytes: count(row, 1)? })
    }
}

/// The oldest row of the product whose oldest row is the oldest.
struct Oldest {
    number: u32,
    evicted_through: u64,
    kept_at: i64,
}

impl Oldest {
    /// One look at the index for each product.
    fn find(connection: &Connection) -> Result<Option<Self>, Fault> {
        let mut statement = connection.prepare_cached(
            "SELECT number, evicted_through, kept_at FROM products CROSS JOIN entries ON entry = ( \
                 SELECT min(entry) FROM entries \
                 WHERE entry > (number << 40) + evicted_through AND entry < (number + 1) << 40 \
             ) WHERE events > 0 ORDER BY kept_at, number LIMIT 1",
        )?;
        let mut rows = statement.query([])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        Ok(Some(Self { number: row.get(0)?, evicted_through: count(row, 1)?, kept_at: row.get(2)? }))
    }

    /// What to take away: rows that are too old, and as many as make up for `excess` bytes, but not more.
    fn cut(&self, connection: &Connection, oldest_kept_at: i64, excess: u64, page_bytes: u64) -> Result<Cut, Fault> {
        let mut statement = connection.prepare_cached(
            "SELECT entry, kept_at, ifnull(octet_length(session), 0), ifnull(octet_length(kind), 0), \
                    ifnull(octet_length(payload), 0) \
             FROM entries WHERE entry > ?1 AND entry <= ?2 ORDER BY entry LIMIT ?3",
        )?;
        let (first, last) = (address(self.number, self.evicted_through)?, address(self.number, MAX_PLACE)?);
        // Each may become a dead letter of each webhook that is not ahead of it.
        let concerned = expire_owed::concerned(connection, self.number, self.through_step(connection)?)?;
        let most = (STEP / (1 + concerned)).max(1);
        let mut rows = statement.query(params![first, last, signed(most)])?;
        let mut cut = Cut { last: first, events: 0, bytes: 0 };
        let mut freed = 0;
        while let Some(row) = rows.next()? {
            let kept_at: i64 = row.get(1)?;
            if freed >= excess && kept_at >= oldest_kept_at {
                break;
            }
            let (session, kind, payload) = (count(row, 2)?, count(row, 3)?, count(row, 4)?);
            freed += footprint(session * 2 + kind + payload + ROW_OVERHEAD_BYTES, page_bytes);
            cut = Cut { last: row.get(0)?, events: cut.events + 1, bytes: cut.bytes + session + kind + payload };
        }
        Ok(cut)
    }

    /// The place of the last row that one step may take away.
    fn through_step(&self, connection: &Connection) -> Result<u64, Fault> {
        let mut statement = connection.prepare_cached(
            "SELECT ifnull(max(entry), ?1) FROM ( \
                 SELECT entry FROM entries WHERE entry > ?1 AND entry <= ?2 ORDER BY entry LIMIT ?3)",
        )?;
        let (first, last) = (address(self.number, self.evicted_through)?, address(self.number, MAX_PLACE)?);
        Ok(place_of(statement.query_row(params![first, last, signed(STEP)], |row| row.get(0))?))
    }

    fn retire(&self, connection: &Connection, cut: &Cut, now: i64) -> Result<Retired, Fault> {
        let first = address(self.number, self.evicted_through)?;
        let evicted_through = self.place_before_rest(connection, cut.last)?;
        let expired = expire_owed::expire(connection, self.number, evicted_through, now)?;
        let mut delete = connection.prepare_cached("DELETE FROM entries WHERE entry > ?1 AND entry <= ?2")?;
        delete.execute([first, cut.last])?;
        let mut update = connection.prepare_cached(
            "UPDATE products SET evicted_through = ?2, events = events - ?3, bytes = bytes - ?4 WHERE number = ?1",
        )?;
        update.execute(params![self.number, signed(evicted_through), signed(cut.events), signed(cut.bytes)])?;
        forget_missing(connection, self.number, evicted_through)?;
        forget_spans(connection, self.number, evicted_through)?;
        Ok(Retired { number: self.number, evicted_through, events: cut.events, bytes: cut.bytes, expired })
    }

    /// The place before the first row behind `last`: holes between them are no more worth knowing of.
    fn place_before_rest(&self, connection: &Connection, last: i64) -> Result<u64, Fault> {
        let mut statement =
            connection.prepare_cached("SELECT min(entry) FROM entries WHERE entry > ?1 AND entry <= ?2")?;
        let rest: Option<i64> = statement.query_row([last, address(self.number, MAX_PLACE)?], |row| row.get(0))?;
        Ok(place_of(rest.map_or(last, |entry| entry - 1)))
    }
}

/// The rows up to `last`, an entry's key.
struct Cut {
    last: i64,
    events: u64,
    bytes: u64,
}

/// Bytes of the file that a row of so many takes: whole pages for a large one, an even share of one for others.
fn footprint(row_bytes: u64, page_bytes: u64) -> u64 {
    match page_bytes / row_bytes.max(1) {
        0 => row_bytes.next_multiple_of(page_bytes.max(1)),
        rows => page_bytes / rows,
    }
}

fn forget_missing(connection: &Connection, number: u32, evicted_through: u64) -> Result<(), Fault> {
    let mut delete = connection.prepare_cached("DELETE FROM missing WHERE product = ?1 AND last <= ?2")?;
    delete.execute(params![number, signed(evicted_through)])?;
    Ok(())
}

/// Forgets what ids the places that are gone had, except the newest: they tell an old id from an unknown one.
fn forget_spans(connection: &Connection, number: u32, evicted_through: u64) -> Result<(), Fault> {
    // The newest span that begins no later than the first place kept is the one that place is in.
    let mut delete = connection.prepare_cached(
        "DELETE FROM spans WHERE product = ?1 AND place < ( \
             SELECT place FROM spans WHERE product = ?1 AND place <= ?2 + 1 ORDER BY place DESC LIMIT 1 OFFSET ?3)",
    )?;
    delete.execute(params![number, signed(evicted_through), EVICTED_SPANS])?;
    Ok(())
}

/// Deletes what webhooks have of a session, and returns how many events there were that are nowhere else.
fn erase_owed(connection: &Connection, number: u32, session: &SessionId, in_memory_from: u64) -> Result<u64, Fault> {
    let of = params![session.as_str(), number];
    let letters = connection.query_row_and_then(
        "SELECT count(DISTINCT place) FROM dead_letters INDEXED BY dead_by_session \
         WHERE session = ?1 AND webhook IN (SELECT number FROM webhooks WHERE product = ?2) AND place <= ?3 \
         AND NOT EXISTS (SELECT 1 FROM entries WHERE entry = ?4 + place)",
        params![session.as_str(), number, signed(in_memory_from), address(number, 0)?],
        |row| count(row, 0),
    )?;
    for statement in [
        // Overwritten where they are, as below.
        "UPDATE dead_letters INDEXED BY dead_by_session SET payload = zeroblob(octet_length(payload)) \
         WHERE session = ?1 AND webhook IN (SELECT number FROM webhooks WHERE product = ?2)",
        "DELETE FROM dead_letters INDEXED BY dead_by_session \
         WHERE session = ?1 AND webhook IN (SELECT number FROM webhooks WHERE product = ?2)",
        "DELETE FROM owed INDEXED BY owed_by_session \
         WHERE session = ?1 AND webhook IN (SELECT number FROM webhooks WHERE product = ?2)",
    ] {
        connection.execute(statement, of)?;
    }
    Ok(letters)
}

/// Deletes the rows of a session and returns how many there were.
fn erase_rows(connection: &Connection, number: u32, session: &SessionId) -> Result<(u64, u64), Fault> {
    let rows = params![session.as_str(), address(number, 0)?, address(number, MAX_PLACE)?];
    let (events, bytes): (i64, i64) = connection.query_row(
        "SELECT count(*), ifnull(sum(octet_length(session) + octet_length(kind) + octet_length(payload)), 0) \
         FROM entries INDEXED BY by_session WHERE session = ?1 AND entry BETWEEN ?2 AND ?3",
        rows,
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    // Overwritten where they are, before deleting one makes SQLite move its neighbours.
    connection.execute(
        "UPDATE entries INDEXED BY by_session SET payload = zeroblob(octet_length(payload)) \
         WHERE session = ?1 AND entry BETWEEN ?2 AND ?3",
        rows,
    )?;
    connection
        .execute("DELETE FROM entries INDEXED BY by_session WHERE session = ?1 AND entry BETWEEN ?2 AND ?3", rows)?;
    connection.execute("UPDATE state SET needs_scrub = 1", [])?;
    let counters = "UPDATE products SET events = events - ?2, bytes = bytes - ?3 WHERE number = ?1";
    connection.execute(counters, params![number, events, bytes])?;
    Ok((events.cast_unsigned(), bytes.cast_unsigned()))
}

/// Rows that one step deletes: some milliseconds.
const STEP: u64 = 512;

/// Evicted spans that stay. Each is a time at which ids did not follow one another, such as a restart.
const EVICTED_SPANS: i64 = 4096;

/// What SQLite and the columns of fixed size add to a row and its place in the index.
const ROW_OVERHEAD_BYTES: u64 = 64;
