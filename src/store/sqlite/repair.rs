//! Makes indices and counters anew from the rows.
//!
//! May use: no other module.

use rusqlite::Connection;

use super::{FileError, StoreFile, SyncMode, error::FileFault, name_index};

/// Counters of one webhook's dead letters that did not fit its rows.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct CorrectedCounters {
    /// Id of the webhook.
    pub(crate) id: String,
    /// Number of dead letters, requeued ones included, that the counters told.
    pub(crate) told: i64,
    /// Number of dead letters that there are.
    pub(crate) found: i64,
}

impl StoreFile {
    /// Makes all indices anew from the rows, counts the dead letters, and returns the counters that
    /// were wrong.
    ///
    /// # Errors
    ///
    /// When the rows cannot be read, or the file cannot be written; then nothing has changed.
    pub(crate) fn repair(&mut self) -> Result<Vec<CorrectedCounters>, FileError> {
        let repaired = self.in_transaction(SyncMode::Normal, |connection| {
            name_index::rebuild(connection)?;
            connection.execute_batch("REINDEX")?;
            correct_counters(connection)
        });
        if repaired.is_ok() {
            (self.former_index, self.has_unread_users) = (None, false);
        }
        repaired.map_err(|fault| fault.at(&self.path, "repair"))
    }

    /// Moves the whole write-ahead log into the database, so that the database is complete without
    /// it, whatever names the two have by now.
    ///
    /// # Errors
    ///
    /// When a reader keeps the write-ahead log in use, or the database cannot be written.
    pub(crate) fn empty_wal(&self) -> Result<(), FileError> {
        self.truncate_wal().map_err(|fault| fault.at(&self.path, "move the write-ahead log into"))
    }
}

fn correct_counters(connection: &Connection) -> Result<Vec<CorrectedCounters>, FileFault> {
    let mut select = connection.prepare(
        "SELECT id, dead + requeued, (SELECT count(*) FROM dead_letters WHERE webhook = webhooks.number) \
         FROM webhooks",
    )?;
    let counters = select.query_and_then([], |row| {
        Ok(CorrectedCounters { id: row.get(0)?, told: row.get(1)?, found: row.get(2)? })
    })?;
    let mut counters: Vec<_> = counters.collect::<Result<_, FileFault>>()?;
    counters.retain(|counters| counters.told != counters.found);
    connection.execute(
        "UPDATE webhooks SET (dead, requeued, dead_bytes) = ( \
             SELECT ifnull(sum(NOT it.requeued), 0), ifnull(sum(it.requeued), 0), ifnull(sum(it.bytes), 0) \
             FROM dead_letters AS it WHERE it.webhook = webhooks.number)",
        [],
    )?;
    Ok(counters)
}
