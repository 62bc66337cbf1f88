//! Appends a batch of one product's entries to the file: the hot path of the store.
//!
//! May use: `event`, `log`.

use rusqlite::{CachedStatement, Connection, params};

use super::{error::FileFault, rows::signed, schema::entry_key};
use crate::{
    event::{Entry, Event, EventId, Gap},
    log::{Hole, IdSpan},
};

/// A part of one product's log, to be written.
#[derive(Debug)]
pub(crate) struct AppendBatch<'a> {
    /// The product's number.
    pub(crate) product_number: u32,
    /// Place of the first entry.
    pub(crate) first: u64,
    /// What stands there and on the places after it. May be empty.
    pub(crate) entries: &'a [Entry],
    /// Takes the place of what was known from the same place on: such a span never got an entry
    /// that was kept.
    pub(crate) spans: &'a [IdSpan],
    /// Takes the place of what was known to be missing from the same place on.
    pub(crate) holes: &'a [Hole],
}

impl AppendBatch<'_> {
    /// Writes all of it, kept at `now`, within the caller's transaction.
    ///
    /// # Errors
    ///
    /// When some of it cannot be written; the caller undoes the rest.
    pub(super) fn write(&self, connection: &Connection, now: i64) -> Result<(), FileFault> {
        let newest = self.newest_position();
        // What lies between is below, and the rest is compared with it.
        entry_key(self.product_number, newest)?;
        if self.first == 0 && !self.entries.is_empty() {
            return Err(FileFault::Refused("an entry's place is 0"));
        }
        let (events, bytes) = self.write_entries(connection, now)?;
        self.write_spans(connection)?;
        self.write_holes(connection)?;
        let mut statement = connection.prepare_cached(
            "UPDATE products SET newest = max(newest, ?2), events = events + ?3, bytes = bytes + ?4 WHERE number = ?1",
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

    /// Returns how many rows there are and the bytes they hold.
    fn write_entries(&self, connection: &Connection, now: i64) -> Result<(u64, u64), FileFault> {
        let mut event_row = connection.prepare_cached(
            "INSERT INTO entries (entry, epoch, sequence, suffix, kept_at, kind, session, payload) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?;
        let mut gap_row = connection.prepare_cached(
            "INSERT INTO entries (entry, epoch, sequence, suffix, kept_at, gap, after) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?;
        let (mut rows, mut bytes) = (0, 0);
        for (position, entry) in (self.first..).zip(self.entries) {
            let key = entry_key(self.product_number, position)?;
            match entry {
                Entry::Event(event) => bytes += write_event(&mut event_row, key, now, event)?,
                Entry::Gap(gap) => write_gap(&mut gap_row, key, now, gap)?,
                Entry::Erased => continue,
            }
            rows += 1;
        }
        Ok((rows, bytes))
    }

    fn write_spans(&self, connection: &Connection) -> Result<(), FileFault> {
        let Some(highest) = self.spans.iter().map(|span| span.first_id.epoch).max() else {
            return Ok(());
        };
        let mut insert = connection
            .prepare_cached("INSERT OR REPLACE INTO spans VALUES (?1, ?2, ?3, ?4, ?5)")?;
        for IdSpan { first_position: position, first_id: id } in self.spans {
            entry_key(self.product_number, *position)?;
            let (epoch, sequence) = (id.epoch.cast_signed(), id.sequence.cast_signed());
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
        // Not SQL's max: an epoch may be beyond i64.
        if highest > known_epoch.cast_unsigned() {
            let mut update = connection
                .prepare_cached("UPDATE products SET highest_epoch = ?2 WHERE number = ?1")?;
            update.execute(params![self.product_number, highest.cast_signed()])?;
        }
        Ok(())
    }

    fn write_holes(&self, connection: &Connection) -> Result<(), FileFault> {
        let mut insert =
            connection.prepare_cached("INSERT OR REPLACE INTO missing VALUES (?1, ?2, ?3)")?;
        for Hole { first, last } in self.holes {
            if first > last {
                return Err(FileFault::Refused("a missing range ends before it begins"));
            }
            insert.execute(params![self.product_number, signed(*first), signed(*last)])?;
        }
        Ok(())
    }
}

/// Returns the bytes its row counts for.
fn write_event(
    row: &mut CachedStatement<'_>,
    key: i64,
    now: i64,
    event: &Event,
) -> Result<u64, FileFault> {
    let EventId { epoch, sequence, suffix } = event.id();
    let (kind, session, payload) =
        (event.kind().as_str(), event.session().map(|it| it.as_str()), event.payload());
    let (epoch, sequence) = (epoch.cast_signed(), sequence.cast_signed());
    row.execute(params![key, epoch, sequence, suffix, now, kind, session, &*payload])?;
    Ok((kind.len() + session.map_or(0, str::len) + payload.len()) as u64)
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
