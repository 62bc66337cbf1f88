//! The store as its callers see it, and the signals that its threads pass to one another.
//!
//! ```text
//! callers ──► requests ──► channels ──► writer            one of commands, one of journals
//! reader threads, check ──► damage ───► writer            the file is set aside
//! reader threads, check ──► repair ───► writer            indices and counters are made anew
//! syncer ───────────────► sync failed ► writer            the file is closed and opened anew
//! writer ───────────────► generation ─► reader threads    the file is another one
//! ```
//!
//! May use: `log`, `log_limit`.

use std::{
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::{self, Thread},
    time::Duration,
};

use parking_lot::Mutex;

use super::{
    commands::{self, WriterInbox, WriterSenders},
    sqlite::FilesInPlace,
};
use crate::{log::backing::LogBacking, log_limit::LogRateLimit};

/// Handle to the store for its callers and its threads.
#[derive(Debug)]
pub(crate) struct StoreHandle {
    backing: Arc<LogBacking>,
    path: PathBuf,
    writer: WriterSenders,
    /// Number of files there have been. A reader thread opens the file anew when it differs from
    /// the number at its last open.
    generation: AtomicU64,
    /// Generation that was reported as damaged, plus 1; 0 for none.
    damage_report: AtomicU64,
    /// Generation whose indices or counters were reported as damaged, plus 1; 0 for none.
    repair_report: AtomicU64,
    /// Whether the counters of the current file have been found to fit its rows.
    is_checked: AtomicBool,
    /// Whether the session index does not have all rows of an earlier process yet.
    is_filling: AtomicBool,
    /// Whether every row has been found in the indices, and none is missing.
    are_indices_trusted: AtomicBool,
    /// The thread that checks the file; unset before it waits, and for a store in memory.
    check: OnceLock<Thread>,
    /// Limit on the error line that says a read has failed.
    read_failures: Mutex<LogRateLimit>,
    /// Files that the writer has open, or had open last; `None` if they were set aside.
    files: Mutex<Option<FilesInPlace>>,
    is_unsynced: AtomicBool,
    sync_failed: AtomicBool,
    #[cfg(test)]
    has_crashed: AtomicBool,
}

impl StoreHandle {
    /// Returns a handle to the store at `path` that serves `max_concurrent_replays` reads at a
    /// time, and what callers send to its writer.
    pub(crate) fn new(path: PathBuf, max_concurrent_replays: usize) -> (Arc<Self>, WriterInbox) {
        let (writer, inbox) = commands::channels();
        let handle = Arc::new(Self {
            backing: LogBacking::new(max_concurrent_replays),
            path,
            writer,
            generation: AtomicU64::new(0),
            damage_report: AtomicU64::new(0),
            repair_report: AtomicU64::new(0),
            is_checked: AtomicBool::new(true),
            is_filling: AtomicBool::new(false),
            are_indices_trusted: AtomicBool::new(true),
            check: OnceLock::new(),
            read_failures: Mutex::new(LogRateLimit::new()),
            files: Mutex::new(None),
            is_unsynced: AtomicBool::new(false),
            sync_failed: AtomicBool::new(false),
            #[cfg(test)]
            has_crashed: AtomicBool::new(false),
        });
        (handle, inbox)
    }

    /// Returns the part that the logs and their readers hold.
    pub(crate) fn backing(&self) -> &Arc<LogBacking> {
        &self.backing
    }

    /// Returns the path of the file.
    pub(crate) fn path(&self) -> &PathBuf {
        &self.path
    }

    /// Returns the channels to the writer.
    pub(super) fn writer(&self) -> &WriterSenders {
        &self.writer
    }

    /// Returns whether the file is to be replaced, repaired or closed.
    pub(crate) fn has_reports(&self) -> bool {
        self.damage_report.load(SeqCst) > 0
            || self.repair_report.load(SeqCst) > 0
            || self.sync_failed.load(SeqCst)
    }

    /// Records that the file of this generation is damaged. The writer sets it aside, unless it has
    /// been replaced since.
    pub(crate) fn report_damage(&self, generation: u64) {
        // The report carries its generation, and the writer compares it: a comparison here could be
        // overtaken by the replacement, and the report would then condemn the new file. The
        // maximum, so that a late report about an old file does not hide one about the current
        // file.
        self.damage_report.fetch_max(generation + 1, SeqCst);
        // After the report, see [`LogBacking::wake_writer`].
        self.backing.wake_writer();
    }

