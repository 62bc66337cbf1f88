//! The store's writer: commits the entries that have gathered in the logs, and the webhooks'
//! journals; executes commands; applies retention.
//!
//! ```text
//! parked ── work ──► gather ──► commit ──► commands ──► retention ──► index ──► parked
//!                                                                 syncing: see `syncer`
//! parked: until a caller has work, up to the next step of the session index, and up to 1 s while
//!         age alone may make rows due for retention
//! gather: 6 ms; where webhooks wait for commits, the rest of 2 ms since the last round, so that a
//!         single event waits for nothing
//! a failed write: the file is closed and opened anew a second later, see `recovery`; meanwhile events
//!         stay in memory as long as its bounds allow
//! ```
//!
//! May use: `error_chain`, `log`, `log_limit`, `metrics`, `wall_clock`.

mod commands;
mod index_schedule;
mod indexing;
mod recovery;
mod retention;
#[cfg(test)]
mod tests;
mod webhooks;

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tracing::error;

use self::{index_schedule::IndexSchedule, webhooks::RegisteredWebhooks};
use super::{
    StoreSettings,
    commands::{WebhookJournal, WriterInbox},
    handle::StoreHandle,
    sqlite::{self, AppendBatch, FileError, FileFault, FilesInPlace, StoreFile, SyncMode},
    syncer,
};
use crate::{
    error_chain::error_chain,
    log::{Log, persist::UnpersistedBatch},
    log_limit::LogRateLimit,
    metrics::StoreMetrics,
    wall_clock,
};

/// State of the writer's thread.
#[derive(Debug)]
pub(super) struct StoreWriter {
    handle: Arc<StoreHandle>,
    inbox: WriterInbox,
    logs: Vec<Arc<Log>>,
    webhooks: RegisteredWebhooks,
    settings: StoreSettings,
    metrics: StoreMetrics,
    state: WriterState,
    /// Whether the store is in memory: it has no file and persists nothing of the logs.
    is_in_memory: bool,
    last_round_ended: Instant,
    last_retired: Instant,
    /// Time of the next scrub, set while copies of erased rows may be left in the file.
    scrub_at: Option<Instant>,
    last_scrubbed: Option<Instant>,
    /// Whether there may be entries beyond the bounds.
    may_retire: bool,
    /// Next entry, by its key, of those that a wrong clock has stamped with a time in the future.
    restamp_from: Option<i64>,
    indexing: IndexSchedule,
    /// Repairs of the current file, see `recovery`.
    repairs: u32,
    /// Earliest time to look again after files that were taken away.
    follow_at: Option<Instant>,
    /// Limit on the error line that says the file still cannot be opened.
    failure_limit: LogRateLimit,
    #[cfg(test)]
    script: tests::DiskScript,
}

/// State of the file.
#[derive(Debug)]
enum WriterState {
    Open(Box<StoreFile>),
    /// The file is closed after an error.
    Failed {
        /// Earliest time to open it again.
        retry_at: Instant,
    },
}

impl StoreWriter {
    /// Returns a writer of these logs into `file`.
    pub(super) fn new(
        (handle, inbox): (Arc<StoreHandle>, WriterInbox),
        logs: Vec<Arc<Log>>,
        file: StoreFile,
        settings: StoreSettings,
        metrics: StoreMetrics,
    ) -> Self {
        let now = Instant::now();
        let (scrub_at, is_in_memory) = (file.needs_scrub().then_some(now), file.is_in_memory());
        let state = WriterState::Open(Box::new(file));
        if !is_in_memory {
            handle.set_files(FilesInPlace::find(handle.path()).ok());
        }
        Self {
            handle,
            inbox,
            logs,
            webhooks: RegisteredWebhooks::default(),
            settings,
            metrics,
            state,
            is_in_memory,
            last_round_ended: now,
            last_retired: now,
            scrub_at,
            last_scrubbed: None,
            may_retire: true,
            restamp_from: None,
            indexing: match is_in_memory {
                true => IndexSchedule::default(),
                false => IndexSchedule::due_now(),
            },
            repairs: 0,
            follow_at: None,
            failure_limit: LogRateLimit::default(),
            #[cfg(test)]
            script: tests::DiskScript::default(),
        }
    }

    /// Runs until the store is stopped, then commits the backlog. The caller must
    /// [`close`](StoreWriter::close) the returned writer.
    pub(super) fn run(mut self) -> Self {
        self.handle.register_writer();
        while !self.handle.is_stopping() {
            self.handle.park_until_work(self.max_park(), || self.has_work());
            // A round for retention alone has nothing that could gather.
            if self.has_work() && !self.handle.is_stopping() {
                thread::sleep(self.group_commit_delay());
            }
            self.run_round();
        }
        #[cfg(test)]
        if self.handle.has_crashed() {
            return self;
        }
        self.drain_backlog();
        self
    }

