//! Delivery of queued events to a subscription: the side that its shard's task calls.
//!
//! ```text
//!  queued event, subscription caught up    accept       delivered as it is, cursor = its position
//!  queued event, subscription lagging      resync_from  reads the log
//!  queue empty up to a position            advance_to   cursor = position, nothing to deliver
//! ```
//!
//! May use: `event`, `fanout`.

use super::Subscription;
use crate::{event::Event, fanout::ShardPort};

impl Subscription {
    /// Returns whether the shard passes it what arrives.
    pub(crate) fn is_on_shard(&self) -> bool {
        !self.is_indexed
    }

    /// Moves this subscription from the fan-out's index to the shard of `port`. Entries dispatched
    /// before are recorded in `pending`, later ones arrive through the shard's queue.
    pub(crate) fn move_to_shard(&mut self, port: &ShardPort) {
        let position = port.take_over(&self.scope, &self.signal);
        self.is_indexed = false;
        // The fan-out's lock is not needed for `pending`: its position was read under the lock, and
        // since the signal has left the index, nothing becomes pending any more.
        match self.is_lagging || self.is_waiting_for_log() {
            true => drop(self.signal.take_pending()), // reads the log in any case
            false => self.is_lagging = self.take_pending(position),
        }
    }

    /// Makes the subscription read the log: the entry at `position`, or a later one, may be within
    /// its scope. The caller polls it.
    pub(crate) fn resync_from(&mut self, position: u64) {
        // Earlier entries have been delivered, or are not within the scope.
        self.advance_to(position.saturating_sub(1));
        self.is_lagging = true;
    }

    /// Moves the cursor to `position`, if the subscription is caught up: the shard has taken
    /// everything up to there, and passed on what is within the scope.
    pub(crate) fn advance_to(&mut self, position: u64) {
        if self.is_caught_up() {
            self.cursor = self.cursor.max(position);
        }
    }

    /// Moves the cursor to the entry at `position`, if it is a later one: the caller has delivered
    /// everything of the scope up to there.
    pub(crate) fn record_delivered(&mut self, position: u64) {
        if position > self.cursor {
            self.cursor = position;
            let id = self.fanout.log().id_at(position);
            self.last_delivered = id.map(|id| (position, id)).or(self.last_delivered);
        }
    }

    /// Moves the cursor over a queued event. Returns whether the caller has to deliver it: it is
    /// within the scope and was not delivered before. The subscription must be caught up.
    pub(crate) fn accept(&mut self, event: &Event) -> bool {
        let is_for_it =
            // The event may have been read from the log while it was queued.
            event.position() > self.cursor && self.scope.includes(event.scope_key());
        if is_for_it {
            self.cursor = event.position();
            self.last_delivered = Some((event.position(), event.id()));
        }
        is_for_it
    }
}
