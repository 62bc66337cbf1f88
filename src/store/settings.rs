//! Location of the store, and its bounds.
//!
//! May use: no other module.

use std::{path::PathBuf, time::Duration};

/// Location of the store, and how much it keeps.
#[derive(Clone, Debug)]
pub(crate) struct StoreSettings {
    /// Directory of the file and its lock; it belongs to one process.
    pub(crate) directory: PathBuf,
    /// Time for which an event is kept.
    pub(crate) retention: Duration,
    /// Bytes of the file that may be in use, dead letters not counted.
    pub(crate) retention_bytes: u64,
    /// Time for which a dead letter is kept.
    pub(crate) dead_letter_retention: Duration,
    /// Bytes of the file that dead letters may take, counted separately.
    pub(crate) dead_letter_bytes: u64,
    /// Maximum number of readers at a time.
    pub(crate) max_concurrent_replays: usize,
}
