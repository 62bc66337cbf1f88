//! A writer with its log in a directory of their own, on a scripted disk.

use std::{
    collections::VecDeque,
    io,
    path::Path,
    sync::{Mutex, mpsc},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use tempfile::TempDir;

use super::super::*;
use crate::{
    event::{Draft, Entry, Kind, ProductId, Scope, SessionId},
    log::{
        MemoryBounds, Numbering, PersistedLog, ReadLimits, ReadOutcome,
        backing::{LogBacking, ReadRequest},
        epoch_after,
    },
    metrics::Metrics,
    store::reader::{Indices, StoreReader},
};

/// Script of the disk: the fate of commits with entries, one after the other, and a record of the
/// writer's steps.
#[derive(Clone, Debug, Default)]
pub(in crate::store::writer) struct DiskScript(Arc<Mutex<DiskScriptState>>);

#[derive(Debug, Default)]
struct DiskScriptState {
    commits: VecDeque<ScriptedCommit>,
    fails_after: bool,
    steps: Vec<WriterStep>,
}

/// Outcome of one commit.
#[derive(Debug)]
pub(super) enum ScriptedCommit {
    /// The commit blocks until the other end of the channel sends or is dropped.
    Block(mpsc::Receiver<()>),
    /// The disk fails before anything is written.
    FailBefore,
    /// The disk fails after everything is written.
    FailAfter,
}

/// Step of the writer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum WriterStep {
    Open,
    Commit,
}

impl DiskScript {
    pub(in crate::store::writer) fn before_commit(&self, parts: usize) -> Result<(), FileError> {
        if parts == 0 {
            return Ok(());
        }
        let commit = {
            let mut state = self.0.lock().unwrap();
            state.steps.push(WriterStep::Commit);
            let commit = state.commits.pop_front();
            state.fails_after = matches!(commit, Some(ScriptedCommit::FailAfter));
            commit
        };
        match commit {
            Some(ScriptedCommit::Block(until)) => drop(until.recv()),
            Some(ScriptedCommit::FailBefore) => return Err(disk_error()),
            Some(ScriptedCommit::FailAfter) | None => {}
        }
        Ok(())
    }

    pub(in crate::store::writer) fn after_commit(&self) -> Result<(), FileError> {
        match std::mem::take(&mut self.0.lock().unwrap().fails_after) {
            true => Err(disk_error()),
            false => Ok(()),
        }
    }

    pub(in crate::store::writer) fn record_open(&self) {
        self.0.lock().unwrap().steps.push(WriterStep::Open);
    }

    pub(super) fn steps(&self) -> Vec<WriterStep> {
        self.0.lock().unwrap().steps.clone()
    }
}

pub(super) fn disk_error() -> FileError {
    FileFault::from(io::Error::other("the disk says no"))
        .at(Path::new("relay.db"), "write entries to")
}

/// Writer and the log that it persists, in a directory of their own.
pub(super) struct WriterHarness {
    pub(super) _directory: TempDir,
    pub(super) writer: StoreWriter,
    pub(super) log: Arc<Log>,
    pub(super) metrics: Metrics,
}

impl WriterHarness {
    pub(super) fn new(memory_events: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("relay.db");
        let (metrics, bounds) =
            (Metrics::new().unwrap(), MemoryBounds { events: memory_events, bytes: u64::MAX });
        let mut file = StoreFile::open(&path).unwrap();
        let persisted = file.find_or_add_product(&product()).unwrap();
        let (handle, inbox) = StoreHandle::new(path, 4);
        let epoch = epoch_after(persisted.highest_epoch);
        let log = Log::restored(
            product(),
            bounds,
            persisted,
            epoch,
            false,
            Arc::clone(handle.backing()),
            metrics.log(&product()),
        );
        log.set_numbering(Numbering::Own);
        let settings = StoreSettings {
            directory: directory.path().to_owned(),
            retention: Duration::from_secs(3600),
            retention_bytes: 1 << 30,
            dead_letter_retention: Duration::MAX,
            dead_letter_bytes: 1 << 30,
            max_concurrent_replays: 4,
        };
        let log = Arc::new(log);
        let writer = StoreWriter::new(
            (handle, inbox),
            vec![Arc::clone(&log)],
            file,
            settings,
            metrics.store().clone(),
        );
        Self { _directory: directory, writer, log, metrics }
    }

