//! The clock of the store: times in the file are Unix milliseconds.
//!
//! May use: no other module.

use std::time::{SystemTime, UNIX_EPOCH};

/// Returns the present time in Unix milliseconds.
pub(super) fn unix_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}
