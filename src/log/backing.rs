//! Where readers ask for what is only in the store, and where the writer is told that there is work.
//!
//! ```text
//! subscription ──► CatchUp ──► queue ──► reading threads ──► chunk        one question per reader at a time
//! log, erasure, webhooks ──► signal, orders ──► the writing thread       see `orders`
//! ```
//!
//! May use: `causes`, the file and its readers, the orders.

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

use super::replay_permits::{Asked, Ticket, Turns};
use crate::{
    error_chain::with_causes,
    store::{
        commands::Orders,
        reader::{Chunk, Reader, Wanted},
        sqlite::{Fault, FileError},
    },
};

/// The store as everybody sees it but the writing thread.
#[derive(Debug)]
pub(crate) struct Desk {
    path: PathBuf,
    turns: Arc<Turns>,
    questions: Mutex<VecDeque<Question>>,
    asked: Condvar,
    stopped: Condvar,
    orders: Mutex<Orders>,
    writer: OnceLock<Thread>,
    writer_sleeps: AtomicBool,
    is_stopping: AtomicBool,
    #[cfg(test)]
    has_crashed: AtomicBool,
    /// Counts the files there have been: readers of an old one must open the new one.
    generation: AtomicU64,
    is_damaged: AtomicBool,
    is_unsynced: AtomicBool,
    could_not_sync: AtomicBool,
    has_failed: AtomicBool,
    is_checking: AtomicBool,
    started: Instant,
    /// Milliseconds after the start at which the write under way began, 0 for none.
    writing_since: AtomicU64,
}

/// One question of one reader.
#[derive(Debug)]
struct Question {
    wanted: Wanted,
    answer: oneshot::Sender<Result<Chunk, Unreadable>>,
    asked: Asked,
}

/// The store could not be read.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the store cannot be read")]
pub(crate) struct Unreadable;

/// The store could not be written.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the store cannot be written")]
pub(crate) struct Unwritable;

impl Desk {
    /// A desk before the store at `path`, for `most` readers at one time.
    pub(crate) fn new(path: PathBuf, most: usize) -> Arc<Self> {
        Arc::new(Self {
            path,
            turns: Turns::new(most),
            questions: Mutex::default(),
            asked: Condvar::new(),
            stopped: Condvar::new(),
            is_unsynced: AtomicBool::new(false),
            could_not_sync: AtomicBool::new(false),
            orders: Mutex::default(),
            writer: OnceLock::new(),
            writer_sleeps: AtomicBool::new(false),
            is_stopping: AtomicBool::new(false),
            #[cfg(test)]
            has_crashed: AtomicBool::new(false),
            generation: AtomicU64::new(0),
            is_damaged: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
            is_checking: AtomicBool::new(false),
            started: Instant::now(),
            writing_since: AtomicU64::new(0),
        })
    }

    /// Lets a reader catch up.
    pub(crate) fn catch_up(self: &Arc<Self>) -> CatchUp {
        CatchUp { desk: Arc::clone(self), ticket: self.turns.ticket(), step: Step::Idle }
    }

    /// Tells the writer that a log has something for it. Costs next to nothing while it is awake.
    pub(crate) fn there_is_work(&self) {
        if self.writer_sleeps.swap(false, SeqCst)
            && let Some(writer) = self.writer.get()
        {
            writer.unpark();
        }
    }

