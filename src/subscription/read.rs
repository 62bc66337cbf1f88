//! Reads of a subscription from the ring and the store, and the gaps that they find.
//!
//! May use: `event`, `log`.

use std::{
    mem,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::Instant;

use super::Subscription;
use crate::{
    event::GapReason,
    log::{ReadLimits, ReadOutcome},
};

impl Subscription {
    /// Fills the read buffer from the log and moves the cursor over what was read, or notes why
    /// there was nothing to read.
    pub(super) fn read_log(&mut self) {
        let backlog = self.backlog.get_or_insert_default();
        let buffer = &mut backlog.read_buffer;
        match self.fanout.log().read_after(self.cursor, &self.scope, READ_BUFFER_LIMITS, buffer) {
            ReadOutcome::Entries { read_through, reached_end, examined } => {
                let skipped = examined.saturating_sub(backlog.read_buffer.len());
                backlog.catch_up = None;
                self.charge(skipped);
                self.wants_oldest = false;
                self.cursor = read_through;
                self.is_lagging = !reached_end;
            }
            ReadOutcome::InStore { store, request } => {
                let client = self.replay_client;
                backlog
                    .catch_up
                    .get_or_insert_with(|| Box::new(store.catch_up(client)))
                    .request(request);
                self.charge(self.scope.session_count());
                self.is_lagging = true;
            }
            ReadOutcome::Lost { reason, lost_through } => {
                self.charge(self.scope.session_count());
                self.skip_or_announce(reason, lost_through);
                self.is_lagging = true;
            }
        }
    }

    /// Counts work that a read has done in vain.
    fn charge(&mut self, skipped: usize) {
        self.skipped = self.skipped.wrapping_add(u32::try_from(skipped).unwrap_or(u32::MAX));
    }

    /// Moves the cursor past lost entries, and announces the loss unless the subscriber asked for
    /// kept entries only and the lost ones are older than the subscription. Entries that came since
    /// are a loss to it, too.
    fn skip_or_announce(&mut self, reason: GapReason, lost_through: u64) {
        let asked_for_kept_only =
            mem::take(&mut self.wants_oldest) && lost_through <= self.live_after;
        match reason == GapReason::Evicted && asked_for_kept_only {
            true => self.cursor = lost_through,
            false => self.announce_gap(reason, lost_through),
        }
    }

    /// Queues the notice that everything up to `lost_through` is lost, and moves the cursor behind
    /// it.
    fn announce_gap(&mut self, reason: GapReason, lost_through: u64) {
        let after = match reason {
            // A hole is a fact of the log: the notice names the entry before it. Else the notice
            // names the last id that this subscriber has.
            GapReason::NotKept => self.fanout.log().id_at(self.cursor),
            _ => self.last_delivered.map(|(_, id)| id),
        };
        let gap = self.fanout.log().lost_gap(reason, after, lost_through);
        self.cursor = gap.position;
        self.backlog.get_or_insert_default().pending_gap = Some(Box::new(gap));
    }

    /// Polls the store for the next entries. Ready with `true` if the read buffer, the cursor or a
    /// gap has changed, with `false` if the store is not being read.
    ///
    /// # Cancel safety
    ///
    /// A chunk is taken from the store only together with the cursor's move.
    pub(super) fn poll_store(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        let Some(backlog) = &mut self.backlog else { return Poll::Ready(false) };
        let Some(catch_up) = &mut backlog.catch_up else { return Poll::Ready(false) };
        let Some(chunk) = ready!(catch_up.poll_chunk(context)) else { return Poll::Ready(false) };
        match chunk {
            // Retention overtook the request: the rows between the cursor and `evicted_through` are
            // gone.
            Ok(chunk) if chunk.evicted_through > self.cursor => {
                self.skip_or_announce(GapReason::Evicted, chunk.evicted_through);
            }
            Ok(chunk) => {
                self.wants_oldest = false;
                backlog.read_buffer.extend(chunk.entries);
                self.cursor = chunk.through;
                if let Some(row) = chunk.damaged {
                    let position = row.position;
                    self.fanout.log().record_damaged_row(row);
                    self.announce_gap(GapReason::NotKept, position);
                }
            }
            Err(_) if self.retries_failed_reads => {
                backlog.retry_at = Some(Instant::now() + STORE_RETRY_INTERVAL);
                backlog.catch_up = None;
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

/// One read: enough to fill a write, and little enough that a stalled subscriber pins at most 16
/// entries or 32 KiB.
const READ_BUFFER_LIMITS: ReadLimits = ReadLimits { entries: 16, bytes: 32 * 1024 };

/// Time between two reads of a subscription that waits for the store to recover.
const STORE_RETRY_INTERVAL: Duration = Duration::from_secs(1);
