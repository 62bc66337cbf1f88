//! Commits of the logs and of the webhooks' journals.
//!
//! May use: no other module.

use super::{
    AppendBatch, FileError, StoreFile, SyncMode, file::set_synced, rows::signed,
    webhooks::write_journal,
};
use crate::store::webhook_rows::WebhookChanges;

impl StoreFile {
    /// Commits append batches of the logs in one transaction, at `now` in Unix milliseconds.
    ///
    /// # Errors
    ///
    /// When one of them cannot be written; then all are rolled back.
    pub(crate) fn append(
        &mut self,
        batches: &[AppendBatch<'_>],
        sync: SyncMode,
        now: u64,
    ) -> Result<(), FileError> {
        self.append_with_journals(batches, [], sync, now).map(drop)
    }

    /// Commits append batches of the logs, and then the webhooks' journals, in one transaction, at
    /// `now` in Unix milliseconds. Returns whether the dead letters changed.
    ///
    /// # Errors
    ///
    /// When a part of them cannot be written; then all are rolled back.
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

    /// Brings everything committed before to the disk, and records a sync at `now` in Unix
    /// milliseconds.
    ///
    /// # Errors
    ///
    /// When a part of the data may not be on the disk.
    pub(crate) fn sync(&mut self, now: u64) -> Result<(), FileError> {
        let synced = self.in_transaction(SyncMode::Full, |connection| set_synced(connection, now));
        synced.map_err(|fault| fault.at(&self.path, "sync"))
    }
}
