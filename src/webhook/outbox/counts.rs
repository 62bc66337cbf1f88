//! Counts over all items of an outbox, so that no limit needs a scan.
//!
//! May use: `event`.

use crate::event::Event;

/// Counts over all items.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct OutboxCounts {
    /// Without redeliveries.
    pub(super) owed: u64,
    pub(super) in_flight: usize,
    /// Included in `in_flight`.
    pub(super) in_flight_retries: usize,
    pub(super) loaded: usize,
    pub(super) loaded_bytes: usize,
}

impl OutboxCounts {
    /// Adds or removes one attempt in flight.
    pub(super) fn count_in_flight(&mut self, is_retry: bool, begins: bool) {
        let retries = usize::from(is_retry);
        if begins {
            (self.in_flight, self.in_flight_retries) =
                (self.in_flight + 1, self.in_flight_retries + retries);
        } else {
            (self.in_flight, self.in_flight_retries) =
                (self.in_flight - 1, self.in_flight_retries - retries);
        }
    }

    /// Adds or removes one loaded event.
    pub(super) fn count_loaded(&mut self, event: &Event, begins: bool) {
        let bytes = event.size_bytes();
        if begins {
            (self.loaded, self.loaded_bytes) = (self.loaded + 1, self.loaded_bytes + bytes);
        } else {
            (self.loaded, self.loaded_bytes) = (self.loaded - 1, self.loaded_bytes - bytes);
        }
    }
}
