//! The store as its callers see it, and the signals that the store's threads pass to one another.
//!
//! May use: `log`.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use super::commands::CommandQueue;
use crate::log::backing::LogBacking;

/// The store as everybody sees it but the writing thread.
#[derive(Debug)]
pub(crate) struct StoreHandle {
    backing: Arc<LogBacking>,
    path: PathBuf,
    commands: Mutex<CommandQueue>,
    /// Counts the files there have been: readers of an old one must open the new one.
    generation: AtomicU64,
    is_damaged: AtomicBool,
    is_unsynced: AtomicBool,
    sync_failed: AtomicBool,
    #[cfg(test)]
    has_crashed: AtomicBool,
}

impl StoreHandle {
    /// A desk before the store at `path`, for `most` readers at one time.
    pub(crate) fn new(path: PathBuf, max_concurrent_replays: usize) -> Arc<Self> {
        Arc::new(Self {
            backing: LogBacking::new(max_concurrent_replays),
            path,
            commands: Mutex::default(),
            generation: AtomicU64::new(0),
            is_damaged: AtomicBool::new(false),
            is_unsynced: AtomicBool::new(false),
            sync_failed: AtomicBool::new(false),
            #[cfg(test)]
            has_crashed: AtomicBool::new(false),
        })
    }

    /// The part that the logs hold.
    pub(crate) fn backing(&self) -> &Arc<LogBacking> {
        &self.backing
    }

    /// Where the file is.
    pub(crate) fn path(&self) -> &PathBuf {
        &self.path
    }

    /// Everything that waits for the writing thread.
    pub(crate) fn commands(&self) -> MutexGuard<'_, CommandQueue> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether orders wait.
    pub(crate) fn has_pending_work(&self) -> bool {
        self.is_damaged.load(SeqCst)
            || self.sync_failed.load(SeqCst)
            || !self.commands.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Notes that the file of this generation is damaged; the writer sets it aside, unless it has
    /// done so already.
    pub(crate) fn report_damage(&self, generation: u64) {
        if generation == self.generation() {
            self.is_damaged.store(true, SeqCst);
            self.backing.wake_writer();
        }
    }

    /// Whether somebody has found the file damaged since the last call.
    pub(crate) fn take_damage(&self) -> bool {
        self.is_damaged.swap(false, SeqCst)
    }

    /// Counts the files there have been.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(SeqCst)
    }

    /// Has readers open the file anew. What was found in the old one is of no concern any more.
    pub(crate) fn mark_replaced(&self) {
        self.generation.fetch_add(1, SeqCst);
        self.is_damaged.store(false, SeqCst);
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
        self.backing.wake_writer();
    }

    /// Whether that was noted since the last call.
    pub(crate) fn take_sync_failure(&self) -> bool {
        self.sync_failed.swap(false, SeqCst)
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
        self.backing.stop();
    }

    /// Whether the threads are to end.
    pub(crate) fn is_stopping(&self) -> bool {
        self.backing.is_stopping()
    }

    /// Whether the store keeps less than it promises.
    pub(crate) fn is_degraded(&self) -> bool {
        self.backing.is_degraded()
    }

    /// Whether the file is still being checked after an unclean stop.
    pub(crate) fn is_recovering(&self) -> bool {
        self.backing.is_recovering()
    }

    /// Notes whether the writer can write.
    pub(crate) fn set_failed(&self, has_failed: bool) {
        self.backing.set_failed(has_failed);
    }

    /// Notes that a write begins.
    pub(crate) fn begin_write(&self) {
        self.backing.begin_write();
    }

    /// Notes that no write is under way.
    pub(crate) fn end_write(&self) {
        self.backing.end_write();
    }

    /// Makes the calling thread the writer.
    pub(crate) fn register_writer(&self) {
        self.backing.register_writer();
    }

    /// Sleeps until there is work.
    pub(crate) fn park_until_work(&self, max_wait: Duration, has_work: impl FnOnce() -> bool) {
        self.backing.park_until_work(max_wait, has_work);
    }
}
