//! Dead letters in the file: inserted, listed, requeued and bounded.
//!
//! May use: `event`, `webhook_delivery`.

mod page;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use rusqlite::{Connection, params};

use self::page::{read_page, select_dead_letters};
use super::{
    FileError, StoreFile, SyncMode,
    checksum::{dead_letter_is_whole, dead_letter_sum},
    error::FileFault,
    rows::{read_unsigned, signed, write_attempts},
};
use crate::{
    event::{EventId, SessionId},
    store::webhook_rows::DeadLetterState,
    webhook_delivery::{DeadLetter, DeadLetterReason},
};

/// Dead letters of one webhook that were deleted beyond a bound.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct RetiredDeadLetters {
    /// Id of the webhook.
    pub(crate) id: String,
    /// Number of dead letters.
    pub(crate) dead_letters: u64,
    /// Bound that they exceeded.
    pub(crate) bound: DeadLetterBound,
}

/// Bound of dead letters.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum DeadLetterBound {
    /// Time for which a dead letter is kept.
    Age,
    /// Bytes of the file that all dead letters may take.
    Bytes,
}

impl DeadLetterBound {
    /// Returns the configuration key that sets the bound.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::Age => "log.dead_letter_retention",
            Self::Bytes => "log.dead_letter_bytes",
        }
    }
}

impl StoreFile {
    /// Returns a page of a webhook's dead letters with their numbers, newest first: those below the
    /// number `before`, if given. At most `limit`, and about 1 MiB of payloads, but one if there is
    /// one.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub(crate) fn dead_letters(
        &self,
        id: &str,
        state: DeadLetterState,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Vec<(u64, DeadLetter)>, FileError> {
        let query = concat!(
            select_dead_letters!(),
            " INDEXED BY dead_by_number \
             WHERE webhook = (SELECT number FROM webhooks WHERE id = ?1) AND requeued = ?2 AND number < ?3 \
             ORDER BY number DESC"
        );
        let (is_requeued, before) =
            (state == DeadLetterState::Requeued, before.map_or(i64::MAX, signed));
        let page = read_page(&self.connection, query, params![id, is_requeued, before], limit);
        let page = page.map_err(|fault| fault.at(&self.path, "list dead letters of"))?;
        self.damaged_dead_letters.set(self.damaged_dead_letters.get() + page.damaged.len() as u64);
        Ok(page.dead_letters)
    }

    /// Returns a webhook's dead letters behind a position that are marked for redelivery, by
    /// position, bounded as [`StoreFile::dead_letters`] is. A damaged one loses its mark: it is not
    /// sent.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or the mark not be removed.
    pub(crate) fn requeued_dead_letters(
        &mut self,
        id: &str,
        after: u64,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, FileError> {
        let query = concat!(
            select_dead_letters!(),
            " INDEXED BY dead_by_state \
             WHERE webhook = (SELECT number FROM webhooks WHERE id = ?1) AND requeued = 1 \
             AND place > ?2 ORDER BY place"
        );
        let page = read_page(&self.connection, query, params![id, signed(after)], limit)
            .and_then(|page| self.unmark(&page.damaged).map(|()| page));
        let page = page.map_err(|fault| fault.at(&self.path, "list dead letters of"))?;
        let is_whole = |dead_letter: &DeadLetter| dead_letter.reason != DeadLetterReason::Damaged;
        let dead_letters = page.dead_letters.into_iter().map(|(_, dead_letter)| dead_letter);
        Ok(dead_letters.filter(is_whole).collect())
    }

    /// Returns how many damaged dead letters were found since the last call.
    pub(crate) fn take_damaged_dead_letters(&self) -> u64 {
        self.damaged_dead_letters.take()
    }

    fn unmark(&mut self, numbers: &[i64]) -> Result<(), FileFault> {
        if numbers.is_empty() {
            return Ok(());
        }
        self.damaged_dead_letters.set(self.damaged_dead_letters.get() + numbers.len() as u64);
        // The sum of a damaged row stays one that does not fit.
        let update = concat!(
            "UPDATE dead_letters SET requeued = 0, head_sum = iif(head_sum IS ",
            dead_letter_sum!(),
            ", ",
            dead_letter_sum!("died_at", "0"),
            ", head_sum) WHERE number = ?1"
        );
        self.in_transaction(SyncMode::Normal, |connection| {
            let mut update = connection.prepare_cached(update)?;
            numbers.iter().try_for_each(|number| update.execute([number]).map(drop))?;
            Ok(())
        })
    }

    /// Returns the highest number of any dead letter, 0 if there is none.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub(crate) fn newest_dead_letter(&self) -> Result<u64, FileError> {
        let query = "SELECT ifnull(max(number), 0) FROM dead_letters";
        let newest: Result<u64, FileFault> =
            self.connection.query_row_and_then(query, [], |row| read_unsigned(row, 0));
        newest.map_err(|fault| fault.at(&self.path, "count dead letters in"))
    }

