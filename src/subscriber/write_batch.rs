//! Write batch: the buffers of one vectored write, and what is left of them after a partial one.
//!
//! May use: no other module.

use std::{collections::VecDeque, io::IoSlice, time::Duration};

use bytes::{Buf, Bytes};

/// Buffers to be written, in order; the first may be the rest of one.
#[derive(Debug, Default)]
pub(crate) struct WriteBatch {
    buffers: VecDeque<Bytes>,
    bytes: usize,
}

impl WriteBatch {
    /// Adds a buffer at the end.
    pub(crate) fn push(&mut self, buffer: Bytes) {
        self.bytes += buffer.len();
        self.buffers.push_back(buffer);
    }

    /// Returns whether the batch has as much as one write takes.
    pub(crate) fn is_full(&self) -> bool {
        self.buffers.len() >= MAX_BATCH_BUFFERS || self.bytes >= MAX_BATCH_BYTES
    }

    /// Returns whether no byte is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.buffers.is_empty()
    }

    /// Removes all buffers.
    pub(crate) fn clear(&mut self) {
        self.buffers.clear();
        self.bytes = 0;
    }

    /// Moves the buffers of `other` to the end of this one; `other` keeps its capacity.
    pub(super) fn append(&mut self, other: &mut Self) {
        self.bytes += std::mem::take(&mut other.bytes);
        self.buffers.extend(other.buffers.drain(..));
    }

    /// Removes the first `written` bytes, for a partial write may end inside a buffer.
    pub(crate) fn advance(&mut self, mut written: usize) {
        self.bytes = self.bytes.saturating_sub(written);
        while let Some(buffer) = self.buffers.front_mut() {
            if written < buffer.len() {
                return buffer.advance(written);
            }
            written -= buffer.len();
            self.buffers.pop_front();
        }
    }

    /// Returns the first buffers as I/O slices, and their number.
    pub(super) fn slices(&self) -> ([IoSlice<'_>; MAX_BATCH_BUFFERS], usize) {
        let mut slices = [IoSlice::new(&[]); MAX_BATCH_BUFFERS];
        let pairs = self.buffers.iter().zip(&mut slices);
        let used = pairs.map(|(buffer, slice)| *slice = IoSlice::new(buffer)).count();
        (slices, used)
    }
}

/// Write buffers and counters that the subscribers of a shard share, so that an idle subscriber
/// holds no buffer of its own.
#[derive(Debug)]
pub(crate) struct WriteScratch {
    /// Buffers of the write under way; empty between two subscribers.
    pub(crate) batch: WriteBatch,
    /// Bytes written since the scheduler last reset the counter: the turn budget. With TLS, a
    /// stream counts the bytes of its records.
    pub(crate) written_bytes: usize,
    /// Time for which a socket may accept nothing before its stream is closed.
    pub(crate) write_timeout: Duration,
}

impl WriteScratch {
    /// Returns an empty scratch.
    pub(crate) fn new(write_timeout: Duration) -> Self {
        Self { batch: WriteBatch::default(), written_bytes: 0, write_timeout }
    }
}

/// Buffers in one write: one reading of the log (16 entries) and a heartbeat fit at least.
///
/// The slices live on the stack, 512 bytes of them.
pub(crate) const MAX_BATCH_BUFFERS: usize = 32;

/// Bytes after which a write takes no further buffer; the last one may be larger.
///
/// As much as one reading of the log, so that a stalled subscriber pins no more than that.
pub(crate) const MAX_BATCH_BYTES: usize = 32 * 1024;
