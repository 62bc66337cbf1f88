//! Several pieces in one write.
//!
//! May use: nothing.

use std::{collections::VecDeque, io::IoSlice};

use bytes::{Buf, Bytes};

/// The first pieces, as a socket takes them, and how many these are.
pub(crate) fn slices(pieces: &VecDeque<Bytes>) -> ([IoSlice<'_>; MOST_PIECES], usize) {
    let mut slices = [IoSlice::new(&[]); MOST_PIECES];
    let used = pieces.iter().zip(&mut slices).map(|(piece, slice)| *slice = IoSlice::new(piece)).count();
    (slices, used)
}

/// Takes away what has been written.
pub(crate) fn advance(pieces: &mut VecDeque<Bytes>, mut written: usize) {
    while let Some(piece) = pieces.front_mut() {
        if written < piece.len() {
            return piece.advance(written);
        }
        written -= piece.len();
        pieces.pop_front();
    }
}

/// Pieces in one write: a hand-over of the log, and a heartbeat, at least.
pub(crate) const MOST_PIECES: usize = 32;

/// Bytes after which a write takes no further piece.
pub(crate) const MOST_BYTES: usize = 32 * 1024;