    /// Marks some of a webhook's dead letters up to a number as waiting to be delivered again, the
    /// oldest event first, and returns how many. Less than [`DEAD_LETTER_STEP_ROWS`] if there are
    /// no more. One without a body is not marked: there is nothing to send.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub(crate) fn requeue_through(&mut self, id: &str, through: u64) -> Result<u64, FileError> {
        let update = concat!(
            "UPDATE dead_letters SET requeued = 1, head_sum = ",
            dead_letter_sum!("died_at", "1"),
            " WHERE number IN ( \
                 SELECT number FROM dead_letters INDEXED BY dead_by_state \
                 WHERE webhook = (SELECT number FROM webhooks WHERE id = ?1) AND requeued = 0 \
                 AND number <= ?2 AND ",
            dead_letter_is_whole!(),
            " ORDER BY place LIMIT ?3)"
        );
        let marked = self.in_transaction(SyncMode::Normal, |connection| {
            Ok(connection.prepare_cached(update)?.execute(params![
                id,
                signed(through),
                DEAD_LETTER_STEP_ROWS
            ])?)
        });
        marked
            .map(|marked| marked as u64)
            .map_err(|fault| fault.at(&self.path, "requeue dead letters of"))
    }

    /// Marks a webhook's dead letters of these events for redelivery, and returns how many were not
    /// marked before. One without a body is not marked.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub(crate) fn requeue_events(
        &mut self,
        id: &str,
        events: &[EventId],
    ) -> Result<u64, FileError> {
        let update = concat!(
            "UPDATE dead_letters INDEXED BY dead_by_sequence SET requeued = 1, head_sum = ",
            dead_letter_sum!("died_at", "1"),
            " WHERE webhook = (SELECT number FROM webhooks WHERE id = ?1) \
             AND sequence = ?2 AND epoch = ?3 AND suffix = ?4 AND requeued = 0 AND ",
            dead_letter_is_whole!()
        );
        let marked = self.in_transaction(SyncMode::Normal, |connection| {
            let mut statement = connection.prepare_cached(update)?;
            let mut marked = 0;
            for EventId { epoch, sequence, suffix } in events {
                marked += statement.execute(params![
                    id,
                    sequence.cast_signed(),
                    epoch.cast_signed(),
                    suffix
                ])?;
            }
            Ok(marked)
        });
        marked
            .map(|marked| marked as u64)
            .map_err(|fault| fault.at(&self.path, "requeue dead letters of"))
    }

    /// Gives dead letters that a wrong clock has stamped later than `latest` the time `now`, both
    /// in Unix milliseconds, once such a dead letter is the oldest: it would hold all behind it
    /// until its time comes. All of them at once: a wrong clock is rare, and they are bounded.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or written; then nothing is changed.
    pub(crate) fn restamp_future_dead_letters(
        &mut self,
        latest: u64,
        now: u64,
    ) -> Result<(), FileError> {
        let restamped = self.try_restamp_future_dead_letters(signed(latest), signed(now));
        restamped.map_err(|fault| fault.at(&self.path, "correct times of dead letters of"))
    }

    fn try_restamp_future_dead_letters(&mut self, latest: i64, now: i64) -> Result<(), FileFault> {
        let query = "SELECT 1 FROM dead_letters \
                     WHERE number = (SELECT min(number) FROM dead_letters) AND died_at > ?1";
        if !self.connection.prepare_cached(query)?.exists([latest])? {
            return Ok(());
        }
        self.in_transaction(SyncMode::Normal, |connection| {
            // The sum of a damaged row stays one that does not fit.
            let update = concat!(
                "UPDATE dead_letters SET died_at = ?2, head_sum = iif(head_sum IS ",
                dead_letter_sum!(),
                ", ",
                dead_letter_sum!("?2", "requeued"),
                ", head_sum) WHERE died_at > ?1"
            );
            connection.execute(update, [latest, now])?;
            Ok(())
        })
    }

    /// Deletes some of the oldest dead letters if the oldest of all died before `oldest_died_at`,
    /// in Unix milliseconds, or if all of them take more than `max_bytes`. Returns the numbers by
    /// webhook and bound, none when there is nothing to do. One small step; the caller calls again.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or written; then nothing is deleted.
    pub(crate) fn retire_dead_letters(
        &mut self,
        oldest_died_at: u64,
        max_bytes: u64,
    ) -> Result<Vec<RetiredDeadLetters>, FileError> {
        let retired = self.try_retire_dead_letters(signed(oldest_died_at), max_bytes);
        retired.map_err(|fault| fault.at(&self.path, "bound dead letters of"))
    }

    fn try_retire_dead_letters(
        &mut self,
        oldest_died_at: i64,
        max_bytes: u64,
    ) -> Result<Vec<RetiredDeadLetters>, FileFault> {
        let excess = dead_letter_bytes(&self.connection)?.saturating_sub(max_bytes);
        let (last, retired) = find_excess(&self.connection, oldest_died_at, excess)?;
        if !retired.is_empty() {
            self.in_transaction(SyncMode::Normal, |connection| {
                Ok(connection
                    .prepare_cached("DELETE FROM dead_letters WHERE number <= ?1")?
                    .execute([last])?)
            })?;
        }
        Ok(retired)
    }
}

