//! Appends a batch of one product's entries to the file: the hot path of the store.
//!
//! May use: `event`, `log`.

use rusqlite::{CachedStatement, Connection, params};

use super::{error::FileFault, rows::signed, schema::entry_key};
use crate::{
    event::{Entry, Event, EventId, Gap},
    log::{Hole, IdSpan, MAX_EMPTY_EPOCHS},
};

/// Entries, spans and holes of one product's log for one transaction.
#[derive(Debug)]
pub(crate) struct AppendBatch<'a> {
    /// Number of the product.
    pub(crate) product_number: u32,
    /// Position of the first entry.
    pub(crate) first: u64,
    /// Entries at `first` and the positions behind it; may be empty.
    pub(crate) entries: &'a [Entry],
    /// Spans. One replaces a stored span with the same first position: no entry of that span was
    /// persisted.
    pub(crate) spans: &'a [IdSpan],
    /// Holes. One replaces a stored hole with the same first position.
    pub(crate) holes: &'a [Hole],
}

impl AppendBatch<'_> {
    /// Writes the batch within the caller's transaction. Its entries count as kept since `now`.
    ///
    /// # Errors
    ///
    /// When a part of it cannot be written; the caller rolls the transaction back.
    pub(super) fn write(&self, connection: &Connection, now: i64) -> Result<(), FileFault> {
        let newest = self.newest_position();
        // Checks the highest position of entries and holes; spans are checked one by one.
        entry_key(self.product_number, newest)?;
        if self.first == 0 && !self.entries.is_empty() {
            return Err(FileFault::Refused("an entry's position is 0"));
        }
        let (events, bytes) = self.write_entries(connection, now)?;
        self.write_spans(connection)?;
        self.write_holes(connection)?;
        let mut statement = connection.prepare_cached(
            "UPDATE products SET newest = max(newest, ?2), events = events + ?3, bytes = bytes + ?4, \
             sum = row_sum(number, id, max(newest, ?2), evicted_through, events + ?3, bytes + ?4, highest_epoch) \
             WHERE number = ?1",
        )?;
        match statement.execute(params![
            self.product_number,
            signed(newest),
            signed(events),
            signed(bytes)
        ])? {
            1 => Ok(()),
            _ => Err(FileFault::Refused("the product has no row")),
        }
    }

    fn newest_position(&self) -> u64 {
        let end = match self.entries.len() as u64 {
            0 => 0,
            entries => self.first.saturating_add(entries - 1),
        };
        self.holes.iter().fold(end, |newest, hole| newest.max(hole.last))
    }

    /// Inserts the entries and returns the number of rows and their bytes. Of an erased entry the
    /// file has the position alone.
    fn write_entries(&self, connection: &Connection, now: i64) -> Result<(u64, u64), FileFault> {
        let mut event_row = connection.prepare_cached(
            "INSERT INTO entries (entry, epoch, sequence, suffix, kept_at, after_or_user, kind, session, head_sum, \
             payload_sum, payload) VALUES (?1, ?2, ?3, ?4, ?5, ?9, ?6, ?7, \
             row_sum(?1, ?2, ?3, ?4, ?5, NULL, ?9, ?6, ?7), row_sum(?1, ?8), ?8)",
        )?;
        let mut gap_row = connection.prepare_cached(
            "INSERT INTO entries (entry, epoch, sequence, suffix, kept_at, gap, after_or_user, head_sum, payload_sum) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, \
             row_sum(?1, ?2, ?3, ?4, ?5, ?6, ?7, NULL, NULL), row_sum(?1, NULL))",
        )?;
        let mut erased_row = connection.prepare_cached(
            "INSERT OR REPLACE INTO erased VALUES (?1, ?2, ?2, row_sum(?1, ?2, ?2))",
        )?;
        let (mut rows, mut bytes) = (0, 0);
        for (position, entry) in (self.first..).zip(self.entries) {
            let key = entry_key(self.product_number, position)?;
            match entry {
                Entry::Event(event) => bytes += write_event(&mut event_row, key, now, event)?,
                Entry::Gap(gap) => write_gap(&mut gap_row, key, now, gap)?,
                Entry::Erased => {
                    erased_row.execute(params![self.product_number, signed(position)])?;
                    continue;
                }
            }
            rows += 1;
        }
        Ok((rows, bytes))
    }

    fn write_spans(&self, connection: &Connection) -> Result<(), FileFault> {
        let Some(highest) = self.spans.iter().map(|span| span.first_id.epoch).max() else {
            return Ok(());
        };
        // A span that is replaced has no entry. Ids of its epoch may have been shown all the same.
        let mut remember = connection.prepare_cached(
            "INSERT OR IGNORE INTO empty_epochs \
             SELECT product, epoch, place - 1, row_sum(product, epoch, place - 1) FROM spans \
             WHERE product = ?1 AND place = ?2 AND epoch <> ?3 AND place > 0",
        )?;
        let mut insert = connection.prepare_cached(
            "INSERT OR REPLACE INTO spans VALUES (?1, ?2, ?3, ?4, ?5, row_sum(?1, ?2, ?3, ?4, ?5))",
        )?;
        for IdSpan { first_position: position, first_id: id } in self.spans {
            entry_key(self.product_number, *position)?;
            let (epoch, sequence) = (id.epoch.cast_signed(), id.sequence.cast_signed());
            if remember.execute(params![self.product_number, signed(*position), epoch])? > 0 {
                forget_oldest_epochs(connection, self.product_number)?;
            }
            insert.execute(params![
                self.product_number,
                signed(*position),
                epoch,
                sequence,
                id.suffix
            ])?;
        }
        let mut select =
            connection.prepare_cached("SELECT highest_epoch FROM products WHERE number = ?1")?;
        let known_epoch: i64 = select.query_row([self.product_number], |row| row.get(0))?;
        // Not compared by SQL's `max`: epochs are `u64` bit for bit, and SQL would take a high one
        // for a negative number.
        if highest > known_epoch.cast_unsigned() {
            let mut update = connection.prepare_cached(
                "UPDATE products SET highest_epoch = ?2, \
                 sum = row_sum(number, id, newest, evicted_through, events, bytes, ?2) WHERE number = ?1",
            )?;
            update.execute(params![self.product_number, highest.cast_signed()])?;
        }
        Ok(())
    }

    fn write_holes(&self, connection: &Connection) -> Result<(), FileFault> {
        let mut insert = connection.prepare_cached(
            "INSERT OR REPLACE INTO missing VALUES (?1, ?2, ?3, row_sum(?1, ?2, ?3))",
        )?;
        for Hole { first, last } in self.holes {
            if first > last {
                return Err(FileFault::Refused("a hole ends before it begins"));
            }
            insert.execute(params![self.product_number, signed(*first), signed(*last)])?;
        }
        Ok(())
    }
}

