//! Reader threads: answer the requests of readers from the store's file.
//!
//! May use: `error_chain`, `log`, `log_limit`.

use std::time::Duration;

use super::{
    handle::StoreHandle,
    reader::StoreReader,
    sqlite::{FileError, FileFault},
};
use crate::{
    error_chain::error_chain,
    log::backing::{QueuedRead, ReadRequest, StoreUnreadable, StoredChunk},
    log_limit::LogRateLimit,
};

impl StoreHandle {
    /// Answers requests until the store is stopped. Runs on a reader thread.
    pub(crate) fn serve_reads(&self) {
        // Opened at once and not with the first request: while the disk is full, the file cannot be
        // opened. The generation is read before each open: a report must never name a newer file
        // than the one read.
        let generation = self.generation();
        let mut reader = StoreReader::open(self.path()).ok().map(|reader| (generation, reader));
        let mut log_limit = LogRateLimit::new();
        while let Some((QueuedRead { request, answer }, permit)) = self.backing().next_read() {
            // The reader has gone: dropping the request frees its permit.
            if answer.is_closed() {
                continue;
            }
            let generation = self.generation();
            // Compared with the generation now: the writer may have replaced the file since the
            // last request.
            if reader
                .as_ref()
                .is_some_and(|(opened_generation, _)| *opened_generation != generation)
            {
                reader = None;
            }
            let mut chunk = self.read_chunk(&mut reader, generation, &request);
            for _ in 0..READ_RETRIES {
                // A passing fault, such as too many open files, must not cost a client all that it
                // has missed.
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
                self.report_read_failure(&error, generation, &mut log_limit);
                StoreUnreadable
            });
            drop(permit); // before the answer: the reader's next request may follow at once
            let _ = answer.send(chunk); // the reader may be gone
        }
    }

    /// Reads with the thread's connection, or with a new one.
    fn read_chunk(
        &self,
        reader: &mut Option<(u64, StoreReader)>,
        generation: u64,
        request: &ReadRequest,
    ) -> Result<StoredChunk, FileError> {
        match reader {
            Some((_, reader)) => reader.fetch(request),
            // The writer may be about to set the file aside, or to record holes in it: an answer
            // from it could miss entries.
            None if self.backing().has_failed() => {
                Err(FileFault::Refused("its last write failed")
                    .at(self.path(), "read entries from"))
            }
            None => StoreReader::open(self.path())
                .and_then(|opened| reader.insert((generation, opened)).1.fetch(request)),
        }
    }

    fn report_read_failure(
        &self,
        error: &FileError,
        generation: u64,
        log_limit: &mut LogRateLimit,
    ) {
        // Clients cause this as often as they resume or ask for a page.
        if log_limit.allow() {
            tracing::error!(
                problem = error_chain(error),
                "the store cannot be read: streams get a gap instead, webhooks try again"
            );
        }
        if matches!(error, FileError::Damaged { .. }) {
            self.report_damage(generation);
        }
    }
}

/// Number of retries of a request that failed without damage.
const READ_RETRIES: u32 = 3;

/// Wait between two retries. A request may thus take 150 ms longer, which its reader's permit
/// covers.
const READ_RETRY_DELAY: Duration = Duration::from_millis(50);
