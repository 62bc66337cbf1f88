//! State shared between the threads of the load, and the results of a thread.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicU64, AtomicUsize},
};

use crate::tally::{SubscriberRecord, Tally};

/// Results of one thread.
#[derive(Debug)]
pub(super) struct ThreadResults {
    pub(super) tally: Tally,
    pub(super) records: Vec<SubscriberRecord>,
}

/// State shared by the threads.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) connected: AtomicUsize,
    pub(super) caught_up: AtomicU64,
    pub(super) received: AtomicU64,
    pub(super) failure: Mutex<Option<String>>,
    pub(super) stop: AtomicBool,
}

/// Maximum of handshakes in progress per thread: well within the backlog of any target.
pub(super) const MAX_PENDING: usize = 128;