/// Forgets the oldest epochs without entries: a relay that fails at every start leaves one each.
fn forget_oldest_epochs(connection: &Connection, product_number: u32) -> Result<(), FileFault> {
    let mut delete = connection.prepare_cached(
        "DELETE FROM empty_epochs WHERE product = ?1 AND epoch <= ( \
             SELECT epoch FROM empty_epochs WHERE product = ?1 ORDER BY epoch DESC LIMIT 1 OFFSET ?2)",
    )?;
    delete.execute(params![product_number, MAX_EMPTY_EPOCHS as i64])?;
    Ok(())
}

/// Inserts an event and returns the bytes that its row counts for.
fn write_event(
    row: &mut CachedStatement<'_>,
    key: i64,
    now: i64,
    event: &Event,
) -> Result<u64, FileFault> {
    let EventId { epoch, sequence, suffix } = event.id();
    let (kind, session, payload) =
        (event.kind().as_str(), event.session().map(|it| it.as_str()), event.payload());
    // Empty for none: null stands for a user that has not been read.
    let user = event.user().map_or("", |user| user.as_str());
    let (epoch, sequence) = (epoch.cast_signed(), sequence.cast_signed());
    row.execute(params![key, epoch, sequence, suffix, now, kind, session, &*payload, user])?;
    Ok((kind.len() + session.map_or(0, str::len) + user.len() + payload.len()) as u64)
}

fn write_gap(
    row: &mut CachedStatement<'_>,
    key: i64,
    now: i64,
    gap: &Gap,
) -> Result<(), FileFault> {
    let EventId { epoch, sequence, suffix } = gap.id;
    let (epoch, sequence) = (epoch.cast_signed(), sequence.cast_signed());
    row.execute(params![
        key,
        epoch,
        sequence,
        suffix,
        now,
        gap.reason.as_str(),
        gap.after.as_deref()
    ])?;
    Ok(())
}
