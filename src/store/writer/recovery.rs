//! Recovery of the writer from an error: closes the file, opens it again, or begins a new one.
//!
//! ```text
//! error, failed sync ──► fail ──► closed for 1 s ──► reopen ──► the same file: logs are reconciled
//!                                                      │        an empty file: begun with what is in memory
//!                                                      ▼        another store, or damage
//! damage ──────────────────────────────────────────► replace: set aside, and a new file begun
//! indices, counters ───────────────────────────────► repair: made anew from the rows
//! ```
//!
//! May use: `error_chain`, `log`, `log_limit`, `wall_clock`.

use std::{
    io, mem,
    path::Path,
    time::{Duration, Instant},
};

use tracing::{error, info};

use super::{MAX_REPAIRS, StoreWriter, WriterState, index_schedule::IndexSchedule};
use crate::{
    error_chain::error_chain,
    log::Hole,
    log_limit::LogRateLimit,
    store::{
        opening::set_aside,
        sqlite::{
            self, AppendBatch, CorrectedCounters, FileError, FileFault, FilesInPlace, StoreFile,
            SyncMode,
        },
    },
    wall_clock,
};

impl StoreWriter {
    /// Closes a file that cannot be written.
    ///
    /// A call that failed with an I/O error is never repeated on the same descriptor: the operating
    /// system may have dropped the dirty pages, and a second sync would report them as written.
    pub(super) fn fail(&mut self, error: &FileError) {
        error!(
            problem = error_chain(error),
            remedy = error.remedy(),
            "the store cannot be written: events are delivered, but kept in memory alone; tried again every second"
        );
        self.handle.set_failed(true);
        self.abandon();
    }

    /// Closes the file as it is until the next attempt.
    fn abandon(&mut self) {
        let failed = WriterState::Failed { retry_at: Instant::now() + REOPEN_DELAY };
        if let WriterState::Open(file) = mem::replace(&mut self.state, failed) {
            file.abandon();
        }
    }

    /// Opens the file again, or sets it aside if it is damaged. A failure is retried later.
    pub(super) fn reopen(&mut self) {
        let opened =
            if self.is_in_memory { self.reopen_in_memory() } else { self.reopen_on_disk() };
        match opened {
            Ok(file) => {
                self.begin(file);
                self.failure_limit = LogRateLimit::default();
                info!("the store can be written again");
            }
            Err(error @ FileError::Damaged { .. }) if !self.is_in_memory => {
                self.replace(&error_chain(&error));
            }
            Err(error) => {
                if self.failure_limit.allow() {
                    let (problem, remedy) = (error_chain(&error), error.remedy());
                    error!(problem, remedy, "the store still cannot be written");
                }
                self.state = WriterState::Failed { retry_at: Instant::now() + REOPEN_DELAY };
            }
        }
    }

    /// Continues with a file that was opened.
    fn begin(&mut self, file: StoreFile) {
        if !self.is_in_memory {
            self.handle.set_files(FilesInPlace::find(self.handle.path()).ok());
        }
        self.state = WriterState::Open(Box::new(file));
        if !self.is_in_memory {
            self.indexing = IndexSchedule::due_now();
        }
        self.handle.set_failed(false);
    }

    /// Makes indices and counters anew from the rows if a reader, the check or a write has found
    /// them damaged.
    pub(super) fn repair_reported(&mut self) -> Result<(), FileError> {
        // Looked at first: a report stays until the file is open.
        let WriterState::Open(file) = &mut self.state else { return Ok(()) };
        if !self.handle.take_repair() {
            return Ok(());
        }
        if self.repairs == MAX_REPAIRS {
            return Err(FileFault::damage("its indices are damaged again and again")
                .at(self.handle.path(), "repair"));
        }
        self.handle.begin_write();
        let corrected = file.repair()?;
        // Only one that was made: a full disk is no sign of damage that comes again.
        self.repairs += 1;
        error!(
            file = %self.handle.path().display(),
            "indices or counters of the store were damaged: they are made anew from its rows"
        );
        for CorrectedCounters { id, told, found } in corrected {
            error!(webhook = id, told, found, "the number of dead letters was wrong");
        }
        self.webhooks.report_counts(file)?;
        // A row may be gone whose key only the former index had.
        self.handle.begin_check();
        Ok(())
    }

    /// Follows the file's names if they were taken away: by another file, or by none. The file that
    /// is open gets all of its content before it is closed, wherever it is by now.
    pub(super) fn follow_displaced_files(&mut self) {
        let Some(files) = self.handle.displaced_files() else { return };
        let WriterState::Open(file) = &self.state else { return };
        let now = Instant::now();
        if self.follow_at.is_some_and(|at| now < at) {
            return;
        }
        // SQLite waits for a reader in the way, and entries are committed in between.
        self.follow_at = Some(now + REOPEN_DELAY);
        let path = self.handle.path().clone();
        let emptied = file.empty_wal();
        let in_place = FilesInPlace::find(&path).unwrap_or_default();
        if in_place.database == files.database {
            // Only once the write-ahead log is empty can the file be opened with another one. A
            // reader of the relay in the way is gone a second later.
            if emptied.is_err() {
                self.handle.set_failed(true);
                if self.failure_limit.allow() {
                    error!(
                        file = %path.display(),
                        "the store's write-ahead log was taken away while another process reads the store: end that \
                         process (`fuser -v` names it), or the newest entries are lost with this one"
                    );
                }
                return;
            }
            error!(file = %path.display(), "the store's write-ahead log was taken away: begun anew, and nothing is lost");
            self.handle.mark_reopened();
        } else {
            error!(file = %path.display(), "the store's file was taken away or another has its name");
        }
        self.handle.set_failed(true);
        self.abandon();
        if let Err(problem) = remove_wal(&path, files, in_place) {
            error!(file = %path.display(), %problem, "the former write-ahead log cannot be removed");
            return;
        }
        if in_place.database.is_some() && in_place.database != files.database {
            // Not opened: it keeps all its bytes.
            self.replace("another file has taken its place");
        } else {
            self.reopen();
        }
    }

