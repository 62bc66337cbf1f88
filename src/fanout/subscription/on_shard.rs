//! The side of a subscription that its shard's task calls.
//!
//! May use: `event`.

use std::sync::atomic::Ordering;

use super::Subscription;
use crate::{event::Event, fanout::SubscriberRegistry};

impl Subscription {
    /// Whether its lane tells it what has arrived.
    pub(crate) fn is_on_shard(&self) -> bool {
        !self.is_indexed
    }

    /// From now on its lane tells it what arrives. Under the lock of the audience: whatever has
    /// been shown until now has left a mark, and nothing is shown to it from now on.
    pub(in crate::fanout) fn move_to_shard(&mut self, registry: &mut SubscriberRegistry) {
        if std::mem::take(&mut self.is_indexed) {
            registry.subscribers.remove(&self.scope, self.signal.key());
        }
        match self.is_lagging || self.is_waiting_for_log() {
            true => drop(self.signal.take_pending()), // it looks into the log in any case
            false => {
                self.is_lagging =
                    self.take_pending(self.fanout.dispatched_through.load(Ordering::SeqCst));
            }
        }
    }

    /// The entry at `place`, or one behind it, may be for it: it is to be polled, and looks into
    /// the log.
    pub(crate) fn resync_from(&mut self, position: u64) {
        // what lies before it has been given to it, or was for others
        self.advance_to(position.saturating_sub(1));
        self.is_lagging = true;
    }

    /// Everything up to `position` that is for it has arrived, and been given to it if it had
    /// everything before that.
    pub(crate) fn advance_to(&mut self, position: u64) {
        if self.is_caught_up() {
            self.cursor = self.cursor.max(position);
        }
    }

    /// Gives it an event that has arrived, if that is for it and it does not have it. It must be at
    /// the end of what it knew.
    pub(crate) fn accept(&mut self, event: &Event) -> bool {
        let is_for_it =
            event.position() > self.cursor && self.scope.includes(event.session(), event.kind());
        if is_for_it {
            self.cursor = event.position();
            self.last_delivered = Some((event.position(), event.id()));
        }
        is_for_it
    }
}
