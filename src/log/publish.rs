//! The log as publishers see it: a door beside the upstream's, and word of when what came in by it is safe.
//!
//! May use: `event`, the log's own state.

use tokio::time::{Duration, MissedTickBehavior, interval, timeout};

use super::{Log, Numbering};
use crate::event::{Draft, EventId};

/// Where an event stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Appended {
    /// Its name for clients.
    pub(crate) id: EventId,
    /// Its place in the log.
    pub(crate) place: u64,
}

/// The upstream, itself a relay, gives the ids: what is published has to be published there.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("this log is numbered by its upstream")]
pub(crate) struct NumberedElsewhere;

impl Log {
    /// Whether the upstream, itself a relay, gives the ids, as far as that is known.
    pub(crate) fn is_numbered_elsewhere(&self) -> bool {
        self.state().numbering == Numbering::Upstream
    }

    /// Writes an event that did not come from the upstream behind everything so far. Never waits.
    ///
    /// # Errors
    ///
    /// [`NumberedElsewhere`], from the moment at which that is known.
    pub(crate) fn publish(&self, draft: Draft) -> Result<Appended, NumberedElsewhere> {
        let state = self.state();
        if state.numbering == Numbering::Upstream {
            return Err(NumberedElsewhere);
        }
        Ok(self.append_own(state, draft))
    }

    /// Waits until the entry at `place` is in the store. False without a store, and as soon as the store keeps less than it
    /// promises, or has lost the entry.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing: the entry is kept all the same.
    pub(crate) async fn is_durable(&self, place: u64) -> bool {
        timeout(PATIENCE, self.becomes_durable(place)).await.unwrap_or(false)
    }

    async fn becomes_durable(&self, place: u64) -> bool {
        let Some(store) = &self.store else { return false };
        let mut kept = self.kept();
        let mut look_again = interval(LOOK_AGAIN);
        look_again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // In this order: a commit that is reported after this look ends the wait below.
            if *kept.borrow_and_update() >= place {
                return self.has_committed(place);
            }
            if store.is_degraded() {
                return false;
            }
            tokio::select! {
                // Its sender is part of this log.
                _ = kept.changed() => {}
                // Nobody is told when the store begins to fail.
                _ = look_again.tick() => {}
            }
        }
    }

    fn has_committed(&self, place: u64) -> bool {
        self.state().shelf.as_ref().is_some_and(|shelf| shelf.has_committed(place))
    }
}

/// A commit takes some ten milliseconds.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A store that takes longer than two seconds calls itself degraded. This is in case it does not.
const PATIENCE: Duration = Duration::from_secs(10);