    /// Returns whether the current file was reported as damaged since the last call. Called by the
    /// writer, which alone replaces the file.
    pub(crate) fn take_damage(&self) -> bool {
        self.damage_report.swap(0, SeqCst) == self.generation() + 1
    }

    /// Records that indices or counters of the file of this generation do not fit its rows. No
    /// reader uses them until the writer has made them anew.
    pub(crate) fn report_repair(&self, generation: u64) {
        if generation == self.generation() {
            self.are_indices_trusted.store(false, SeqCst);
        }
        self.repair_report.fetch_max(generation + 1, SeqCst);
        self.backing.wake_writer(); // after the report, as in `report_damage`
        self.wake_check(); // it looks again after a while if the repair does not come
    }

    /// Returns whether indices or counters of the current file were reported as damaged since the
    /// last call. Called by the writer.
    pub(crate) fn take_repair(&self) -> bool {
        self.repair_report.swap(0, SeqCst) == self.generation() + 1
    }

    /// Records that the file is to be checked: it is of an earlier process, or was repaired.
    pub(crate) fn begin_check(&self) {
        self.are_indices_trusted.store(false, SeqCst);
        self.is_checked.store(false, SeqCst);
        self.wake_check();
    }

    /// Makes the calling thread the one that checks the file. It parks while nothing is to be
    /// checked, and is unparked when that changes and when the store stops.
    pub(super) fn register_check(&self) {
        let _ = self.check.set(thread::current());
    }

    /// Wakes the thread that checks the file. The caller has changed what it looks at before.
    fn wake_check(&self) {
        if let Some(check) = self.check.get() {
            check.unpark();
        }
    }

    /// Records that the writer adds rows of an earlier process to the session index. The check
    /// waits until the index has them.
    pub(crate) fn begin_filling(&self) {
        self.is_filling.store(true, SeqCst);
    }

    /// Records that the session index goes as far as the rows that were found at the start.
    pub(crate) fn end_filling(&self) {
        if self.is_filling.swap(false, SeqCst) {
            self.wake_check();
        }
    }

    /// Returns whether the session index does not have all rows of an earlier process yet.
    pub(crate) fn is_filling(&self) -> bool {
        self.is_filling.load(SeqCst)
    }

    /// Records which files the writer has open; `None` when they were set aside or are gone.
    pub(crate) fn set_files(&self, files: Option<FilesInPlace>) {
        *self.files.lock() = files;
    }

    /// Returns the files that the writer has open, or had last, if others have their names by now,
    /// or none. The other threads must not open these.
    pub(crate) fn displaced_files(&self) -> Option<FilesInPlace> {
        let files = *self.files.lock();
        let in_place = FilesInPlace::find(&self.path).ok()?;
        files.filter(|files| *files != in_place)
    }

    /// Returns whether the check of the current file is over: its counters fit its rows.
    pub(crate) fn is_checked(&self) -> bool {
        self.is_checked.load(SeqCst)
    }

    /// Returns whether readers may use the indices: no row is missing in them, nor in the file.
    pub(crate) fn are_indices_trusted(&self) -> bool {
        self.are_indices_trusted.load(SeqCst)
    }

    /// Records that the file of this generation was checked, and whether its indices may be used.
    pub(crate) fn mark_checked(&self, generation: u64, are_indices_trusted: bool) {
        if generation == self.generation() && self.repair_report.load(SeqCst) == 0 {
            self.are_indices_trusted.store(are_indices_trusted, SeqCst);
            self.is_checked.store(true, SeqCst);
        }
    }

    /// Returns whether to log a read that has failed: clients could fill the log with them.
    pub(crate) fn allow_read_failure_line(&self) -> bool {
        self.read_failures.lock().allow()
    }

