//! What the threads of the load note for themselves, tell each other, and are told.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicU64, AtomicUsize},
};

use crate::tally::{Ledger, Tally};

/// What one thread has seen.
#[derive(Debug)]
pub(super) struct Books {
    pub(super) tally: Tally,
    pub(super) ledgers: Vec<Ledger>,
}

/// What the threads tell, and are told.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) connected: AtomicUsize,
    pub(super) caught_up: AtomicU64,
    pub(super) received: AtomicU64,
    pub(super) failure: Mutex<Option<String>>,
    pub(super) stop: AtomicBool,
}

/// Handshakes under way, for each thread: well within the backlog of any target.
pub(super) const MOST_PENDING: usize = 128;
