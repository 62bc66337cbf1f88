//! The thread that brings committed data to the disk, so that a commit never waits for the disk.
//!
//! ```text
//! each second    commits since the last round?   sync the write-ahead log     a power cut costs what came since
//!                has the log grown?              move its content into the database
//!                has it grown beyond 64 MiB?     warn: a reader outside holds a transaction
//! ```
//!
//! SQLite itself would do both within some commit, and every event of that moment would wait for
//! the disk.
//!
//! May use: `error_chain`, `log_limit`, `metrics`.

use std::{fs, io, time::Duration};

use super::{
    handle::StoreHandle,
    sqlite::{self, CheckpointProgress, FileError, StoreFile},
};
use crate::{error_chain::error_chain, log_limit::LogRateLimit, metrics::StoreMetrics};

/// Syncs once a second until the store is stopped.
pub(super) fn run(handle: &StoreHandle, metrics: &StoreMetrics) {
    let (mut blockage, mut log_limit) = (CheckpointBlockage::default(), LogRateLimit::default());
    while !handle.backing().wait_for_stop(SYNC_INTERVAL) {
        // Before any file is opened: those under the store's names may not be the store's.
        if handle.displaced_files().is_some() {
            handle.backing().wake_writer();
            continue;
        }
        // The flag is taken before the sync: a commit during the sync sets it again for the next
        // round.
        if handle.take_unsynced()
            && let Err(error) = sync(handle)
        {
            tracing::error!(%error, "the store's commits may not have reached the disk");
            handle.report_sync_failure();
        }
        let progress = match sqlite::wal_bytes(handle.path()) > sqlite::CHECKPOINT_WAL_BYTES {
            true => checkpoint(handle),
            false => None,
        };
        let wal_bytes = sqlite::wal_bytes(handle.path());
        metrics.wal_bytes.set(i64::try_from(wal_bytes).unwrap_or(i64::MAX));
        blockage.record(wal_bytes, progress);
        // The check after an unclean stop reads the whole file in one transaction of the relay's
        // own.
        if blockage.is_lasting() && !handle.is_recovering() && log_limit.allow() {
            tracing::warn!(
                file = %handle.path().display(),
                wal_bytes,
                "another process holds a read transaction on the store, so that its write-ahead log grows without \
                 bound: end that process (`fuser -v` names it), and do not page or pause what reads the file"
            );
        }
    }
}

/// Rounds in which a write-ahead log over its bound could not be moved into the database.
#[derive(Debug, Default)]
struct CheckpointBlockage {
    rounds: u32,
}

impl CheckpointBlockage {
    /// Records a round. A checkpoint that was not run because the writer runs one says nothing.
    fn record(&mut self, wal_bytes: u64, progress: Option<CheckpointProgress>) {
        let is_complete = progress.map(CheckpointProgress::is_complete);
        match (wal_bytes > sqlite::MAX_WAL_BYTES, is_complete) {
            (true, Some(false)) => self.rounds = self.rounds.saturating_add(1),
            (true, None) => {}
            (false, _) | (true, Some(true)) => self.rounds = 0,
        }
    }

    /// Returns whether this lasts longer than the relay's own readers hold a transaction.
    fn is_lasting(&self) -> bool {
        self.rounds >= BLOCKED_ROUNDS
    }
}

/// Moves the write-ahead log into the database, as far as readers allow, and returns how far that
/// was. A part that stays behind is moved by a later checkpoint.
pub(super) fn checkpoint(handle: &StoreHandle) -> Option<CheckpointProgress> {
    // Read before the file is opened: a report must never name a newer file than the one read.
    let generation = handle.generation();
    let error = match StoreFile::checkpoint(handle.path()) {
        Ok(progress) => return progress,
        Err(error) => error,
    };
    tracing::warn!(
        problem = error_chain(&error),
        "the store's write-ahead log cannot be moved into the database yet"
    );
    match error {
        FileError::Damaged { .. } => handle.report_damage(generation),
        error if error.is_transient() => {}
        _ => handle.report_sync_failure(),
    }
    None
}

fn sync(handle: &StoreHandle) -> io::Result<()> {
    // A sync concerns the file, through any descriptor. Closing this one releases no lock of
    // SQLite, which locks the database and the index of the write-ahead log, never the log itself.
    match fs::File::open(sqlite::wal_path(handle.path())) {
        Ok(wal) => wal.sync_data(),
        // The writer has just closed the file, which syncs it, or has set it aside.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Interval between syncs: a power cut costs the commits of this time at most.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// Rounds after which a checkpoint counts as blocked: a read of the relay takes milliseconds.
const BLOCKED_ROUNDS: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blockage_lasts_once_it_has_been_there_for_some_rounds() {
        let mut blockage = CheckpointBlockage::default();
        let (large, small) = (sqlite::MAX_WAL_BYTES + 1, sqlite::MAX_WAL_BYTES);
        let (blocked, done) = (
            CheckpointProgress { frames: 9, moved: 3 },
            CheckpointProgress { frames: 9, moved: 9 },
        );
        let mut record = |wal_bytes, progress| {
            blockage.record(wal_bytes, progress);
            blockage.is_lasting()
        };
        let round = |progress| (large, Some(progress));
        let rounds = [round(blocked), round(blocked), (large, None), round(blocked)];
        assert_eq!(
            rounds.map(|(bytes, progress)| record(bytes, progress)),
            [false, false, false, true]
        );
        assert!(!record(large, Some(done)), "everything is moved");
        assert_eq!([blocked; 3].map(|progress| record(small, Some(progress))), [false; 3]);
    }
}
