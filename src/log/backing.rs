//! What a log and its readers need of the store: reads of what memory no longer holds, the writer's
//! wake-up, and the store's health.
//!
//! ```text
//! subscription ──► catch-up ──► queue ──► reader threads ──► chunk      one request per reader at a time
//! log, erasure, webhooks ──► signal, commands ──► the writer's thread   see `commands`
//! ```
//!
//! May use: `error_chain`, `store`.

use std::{
    collections::VecDeque,
    fmt,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    task::{Context, Poll, ready},
    thread::Thread,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::replay_permits::{PermitInUse, ReplayPermit, ReplayPermits};
use crate::{
    error_chain::error_chain,
    store::{
        commands::CommandQueue,
        reader::{ReadRequest, StoreReader, StoredChunk},
        sqlite::{FileError, FileFault},
    },
};

/// The store as everybody sees it but the writing thread.
#[derive(Debug)]
pub(crate) struct StoreHandle {
    path: PathBuf,
    replay_permits: Arc<ReplayPermits>,
    read_queue: Mutex<VecDeque<QueuedRead>>,
    read_queued: Condvar,
    stopped: Condvar,
    commands: Mutex<CommandQueue>,
    writer: OnceLock<Thread>,
    is_writer_parked: AtomicBool,
    is_stopping: AtomicBool,
    #[cfg(test)]
    has_crashed: AtomicBool,
    /// Counts the files there have been: readers of an old one must open the new one.
    generation: AtomicU64,
    is_damaged: AtomicBool,
    is_unsynced: AtomicBool,
    sync_failed: AtomicBool,
    has_failed: AtomicBool,
    is_checking: AtomicBool,
    started: Instant,
    /// Milliseconds after the start at which the write under way began, 0 for none.
    write_began_ms: AtomicU64,
}

/// One question of one reader.
#[derive(Debug)]
struct QueuedRead {
    request: ReadRequest,
    answer: oneshot::Sender<Result<StoredChunk, StoreUnreadable>>,
    permit_in_use: PermitInUse,
}

/// The store could not be read.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the store cannot be read")]
pub(crate) struct StoreUnreadable;

/// The store could not be written.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the store cannot be written")]
pub(crate) struct StoreUnwritable;

impl StoreHandle {
    /// A desk before the store at `path`, for `most` readers at one time.
    pub(crate) fn new(path: PathBuf, max_concurrent_replays: usize) -> Arc<Self> {
        Arc::new(Self {
            path,
            replay_permits: ReplayPermits::new(max_concurrent_replays),
            read_queue: Mutex::default(),
            read_queued: Condvar::new(),
            stopped: Condvar::new(),
            is_unsynced: AtomicBool::new(false),
            sync_failed: AtomicBool::new(false),
            commands: Mutex::default(),
            writer: OnceLock::new(),
            is_writer_parked: AtomicBool::new(false),
            is_stopping: AtomicBool::new(false),
            #[cfg(test)]
            has_crashed: AtomicBool::new(false),
            generation: AtomicU64::new(0),
            is_damaged: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
            is_checking: AtomicBool::new(false),
            started: Instant::now(),
            write_began_ms: AtomicU64::new(0),
        })
    }

    /// Lets a reader catch up.
    pub(crate) fn catch_up(self: &Arc<Self>) -> CatchUp {
        CatchUp {
            handle: Arc::clone(self),
            permit: self.replay_permits.permit(),
            state: CatchUpState::Idle,
        }
    }

    /// Tells the writer that a log has something for it. Costs next to nothing while it is awake.
    pub(crate) fn wake_writer(&self) {
        if self.is_writer_parked.swap(false, SeqCst)
            && let Some(writer) = self.writer.get()
        {
            writer.unpark();
        }
    }

    /// Everything that waits for the writing thread.
    pub(crate) fn commands(&self) -> MutexGuard<'_, CommandQueue> {
        lock(&self.commands)
    }

    /// Whether the store keeps less than it promises: it has failed, or a write takes far too long.
    pub(crate) fn is_degraded(&self) -> bool {
        let since = self.write_began_ms.load(SeqCst);
        let is_slow =
            since > 0 && self.elapsed_ms().saturating_sub(since) > SLOW_WRITE.as_millis() as u64;
        is_slow || self.has_failed.load(SeqCst)
    }

    /// Whether the file is still being checked after an unclean stop.
    pub(crate) fn is_recovering(&self) -> bool {
        self.is_checking.load(SeqCst)
    }

    /// Notes that a check begins or ends.
    pub(crate) fn set_checking(&self, is_checking: bool) {
        self.is_checking.store(is_checking, SeqCst);
    }

    /// Notes whether the writer can write.
    pub(crate) fn set_failed(&self, has_failed: bool) {
        self.has_failed.store(has_failed, SeqCst);
    }

    /// Notes that a write begins.
    pub(crate) fn begin_write(&self) {
        self.write_began_ms.store(self.elapsed_ms().max(1), SeqCst);
    }

    /// Notes that no write is under way.
    pub(crate) fn end_write(&self) {
        self.write_began_ms.store(0, SeqCst);
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Notes that the file of this generation is damaged; the writer sets it aside, unless it has
    /// done so already.
    pub(crate) fn report_damage(&self, generation: u64) {
        if generation == self.generation() {
            self.is_damaged.store(true, SeqCst);
            self.wake_writer();
        }
    }

    /// Counts the files there have been.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(SeqCst)
    }

    /// Whether somebody has found the file damaged since the last call.
    pub(crate) fn take_damage(&self) -> bool {
        self.is_damaged.swap(false, SeqCst)
    }

    /// Has readers open the file anew. What was found in the old one is of no concern any more.
    pub(crate) fn mark_replaced(&self) {
        self.generation.fetch_add(1, SeqCst);
        self.is_damaged.store(false, SeqCst);
    }

    /// Where the file is.
    pub(crate) fn path(&self) -> &PathBuf {
        &self.path
    }

    /// Makes the calling thread the writer.
    pub(crate) fn register_writer(&self) {
        let _ = self.writer.set(std::thread::current());
    }

    /// Sleeps until there is work, `most` at the longest. `has_work` is asked once more behind the
    /// sign that it sleeps.
    pub(crate) fn park_until_work(&self, max_wait: Duration, has_work: impl FnOnce() -> bool) {
        self.is_writer_parked.store(true, SeqCst);
        if !has_work() && !self.is_stopping() {
            std::thread::park_timeout(max_wait);
        }
        self.is_writer_parked.store(false, SeqCst);
    }

    /// Whether orders wait.
    pub(crate) fn has_pending_work(&self) -> bool {
        self.is_damaged.load(SeqCst)
            || self.sync_failed.load(SeqCst)
            || !lock(&self.commands).is_empty()
    }

    /// Whether the threads are to end.
    pub(crate) fn is_stopping(&self) -> bool {
        self.is_stopping.load(SeqCst)
    }

    /// Has every thread end where it stands, as `kill -9` does.
    #[cfg(test)]
    pub(crate) fn crash(&self) {
        self.has_crashed.store(true, SeqCst);
        self.stop();
    }

    #[cfg(test)]
    pub(crate) fn has_crashed(&self) -> bool {
        self.has_crashed.load(SeqCst)
    }

    /// Has every thread end.
    pub(crate) fn stop(&self) {
        self.is_stopping.store(true, SeqCst);
        drop(lock(&self.read_queue));
        self.read_queued.notify_all();
        self.stopped.notify_all();
        self.is_writer_parked.store(true, SeqCst);
        self.wake_writer();
    }

    /// Waits for the threads to be told to end, `most` at the longest, and tells whether they have
    /// been.
    pub(crate) fn wait_for_stop(&self, timeout: Duration) -> bool {
        let queue = lock(&self.read_queue);
        let _ = self.stopped.wait_timeout_while(queue, timeout, |_| !self.is_stopping());
        self.is_stopping()
    }

    /// Notes that something has been committed that is not on the disk yet.
    pub(crate) fn mark_unsynced(&self) {
        self.is_unsynced.store(true, SeqCst);
    }

    /// Whether something has been committed since the last call.
    pub(crate) fn take_unsynced(&self) -> bool {
        self.is_unsynced.swap(false, SeqCst)
    }

    /// Notes that commits may not have reached the disk. The writer closes the file: what the
    /// operating system has dropped by then would count as written if it was synced again.
    pub(crate) fn report_sync_failure(&self) {
        self.sync_failed.store(true, SeqCst);
        self.wake_writer();
    }

    /// Whether that was noted since the last call.
    pub(crate) fn take_sync_failure(&self) -> bool {
        self.sync_failed.swap(false, SeqCst)
    }

    /// Answers questions until the store is stopped: what a reading thread does.
    pub(crate) fn serve_reads(&self) {
        // Opened before anybody asks: while the disk is full, it could not be.
        let generation = self.generation();
        let mut reader = StoreReader::open(&self.path).ok().map(|reader| (generation, reader));
        while let Some(QueuedRead { request, answer, permit_in_use }) = self.next_read() {
            if answer.is_closed() {
                continue;
            }
            let generation = self.generation();
            if reader
                .as_ref()
                .is_some_and(|(opened_generation, _)| *opened_generation != generation)
            {
                reader = None;
            }
            let mut chunk = self.read_chunk(&mut reader, generation, &request);
            for _ in 0..READ_RETRIES {
                // What is passing, such as a file too many, must not cost a client all that it has
                // missed.
                if matches!(&chunk, Err(FileError::Unavailable { .. }))
                    && generation == self.generation()
                {
                    reader = None;
                    std::thread::sleep(READ_RETRY_DELAY);
                    chunk = self.read_chunk(&mut reader, generation, &request);
                }
            }
            let chunk = chunk.map_err(|error| {
                reader = None;
                self.report_read_failure(&error, generation);
                StoreUnreadable
            });
            drop(permit_in_use); // first, as the next question may follow at once
            let _ = answer.send(chunk); // who asked may have left
        }
    }

    /// Reads with the reader there is, or with a new one.
    fn read_chunk(
        &self,
        reader: &mut Option<(u64, StoreReader)>,
        generation: u64,
        request: &ReadRequest,
    ) -> Result<StoredChunk, FileError> {
        match reader {
            Some((_, reader)) => reader.fetch(request),
            // It may be about to be set aside, or to be told what it lacks.
            None if self.has_failed.load(SeqCst) => {
                Err(FileFault::Refused("it is out of order").at(&self.path, "read entries from"))
            }
            None => StoreReader::open(&self.path)
                .and_then(|opened| reader.insert((generation, opened)).1.fetch(request)),
        }
    }

    fn report_read_failure(&self, error: &FileError, generation: u64) {
        let problem = error_chain(error);
        tracing::error!(
            problem,
            "the store cannot be read: streams get a gap instead, webhooks try again"
        );
        if matches!(error, FileError::Damaged { .. }) {
            self.report_damage(generation);
        }
    }

    fn next_read(&self) -> Option<QueuedRead> {
        let mut queue = lock(&self.read_queue);
        loop {
            if self.is_stopping() {
                return None;
            }
            if let Some(read) = queue.pop_front() {
                return Some(read);
            }
            queue = self.read_queued.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn submit_read(
        &self,
        request: ReadRequest,
        permit_in_use: PermitInUse,
    ) -> oneshot::Receiver<Result<StoredChunk, StoreUnreadable>> {
        let (answer, chunk) = oneshot::channel();
        lock(&self.read_queue).push_back(QueuedRead { request, answer, permit_in_use });
        self.read_queued.notify_one();
        chunk
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Lists: there is no half-done state that a panic could leave behind.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One reader on its way through the store. Asks for one chunk at a time, when it is its turn.
pub(crate) struct CatchUp {
    handle: Arc<StoreHandle>,
    permit: ReplayPermit,
    state: CatchUpState,
}

enum CatchUpState {
    Idle,
    AwaitingPermit(ReadRequest),
    AwaitingChunk { through: u64, chunk: oneshot::Receiver<Result<StoredChunk, StoreUnreadable>> },
}

impl CatchUp {
    /// Wants this next.
    pub(crate) fn request(&mut self, request: ReadRequest) {
        self.state = CatchUpState::AwaitingPermit(request);
    }

    /// The chunk that is wanted, if one is; or the place up to which nothing could be read.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost between calls. While it waits for its turn, it must be called again every
    /// now and then.
    pub(crate) fn poll_chunk(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<StoredChunk, u64>>> {
        if let CatchUpState::AwaitingPermit(request) = &self.state {
            ready!(self.permit.poll_acquire(context));
            let (through, chunk) = (
                request.through,
                self.handle.submit_read(request.clone(), self.permit.begin_use()),
            );
            self.state = CatchUpState::AwaitingChunk { through, chunk };
        }
        let CatchUpState::AwaitingChunk { through, chunk } = &mut self.state else {
            return Poll::Ready(None);
        };
        let chunk = ready!(Pin::new(chunk).poll(context));
        let result = chunk.unwrap_or(Err(StoreUnreadable)).map_err(|StoreUnreadable| *through);
        self.state = CatchUpState::Idle;
        Poll::Ready(Some(result))
    }

    /// Whether it waits for its turn, of which it may not be told.
    pub(crate) fn is_waiting_for_permit(&self) -> bool {
        matches!(self.state, CatchUpState::AwaitingPermit(_))
    }
}

impl fmt::Debug for CatchUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CatchUp").finish_non_exhaustive()
    }
}

/// How often a question that could not be answered is tried again.
const READ_RETRIES: u32 = 3;

/// Between two tries.
const READ_RETRY_DELAY: Duration = Duration::from_millis(50);

/// A write that takes longer than this is trouble, even if it ends well.
const SLOW_WRITE: Duration = Duration::from_secs(2);
