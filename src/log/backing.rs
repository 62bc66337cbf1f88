//! What a log and its readers need of the store: reads of entries that memory no longer holds, the
//! writer's wake-up, and the store's health.
//!
//! ```text
//! subscription ──► CatchUp ──► queue ──► permit ──► reader threads ──► chunk   one request per reader
//! log, requests ──► wake_writer ──► the writer's thread            see `store::handle` for commands
//! ```
//!
//! The store's threads hold the same value and serve it; the log does not know them.
//!
//! May use: `event`.

use std::{
    fmt, mem,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    task::{Context, Poll, ready},
    thread::Thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use tokio::{
    sync::{oneshot, watch},
    time,
};

use super::{
    damaged_rows::DamagedRow,
    limits::ReadLimits,
    replay_permits::{ReplayClient, ReplayPermits, ReplayTicket},
};
use crate::event::{Entry, ProductId, Scope};

/// Signals between the logs, their readers and the store's threads.
///
/// Atomics are `SeqCst` throughout: parking the writer needs a single order over two of them, and
/// an append pays for one operation only, the swap in [`LogBacking::wake_writer`].
#[derive(Debug)]
pub(crate) struct LogBacking {
    read_queue: Mutex<ReplayPermits<QueuedRead>>,
    read_queued: Condvar,
    stopped: Condvar,
    writer: OnceLock<Thread>,
    is_writer_parked: AtomicBool,
    is_stopping: AtomicBool,
    health: watch::Sender<StoreHealth>,
    started: Instant,
    /// Milliseconds between `started` and the begin of the write under way, 0 for none.
    write_began_ms: AtomicU64,
}

/// What the store's threads report of it, as far as that does not show by time alone.
#[derive(Clone, Copy, Debug, Default)]
struct StoreHealth {
    /// The last write failed, so that the file is closed.
    has_failed: bool,
    /// The file is being checked after an unclean stop.
    is_checking: bool,
}

/// One reader's request on its way to a reader thread.
#[derive(Debug)]
pub(crate) struct QueuedRead {
    pub(crate) request: ReadRequest,
    pub(crate) answer: oneshot::Sender<Result<StoredChunk, StoreUnreadable>>,
}

/// Permit of a read under way, returned on drop.
#[derive(Debug)]
pub(crate) struct ReplayPermit<'a> {
    backing: &'a LogBacking,
}

impl Drop for ReplayPermit<'_> {
    fn drop(&mut self) {
        self.backing.read_queue.lock().release();
        self.backing.read_queued.notify_one();
    }
}

/// The store could not be read, or was stopped before it answered.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the store cannot be read")]
pub(crate) struct StoreUnreadable;

/// Range to read: entries behind `after` up to `through` that the scope admits.
#[derive(Clone, Debug)]
pub(crate) struct ReadRequest {
    /// Product, as gaps name it.
    pub(crate) product: ProductId,
    /// Number of the product in the file.
    pub(crate) product_number: u32,
    /// Position behind which the range begins.
    pub(crate) after: u64,
    /// Last position of the range; higher than `after`.
    pub(crate) through: u64,
    /// Entries that the reader may see.
    pub(crate) scope: Scope,
    /// Amount to return.
    pub(crate) limits: ReadLimits,
}

/// Result of one read.
#[derive(Debug)]
pub(crate) struct StoredChunk {
    /// Admitted entries, by position.
    pub(crate) entries: Vec<Entry>,
    /// Last position that was examined: everything that the scope admits up to here is in
    /// `entries`. Beyond `after`, or the row that follows is damaged: so a reader makes progress
    /// even if the scope admits nothing.
    pub(crate) through: u64,
    /// Last position that retention had removed, read in the same state of the file. If it is
    /// beyond `after`, entries may be missing.
    pub(crate) evicted_through: u64,
    /// Damaged row that follows `through`, or rows that are gone, if the chunk ends before them. It
    /// has no entries then.
    pub(crate) damaged: Option<DamagedRow>,
}

