//! History of the last accepted deliveries, for the admin API.
//!
//! May use: `event`, `webhook_delivery`.

use std::collections::VecDeque;

use crate::{event::ErasedEvents, webhook_delivery::Delivery};

/// Length of the history, as the admin API documents it.
pub(super) const MAX_DELIVERED_HISTORY: usize = 1000;

/// The last accepted deliveries, oldest first, each with a running number that serves as a cursor.
#[derive(Debug, Default)]
pub(super) struct DeliveredHistory {
    recent: VecDeque<(u64, Delivery)>,
    total: u64,
}

impl DeliveredHistory {
    /// Appends a delivery; the oldest beyond [`MAX_DELIVERED_HISTORY`] is dropped.
    pub(super) fn push(&mut self, delivery: Delivery) {
        self.total += 1;
        self.recent.push_back((self.total, delivery));
        if self.recent.len() > MAX_DELIVERED_HISTORY {
            self.recent.pop_front();
        }
    }

    /// Returns up to `limit` deliveries before the number `before`, newest first.
    pub(super) fn list(&self, before: Option<u64>, limit: usize) -> Vec<(u64, Delivery)> {
        let before = before.unwrap_or(u64::MAX);
        let end = self.recent.partition_point(|(number, _)| *number < before);
        self.recent.range(..end).rev().take(limit).cloned().collect()
    }

    /// Returns the positions in the history after `after` and up to `through`.
    pub(super) fn positions_between(&self, after: u64, through: u64) -> Vec<u64> {
        let positions = self.recent.iter().map(|(_, delivery)| delivery.position);
        positions.filter(|position| (after + 1..=through).contains(position)).collect()
    }

    /// Removes the deliveries of erased events.
    pub(super) fn erase(&mut self, erased: &ErasedEvents) {
        self.recent
            .retain(|(_, delivery)| !erased.contains(delivery.position, delivery.session.as_ref()));
    }
}
