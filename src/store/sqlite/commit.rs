//! Commits of the logs and of the webhooks' journals.
//!
//! May use: no other module.

use super::{
    AppendBatch, FileError, StoreFile, SyncMode, file::set_synced, rows::signed,
    webhooks::write_journal,
};
use crate::store::webhook_rows::WebhookChanges;

impl StoreFile {
    /// Writes portions of the logs in one transaction, at `now` in Unix milliseconds.
    ///
    /// # Errors
    ///
    /// When one cannot be written; then none is.
    pub(crate) fn append(
        &mut self,
        batches: &[AppendBatch<'_>],
        sync: SyncMode,
        now: u64,
    ) -> Result<(), FileError> {
        self.append_with_journals(batches, [], sync, now).map(drop)
    }

    /// Writes portions of the logs, and then what has happened to webhooks, in one transaction, at
    /// `now` in Unix milliseconds. Tells whether there are more or fewer dead letters.
    ///
    /// # Errors
    ///
    /// When some of it cannot be written; then nothing is.
    pub(crate) fn append_with_journals<'a>(
        &mut self,
        batches: &[AppendBatch<'_>],
        journals: impl IntoIterator<Item = (&'a str, &'a WebhookChanges)>,
        sync: SyncMode,
        now: u64,
    ) -> Result<bool, FileError> {
        let written = self.in_transaction(sync, |connection| {
            for batch in batches {
                batch.write(connection, signed(now))?;
            }
            let mut has_changed = false;
            for (id, changes) in journals {
                has_changed |= write_journal(connection, id, changes)?;
            }
            if sync == SyncMode::Full {
                set_synced(connection, now)?;
            }
            Ok(has_changed)
        });
        written.map_err(|fault| fault.at(&self.path, "write entries to"))
    }

    /// Returns when everything written before is on the disk, and notes that it was so at `now` in
    /// Unix milliseconds.
    ///
    /// # Errors
    ///
    /// When it may not be.
    pub(crate) fn sync(&mut self, now: u64) -> Result<(), FileError> {
        let synced = self.in_transaction(SyncMode::Full, |connection| set_synced(connection, now));
        synced.map_err(|fault| fault.at(&self.path, "sync"))
    }
}