    pub(super) fn script_commits(&self, commits: impl IntoIterator<Item = ScriptedCommit>) {
        self.writer.script.0.lock().unwrap().commits.extend(commits);
    }

    pub(super) fn append(&self, events: usize) {
        (0..events).for_each(|_| append(&self.log));
    }

    /// Ends the wait after an error and runs a round.
    pub(super) fn retry_round(&mut self) {
        assert!(matches!(self.writer.state, WriterState::Failed { .. }), "the writer is waiting");
        self.writer.state = WriterState::Failed { retry_at: Instant::now() };
        self.writer.run_round();
    }

    /// Returns the positions of all rows.
    pub(super) fn rows(&self) -> Vec<u64> {
        let reader = StoreReader::open(self.writer.handle.path()).unwrap();
        let mut rows = Vec::new();
        for position in 1..=self.log.newest_position() {
            let request = ReadRequest { after: position - 1, through: position, ..self.request() };
            let row = reader.fetch(&request, Indices::Trusted).map(|chunk| chunk.entries.len());
            rows.extend((row.unwrap_or(0) == 1).then_some(position));
        }
        rows
    }

    pub(super) fn request(&self) -> ReadRequest {
        let scope = Scope::EVERYTHING;
        ReadRequest {
            product: product(),
            product_number: self.log.product_number(),
            after: 0,
            through: 1,
            scope,
            limits: LIMITS,
        }
    }

    /// Returns where the log sends a reader at this position: memory, the store, or a gap's reason.
    pub(super) fn read(&self, position: u64) -> &'static str {
        match self.log.read_after(position, &self.request().scope, LIMITS, &mut VecDeque::new()) {
            ReadOutcome::Entries { .. } => "in memory",
            ReadOutcome::InStore { .. } => "in store",
            ReadOutcome::Lost { reason, .. } => reason.as_str(),
        }
    }

    pub(super) fn not_kept_gaps(&self) -> Option<f64> {
        let text = String::from_utf8(self.metrics.render().unwrap()).unwrap();
        let line = "autoplay_relay_gaps_total{product_id=\"p\",reason=\"not_kept\"} ";
        text.lines().find_map(|found| found.strip_prefix(line)).map(|count| count.parse().unwrap())
    }

    /// Drops the writer without closing its file, and opens log and file as the next process does.
    pub(super) fn restart(self) -> (PersistedLog, Log) {
        let path = self.writer.handle.path().clone();
        drop(self.writer);
        let kept = || StoreFile::open(&path).unwrap().find_or_add_product(&product()).unwrap();
        let (epoch, bounds) =
            (epoch_after(kept().highest_epoch), MemoryBounds { events: 16, bytes: u64::MAX });
        let (backing, metrics) = (LogBacking::new(4), self.metrics.log(&product()));
        (kept(), Log::restored(product(), bounds, kept(), epoch, false, backing, metrics))
    }
}

pub(super) fn product() -> ProductId {
    ProductId::new("p").unwrap()
}

pub(super) fn append(log: &Log) {
    let session = Some(SessionId::new("s").unwrap());
    let (payload, received) = (Bytes::from_static(b"{}"), tokio::time::Instant::now());
    log.append(Draft {
        kind: Kind::Actions,
        session,
        user: None,
        forwarded_at: None,
        payload,
        received,
    });
}

/// Returns all entries behind a position, as the fan-out takes them, without waiting.
pub(super) fn tail(log: &Log, mut position: u64) -> Vec<Entry> {
    let mut all = Vec::new();
    loop {
        let tail = std::pin::pin!(log.tail(position, 100));
        let Poll::Ready((_, entries)) = tail.poll(&mut Context::from_waker(Waker::noop())) else {
            return all;
        };
        position += entries.len() as u64;
        all.extend(entries);
    }
}

pub(super) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

pub(super) const LIMITS: ReadLimits = ReadLimits { entries: 16, bytes: usize::MAX };