    /// Returns the wait for more entries before a commit (group commit).
    ///
    /// A webhook's worker sends nothing that is not committed, and takes no new event before its
    /// journal is. A commit for each worker would be one too many, and a longer wait would cost
    /// every delivery its length.
    fn group_commit_delay(&self) -> Duration {
        match self.webhooks.is_empty() {
            true => GROUP_COMMIT_DELAY,
            false => WEBHOOK_GROUP_COMMIT_DELAY.saturating_sub(self.last_round_ended.elapsed()),
        }
    }

    /// Returns the maximum time to park while there is nothing to write.
    fn max_park(&self) -> Duration {
        match &self.state {
            WriterState::Failed { retry_at } => retry_at.saturating_duration_since(Instant::now()),
            WriterState::Open(_) if self.may_retire => self.park_until_index_due(
                RETENTION_INTERVAL
                    .saturating_sub(self.last_retired.elapsed())
                    .max(GROUP_COMMIT_DELAY),
            ),
            WriterState::Open(_) if self.has_ageing_rows() => self.park_until_index_due(MAX_PARK),
            WriterState::Open(_) => self.park_until_index_due(MAX_IDLE_PARK),
        }
    }

    /// Returns whether rows may become too old, or a tally due, without a wake-up. A store in
    /// memory has no entries: its dead letters alone have an age.
    fn has_ageing_rows(&self) -> bool {
        !self.is_in_memory || self.webhooks.has_dead_letters() || self.webhooks.has_tallies()
    }

    /// Commits what was appended during the last write, as long as the backlog becomes smaller. A
    /// write that fails ends this, so that the shutdown does not wait for a broken disk.
    fn drain_backlog(&mut self) {
        let mut previous = u64::MAX;
        loop {
            self.run_round();
            let backlog = self.backlog();
            if backlog == 0 || backlog >= previous {
                return;
            }
            previous = backlog;
        }
    }

    /// Returns whether there is something to write or to execute.
    fn has_work(&self) -> bool {
        let is_open = matches!(self.state, WriterState::Open(_));
        self.has_pending_work() || (is_open && self.logs.iter().any(|log| log.backlog() > 0))
    }

    /// Returns whether there is something to do beside the logs' backlog.
    fn has_pending_work(&self) -> bool {
        self.handle.has_reports() || !self.inbox.is_empty()
    }

    /// Returns the number of entries of all logs that are not persisted.
    fn backlog(&self) -> u64 {
        self.logs.iter().map(|log| log.backlog()).sum()
    }

    /// Runs one round: recovery, commit, commands, session index, retention, scrub.
    fn run_round(&mut self) {
        // Before the commit: entries must not be committed to a file that is set aside, or after a
        // sync that failed, see `fail`.
        if self.handle.take_damage() {
            self.replace("found by a reader or by the check");
        }
        if self.handle.take_sync_failure() && matches!(self.state, WriterState::Open(_)) {
            self.fail(
                &FileFault::Refused("its write-ahead log cannot be synced")
                    .at(self.handle.path(), "sync"),
            );
        }
        if !self.is_in_memory {
            self.follow_displaced_files();
        }
        if let WriterState::Failed { retry_at } = self.state
            && (Instant::now() >= retry_at || self.handle.is_stopping())
        {
            self.reopen();
        }
        let result = self
            .repair_reported()
            .and_then(|()| self.commit_backlog())
            .and_then(|()| self.execute_commands())
            // Before the index: what is deleted makes room for it.
            .and_then(|()| self.retire())
            .and_then(|()| self.index_names())
            .and_then(|()| self.scrub());
        self.last_round_ended = Instant::now();
        self.handle.end_write();
        match result {
            Ok(()) => {}
            Err(error) if error.is_of_index() && self.repairs < MAX_REPAIRS => {
                self.handle.report_repair(self.handle.generation());
            }
            Err(error @ FileError::Damaged { .. }) => self.replace(&error_chain(&error)),
            Err(error) => self.fail(&error),
        }
    }

    /// Commits the logs' backlog and the webhooks' journals.
    fn commit_backlog(&mut self) -> Result<(), FileError> {
        if matches!(self.state, WriterState::Failed { .. }) {
            self.inbox.take_journals().into_iter().for_each(WebhookJournal::reject);
            return Ok(());
        }
        for _ in 0..MAX_COMMITS_PER_ROUND {
            let logs = self.logs.iter();
            let unpersisted: Vec<_> = logs
                .filter_map(|log| Some((Arc::clone(log), log.next_unpersisted(MAX_BATCH_ENTRIES)?)))
                .collect();
            let journals = self.take_registered_journals();
            if unpersisted.is_empty() && journals.is_empty() {
                return Ok(());
            }
            let has_more =
                unpersisted.iter().any(|(_, batch)| batch.entries.len() == MAX_BATCH_ENTRIES);
            let committed = self.commit(&unpersisted, &journals);
            if committed.is_err() {
                journals.into_iter().for_each(WebhookJournal::reject);
                return committed;
            }
            unpersisted.iter().for_each(|(log, batch)| log.mark_persisted(batch));
            for journal in journals {
                self.webhooks.advance_position(&journal.id, journal.changes.position);
                journal.confirm();
            }
            self.index_names()?;
            if !self.is_in_memory && sqlite::wal_bytes(self.handle.path()) > sqlite::MAX_WAL_BYTES {
                // The syncer does not keep up: commits continue while its checkpoint runs, so the
                // write-ahead log never begins anew. While the writer runs the checkpoint itself,
                // nothing is committed.
                syncer::checkpoint(&self.handle);
            }
            if !has_more && !self.webhooks.is_empty() {
                return Ok(()); // later entries gather in the next round, which is soon
            }
        }
        Ok(())
    }

