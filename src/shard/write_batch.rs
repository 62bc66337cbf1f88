//! Write batch: several buffers in one vectored write.
//!
//! May use: no other module.

use std::{collections::VecDeque, io::IoSlice};

use bytes::{Buf, Bytes};

/// Returns the first buffers as I/O slices, and their number.
pub(crate) fn io_slices(batch: &VecDeque<Bytes>) -> ([IoSlice<'_>; MAX_BATCH_BUFFERS], usize) {
    let mut slices = [IoSlice::new(&[]); MAX_BATCH_BUFFERS];
    let used =
        batch.iter().zip(&mut slices).map(|(buffer, slice)| *slice = IoSlice::new(buffer)).count();
    (slices, used)
}

/// Removes the first `written` bytes, for a partial write may end inside a buffer.
pub(crate) fn advance(batch: &mut VecDeque<Bytes>, mut written: usize) {
    while let Some(buffer) = batch.front_mut() {
        if written < buffer.len() {
            return buffer.advance(written);
        }
        written -= buffer.len();
        batch.pop_front();
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
