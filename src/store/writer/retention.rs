//! Retention in the writer's rounds: deletes entries and dead letters beyond their bounds, and
//! scrubs the file after erasures.
//!
//! May use: `error_chain`, `wall_clock`.

use std::time::{Duration, Instant};

use tracing::warn;

use super::{RETENTION_INTERVAL, StoreWriter, WriterState};
use crate::{
    error_chain::error_chain,
    store::sqlite::FileError,
    wall_clock::{self, WallTime},
};

impl StoreWriter {
    /// Removes the copies of erased rows that SQLite has left. This takes seconds for a large file,
    /// so it is done once for all erasures of an hour.
    pub(super) fn scrub(&mut self) -> Result<(), FileError> {
        // A scrub that is due at the stop is left to the next start: the file records that it is
        // due.
        let is_due = self.scrub_at.is_some_and(|due| Instant::now() >= due);
        if !is_due || self.handle.is_stopping() || self.has_pending_work() {
            return Ok(());
        }
        let WriterState::Open(file) = &mut self.state else { return Ok(()) };
        self.handle.begin_write();
        let scrubbed = file.scrub();
        let now = Instant::now();
        self.last_scrubbed = Some(now);
        self.scrub_at = None;
        match scrubbed {
            Err(error) if error.is_transient() => {
                warn!(
                    problem = error_chain(&error),
                    "copies of erased events are left in the file; tried again in an hour"
                );
                self.scrub_at = Some(now + SCRUB_INTERVAL);
                Ok(())
            }
            scrubbed => scrubbed,
        }
    }

    /// Deletes the oldest entries and dead letters beyond their bounds, in a few small steps.
    pub(super) fn retire(&mut self) -> Result<(), FileError> {
        if self.last_retired.elapsed() < RETENTION_INTERVAL {
            return Ok(());
        }
        self.webhooks.log_tallies();
        self.publish_usage()?;
        for _ in 0..MAX_RETENTION_STEPS {
            self.handle.begin_write();
            self.may_retire = self.retire_step(wall_clock::now())?;
            if !self.may_retire {
                self.last_retired = Instant::now();
                return Ok(());
            }
        }
        Ok(())
    }

    /// Publishes how full the store is; nothing for a store in memory, which persists no events.
    fn publish_usage(&self) -> Result<(), FileError> {
        if let (WriterState::Open(file), false) = (&self.state, self.is_in_memory) {
            self.metrics.set_usage(file.used_bytes()?, self.settings.retention_bytes);
        }
        Ok(())
    }

    /// Makes one step of retention, and returns whether anything was beyond its bounds. While the
    /// clock is in doubt, only the bounds on bytes count.
    pub(super) fn retire_step(&mut self, now: WallTime) -> Result<bool, FileError> {
        let WriterState::Open(file) = &mut self.state else { return Ok(false) };
        let settings = &self.settings;
        if let Some(latest) = now.latest_plausible() {
            self.restamp_from = file.restamp_future(self.restamp_from, latest, now.unix_ms)?;
            if self.restamp_from.is_some() {
                return Ok(true);
            }
            file.restamp_future_dead_letters(latest, now.unix_ms)?;
        }
        // Damaged counters of dead letters would delete what is within the bounds.
        let is_checked = self.handle.is_checked();
        let if_checked = |bytes| if is_checked { bytes } else { u64::MAX };
        let retired = file.retire(
            now.oldest_kept(settings.retention),
            if_checked(settings.retention_bytes),
            now.unix_ms,
        )?;
        if let Some(retired) = &retired {
            let log = self.logs.iter().find(|log| log.product_number() == retired.product_number);
            if let Some(log) = log {
                log.mark_retired(retired.evicted_through, retired.events, retired.bytes);
            }
            self.webhooks.record_expired(retired.evicted_through, &retired.expired);
        }
        let retired_dead_letters = file.retire_dead_letters(
            now.oldest_kept(settings.dead_letter_retention),
            if_checked(settings.dead_letter_bytes),
        )?;
        self.webhooks.record_retired_dead_letters(&retired_dead_letters);
        if !retired_dead_letters.is_empty()
            || retired.as_ref().is_some_and(|retired| !retired.expired.is_empty())
        {
            self.webhooks.report_counts(file)?;
        }
        Ok(retired.is_some() || !retired_dead_letters.is_empty())
    }
}

/// Interval between two scrubs.
pub(super) const SCRUB_INTERVAL: Duration = Duration::from_secs(3600);

/// Maximum number of steps of retention before the backlog is committed again.
const MAX_RETENTION_STEPS: usize = 4;
