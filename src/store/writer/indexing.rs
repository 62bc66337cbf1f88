//! The session index in the writer's rounds: the entries of all commits of a second are added in
//! one step.
//!
//! May use: no other module.

use std::time::{Duration, Instant};

use super::{StoreWriter, WriterState, index_schedule::IndexSchedule};
use crate::store::sqlite::{FileError, INDEX_STEP_ROWS};

impl StoreWriter {
    /// Returns this time to park, or the one until a step of the session index is due.
    pub(super) fn park_until_index_due(&self, park: Duration) -> Duration {
        let until_due = |due: Instant| due.saturating_duration_since(Instant::now());
        self.indexing.due.map_or(park, |due| park.min(until_due(due)))
    }

    /// Makes a step of the session index if one is due, and as many as have been filled since. So
    /// the index is never further behind than a commit and a step, however fast entries come.
    pub(super) fn index_names(&mut self) -> Result<(), FileError> {
        let WriterState::Open(file) = &mut self.state else { return Ok(()) };
        if self.indexing.due.is_none_or(|due| Instant::now() < due) {
            return Ok(());
        }
        for _ in 0..=self.indexing.rows / INDEX_STEP_ROWS {
            self.handle.begin_write();
            let has_more = file.index_names()?;
            self.handle.mark_unsynced();
            if !has_more {
                self.indexing = IndexSchedule::default();
                // Only once the index goes as far as the rows that were found does the check know
                // whether it has all of them.
                self.handle.end_filling();
                return Ok(());
            }
        }
        // Rows of an earlier process, which are indexed beside the work.
        self.indexing = IndexSchedule::due_now();
        Ok(())
    }
}
