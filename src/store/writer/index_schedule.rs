//! When the writer adds entries to the session index.
//!
//! May use: no other module.

use std::time::{Duration, Instant};

use crate::store::sqlite::INDEX_STEP_ROWS;

/// Time at which the writer adds entries to the session index. There is none while the index has
/// all entries.
#[derive(Debug, Default)]
pub(super) struct IndexSchedule {
    /// Time of the next step.
    pub(super) due: Option<Instant>,
    /// Entries committed since the last step.
    pub(super) rows: u64,
}

impl IndexSchedule {
    /// Returns a schedule whose first step is due now: the file may be of another process.
    pub(super) fn due_now() -> Self {
        Self { due: Some(Instant::now()), rows: 0 }
    }

    /// Records that a commit has added entries. Entries that fill a step make it due at once.
    pub(super) fn record_commit(&mut self, entries: u64) {
        if entries == 0 {
            return;
        }
        self.rows += entries;
        let now = Instant::now();
        if self.rows >= INDEX_STEP_ROWS {
            self.due = Some(now);
        } else {
            self.due.get_or_insert(now + INDEX_INTERVAL);
        }
    }
}

/// Longest time that a row waits for the index. The more rows one step adds, the more of them share
/// a page of it.
const INDEX_INTERVAL: Duration = Duration::from_secs(1);
