//! The thread that checks a file while the store already works.
//!
//! ```text
//! not closed in order   quick_check, in one pass: reads the whole file
//! always, and after     each entry is looked for in the indices, a few milliseconds at a time; dead
//! a repair              letters and rows are counted
//! ```
//!
//! Until the second is done, no reader uses an index, and nothing is deleted for its size: damaged
//! indices leave out rows, and damaged counters delete what is within its bounds.
//!
//! May use: `error_chain`.

use std::{
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use super::{
    handle::StoreHandle,
    reader::StoreReader,
    sqlite::{FileError, FileFault},
};
use crate::error_chain::error_chain;

/// Checks the file, and reports damage to the writer.
pub(super) fn run(handle: &StoreHandle, was_left_open: bool) {
    // Read before the file is opened: a report must never name a newer file than the one checked.
    let generation = handle.generation();
    if was_left_open {
        let checked = StoreReader::open(handle.path())
            .and_then(|reader| interruptible(handle, &reader, StoreReader::check));
        match checked {
            Ok(()) => tracing::info!("the store is whole"),
            Err(error) => report(handle, generation, &error),
        }
        handle.backing().set_checking(false);
    }
    let mut last_checked = Instant::now();
    handle.register_check();
    loop {
        let generation = handle.generation();
        // Again from time to time where rows are gone: retention removes the place in the end.
        let is_due = !handle.is_checked()
            || (!handle.are_indices_trusted() && last_checked.elapsed() >= UNTRUSTED_INTERVAL);
        if is_due && !handle.is_filling() && handle.displaced_files().is_none() {
            check_rows(handle, generation);
            last_checked = Instant::now();
        }
        // A request of a check between this look and the park is not lost: it makes the park return
        // at once.
        let pause = match () {
            // Under the lock that `stop` takes: it sees the registration above, or this sees the
            // stop.
            () if handle.backing().wait_for_stop(Duration::ZERO) => return,
            () if handle.is_filling() => MAX_PAUSE,
            () if !handle.is_checked() => RECHECK_INTERVAL,
            () if !handle.are_indices_trusted() => {
                UNTRUSTED_INTERVAL.saturating_sub(last_checked.elapsed()).max(RECHECK_INTERVAL)
            }
            () => MAX_PAUSE,
        };
        thread::park_timeout(pause);
    }
}

/// Checks what a change of single rows does not show. A file that cannot be read, as while the disk
/// is full, is checked later.
fn check_rows(handle: &StoreHandle, generation: u64) {
    let checked = StoreReader::open(handle.path()).and_then(|reader| {
        let fits = check_indices(handle, &reader)? && check_dead_letters(handle, &reader)?;
        let is_complete = fits && interruptible(handle, &reader, StoreReader::compare_row_counts)?;
        Ok((fits, is_complete))
    });
    match checked {
        _ if handle.is_stopping() => {}
        Ok((false, _)) => handle.report_repair(generation),
        Ok((true, is_complete)) => {
            if !is_complete {
                tracing::error!(
                    file = %handle.path().display(),
                    "rows of the store are gone: readers get a gap in their place; replays of single sessions are \
                     slower until retention has removed the place"
                );
            }
            handle.mark_checked(generation, is_complete);
        }
        Err(FileError::Damaged { source, .. }) => {
            // Left to the reader that comes to it: until then, what precedes it can be read.
            tracing::error!(damage = %source, "the check has found damage");
            handle.mark_checked(generation, false);
        }
        Err(error) => {
            tracing::debug!(problem = error_chain(&error), "the store is checked later");
        }
    }
}

/// Looks for all entries in the indices. Returns whether they are there.
fn check_indices(handle: &StoreHandle, reader: &StoreReader) -> Result<bool, FileError> {
    let mut after = Some(0);
    while let Some(last) = after
        && !handle.backing().wait_for_stop(CHECK_PAUSE)
    {
        after = match reader.check_indices(last) {
            Err(FileError::Damaged { source: FileFault::Damage(_), .. }) => return Ok(false),
            next => next?,
        };
    }
    Ok(true)
}

/// Checks dead letters, their indices and counters. Returns whether the last two fit the rows.
fn check_dead_letters(handle: &StoreHandle, reader: &StoreReader) -> Result<bool, FileError> {
    match interruptible(handle, reader, StoreReader::check_dead_letters) {
        Err(FileError::Damaged { source, .. }) if source.to_string().contains("index") => Ok(false),
        Err(error) => Err(error),
        Ok(()) => interruptible(handle, reader, StoreReader::compare_counters),
    }
}

/// Runs a check that the stop of the store interrupts.
fn interruptible<T>(
    handle: &StoreHandle,
    reader: &StoreReader,
    check: impl FnOnce(&StoreReader) -> Result<T, FileError>,
) -> Result<T, FileError> {
    let interrupt = reader.interrupt_handle();
    thread::scope(|scope| {
        let (done, watch) = mpsc::channel::<()>();
        // Goes on after an interrupt: one that precedes the start of the query has no effect. Ends
        // when `done` is dropped.
        scope.spawn(move || {
            while watch.recv_timeout(STOP_POLL_INTERVAL) == Err(mpsc::RecvTimeoutError::Timeout) {
                if handle.is_stopping() {
                    interrupt.interrupt();
                }
            }
        });
        let checked = check(reader);
        drop(done);
        checked
    })
}

fn report(handle: &StoreHandle, generation: u64, error: &FileError) {
    match error {
        _ if handle.is_stopping() => {}
        FileError::Damaged { source, .. } => {
            tracing::error!(damage = %source, "the check has found damage");
            handle.report_damage(generation);
        }
        error => {
            tracing::error!(problem = error_chain(error), "the store could not be checked");
        }
    }
}

/// Interval at which a check looks whether the store is stopping.
const STOP_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Pause between two steps of the check, each of some milliseconds: readers and writer need the
/// disk more.
const CHECK_PAUSE: Duration = Duration::from_millis(5);

/// Pause before a check is tried again, where the file could not be read, or is another one by now.
const RECHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Longest pause where nothing is to be checked: every wait has a bound.
const MAX_PAUSE: Duration = Duration::from_secs(3600);

/// Interval between checks of a file whose indices are not used because rows are gone: each check
/// reads the whole file.
const UNTRUSTED_INTERVAL: Duration = Duration::from_secs(3600);
