//! Delivery policy of one webhook: retries, slots, and the storage of its events.
//!
//! May use: no other module.

use std::time::Duration;

/// Limits on attempts, and the storage from which owed events can be read again.
#[derive(Clone, Copy, Debug)]
pub(in crate::webhook) struct DeliveryPolicy {
    /// Attempts after the first.
    pub(in crate::webhook) max_retries: u32,
    /// Delay before the first retry; each further one doubles.
    pub(in crate::webhook) initial_backoff: Duration,
    /// Upper bound of the delay.
    pub(in crate::webhook) max_backoff: Duration,
    /// Slots: deliveries in flight, or settled without a committed journal. Bounds duplicates after
    /// a crash.
    pub(in crate::webhook) max_in_flight: usize,
    /// Storage of the events of owed deliveries.
    pub(in crate::webhook) event_storage: EventStorage,
}

/// Storage of the events of owed deliveries.
#[derive(Clone, Copy, Debug)]
pub(in crate::webhook) enum EventStorage {
    /// The store has them: the outbox keeps few in memory and reads others again.
    InStore,
    /// Only the outbox has them. Beyond `max_bytes` the oldest delivery becomes a dead letter.
    InMemory {
        /// Bytes of events, overhead included.
        max_bytes: u64,
    },
}
