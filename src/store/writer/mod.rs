//! The store's writer: commits what has gathered in the logs and in the webhooks' journals,
//! executes commands, and applies retention.
//!
//! ```text
//! parked ── work ──► gather ──► commit ──► commands ──► retention ──► parked      syncing: see `syncer`
//! gather: 6 ms; where webhooks wait for commits, the rest of 2 ms since the last round, so that a
//!         single event waits for nothing
//! a failed write: the file is closed and opened anew a second later; meanwhile events stay in memory
//!         as long as its bounds allow
//! ```
//!
//! May use: `error_chain`, `log`, `metrics`.

mod commands;
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

use self::webhooks::RegisteredWebhooks;
use super::{
    StoreSettings,
    clock::unix_ms,
    commands::WebhookJournal,
    handle::StoreHandle,
    sqlite::{self, AppendBatch, FileError, FileFault, StoreFile, SyncMode},
    syncer,
};
use crate::{
    error_chain::error_chain,
    log::{Log, persist::UnpersistedBatch},
    metrics::StoreMetrics,
};

/// The one who writes.
#[derive(Debug)]
pub(super) struct StoreWriter {
    handle: Arc<StoreHandle>,
    logs: Vec<Arc<Log>>,
    webhooks: RegisteredWebhooks,
    settings: StoreSettings,
    metrics: StoreMetrics,
    state: WriterState,
    /// There is no file behind it, and nothing to keep of the logs.
    is_in_memory: bool,
    /// When the last round ended.
    last_round_ended: Instant,
    last_retired: Instant,
    /// Set while copies of what has been erased may be left in the file: when they are to be
    /// removed.
    scrub_at: Option<Instant>,
    last_scrubbed: Option<Instant>,
    /// There may be more to take away than has been.
    may_retire: bool,
    #[cfg(test)]
    script: tests::DiskScript,
}

#[derive(Debug)]
enum WriterState {
    Open(Box<StoreFile>),
    Failed { retry_at: Instant },
}

impl StoreWriter {
    /// A writer of these logs into `file`.
    pub(super) fn new(
        handle: Arc<StoreHandle>,
        logs: Vec<Arc<Log>>,
        file: StoreFile,
        settings: StoreSettings,
        metrics: StoreMetrics,
    ) -> Self {
        let now = Instant::now();
        let (scrub_at, is_in_memory) = (file.needs_scrub().then_some(now), file.is_in_memory());
        let state = WriterState::Open(Box::new(file));
        Self {
            handle,
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
            #[cfg(test)]
            script: tests::DiskScript::default(),
        }
    }