    /// Takes the journals of webhooks that the file has, and rejects the others. A journal without
    /// a row to write to would be lost, and confirmed to its worker as written.
    fn take_registered_journals(&mut self) -> Vec<WebhookJournal> {
        let journals = self.inbox.take_journals().into_iter();
        let (registered, unregistered): (Vec<_>, Vec<_>) =
            journals.partition(|journal| self.webhooks.contains(&journal.id));
        unregistered.into_iter().for_each(WebhookJournal::reject);
        registered
    }

    /// Commits all batches and journals in one transaction, or none of them.
    fn commit(
        &mut self,
        unpersisted: &[(Arc<Log>, UnpersistedBatch)],
        journals: &[WebhookJournal],
    ) -> Result<(), FileError> {
        let WriterState::Open(file) = &mut self.state else { return Ok(()) };
        let batches: Vec<_> = unpersisted.iter().map(|(_, batch)| append_batch(batch)).collect();
        let changes = journals.iter().map(|journal| (&*journal.id, &journal.changes));
        self.handle.begin_write();
        let began = Instant::now();
        #[cfg(test)]
        self.script.before_commit(batches.len() + journals.len())?;
        let has_changed = file.append_with_journals(
            &batches,
            changes,
            SyncMode::Normal,
            wall_clock::now().unix_ms,
        )?;
        #[cfg(test)]
        self.script.after_commit()?;
        self.metrics.commit_seconds.observe(began.elapsed().as_secs_f64());
        self.handle.end_write();
        self.handle.mark_unsynced();
        self.may_retire = true;
        self.indexing.record_commit(batches.iter().map(|batch| batch.entries.len() as u64).sum());
        if has_changed { self.webhooks.report_counts(file) } else { Ok(()) }
    }

    /// Closes the file. Every other connection must be closed before: SQLite moves the write-ahead
    /// log into the database with the last one.
    pub(super) fn close(mut self) {
        self.inbox.close(); // some are left if the last write failed
        #[cfg(test)]
        if self.handle.has_crashed() {
            return;
        }
        let backlog = self.backlog();
        if backlog > 0 {
            error!(events = backlog, "the newest events could not be kept");
        }
        if let WriterState::Open(mut file) = self.state {
            // The next process then finds a whole index. What one step leaves is a tail there, and
            // so is all of it where the step fails: the file is closed in order in any case.
            let indexed = file.index_names().map(drop);
            for error in [indexed, file.close()].into_iter().filter_map(Result::err) {
                error!(problem = error_chain(&error), "the store could not be closed in order");
            }
        }
    }
}

fn append_batch(unpersisted: &UnpersistedBatch) -> AppendBatch<'_> {
    let UnpersistedBatch { product_number, first, entries, spans, holes } = unpersisted;
    AppendBatch { product_number: *product_number, first: *first, entries, spans, holes }
}

/// Time during which entries gather for one commit.
const GROUP_COMMIT_DELAY: Duration = Duration::from_millis(6);

/// The same where webhooks wait for commits, counted from the end of the round before: 500 commits
/// a second at most.
const WEBHOOK_GROUP_COMMIT_DELAY: Duration = Duration::from_millis(2);

/// Longest time that the writer parks while rows may become too old without a wake-up.
const MAX_PARK: Duration = Duration::from_secs(1);

/// Longest time that the writer parks while no row ages. Its rounds also read the wall clock: steps
/// of a time server that come between two readings add up, and would look like a jump.
const MAX_IDLE_PARK: Duration = Duration::from_secs(60);

/// Interval between two rounds of retention.
const RETENTION_INTERVAL: Duration = Duration::from_millis(100);

/// Time for commands before the backlog is committed again.
const MAX_COMMAND_TIME: Duration = Duration::from_millis(20);

/// Maximum number of entries of one log in one commit.
const MAX_BATCH_ENTRIES: usize = 4096;

/// Maximum number of repairs of one file. A disk that damages it again and again is not to be
/// trusted with the rows either: then the file is set aside.
const MAX_REPAIRS: u32 = 3;

/// Maximum number of commits before commands and retention get their turn.
const MAX_COMMITS_PER_ROUND: usize = 8;
