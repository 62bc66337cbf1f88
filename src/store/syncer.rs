//! The thread that brings committed data to the disk, so that a commit never waits for the disk.
//!
//! ```text
//! each second    commits since the last round?   sync the write-ahead log     a power cut costs what came since
//!                has the log grown?              move its content into the database
//! ```
//!
//! SQLite itself would do both within some commit, and every event of that moment would wait for
//! the disk.
//!
//! May use: `error_chain`.

use std::{fs, io, time::Duration};

use super::{
    handle::StoreHandle,
    sqlite::{self, FileError, StoreFile},
};
use crate::error_chain::error_chain;

/// Syncs once a second until the store is stopped.
pub(super) fn run(handle: &StoreHandle) {
    while !handle.backing().wait_for_stop(SYNC_INTERVAL) {
        // The flag is taken before the sync: a commit during the sync sets it again for the next
        // round.
        if handle.take_unsynced()
            && let Err(error) = sync(handle)
        {
            tracing::error!(%error, "the store's commits may not have reached the disk");
            handle.report_sync_failure();
        }
        if sqlite::wal_bytes(handle.path()) > sqlite::CHECKPOINT_WAL_BYTES {
            checkpoint(handle);
        }
    }
}

/// Moves the write-ahead log into the database, as far as readers allow. A part that stays behind
/// is moved by a later checkpoint.
pub(super) fn checkpoint(handle: &StoreHandle) {
    // Read before the file is opened: a report must never name a newer file than the one read.
    let generation = handle.generation();
    let Err(error) = StoreFile::checkpoint(handle.path()) else { return };
    tracing::warn!(
        problem = error_chain(&error),
        "the store's write-ahead log cannot be moved into the database yet"
    );
    match error {
        FileError::Damaged { .. } => handle.report_damage(generation),
        error if error.is_transient() => {}
        _ => handle.report_sync_failure(),
    }
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