    /// Everything that waits for the writing thread.
    pub(crate) fn orders(&self) -> MutexGuard<'_, Orders> {
        lock(&self.orders)
    }

    /// Whether the store keeps less than it promises: it has failed, or a write takes far too long.
    pub(crate) fn is_degraded(&self) -> bool {
        let since = self.writing_since.load(SeqCst);
        let is_slow = since > 0 && self.milliseconds().saturating_sub(since) > SLOW.as_millis() as u64;
        is_slow || self.has_failed.load(SeqCst)
    }

    /// Whether the file is still being checked after an unclean stop.
    pub(crate) fn is_recovering(&self) -> bool {
        self.is_checking.load(SeqCst)
    }

    /// Notes that a check begins or ends.
    pub(crate) fn checks(&self, is_checking: bool) {
        self.is_checking.store(is_checking, SeqCst);
    }

    /// Notes whether the writer can write.
    pub(crate) fn has_failed(&self, has_failed: bool) {
        self.has_failed.store(has_failed, SeqCst);
    }

    /// Notes that a write begins.
    pub(crate) fn writes(&self) {
        self.writing_since.store(self.milliseconds().max(1), SeqCst);
    }

    /// Notes that no write is under way.
    pub(crate) fn has_written(&self) {
        self.writing_since.store(0, SeqCst);
    }

    fn milliseconds(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Notes that the file of this generation is damaged; the writer sets it aside, unless it has done so already.
    pub(crate) fn is_damaged(&self, generation: u64) {
        if generation == self.generation() {
            self.is_damaged.store(true, SeqCst);
            self.there_is_work();
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
    pub(crate) fn is_replaced(&self) {
        self.generation.fetch_add(1, SeqCst);
        self.is_damaged.store(false, SeqCst);
    }

    /// Where the file is.
    pub(crate) fn path(&self) -> &PathBuf {
        &self.path
    }

    /// Makes the calling thread the writer.
    pub(crate) fn i_write(&self) {
        let _ = self.writer.set(std::thread::current());
    }

    /// Sleeps until there is work, `most` at the longest. `has_work` is asked once more behind the sign that it sleeps.
    pub(crate) fn sleep_until_work(&self, most: Duration, has_work: impl FnOnce() -> bool) {
        self.writer_sleeps.store(true, SeqCst);
        if !has_work() && !self.is_stopping() {
            std::thread::park_timeout(most);
        }
        self.writer_sleeps.store(false, SeqCst);
    }

    /// Whether orders wait.
    pub(crate) fn has_orders(&self) -> bool {
        self.is_damaged.load(SeqCst) || self.could_not_sync.load(SeqCst) || !lock(&self.orders).is_empty()
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
        drop(lock(&self.questions));
        self.asked.notify_all();
        self.stopped.notify_all();
        self.writer_sleeps.store(true, SeqCst);
        self.there_is_work();
    }

    /// Waits for the threads to be told to end, `most` at the longest, and tells whether they have been.
    pub(crate) fn wait_for_stop(&self, most: Duration) -> bool {
        let questions = lock(&self.questions);
        let _ = self.stopped.wait_timeout_while(questions, most, |_| !self.is_stopping());
        self.is_stopping()
    }

    /// Notes that something has been committed that is not on the disk yet.
    pub(crate) fn is_unsynced(&self) {
        self.is_unsynced.store(true, SeqCst);
    }

    /// Whether something has been committed since the last call.
    pub(crate) fn take_unsynced(&self) -> bool {
        self.is_unsynced.swap(false, SeqCst)
    }

    /// Notes that commits may not have reached the disk. The writer closes the file: what the operating system has dropped
    /// by then would count as written if it was synced again.
    pub(crate) fn could_not_sync(&self) {
        self.could_not_sync.store(true, SeqCst);
        self.there_is_work();
    }

    /// Whether that was noted since the last call.
    pub(crate) fn take_sync_failure(&self) -> bool {
        self.could_not_sync.swap(false, SeqCst)
    }

    /// Answers questions until the store is stopped: what a reading thread does.
    pub(crate) fn answer_questions(&self) {
        // Opened before anybody asks: while the disk is full, it could not be.
        let generation = self.generation();
        let mut reader = Reader::open(&self.path).ok().map(|reader| (generation, reader));
        while let Some(Question { wanted, answer, asked }) = self.next_question() {
            if answer.is_closed() {
                continue;
            }
            let generation = self.generation();
            if reader.as_ref().is_some_and(|(of, _)| *of != generation) {
                reader = None;
            }
            let mut chunk = self.read(&mut reader, generation, &wanted);
            for _ in 0..RETRIES {
                // What is passing, such as a file too many, must not cost a client all that it has missed.
                if matches!(&chunk, Err(FileError::Trouble { .. })) && generation == self.generation() {
                    reader = None;
                    std::thread::sleep(RETRY_AFTER);
                    chunk = self.read(&mut reader, generation, &wanted);
                }
            }
            let chunk = chunk.map_err(|error| {
                reader = None;
                self.could_not_read(&error, generation);
                Unreadable
            });
            drop(asked); // first, as the next question may follow at once
            let _ = answer.send(chunk); // who asked may have left
        }
    }

    /// Reads with the reader there is, or with a new one.
    fn read(&self, reader: &mut Option<(u64, Reader)>, generation: u64, wanted: &Wanted) -> Result<Chunk, FileError> {
        match reader {
            Some((_, reader)) => reader.fetch(wanted),
            // It may be about to be set aside, or to be told what it lacks.
            None if self.has_failed.load(SeqCst) => {
                Err(Fault::Refused("it is out of order").at(&self.path, "read entries from"))
            }
            None => Reader::open(&self.path).and_then(|opened| reader.insert((generation, opened)).1.fetch(wanted)),
        }
    }

    fn could_not_read(&self, error: &FileError, generation: u64) {
        let problem = with_causes(error);
        tracing::error!(problem, "the store cannot be read: streams get a gap instead, webhooks try again");
        if matches!(error, FileError::Damaged { .. }) {
            self.is_damaged(generation);
        }
    }

    fn next_question(&self) -> Option<Question> {
        let mut questions = lock(&self.questions);
        loop {
            if self.is_stopping() {
                return None;
            }
            if let Some(question) = questions.pop_front() {
                return Some(question);
            }
            questions = self.asked.wait(questions).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn ask(&self, wanted: Wanted, asked: Asked) -> oneshot::Receiver<Result<Chunk, Unreadable>> {
        let (answer, chunk) = oneshot::channel();
        lock(&self.questions).push_back(Question { wanted, answer, asked });
        self.asked.notify_one();
        chunk
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Lists: there is no half-done state that a panic could leave behind.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One reader on its way through the store. Asks for one chunk at a time, when it is its turn.
pub(crate) struct CatchUp {
    desk: Arc<Desk>,
    ticket: Ticket,
    step: Step,
}

enum Step {
    Idle,
    Waiting(Wanted),
    Asked { through: u64, chunk: oneshot::Receiver<Result<Chunk, Unreadable>> },
}

impl CatchUp {
    /// Wants this next.
    pub(crate) fn want(&mut self, wanted: Wanted) {
        self.step = Step::Waiting(wanted);
    }

    /// The chunk that is wanted, if one is; or the place up to which nothing could be read.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost between calls. While it waits for its turn, it must be called again every now and then.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Chunk, u64>>> {
        if let Step::Waiting(wanted) = &self.step {
            ready!(self.ticket.poll(context));
            let (through, chunk) = (wanted.through, self.desk.ask(wanted.clone(), self.ticket.asks()));
            self.step = Step::Asked { through, chunk };
        }
        let Step::Asked { through, chunk } = &mut self.step else {
            return Poll::Ready(None);
        };
        let chunk = ready!(Pin::new(chunk).poll(context));
        let result = chunk.unwrap_or(Err(Unreadable)).map_err(|Unreadable| *through);
        self.step = Step::Idle;
        Poll::Ready(Some(result))
    }

    /// Whether it waits for its turn, of which it may not be told.
    pub(crate) fn waits_for_its_turn(&self) -> bool {
        matches!(self.step, Step::Waiting(_))
    }
}

impl fmt::Debug for CatchUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CatchUp").finish_non_exhaustive()
    }
}

/// How often a question that could not be answered is tried again.
const RETRIES: u32 = 3;

/// Between two tries.
const RETRY_AFTER: Duration = Duration::from_millis(50);

/// A write that takes longer than this is trouble, even if it ends well.
const SLOW: Duration = Duration::from_secs(2);