    /// Writes until the store is stopped and everything is kept. Who comes back is to be closed.
    pub(super) fn run(mut self) -> Self {
        self.handle.register_writer();
        while !self.handle.is_stopping() {
            let is_open = matches!(self.state, WriterState::Open(_));
            let has_work = || {
                self.handle.has_pending_work()
                    || (is_open && self.logs.iter().any(|log| log.backlog() > 0))
            };
            self.handle.park_until_work(self.max_park(), has_work);
            if !self.handle.is_stopping() {
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

    /// How long it waits for more before it commits. A webhook's worker sends nothing that is not
    /// committed, and takes on nothing until it has written down what it has done: a commit for
    /// each of them is one too many, and waiting longer than that is time lost.
    fn group_commit_delay(&self) -> Duration {
        match self.webhooks.is_empty() {
            true => GROUP_COMMIT_DELAY,
            false => WEBHOOK_GROUP_COMMIT_DELAY.saturating_sub(self.last_round_ended.elapsed()),
        }
    }

    /// How long it may sleep when there is nothing to write.
    fn max_park(&self) -> Duration {
        match &self.state {
            WriterState::Failed { retry_at } => retry_at.saturating_duration_since(Instant::now()),
            WriterState::Open(_) if self.may_retire => RETENTION_INTERVAL
                .saturating_sub(self.last_retired.elapsed())
                .max(GROUP_COMMIT_DELAY),
            WriterState::Open(_) => MAX_PARK,
        }
    }

    /// Writes what has come while the last write was under way, as long as that succeeds.
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

    fn backlog(&self) -> u64 {
        self.logs.iter().map(|log| log.backlog()).sum()
    }

    /// One round.
    fn run_round(&mut self) {
        if self.handle.take_damage() {
            self.replace("found by a reader or by the check");
        }
        if self.handle.take_sync_failure() && matches!(self.state, WriterState::Open(_)) {
            self.fail(
                &FileFault::Refused("its write-ahead log cannot be synced")
                    .at(self.handle.path(), "sync"),
            );
        }
        if let WriterState::Failed { retry_at } = self.state
            && (Instant::now() >= retry_at || self.handle.is_stopping())
        {
            self.reopen();
        }
        let result = self
            .commit_backlog()
            .and_then(|()| self.execute_commands())
            .and_then(|()| self.retire())
            .and_then(|()| self.scrub());
        self.last_round_ended = Instant::now();
        self.handle.end_write();
        match result {
            Ok(()) => {}
            Err(error @ FileError::Damaged { .. }) => self.replace(&error_chain(&error)),
            Err(error) => self.fail(&error),
        }
    }

    /// Commits what the logs and the webhooks have for the store.
    fn commit_backlog(&mut self) -> Result<(), FileError> {
        if matches!(self.state, WriterState::Failed { .. }) {
            self.handle.take_journals().into_iter().for_each(WebhookJournal::reject);
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
                unpersisted.iter().any(|(_, unkept)| unkept.entries.len() == MAX_BATCH_ENTRIES);
            let committed = self.commit(&unpersisted, &journals);
            if committed.is_err() {
                journals.into_iter().for_each(WebhookJournal::reject);
                return committed;
            }
            unpersisted.iter().for_each(|(log, unkept)| log.mark_persisted(unkept));
            for journal in journals {
                self.webhooks.advance_position(&journal.id, journal.changes.position);
                journal.confirm();
            }
            if !self.is_in_memory && sqlite::wal_bytes(self.handle.path()) > MAX_WAL_BYTES {
                // The syncer does not keep up: its checkpoints end before the log does. While the
                // writer waits, one does not.
                syncer::checkpoint(&self.handle);
            }
            if !has_more && !self.webhooks.is_empty() {
                return Ok(()); // what has come since gathers again: that is short
            }
        }
        Ok(())
    }

    /// What is to be written down of webhooks that are in the file. The others come back: what
    /// nobody has a place for would be gone, and their workers think that it is written.
    fn take_registered_journals(&self) -> Vec<WebhookJournal> {
        let journals = self.handle.take_journals().into_iter();
        let (registered, unregistered): (Vec<_>, Vec<_>) =
            journals.partition(|journal| self.webhooks.contains(&journal.id));
        unregistered.into_iter().for_each(WebhookJournal::reject);
        registered
    }

    /// Commits all of this, or nothing.
    fn commit(
        &mut self,
        unpersisted: &[(Arc<Log>, UnpersistedBatch)],
        journals: &[WebhookJournal],
    ) -> Result<(), FileError> {
        let WriterState::Open(file) = &mut self.state else { return Ok(()) };
        let batches: Vec<_> = unpersisted.iter().map(|(_, unkept)| append_batch(unkept)).collect();
        let changes = journals.iter().map(|journal| (&*journal.id, &journal.changes));
        self.handle.begin_write();
        let began = Instant::now();
        #[cfg(test)]
        self.script.before_commit(batches.len() + journals.len())?;
        let has_changed =
            file.append_with_journals(&batches, changes, SyncMode::Normal, unix_ms())?;
        #[cfg(test)]
        self.script.after_commit()?;
        self.metrics.commit_seconds.observe(began.elapsed().as_secs_f64());
        self.handle.end_write();
        self.handle.mark_unsynced();
        self.may_retire = true;
        if has_changed { self.webhooks.report_counts(file) } else { Ok(()) }
    }

    /// Closes the file, after everybody else has: the last one moves the write-ahead log into it.
    pub(super) fn close(self) {
        self.handle.reject_commands(); // if the last write failed
        #[cfg(test)]
        if self.handle.has_crashed() {
            return;
        }
        let backlog = self.backlog();
        if backlog > 0 {
            error!(events = backlog, "the newest events could not be kept");
        }
        if let WriterState::Open(file) = self.state
            && let Err(error) = file.close()
        {
            error!(problem = error_chain(&error), "the store could not be closed in order");
        }
    }
}

fn append_batch(unpersisted: &UnpersistedBatch) -> AppendBatch<'_> {
    let UnpersistedBatch { product_number: number, first, entries, spans, holes: missing } =
        unpersisted;
    AppendBatch { product_number: *number, first: *first, entries, spans, holes: missing }
}

/// What comes within this time goes into one commit.
const GROUP_COMMIT_DELAY: Duration = Duration::from_millis(6);

/// The same, where webhooks wait for it, and counted from the end of the round before: 500 commits
/// a second at the most.
const WEBHOOK_GROUP_COMMIT_DELAY: Duration = Duration::from_millis(2);

/// How long it sleeps when nobody wakes it: what is too old is looked for this often.
const MAX_PARK: Duration = Duration::from_secs(1);

/// The write-ahead log's bound.
const MAX_WAL_BYTES: u64 = 64 << 20;

/// Between two looks at what is too old.
const RETENTION_INTERVAL: Duration = Duration::from_millis(100);

/// Time for erasures before what has come since is committed.
const MAX_COMMAND_TIME: Duration = Duration::from_millis(20);

/// Entries of one log in one commit.
const MAX_BATCH_ENTRIES: usize = 4096;

/// Commits before it is looked after orders and retention again.
const MAX_COMMITS_PER_ROUND: usize = 8;
