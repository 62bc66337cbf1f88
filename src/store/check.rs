//! The thread that checks a file that was not closed in order, while the store already works.
//!
//! SQLite's `quick_check` reads the whole file, so it runs beside readers and writer and is
//! interrupted when the store stops.
//!
//! May use: `error_chain`.

use std::{thread, time::Duration};

use super::{handle::StoreHandle, reader::StoreReader, sqlite::FileError};
use crate::error_chain::error_chain;

/// Checks the file once, and reports damage to the writer.
pub(super) fn run(handle: &StoreHandle) {
    // Read before the file is opened: a report must never name a newer file than the one checked.
    let generation = handle.generation();
    let checked = StoreReader::open(handle.path()).and_then(|reader| {
        let interrupt = reader.interrupt_handle();
        thread::scope(|scope| {
            let (done, watch) = std::sync::mpsc::channel::<()>();
            // Goes on after an interrupt: one that precedes the start of the query has no effect.
            // Ends when `done` is dropped.
            scope.spawn(move || {
                while watch.recv_timeout(STOP_POLL_INTERVAL)
                    == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
                {
                    if handle.is_stopping() {
                        interrupt.interrupt();
                    }
                }
            });
            let checked = reader.check();
            drop(done);
            checked
        })
    });
    match checked {
        Ok(()) => tracing::info!("the store is whole"),
        Err(_) if handle.is_stopping() => {}
        Err(FileError::Damaged { source, .. }) => {
            tracing::error!(damage = %source, "the check has found damage");
            handle.report_damage(generation);
        }
        Err(error) => {
            tracing::error!(problem = error_chain(&error), "the store could not be checked");
        }
    }
    handle.backing().set_checking(false);
}

/// Interval at which a check looks whether the store is stopping.
const STOP_POLL_INTERVAL: Duration = Duration::from_millis(100);