/// Returns the bytes of the file that all dead letters take.
///
/// # Errors
///
/// When the file cannot be read.
pub(super) fn dead_letter_bytes(connection: &Connection) -> Result<u64, FileFault> {
    let mut statement =
        connection.prepare_cached("SELECT ifnull(sum(dead_bytes), 0) FROM webhooks")?;
    statement
        .query_row([], |row| row.get(0))
        .map(|bytes: i64| bytes.max(0).cast_unsigned())
        .map_err(FileFault::from)
}

/// Finds the first few of the oldest dead letters that are too old, or that make up for `excess`
/// bytes. Returns the number of the last one, and how many each webhook loses.
fn find_excess(
    connection: &Connection,
    oldest_died_at: i64,
    excess: u64,
) -> Result<(i64, Vec<RetiredDeadLetters>), FileFault> {
    let mut statement = connection.prepare_cached(
        "SELECT number, died_at, bytes, (SELECT id FROM webhooks WHERE number = webhook) \
         FROM dead_letters ORDER BY number LIMIT ?1",
    )?;
    let mut rows = statement.query([DEAD_LETTER_STEP_ROWS])?;
    let (mut last, mut freed) = (0, 0);
    let mut retired: BTreeMap<(String, DeadLetterBound), u64> = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let is_old = row.get::<_, i64>(1)? < oldest_died_at;
        if !is_old && freed >= excess {
            break;
        }
        freed += read_unsigned(row, 2)?;
        last = row.get(0)?;
        let id: Option<String> = row.get(3)?;
        let bound = if is_old { DeadLetterBound::Age } else { DeadLetterBound::Bytes };
        *retired.entry((id.unwrap_or_default(), bound)).or_default() += 1;
    }
    let retired = retired.into_iter().map(|((id, bound), dead_letters)| RetiredDeadLetters {
        id,
        dead_letters,
        bound,
    });
    Ok((last, retired.collect()))
}

/// Inserts a dead letter within the caller's transaction. The webhook must have none at the
/// position.
///
/// # Errors
///
/// When it cannot be written.
pub(super) fn insert_dead_letter(
    connection: &Connection,
    webhook: i64,
    position: u64,
    dead_letter: &DeadLetter,
) -> Result<(), FileFault> {
    let DeadLetter { delivery, reason, died_at, payload } = dead_letter;
    let mut insert = connection.prepare_cached(
        "INSERT INTO dead_letters (webhook, place, epoch, sequence, suffix, kind, session, created_at, died_at, \
         reason, requeued, attempts, head_sum, payload_sum, payload) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, 0, ?11, \
         row_sum(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, 0, ?11), row_sum(?1, ?2, ?12), ?12)",
    )?;
    insert.execute(params![
        webhook,
        signed(position),
        delivery.event_id.epoch.cast_signed(),
        delivery.event_id.sequence.cast_signed(),
        delivery.event_id.suffix,
        delivery.kind.as_str(),
        delivery.session.as_ref().map(SessionId::as_str),
        signed(delivery.created_at),
        signed(*died_at),
        reason.as_str(),
        write_attempts(&delivery.attempts)?,
        &**payload,
    ])?;
    Ok(())
}

/// Rows that one step changes: it takes some milliseconds.
pub(crate) const DEAD_LETTER_STEP_ROWS: u32 = 256;
