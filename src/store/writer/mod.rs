//! The thread that writes the store: takes what has gathered in the logs and in the webhooks' journals, commits it, takes the
//! oldest away.
//!
//! ```text
//! asleep ── there is work ──► gather ──► commit ──► orders ──► retention ──► asleep            syncing: see `syncer`
//! gather: 6 ms; where webhooks wait for commits, what is left of 2 ms since the last round: nothing for who comes alone
//! a failed write: the file is closed, and opened anew a second later; meanwhile events stay in memory as long as they can
//! ```
//!
//! May use: `causes`, `metrics`, the logs, the file, the desk, the orders, the syncer.

mod commands;
mod retention;
#[cfg(test)]
mod tests;
mod webhooks;

use std::{
    mem,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use tracing::{error, info};

use self::webhooks::Registry;
use super::{
    Settings,
    commands::Journal,
    set_aside,
    sqlite::{self, Fault, File, FileError, Portion, Sync},
    syncer, unix_ms,
};
use crate::{
    error_chain::with_causes,
    log::{Log, Missing, backing::Desk, persist::Unkept},
    metrics::StoreMetrics,
};

/// The one who writes.
#[derive(Debug)]
pub(super) struct Writer {
    desk: Arc<Desk>,
    logs: Vec<Arc<Log>>,
    webhooks: Registry,
    settings: Settings,
    metrics: StoreMetrics,
    state: State,
    /// There is no file behind it, and nothing to keep of the logs.
    is_in_memory: bool,
    /// When the last round ended.
    worked: Instant,
    retired: Instant,
    /// Set while copies of what has been erased may be left in the file: when they are to be removed.
    scrub_at: Option<Instant>,
    scrubbed: Option<Instant>,
    /// There may be more to take away than has been.
    may_retire: bool,
    #[cfg(test)]
    script: tests::Script,
}

#[derive(Debug)]
enum State {
    Open(Box<File>),
    Failed { retry_at: Instant },
}

impl Writer {
    /// A writer of these logs into `file`.
    pub(super) fn new(
        desk: Arc<Desk>,
        logs: Vec<Arc<Log>>,
        file: File,
        settings: Settings,
        metrics: StoreMetrics,
    ) -> Self {
        let now = Instant::now();
        let (scrub_at, is_in_memory) = (file.needs_scrub().then_some(now), file.is_in_memory());
        let state = State::Open(Box::new(file));
        Self {
            desk,
            logs,
            webhooks: Registry::default(),
            settings,
            metrics,
            state,
            is_in_memory,
            worked: now,
            retired: now,
            scrub_at,
            scrubbed: None,
            may_retire: true,
            #[cfg(test)]
            script: tests::Script::default(),
        }
    }

    /// Writes until the store is stopped and everything is kept. Who comes back is to be closed.
    pub(super) fn run(mut self) -> Self {
        self.desk.i_write();
        while !self.desk.is_stopping() {
            let is_open = matches!(self.state, State::Open(_));
            let has_work = || self.desk.has_orders() || (is_open && self.logs.iter().any(|log| log.backlog() > 0));
            self.desk.sleep_until_work(self.pause(), has_work);
            if !self.desk.is_stopping() {
                thread::sleep(self.gather());
            }
            self.work();
        }
        #[cfg(test)]
        if self.desk.has_crashed() {
            return self;
        }
        self.finish();
        self
    }

    /// How long it waits for more before it commits. A webhook's worker sends nothing that is not committed, and takes on
    /// nothing until it has written down what it has done: a commit for each of them is one too many, and waiting longer than
    /// that is time lost.
    fn gather(&self) -> Duration {
        match self.webhooks.is_empty() {
            true => GATHER,
            false => GATHER_FOR_WEBHOOKS.saturating_sub(self.worked.elapsed()),
        }
    }

    /// How long it may sleep when there is nothing to write.
    fn pause(&self) -> Duration {
        match &self.state {
            State::Failed { retry_at } => retry_at.saturating_duration_since(Instant::now()),
            State::Open(_) if self.may_retire => RETIRE_EVERY.saturating_sub(self.retired.elapsed()).max(GATHER),
            State::Open(_) => IDLE,
        }
    }

    /// Writes what has come while the last write was under way, as long as that succeeds.
    fn finish(&mut self) {
        let mut left = u64::MAX;
        loop {
            self.work();
            let backlog = self.backlog();
            if backlog == 0 || backlog >= left {
                return;
            }
            left = backlog;
        }
    }

    fn backlog(&self) -> u64 {
        self.logs.iter().map(|log| log.backlog()).sum()
    }

    /// One round.
    fn work(&mut self) {
        if self.desk.take_damage() {
            self.replace("found by a reader or by the check");
        }
        if self.desk.take_sync_failure() && matches!(self.state, State::Open(_)) {
            self.fail(&Fault::Refused("its write-ahead log cannot be synced").at(self.desk.path(), "sync"));
        }
        if let State::Failed { retry_at } = self.state
            && (Instant::now() >= retry_at || self.desk.is_stopping())
        {
            self.reopen();
        }
        let result =
            self.write_all().and_then(|()| self.obey()).and_then(|()| self.retire()).and_then(|()| self.scrub());
        self.worked = Instant::now();
        self.desk.has_written();
        match result {
            Ok(()) => {}
            Err(error @ FileError::Damaged { .. }) => self.replace(&with_causes(&error)),
            Err(error) => self.fail(&error),
        }
    }

    /// Commits what the logs and the webhooks have for the store.
    fn write_all(&mut self) -> Result<(), FileError> {
        if matches!(self.state, State::Failed { .. }) {
            self.desk.take_journals().into_iter().for_each(Journal::refuse);
            return Ok(());
        }
        for _ in 0..MOST_COMMITS {
            let logs = self.logs.iter();
            let unkept: Vec<_> = logs.filter_map(|log| Some((Arc::clone(log), log.unkept(BATCH_ENTRIES)?))).collect();
            let journals = self.take_journals();
            if unkept.is_empty() && journals.is_empty() {
                return Ok(());
            }
            let is_more = unkept.iter().any(|(_, unkept)| unkept.entries.len() == BATCH_ENTRIES);
            let committed = self.commit(&unkept, &journals);
            if committed.is_err() {
                journals.into_iter().for_each(Journal::refuse);
                return committed;
            }
            unkept.iter().for_each(|(log, unkept)| log.has_been_kept(unkept));
            for journal in journals {
                self.webhooks.has_passed(&journal.id, journal.changes.position);
                journal.accept();
            }
            if !self.is_in_memory && sqlite::wal_bytes(self.desk.path()) > MOST_WAL_BYTES {
                // The syncer does not keep up: its checkpoints end before the log does. While the writer waits, one does not.
                syncer::checkpoint(&self.desk);
            }
            if !is_more && !self.webhooks.is_empty() {
                return Ok(()); // what has come since gathers again: that is short
            }
        }
        Ok(())
    }

    /// What is to be written down of webhooks that are in the file. The others come back: what nobody has a place for would be
    /// gone, and their workers think that it is written.
    fn take_journals(&self) -> Vec<Journal> {
        let journals = self.desk.take_journals().into_iter();
        let (known, unknown): (Vec<_>, Vec<_>) = journals.partition(|journal| self.webhooks.has(&journal.id));
        unknown.into_iter().for_each(Journal::refuse);
        known
    }

    /// Commits all of this, or nothing.
    fn commit(&mut self, unkept: &[(Arc<Log>, Unkept)], journals: &[Journal]) -> Result<(), FileError> {
        let State::Open(file) = &mut self.state else { return Ok(()) };
        let portions: Vec<_> = unkept.iter().map(|(_, unkept)| portion(unkept)).collect();
        let changes = journals.iter().map(|journal| (&*journal.id, &journal.changes));
        self.desk.writes();
        let began = Instant::now();
        #[cfg(test)]
        self.script.before_commit(portions.len() + journals.len())?;
        let has_changed = file.write_all(&portions, changes, Sync::Normal, unix_ms())?;
        #[cfg(test)]
        self.script.after_commit()?;
        self.metrics.commit.observe(began.elapsed().as_secs_f64());
        self.desk.has_written();
        self.desk.is_unsynced();
        self.may_retire = true;
        if has_changed { self.webhooks.tell_counts(file) } else { Ok(()) }
    }

    /// Closes a file that cannot be written. An I/O error is never answered by the same call again: what the operating
    /// system has dropped by then would count as written.
    fn fail(&mut self, error: &FileError) {
        error!(
            problem = with_causes(error),
            "the store cannot be written: events are delivered, but kept in memory alone; tried again every second"
        );
        self.desk.has_failed(true);
        self.abandon();
    }

    /// Leaves the file as it is, for a while.
    fn abandon(&mut self) {
        let failed = State::Failed { retry_at: Instant::now() + RETRY_AFTER };
        if let State::Open(file) = mem::replace(&mut self.state, failed) {
            file.abandon();
        }
    }

    fn reopen(&mut self) {
        let opened = if self.is_in_memory { self.begun_in_memory() } else { self.opened() };
        match opened {
            Ok(file) => {
                self.state = State::Open(Box::new(file));
                self.desk.has_failed(false);
                info!("the store can be written again");
            }
            Err(error @ FileError::Damaged { .. }) if !self.is_in_memory => self.replace(&with_causes(&error)),
            Err(error) => {
                tracing::debug!(problem = with_causes(&error), "the store still cannot be written");
                self.state = State::Failed { retry_at: Instant::now() + RETRY_AFTER };
            }
        }
    }

    /// Opens the file, and compares what it has with what the logs know of it.
    fn opened(&mut self) -> Result<File, FileError> {
        #[cfg(test)]
        self.script.opens();
        let mut file = File::open(self.desk.path())?;
        let (mut is_another, mut is_empty) = (false, true);
        for log in &self.logs {
            let kept = file.product(log.product())?;
            is_empty &= kept.newest == 0;
            is_another |= !log.agrees_with(kept);
        }
        match (is_another, is_empty) {
            (false, _) => {}
            (true, false) => return Err(Fault::found("another store has taken its place").at(self.desk.path(), "open")),
            (true, true) => {
                error!(file = %self.desk.path().display(), "the store is gone: what it kept cannot be replayed");
                self.desk.is_replaced();
                self.fill(&mut file)?;
            }
        }
        self.webhooks.restore(&mut file, unix_ms())?;
        file.sync(unix_ms())?; // opening and reading is not writing
        Ok(file)
    }

    /// What was in memory is gone with what has failed there.
    fn begun_in_memory(&mut self) -> Result<File, FileError> {
        let mut file = File::in_memory()?;
        self.webhooks.restore(&mut file, unix_ms())?;
        Ok(file)
    }

    /// Sets a damaged file aside, and begins a new one with what is in memory.
    fn replace(&mut self, damage: &str) {
        self.desk.has_failed(true);
        self.abandon();
        if self.is_in_memory {
            error!(damage, "what webhooks had in memory is damaged: begun anew");
            return self.reopen();
        }
        let path = self.desk.path();
        if let Err(problem) = set_aside(path, damage) {
            error!(file = %path.display(), %problem, "the damaged store cannot be set aside");
            return;
        }
        self.desk.is_replaced(); // at once: whoever has the old file open must not answer for the new one
        let begun = File::open(path).and_then(|mut file| {
            self.fill(&mut file)?;
            self.webhooks.restore(&mut file, unix_ms())?;
            Ok(file)
        });
        match begun {
            Ok(file) => {
                self.state = State::Open(Box::new(file));
                self.desk.has_failed(false);
            }
            Err(error) => self.fail(&error),
        }
    }

    /// Tells a file that has nothing of the logs which ids they have given, and the logs that they have lost what was kept.
    fn fill(&self, file: &mut File) -> Result<(), FileError> {
        for log in &self.logs {
            let number = file.product(log.product())?.number;
            let (next, spans) = log.has_lost_its_store(number);
            let lost = (next > 1).then_some(Missing { first: 1, last: next - 1 });
            let portion = Portion { number, first: next, entries: &[], spans: &spans, missing: lost.as_slice() };
            #[cfg(test)]
            self.script.before_commit(1)?;
            file.write(&[portion], Sync::Full, unix_ms())?;
        }
        Ok(())
    }

    /// Closes the file, after everybody else has: the last one moves the write-ahead log into it.
    pub(super) fn close(self) {
        self.desk.refuse_orders(); // if the last write failed
        #[cfg(test)]
        if self.desk.has_crashed() {
            return;
        }
        let backlog = self.backlog();
        if backlog > 0 {
            error!(events = backlog, "the newest events could not be kept");
        }
        if let State::Open(file) = self.state
            && let Err(error) = file.close()
        {
            error!(problem = with_causes(&error), "the store could not be closed in order");
        }
    }
}

fn portion(unkept: &Unkept) -> Portion<'_> {
    let Unkept { number, first, entries, spans, missing } = unkept;
    Portion { number: *number, first: *first, entries, spans, missing }
}

/// What comes within this time goes into one commit.
const GATHER: Duration = Duration::from_millis(6);

/// The same, where webhooks wait for it, and counted from the end of the round before: 500 commits a second at the most.
const GATHER_FOR_WEBHOOKS: Duration = Duration::from_millis(2);

/// How long it sleeps when nobody wakes it: what is too old is looked for this often.
const IDLE: Duration = Duration::from_secs(1);

/// The write-ahead log's bound.
const MOST_WAL_BYTES: u64 = 64 << 20;

/// Between two looks at what is too old.
const RETIRE_EVERY: Duration = Duration::from_millis(100);

/// Between two tries to write again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Time for erasures before what has come since is committed.
const MOST_OBEYING: Duration = Duration::from_millis(20);

/// Entries of one log in one commit.
const BATCH_ENTRIES: usize = 4096;

/// Commits before it is looked after orders and retention again.
const MOST_COMMITS: usize = 8;
