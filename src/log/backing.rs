//! What a log and its readers need of the store: reads of what memory no longer holds, the writer's
//! wake-up, and the store's health.
//!
//! ```text
//! subscription ──► catch-up ──► queue ──► reader threads ──► chunk      one request per reader at a time
//! log, erasure, webhooks ──► signal, commands ──► the writer's thread   see `commands`
//! ```
//!
//! May use: `event`.

use std::{
    collections::VecDeque,
    fmt,
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

use super::{
    limits::ReadLimits,
    replay_permits::{PermitInUse, ReplayPermit, ReplayPermits},
};
use crate::event::{Entry, ProductId, Scope};

/// The store as everybody sees it but the writing thread.
#[derive(Debug)]
pub(crate) struct LogBacking {
    replay_permits: Arc<ReplayPermits>,
    read_queue: Mutex<VecDeque<QueuedRead>>,
    read_queued: Condvar,
    stopped: Condvar,
    writer: OnceLock<Thread>,
    is_writer_parked: AtomicBool,
    is_stopping: AtomicBool,
    has_failed: AtomicBool,
    is_checking: AtomicBool,
    started: Instant,
    /// Milliseconds after the start at which the write under way began, 0 for none.
    write_began_ms: AtomicU64,
}

/// One question of one reader.
#[derive(Debug)]
pub(crate) struct QueuedRead {
    pub(crate) request: ReadRequest,
    pub(crate) answer: oneshot::Sender<Result<StoredChunk, StoreUnreadable>>,
    pub(crate) permit_in_use: PermitInUse,
}

/// The store could not be read.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the store cannot be read")]
pub(crate) struct StoreUnreadable;

/// What to read: entries behind `after` up to `through` that the scope admits.
#[derive(Clone, Debug)]
pub(crate) struct ReadRequest {
    /// The product, as gaps name it.
    pub(crate) product: ProductId,
    /// The product's number in the file.
    pub(crate) product_number: u32,
    /// The place behind which to begin.
    pub(crate) after: u64,
    /// The last place. Must be higher than `after`.
    pub(crate) through: u64,
    /// Who may see what.
    pub(crate) scope: Scope,
    /// How much to return.
    pub(crate) limits: ReadLimits,
}

/// What one reading has found.
#[derive(Debug)]
pub(crate) struct StoredChunk {
    /// In order.
    pub(crate) entries: Vec<Entry>,
    /// Everything that the scope admits up to this place is in `keys`. Always beyond `after`.
    pub(crate) through: u64,
    /// Retention had taken everything up to this place by then. If that is beyond `after`, entries
    /// may be missing.
    pub(crate) evicted_through: u64,
}

impl LogBacking {
    /// A desk before the store at `path`, for `most` readers at one time.
    pub(crate) fn new(max_concurrent_replays: usize) -> Arc<Self> {
        Arc::new(Self {
            replay_permits: ReplayPermits::new(max_concurrent_replays),
            read_queue: Mutex::default(),
            read_queued: Condvar::new(),
            stopped: Condvar::new(),
            writer: OnceLock::new(),
            is_writer_parked: AtomicBool::new(false),
            is_stopping: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
            is_checking: AtomicBool::new(false),
            started: Instant::now(),
            write_began_ms: AtomicU64::new(0),
        })
    }

    /// Lets a reader catch up.
    pub(crate) fn catch_up(self: &Arc<Self>) -> CatchUp {
        CatchUp {
            backing: Arc::clone(self),
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

    /// Whether the writer cannot write.
    pub(crate) fn has_failed(&self) -> bool {
        self.has_failed.load(SeqCst)
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

    /// Whether the threads are to end.
    pub(crate) fn is_stopping(&self) -> bool {
        self.is_stopping.load(SeqCst)
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

    pub(crate) fn next_read(&self) -> Option<QueuedRead> {
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
    backing: Arc<LogBacking>,
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
                self.backing.submit_read(request.clone(), self.permit.begin_use()),
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

/// A write that takes longer than this is trouble, even if it ends well.
const SLOW_WRITE: Duration = Duration::from_secs(2);
