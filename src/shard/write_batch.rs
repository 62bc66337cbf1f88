//! Several pieces in one write.
//!
//! May use: no other module.

use std::{collections::VecDeque, io::IoSlice};

use bytes::{Buf, Bytes};

/// The first pieces, as a socket takes them, and how many these are.
pub(crate) fn io_slices(batch: &VecDeque<Bytes>) -> ([IoSlice<'_>; MAX_BATCH_BUFFERS], usize) {
    let mut slices = [IoSlice::new(&[]); MAX_BATCH_BUFFERS];
    let used =
        batch.iter().zip(&mut slices).map(|(buffer, slice)| *slice = IoSlice::new(buffer)).count();
    (slices, used)
}

/// Takes away what has been written.
pub(crate) fn advance(batch: &mut VecDeque<Bytes>, mut written: usize) {
    while let Some(buffer) = batch.front_mut() {
        if written < buffer.len() {
            return buffer.advance(written);
        }
        written -= buffer.len();
        batch.pop_front();
    }
}

/// Pieces in one write: a hand-over of the log, and a heartbeat, at least.
pub(crate) const MAX_BATCH_BUFFERS: usize = 32;

/// Bytes after which a write takes no further piece.
pub(crate) const MAX_BATCH_BYTES: usize = 32 * 1024;