    /// Returns the number of the current file.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(SeqCst)
    }

    /// Records that the file was replaced: readers open the new one, and reports of damage in the
    /// old one no longer count.
    pub(crate) fn mark_replaced(&self) {
        self.generation.fetch_add(1, SeqCst);
        // All of the new file is of this process.
        self.is_filling.store(false, SeqCst);
        self.are_indices_trusted.store(true, SeqCst);
        self.is_checked.store(true, SeqCst);
    }

    /// Records that the same file was opened anew, with another write-ahead log: readers open it
    /// again.
    pub(crate) fn mark_reopened(&self) {
        self.generation.fetch_add(1, SeqCst);
    }

    /// Records a commit that is not on the disk yet.
    pub(crate) fn mark_unsynced(&self) {
        self.is_unsynced.store(true, SeqCst);
    }

    /// Returns whether there was a commit since the last call.
    pub(crate) fn take_unsynced(&self) -> bool {
        self.is_unsynced.swap(false, SeqCst)
    }

    /// Records that commits may not have reached the disk. The writer closes the file: the kernel
    /// may have dropped the dirty pages, and a second sync would report them as written.
    pub(crate) fn report_sync_failure(&self) {
        self.sync_failed.store(true, SeqCst);
        self.backing.wake_writer();
    }

    /// Returns whether a sync has failed since the last call.
    pub(crate) fn take_sync_failure(&self) -> bool {
        self.sync_failed.swap(false, SeqCst)
    }

    /// Makes every thread end at once, without a last commit, as `kill -9` does.
    #[cfg(test)]
    pub(crate) fn crash(&self) {
        self.has_crashed.store(true, SeqCst);
        self.stop();
    }

    #[cfg(test)]
    pub(crate) fn has_crashed(&self) -> bool {
        self.has_crashed.load(SeqCst)
    }

    /// Tells every thread of the store to end.
    pub(crate) fn stop(&self) {
        self.backing.stop();
        self.wake_check();
    }

    /// Returns whether the store's threads are to end.
    pub(crate) fn is_stopping(&self) -> bool {
        self.backing.is_stopping()
    }

    /// Returns whether the store does less than it promises, see [`LogBacking::is_degraded`].
    pub(crate) fn is_degraded(&self) -> bool {
        self.backing.is_degraded()
    }

    /// Returns whether the file is still being checked after an unclean stop.
    pub(crate) fn is_recovering(&self) -> bool {
        self.backing.is_recovering()
    }

    /// Records whether the last write failed.
    pub(crate) fn set_failed(&self, has_failed: bool) {
        self.backing.set_failed(has_failed);
    }

    /// Records that a write begins.
    pub(crate) fn begin_write(&self) {
        self.backing.begin_write();
    }

    /// Records that no write is under way.
    pub(crate) fn end_write(&self) {
        self.backing.end_write();
    }

    /// Makes the calling thread the writer.
    pub(crate) fn register_writer(&self) {
        self.backing.register_writer();
    }

    /// Parks the writer's thread until there is work, `max_wait` at the longest.
    pub(crate) fn park_until_work(&self, max_wait: Duration, has_work: impl FnOnce() -> bool) {
        self.backing.park_until_work(max_wait, has_work);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_report_of_damage_concerns_the_file_of_its_generation_alone() {
        let (handle, _inbox) = StoreHandle::new(PathBuf::new(), 1);
        let old = handle.generation();
        handle.report_damage(old);
        assert!(handle.has_reports());
        assert!(handle.take_damage());
        assert!(!handle.take_damage() && !handle.has_reports(), "once");
        handle.report_damage(old);
        handle.mark_replaced();
        assert!(!handle.take_damage(), "reported before the file was replaced");
        handle.report_damage(handle.generation());
        handle.report_damage(old);
        assert!(handle.take_damage(), "a late report about the old file hides no other");
    }

    #[test]
    fn a_report_of_damage_that_races_with_a_replacement_leaves_the_new_file_alone() {
        for _ in 0..300 {
            let (handle, _inbox) = StoreHandle::new(PathBuf::new(), 1);
            let (old, is_replaced) = (handle.generation(), AtomicBool::new(false));
            thread::scope(|scope| {
                scope.spawn(|| {
                    while !is_replaced.load(SeqCst) {
                        handle.report_damage(old);
                    }
                });
                while !handle.has_reports() {
                    thread::yield_now();
                }
                handle.mark_replaced();
                is_replaced.store(true, SeqCst);
            });
            assert!(!handle.take_damage(), "the new file is set aside for damage in the old one");
        }
    }
}