    /// Checks that the name has not come to another database while the file was closed.
    ///
    /// # Errors
    ///
    /// `Damaged` if it has. That database is not opened: SQLite would write the former file's
    /// write-ahead log into it.
    fn require_own_file(&self) -> Result<(), FileError> {
        let path = self.handle.path();
        let Some(files) = self.handle.displaced_files() else { return Ok(()) };
        let at = |fault: FileFault| fault.at(path, "open");
        let in_place = FilesInPlace::find(path).map_err(|error| at(error.into()))?;
        if in_place.database == files.database {
            return Ok(());
        }
        sqlite::remove_stale_wal(path, files).map_err(|error| at(error.into()))?;
        match in_place.database {
            Some(_) => Err(at(FileFault::damage("another file has taken its place"))),
            None => {
                self.handle.set_files(None);
                Ok(())
            }
        }
    }

    /// Opens the file, and reconciles the logs with it: a commit that was reported as failed may
    /// have succeeded.
    fn reopen_on_disk(&mut self) -> Result<StoreFile, FileError> {
        #[cfg(test)]
        self.script.record_open();
        self.require_own_file()?;
        let mut file = StoreFile::open(self.handle.path())?;
        let (mut is_other_store, mut is_empty) = (false, true);
        for log in &self.logs {
            let persisted = file.find_or_add_product(log.product())?;
            is_empty &= persisted.newest == 0;
            is_other_store |= !log.reconcile_with(persisted);
        }
        match (is_other_store, is_empty) {
            (false, _) => {}
            (true, false) => {
                return Err(FileFault::damage("another store has taken its place")
                    .at(self.handle.path(), "open"));
            }
            (true, true) => {
                error!(file = %self.handle.path().display(), "the store is gone: what it kept cannot be replayed");
                // Before the new file has entries: a reader with the old file open must not answer.
                self.handle.mark_replaced();
                self.initialize_replacement(&mut file)?;
            }
        }
        self.webhooks.restore(&mut file, wall_clock::now().unix_ms)?;
        // A file that opens may still fail to write; only a synced commit ends the failed state.
        file.sync(wall_clock::now().unix_ms)?;
        Ok(file)
    }

    /// Begins a new database in memory. The content of the old one is lost with it.
    fn reopen_in_memory(&mut self) -> Result<StoreFile, FileError> {
        let mut file = StoreFile::in_memory()?;
        self.webhooks.restore(&mut file, wall_clock::now().unix_ms)?;
        Ok(file)
    }

    /// Sets a damaged file aside, and begins a new one with what the logs have in memory.
    pub(super) fn replace(&mut self, damage: &str) {
        self.handle.set_failed(true);
        self.abandon();
        if self.is_in_memory {
            error!(damage, "the webhooks' outbox in memory is damaged: begun anew");
            return self.reopen();
        }
        let path = self.handle.path();
        if let Err(problem) = set_aside(path, damage) {
            error!(file = %path.display(), %problem, "the damaged store cannot be set aside");
            return;
        }
        self.handle.set_files(None);
        // Before the new file is opened: a reader that has the old file open must not answer for
        // the new one, and a report about the old file must not set the new one aside.
        self.handle.mark_replaced();
        let opened = StoreFile::open(path).and_then(|mut file| {
            self.initialize_replacement(&mut file)?;
            self.webhooks.restore(&mut file, wall_clock::now().unix_ms)?;
            Ok(file)
        });
        match opened {
            Ok(file) => {
                self.begin(file);
                self.repairs = 0;
            }
            Err(error) => self.fail(&error),
        }
    }

    /// Writes to an empty file which ids the logs have given and that all positions before the
    /// entries in memory are a hole, and tells the logs that the persisted entries are lost.
    ///
    /// Synced, as the epochs are at the start: an id that was shown must never be given again.
    fn initialize_replacement(&self, file: &mut StoreFile) -> Result<(), FileError> {
        for log in &self.logs {
            let product_number = file.find_or_add_product(log.product())?.product_number;
            let (next, spans) = log.mark_store_lost(product_number);
            let lost = (next > 1).then_some(Hole { first: 1, last: next - 1 });
            let batch = AppendBatch {
                product_number,
                first: next,
                entries: &[],
                spans: &spans,
                holes: lost.as_slice(),
            };
            #[cfg(test)]
            self.script.before_commit(1)?;
            file.append(&[batch], SyncMode::Full, wall_clock::now().unix_ms)?;
        }
        Ok(())
    }
}

/// Removes the write-ahead log under the store's name if it does not belong to the database there.
fn remove_wal(path: &Path, files: FilesInPlace, in_place: FilesInPlace) -> io::Result<()> {
    let is_foreign = in_place.database == files.database && in_place.wal != files.wal;
    sqlite::remove_stale_wal(path, if is_foreign { in_place } else { files })
}

/// Wait before a file that failed is opened again.
const REOPEN_DELAY: Duration = Duration::from_secs(1);
