//! The last deliveries that were accepted, to be looked at.
//!
//! May use: `delivery`, `event`.

use std::collections::VecDeque;

use crate::{event::SessionId, webhook_delivery::Delivery};

/// As many as the admin API promises.
pub(super) const MOST_DELIVERED: usize = 1000;

/// The last of them, oldest first, each with a running number.
#[derive(Debug, Default)]
pub(super) struct Delivered {
    last: VecDeque<(u64, Delivery)>,
    count: u64,
}

impl Delivered {
    /// Another one.
    pub(super) fn push(&mut self, delivery: Delivery) {
        self.count += 1;
        self.last.push_back((self.count, delivery));
        if self.last.len() > MOST_DELIVERED {
            self.last.pop_front();
        }
    }

    /// Newest first: at most `most` before the number `before`.
    pub(super) fn list(&self, before: Option<u64>, most: usize) -> Vec<(u64, Delivery)> {
        let before = before.unwrap_or(u64::MAX);
        let end = self.last.partition_point(|(number, _)| *number < before);
        self.last.range(..end).rev().take(most).cloned().collect()
    }

    /// The places behind `after` and up to `through` among them.
    pub(super) fn places(&self, after: u64, through: u64) -> Vec<u64> {
        let places = self.last.iter().map(|(_, delivery)| delivery.place);
        places.filter(|place| (after + 1..=through).contains(place)).collect()
    }

    /// Forgets those of a session.
    pub(super) fn erase(&mut self, session: &SessionId) {
        self.last.retain(|(_, delivery)| delivery.session.as_ref() != Some(session));
    }
}
