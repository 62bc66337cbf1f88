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
        let is_on_shard = self.is_on_shard();
        let backlog = self.backlog.get_or_insert_default();
        // A subscription that no shard polls keeps its buffer while its socket is full.
        let limits = match is_on_shard && backlog.steady_reads >= MIN_STEADY_READS {
            true => READ_AHEAD_LIMITS,
            false => READ_BUFFER_LIMITS,
        };
        let buffer = &mut backlog.read_buffer;
        match self.fanout.log().read_after(self.cursor, &self.scope, limits, buffer) {
            ReadOutcome::Entries { read_through, reached_end, examined } => {
                let skipped = examined.saturating_sub(backlog.read_buffer.len());
                backlog.catch_up = None;
                backlog.steady_reads = 0;
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
                self.charge(self.scope.chain_count());
                self.is_lagging = true;
            }
            ReadOutcome::Lost { reason, lost_through } => {
                self.charge(self.scope.chain_count());
                self.skip_or_announce(reason, lost_through);
                self.is_lagging = true;
            }
        }
    }

    /// Forgets what was read ahead and not returned, and makes the next reads small. The caller's
    /// socket is full: a subscriber that takes its entries slowly must not pin more of them than
    /// its write batch, nor have entries read that it does not take.
    pub(crate) fn give_back_read_ahead(&mut self) {
        let returned_through = self.returned_through();
        let Some(backlog) = &mut self.backlog else { return };
        let has_read_ahead = mem::take(&mut backlog.steady_reads) > MIN_STEADY_READS;
        if has_read_ahead && !backlog.read_buffer.is_empty() {
            backlog.read_buffer.clear();
            self.cursor = returned_through;
            self.is_lagging = true;
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
                backlog.steady_reads = backlog.steady_reads.saturating_add(1);
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

/// One read of a long replay whose subscriber keeps up: what a round trip to a reader thread costs
/// is shared by four times as many entries. No more than a shard writes in one poll, so that the
/// buffer does not outlast the poll unless the socket is full.
const READ_AHEAD_LIMITS: ReadLimits = ReadLimits { entries: 64, bytes: 64 * 1024 };

/// Reads in a row that make a replay a long one. Also how much a subscriber must have taken since
/// its socket was full last: what it gives back then is a small part of what it has got.
const MIN_STEADY_READS: u32 = 8;

/// Time between two reads of a subscription that waits for the store to recover.
const STORE_RETRY_INTERVAL: Duration = Duration::from_secs(1);