impl LogBacking {
    /// Returns signals for a store that serves `max_concurrent_replays` reads at a time.
    pub(crate) fn new(max_concurrent_replays: usize) -> Arc<Self> {
        Arc::new(Self {
            read_queue: Mutex::new(ReplayPermits::new(max_concurrent_replays)),
            read_queued: Condvar::new(),
            stopped: Condvar::new(),
            writer: OnceLock::new(),
            is_writer_parked: AtomicBool::new(false),
            is_stopping: AtomicBool::new(false),
            health: watch::Sender::default(),
            started: Instant::now(),
            write_began_ms: AtomicU64::new(0),
        })
    }

    /// Returns a reader's way through the store. Its reads are charged to `client`.
    pub(crate) fn catch_up(self: &Arc<Self>, client: ReplayClient) -> CatchUp {
        CatchUp { backing: Arc::clone(self), client, reads: 0, pending: None }
    }

    /// Wakes the writer if it is parked, and otherwise costs one atomic swap.
    pub(crate) fn wake_writer(&self) {
        // The caller has made its work visible before this swap, and the writer swaps the flag
        // before it looks for work. Of two swaps the later one sees the earlier one: either this
        // one sees that the writer is parked, or the writer sees the work.
        if self.is_writer_parked.swap(false, SeqCst)
            && let Some(writer) = self.writer.get()
        {
            writer.unpark();
        }
    }

    /// Returns whether the store does less than it promises: the last write failed, or a write
    /// takes longer than [`SLOW_WRITE`].
    pub(crate) fn is_degraded(&self) -> bool {
        self.has_failed() || self.time_until_slow().is_zero()
    }

    /// Waits until the store is degraded, see [`LogBacking::is_degraded`].
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing.
    pub(crate) async fn wait_until_degraded(&self) {
        let mut health = self.health.subscribe();
        while !self.is_degraded() {
            // No thread can tell of the write that it hangs in: that one shows by time alone.
            let _ = time::timeout(self.time_until_slow(), health.changed()).await;
        }
    }

    /// Returns the time after which the write under way, or one that begins now, is slow. Zero for
    /// a slow write.
    fn time_until_slow(&self) -> Duration {
        let elapsed = match self.write_began_ms.load(SeqCst) {
            0 => 0,
            began => self.elapsed_ms().saturating_sub(began),
        };
        SLOW_WRITE.saturating_sub(Duration::from_millis(elapsed))
    }

    /// Returns whether the file is still being checked after an unclean stop.
    pub(crate) fn is_recovering(&self) -> bool {
        self.health.borrow().is_checking
    }

    /// Records that the check begins or ends.
    pub(crate) fn set_checking(&self, is_checking: bool) {
        self.health.send_modify(|health| health.is_checking = is_checking);
    }

    /// Records whether the last write failed.
    pub(crate) fn set_failed(&self, has_failed: bool) {
        self.health.send_if_modified(|health| {
            mem::replace(&mut health.has_failed, has_failed) != has_failed
        });
    }

    /// Returns whether the last write failed, so that the file is closed.
    pub(crate) fn has_failed(&self) -> bool {
        self.health.borrow().has_failed
    }

    /// Records that a write begins.
    pub(crate) fn begin_write(&self) {
        self.write_began_ms.store(self.elapsed_ms().max(1), SeqCst);
    }

