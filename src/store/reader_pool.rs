//! Threads that read the store's file for the logs' readers.
//!
//! May use: `error_chain`, `log`.

use std::time::Duration;

use super::{
    handle::StoreHandle,
    reader::StoreReader,
    sqlite::{FileError, FileFault},
};
use crate::{
    error_chain::error_chain,
    log::backing::{QueuedRead, ReadRequest, StoreUnreadable, StoredChunk},
};

impl StoreHandle {
    /// Answers questions until the store is stopped: what a reading thread does.
    pub(crate) fn serve_reads(&self) {
        // Opened before anybody asks: while the disk is full, it could not be.
        let generation = self.generation();
        let mut reader = StoreReader::open(self.path()).ok().map(|reader| (generation, reader));
        while let Some(QueuedRead { request, answer, permit_in_use }) = self.backing().next_read() {
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
            None if self.backing().has_failed() => {
                Err(FileFault::Refused("it is out of order").at(self.path(), "read entries from"))
            }
            None => StoreReader::open(self.path())
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
}

/// How often a question that could not be answered is tried again.
const READ_RETRIES: u32 = 3;

/// Between two tries.
const READ_RETRY_DELAY: Duration = Duration::from_millis(50);
