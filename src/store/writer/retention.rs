//! What the writer takes away: what is too old or too much, and what erasing has left.
//!
//! May use: `causes`, the logs, the file, the writer's own state.

use std::time::{Duration, Instant};

use tracing::warn;

use super::{RETIRE_EVERY, State, Writer};
use crate::{
    error_chain::with_causes,
    store::{sqlite::FileError, unix_ms},
};

impl Writer {
    /// Removes the copies of what has been erased that SQLite has left. That takes seconds for a large file, so it is done
    /// once for all erasures of an hour.
    pub(super) fn scrub(&mut self) -> Result<(), FileError> {
        let State::Open(file) = &mut self.state else { return Ok(()) };
        // Whoever leaves leaves it to the next start: the file knows.
        let is_due = self.scrub_at.is_some_and(|due| Instant::now() >= due);
        if !is_due || self.desk.is_stopping() || self.desk.has_orders() {
            return Ok(());
        }
        self.desk.writes();
        let scrubbed = file.scrub();
        let now = Instant::now();
        self.scrubbed = Some(now);
        self.scrub_at = None;
        match scrubbed {
            Err(error) if error.is_passing() => {
                warn!(
                    problem = with_causes(&error),
                    "copies of erased events are left in the file; tried again in an hour"
                );
                self.scrub_at = Some(now + SCRUB_EVERY);
                Ok(())
            }
            scrubbed => scrubbed,
        }
    }

    /// Takes the oldest away, a little at a time.
    pub(super) fn retire(&mut self) -> Result<(), FileError> {
        if self.retired.elapsed() < RETIRE_EVERY {
            return Ok(());
        }
        self.webhooks.log_sums();
        self.show_usage()?;
        for _ in 0..MOST_STEPS {
            self.desk.writes();
            self.may_retire = self.retire_some()?;
            if !self.may_retire {
                self.retired = Instant::now();
                return Ok(());
            }
        }
        Ok(())
    }

    /// Shows how full the store is. What webhooks have in memory is no store.
    fn show_usage(&self) -> Result<(), FileError> {
        if let (State::Open(file), false) = (&self.state, self.is_in_memory) {
            self.metrics.uses(file.used_bytes()?, self.settings.retention_bytes);
        }
        Ok(())
    }

    /// Tells whether anything was beyond its bounds.
    fn retire_some(&mut self) -> Result<bool, FileError> {
        let State::Open(file) = &mut self.state else { return Ok(false) };
        let (now, settings) = (unix_ms(), &self.settings);
        let retired =
            file.retire(now.saturating_sub(milliseconds(settings.retention)), settings.retention_bytes, now)?;
        if let Some(retired) = &retired {
            let log = self.logs.iter().find(|log| log.number_in_store() == retired.number);
            if let Some(log) = log {
                log.has_been_retired(retired.evicted_through, retired.events, retired.bytes);
            }
            self.webhooks.has_expired(retired.evicted_through, &retired.expired);
        }
        let oldest_died_at = now.saturating_sub(milliseconds(settings.dead_letter_retention));
        let lost = file.lose_letters(oldest_died_at, settings.dead_letter_bytes)?;
        self.webhooks.has_lost(&lost);
        if !lost.is_empty() || retired.as_ref().is_some_and(|retired| !retired.expired.is_empty()) {
            self.webhooks.tell_counts(file)?;
        }
        Ok(retired.is_some() || !lost.is_empty())
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Between two removals of what erasing has left.
pub(super) const SCRUB_EVERY: Duration = Duration::from_secs(3600);

/// Steps of retention before what has come since is committed.
const MOST_STEPS: usize = 4;
