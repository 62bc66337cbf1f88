//! The thread that brings to the disk what the writer has committed, so that a commit never waits for it.
//!
//! ```text
//! each second    commits since the last one?   sync the write-ahead log        a power cut costs what came since
//!                the log has grown?            move what is in it into the database
//! ```
//!
//! SQLite itself would do both within some commit, and everything that comes would wait for the disk with it.
//!
//! May use: `causes`, the desk, the file.

use std::{fs, io, time::Duration};

use super::sqlite::{self, File, FileError};
use crate::{error_chain::with_causes, log::backing::Desk};

/// Syncs until the store is stopped.
pub(super) fn run(desk: &Desk) {
    while !desk.wait_for_stop(SYNC_EVERY) {
        if desk.take_unsynced()
            && let Err(error) = sync(desk)
        {
            tracing::error!(%error, "the store's commits may not have reached the disk");
            desk.could_not_sync();
        }
        if sqlite::wal_bytes(desk.path()) > sqlite::WAL_BYTES {
            checkpoint(desk);
        }
    }
}

/// Moves the write-ahead log into the database, as far as possible. If it is not, nothing is lost: that is tried again.
pub(super) fn checkpoint(desk: &Desk) {
    let generation = desk.generation();
    let Err(error) = File::checkpoint(desk.path()) else { return };
    tracing::warn!(problem = with_causes(&error), "the store's write-ahead log cannot be moved into the database yet");
    match error {
        FileError::Damaged { .. } => desk.is_damaged(generation),
        error if error.is_passing() => {}
        _ => desk.could_not_sync(),
    }
}

fn sync(desk: &Desk) -> io::Result<()> {
    match fs::File::open(sqlite::wal_path(desk.path())) {
        Ok(wal) => wal.sync_data(),
        // The writer has just closed the file, which syncs it, or has set it aside.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// A power cut costs what came within this time at the most.
const SYNC_EVERY: Duration = Duration::from_secs(1);
