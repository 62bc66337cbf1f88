//! Reads of a subscription from the ring and the store, and the gaps they find.
//!
//! May use: `event`, `log`.

use std::{
    mem,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::Instant;

use super::{ReadFailurePolicy, Subscription};
use crate::{
    event::GapReason,
    log::{ReadLimits, ReadOutcome},
};

impl Subscription {
    /// Takes one hand-over from the log and moves the cursor over it, or finds out why there is
    /// none.
    pub(super) fn read_log(&mut self) {
        match self.fanout.log().read_after(
            self.cursor,
            &self.scope,
            READ_BUFFER_LIMITS,
            &mut self.read_buffer,
        ) {
            ReadOutcome::Entries { read_through, reached_end } => {
                self.catch_up = None;
                self.wants_oldest = false;
                self.cursor = read_through;
                self.is_lagging = !reached_end;
            }
            ReadOutcome::InStore { store, request } => {
                self.catch_up.get_or_insert_with(|| Box::new(store.catch_up())).request(request);
                self.is_lagging = true;
            }
            ReadOutcome::Lost { reason, lost_through } => {
                self.skip_or_announce(reason, lost_through);
                self.is_lagging = true;
            }
        }
    }

    /// Goes on behind what is gone, and announces that. Of what was in the log before it came, one
    /// that asked for what is kept has asked for no more than that; what came since is another
    /// matter.
    fn skip_or_announce(&mut self, reason: GapReason, lost_through: u64) {
        let asked_for_kept_only =
            mem::take(&mut self.wants_oldest) && lost_through <= self.live_after;
        match reason == GapReason::Evicted && asked_for_kept_only {
            true => self.cursor = lost_through,
            false => self.announce_gap(reason, lost_through),
        }
    }

    /// Announces that everything up to `through` is gone, and goes on behind the notice.
    fn announce_gap(&mut self, reason: GapReason, lost_through: u64) {
        let after = match reason {
            GapReason::NotKept => self.fanout.log().id_at(self.cursor),
            _ => self.last_delivered.map(|(_, id)| id),
        };
        let gap = self.fanout.log().lost_gap(reason, after, lost_through);
        self.cursor = gap.position;
        self.pending_gap = Some(Box::new(gap));
    }

    /// Takes the next chunk from the store, if the next entries are there. Ready with whether there
    /// was one.
    pub(super) fn poll_store(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        let Some(catch_up) = &mut self.catch_up else { return Poll::Ready(false) };
        let Some(chunk) = ready!(catch_up.poll_chunk(context)) else { return Poll::Ready(false) };
        match chunk {
            // Retention was faster.
            Ok(chunk) if chunk.evicted_through > self.cursor => {
                self.skip_or_announce(GapReason::Evicted, chunk.evicted_through);
            }
            Ok(chunk) => {
                self.wants_oldest = false;
                self.read_buffer.extend(chunk.entries);
                self.cursor = chunk.through;
            }
            Err(_)
                if let ReadFailurePolicy::RetryLater { not_before: until } =
                    &mut self.read_failure_policy =>
            {
                *until = Some(Instant::now() + STORE_RETRY_INTERVAL);
                self.catch_up = None; // others may have its turn meanwhile
            }
            Err(unread_through) => {
                self.fanout.log().count_unreadable();
                self.announce_gap(GapReason::NotKept, unread_through);
            }
        }
        self.is_lagging = true;
        Poll::Ready(true)
    }
}

/// One hand-over: enough to fill a write, little enough that a stalled subscriber pins next to
/// nothing.
const READ_BUFFER_LIMITS: ReadLimits = ReadLimits { entries: 16, bytes: 32 * 1024 };

/// Between two questions of a reader that waits for what the store cannot give now.
const STORE_RETRY_INTERVAL: Duration = Duration::from_secs(1);