    /// Records that no write is under way.
    pub(crate) fn end_write(&self) {
        self.write_began_ms.store(0, SeqCst);
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Makes the calling thread the one that [`LogBacking::wake_writer`] unparks.
    pub(crate) fn register_writer(&self) {
        let _ = self.writer.set(std::thread::current());
    }

    /// Parks the writer's thread until there is work, `max_wait` at the longest.
    pub(crate) fn park_until_work(&self, max_wait: Duration, has_work: impl FnOnce() -> bool) {
        self.is_writer_parked.swap(true, SeqCst);
        // Asked once more behind the flag: work that came before the flag was set wakes no thread.
        // An `unpark` between this look and the park is not lost, it makes the park return at once.
        if !has_work() && !self.is_stopping() {
            std::thread::park_timeout(max_wait);
        }
        // Swapped, too, so that all changes of the flag are in one chain.
        self.is_writer_parked.swap(false, SeqCst);
    }

    /// Returns whether the store's threads are to end.
    pub(crate) fn is_stopping(&self) -> bool {
        self.is_stopping.load(SeqCst)
    }

    /// Tells every thread of the store to end.
    pub(crate) fn stop(&self) {
        self.is_stopping.store(true, SeqCst);
        // A thread that has just seen `is_stopping` unset holds this lock until it waits: after the
        // lock was free once, each thread either has seen the flag or waits for the notification.
        // Dropping a read answers its reader.
        drop(self.read_queue.lock().take_all());
        self.read_queued.notify_all();
        self.stopped.notify_all();
        // Set so that `wake_writer` unparks in any case: the writer may be about to park.
        self.is_writer_parked.swap(true, SeqCst);
        self.wake_writer();
    }

    /// Waits for [`LogBacking::stop`], `timeout` at the longest, and returns whether it was called.
    pub(crate) fn wait_for_stop(&self, timeout: Duration) -> bool {
        let mut queue = self.read_queue.lock();
        // The lock of the read queue serves this condition variable, too: nothing is read from the
        // queue.
        self.stopped.wait_while_for(&mut queue, |_| !self.is_stopping(), timeout);
        self.is_stopping()
    }

    /// Waits for the next read and a permit for it. `None` once the store is stopped.
    pub(crate) fn next_read(&self) -> Option<(QueuedRead, ReplayPermit<'_>)> {
        let mut queue = self.read_queue.lock();
        loop {
            if self.is_stopping() {
                return None;
            }
            if let Some(read) = queue.pop() {
                return Some((read, ReplayPermit { backing: self }));
            }
            self.read_queued.wait(&mut queue);
        }
    }

    fn submit_read(
        &self,
        client: ReplayClient,
        earlier_reads: u32,
        request: ReadRequest,
    ) -> PendingChunk {
        let through = request.through;
        let (answer, chunk) = oneshot::channel();
        let read = QueuedRead { request, answer };
        let mut queue = self.read_queue.lock();
        let ticket = queue.push(client, earlier_reads, read);
        // Asked under the lock, under which `stop` empties the queue once.
        let refused = self.is_stopping().then(|| queue.take_all());
        drop(queue);
        drop(refused);
        self.read_queued.notify_one();
        PendingChunk { through, ticket, chunk }
    }

    fn withdraw_read(&self, ticket: ReplayTicket) {
        // Dropped after the lock: a request holds a filter of up to a thousand sessions.
        let read = self.read_queue.lock().remove(ticket);
        drop(read);
    }
}

/// One reader's way through the store: one request at a time, each with a permit of its own.
/// Dropping it withdraws the request.
pub(crate) struct CatchUp {
    backing: Arc<LogBacking>,
    client: ReplayClient,
    /// Requests so far.
    reads: u32,
    pending: Option<PendingChunk>,
}

/// Answer that a reader waits for.
struct PendingChunk {
    /// Last position of the requested range.
    through: u64,
    ticket: ReplayTicket,
    chunk: oneshot::Receiver<Result<StoredChunk, StoreUnreadable>>,
}

impl CatchUp {
    /// Replaces the current request. The answer to an earlier one is dropped.
    pub(crate) fn request(&mut self, request: ReadRequest) {
        self.withdraw();
        self.pending = Some(self.backing.submit_read(self.client, self.reads, request));
        self.reads = self.reads.saturating_add(1);
    }

    /// Polls the current request. Ready with `None` if there is none, with a chunk, or with the
    /// last position of a range that could not be read.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost between calls. The waker is called when the answer is there.
    pub(crate) fn poll_chunk(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<StoredChunk, u64>>> {
        let Some(PendingChunk { through, chunk, .. }) = &mut self.pending else {
            return Poll::Ready(None);
        };
        let chunk = ready!(Pin::new(chunk).poll(context));
        let result = chunk.unwrap_or(Err(StoreUnreadable)).map_err(|StoreUnreadable| *through);
        self.pending = None;
        Poll::Ready(Some(result))
    }

    fn withdraw(&mut self) {
        if let Some(PendingChunk { ticket, .. }) = self.pending.take() {
            self.backing.withdraw_read(ticket);
        }
    }
}

impl Drop for CatchUp {
    fn drop(&mut self) {
        self.withdraw();
    }
}

impl fmt::Debug for CatchUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CatchUp").finish_non_exhaustive()
    }
}

/// Duration from which a write counts as trouble, even if it succeeds in the end. Publishers stop
/// waiting for a commit then.
const SLOW_WRITE: Duration = Duration::from_secs(2);
