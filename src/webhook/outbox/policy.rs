//! Delivery policy of one webhook: retries, slots, and where events are.
//!
//! May use: nothing.

use std::time::Duration;

/// How hard a webhook is tried, and where what it is owed can be read again.
#[derive(Clone, Copy, Debug)]
pub(in crate::webhook) struct DeliveryPolicy {
    /// Attempts after the first.
    pub(in crate::webhook) max_retries: u32,
    /// The wait before the first retry, which doubles from there.
    pub(in crate::webhook) initial_backoff: Duration,
    /// The longest wait.
    pub(in crate::webhook) max_backoff: Duration,
    /// Deliveries that are under way, or settled and not yet written down.
    pub(in crate::webhook) max_in_flight: usize,
    /// Where events are.
    pub(in crate::webhook) event_storage: EventStorage,
}

/// Where the events are that are owed.
#[derive(Clone, Copy, Debug)]
pub(in crate::webhook) enum EventStorage {
    /// In the store: few need to be held here.
    InStore,
    /// Here alone. Beyond so many bytes the oldest becomes a dead letter.
    InMemory {
        /// Bytes of events, all overhead included.
        max_bytes: u64,
    },
}
