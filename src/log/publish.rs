//! The log as publishers see it: appends an event, and reports when it is committed.
//!
//! May use: `event`.

use tokio::time::{Duration, MissedTickBehavior, interval, timeout};

use super::{Log, Numbering};
use crate::event::{Draft, EventId};

/// Where an event stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Appended {
    /// Its name for clients.
    pub(crate) id: EventId,
    /// Its place in the log.
    pub(crate) position: u64,
}

/// The upstream, itself a relay, gives the ids: what is published has to be published there.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("this log is numbered by its upstream")]
pub(crate) struct NumberedByUpstream;

impl Log {
    /// Whether the upstream, itself a relay, gives the ids, as far as that is known.
    pub(crate) fn is_numbered_by_upstream(&self) -> bool {
        self.state().numbering == Numbering::Upstream
    }

    /// Writes an event that did not come from the upstream behind everything so far. Never waits.
    ///
    /// # Errors
    ///
    /// [`NumberedByUpstream`], from the moment at which that is known.
    pub(crate) fn publish(&self, draft: Draft) -> Result<Appended, NumberedByUpstream> {
        let state = self.state();
        if state.numbering == Numbering::Upstream {
            return Err(NumberedByUpstream);
        }
        Ok(self.append_with_own_id(state, draft))
    }

    /// Waits until the entry at `position` is in the store. False without a store, and as soon as
    /// the store keeps less than it promises, or has lost the entry.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing: the entry is kept all the same.
    pub(crate) async fn wait_durable(&self, position: u64) -> bool {
        timeout(DURABLE_WAIT_TIMEOUT, self.wait_durable_untimed(position)).await.unwrap_or(false)
    }

    async fn wait_durable_untimed(&self, position: u64) -> bool {
        let Some(store) = &self.store else { return false };
        let mut persisted = self.watch_persisted();
        let mut degraded_poll = interval(DEGRADED_POLL_INTERVAL);
        degraded_poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // In this order: a commit that is reported after this look ends the wait below.
            if *persisted.borrow_and_update() >= position {
                return self.has_committed(position);
            }
            if store.is_degraded() {
                return false;
            }
            tokio::select! {
                // Its sender is part of this log.
                _ = persisted.changed() => {}
                // Nobody is told when the store begins to fail.
                _ = degraded_poll.tick() => {}
            }
        }
    }

    fn has_committed(&self, position: u64) -> bool {
        self.state().durable.as_ref().is_some_and(|shelf| shelf.has_committed(position))
    }
}

/// A commit takes some ten milliseconds.
const DEGRADED_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A store that takes longer than two seconds calls itself degraded. This is in case it does not.
const DURABLE_WAIT_TIMEOUT: Duration = Duration::from_secs(10);
