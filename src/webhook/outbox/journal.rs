//! Journal of one webhook: changes that the store does not have yet, in batches.
//!
//! In: changes of deliveries. Out: batches of changes, one in flight at a time: the cursor, and the
//! exceptions at or before it. The cost of a batch is linear in the changes since the last one.
//!
//! ```text
//! mark_dirty, settle, record_dead_letter ──► take_batch ──► committing ─┬─ record_commit
//!                                     ▲                                  └─ record_commit_failure
//!                                     └──────────── merged under newer changes ─────┘
//! ```
//!
//! A settled delivery occupies its slot until the batch with its settlement is committed. So every
//! delivery that was sent and is not recorded in the store was in one of `max_in_flight` slots, and
//! no more than that many are delivered twice after a crash.
//!
//! May use: `event`, `store`, `webhook_delivery`.

use std::collections::{BTreeMap, BTreeSet};

use super::item::{ItemKind, RowState};
use crate::{
    event::{ErasedEvents, SessionId},
    store::{DeliveryChange, OwedDelivery, WebhookChanges},
    webhook_delivery::DeadLetter,
};

/// Dead letters that wait for a store that cannot be written: a burst of refusals, not a day of
/// them.
pub(super) const MAX_UNWRITTEN_DEAD_LETTERS: usize = 1000;
/// Bytes of their payloads: a quarter of what the log of one product may take by default.
pub(super) const MAX_UNWRITTEN_DEAD_LETTER_BYTES: usize = 16 << 20;

/// Rows of one kind in a batch: some 10 ms of the store's writer, for which all other webhooks
/// wait.
const MAX_BATCH_ROWS: usize = 1000;
/// Bytes of dead letters' payloads after which a batch takes no further dead letter.
const MAX_BATCH_PAYLOAD_BYTES: usize = 1 << 20;

/// Changes that are not in the store yet.
#[derive(Debug, Default)]
pub(super) struct OutboxJournal {
    /// The cursor in the store.
    committed_cursor: u64,
    /// Owed, with a row that is missing or out of date.
    dirty: BTreeSet<u64>,
    /// Settled, with a row of the store that must go.
    settled: BTreeSet<u64>,
    /// Given up, not written yet.
    dead_letters: BTreeMap<u64, UnwrittenDeadLetter>,
    dead_letter_bytes: usize,
    /// Deliveries settled since the last batch, whether or not they need a row.
    occupied_slots: usize,
    /// A change is worth a batch at once. First rows of owed deliveries alone are not: most are
    /// settled before they are ever written.
    is_urgent: bool,
    /// Every batch reaches up to here; what comes behind waits. Urgent changes and settlements are
    /// all at or before it, and so are first rows that have waited for long.
    urgent_through: u64,
    /// The cursor when rows were last looked at for their age.
    aged_through: u64,
    /// The last commit failed, or the store is degraded: dead letters are bounded.
    is_store_degraded: bool,
    committing: Option<CommittingBatch>,
    lost_dead_letters: u64,
    /// [`MAX_BATCH_ROWS`], smaller in tests.
    pub(super) max_batch_rows: usize,
}

/// A dead letter that is to be written.
#[derive(Debug)]
struct UnwrittenDeadLetter {
    dead_letter: DeadLetter,
    /// The store has an owed row of the delivery, which brings the delivery back if this is never
    /// written.
    has_row: bool,
}

/// Contents of the batch in flight, as far as its outcome needs them.
#[derive(Debug, Default)]
struct CommittingBatch {
    cursor: u64,
    occupied_slots: usize,
    /// Owed, written for the first time.
    new_rows: BTreeSet<u64>,
    settled: BTreeSet<u64>,
    /// Given up: the session, and whether the store has an owed row.
    dead_letters: BTreeMap<u64, (Option<SessionId>, bool)>,
}

impl OutboxJournal {
    /// Creates the journal of a webhook whose cursor in the store is `cursor`.
    pub(super) fn new(cursor: u64) -> Self {
        Self {
            committed_cursor: cursor,
            aged_through: cursor,
            max_batch_rows: MAX_BATCH_ROWS,
            ..Self::default()
        }
    }

    /// Records that a delivery is newly owed, or that its row has changed; the latter is urgent.
    pub(super) fn mark_dirty(&mut self, position: u64, is_urgent: bool) {
        self.dirty.insert(position);
        if is_urgent {
            self.urge(position);
        }
    }

    /// Makes the next batch urgent, and lets it reach up to `position` at least.
    fn urge(&mut self, position: u64) {
        self.urgent_through = self.urgent_through.max(position);
        self.is_urgent = true;
    }

    /// Records that no owed row of this delivery is to be written.
    pub(super) fn clear_dirty(&mut self, position: u64) {
        self.dirty.remove(&position);
    }

    /// Records that the store has made a dead letter of the delivery, whose row is gone with that.
    pub(super) fn expire(&mut self, position: u64) {
        self.clear_dirty(position);
        // The store ignores owed rows at or before its expiry: the batch in flight brings no row.
        if let Some(committing) = &mut self.committing {
            committing.new_rows.remove(&position);
        }
    }

    /// Occupies the slot of a settled delivery until the next batch is committed.
    pub(super) fn occupy_slot(&mut self, position: u64) {
        self.occupied_slots += 1;
        self.urge(position);
    }

    /// Returns the slots of settled deliveries whose settlement a crash would lose.
    pub(super) fn occupied_slots(&self) -> usize {
        self.occupied_slots
            + self.committing.as_ref().map_or(0, |committing| committing.occupied_slots)
    }

    /// Returns whether the store has, or is about to have, a row of this delivery; `known` is what
    /// the item says. Redeliveries and expired deliveries have one: the dead letter.
    pub(super) fn row_state(
        &self,
        position: u64,
        known: RowState,
        item_kind: ItemKind,
    ) -> RowState {
        let is_committing = self
            .committing
            .as_ref()
            .is_some_and(|committing| committing.new_rows.contains(&position));
        if is_committing || item_kind != ItemKind::Owed { RowState::Present } else { known }
    }

    /// Records that the store's row of this position must go.
    pub(super) fn settle(&mut self, position: u64) {
        self.remove_dead_letter(position);
        self.settled.insert(position);
        self.urge(position);
    }

    /// Records a dead letter.
    pub(super) fn record_dead_letter(&mut self, dead_letter: DeadLetter, has_row: bool) {
        self.insert_dead_letter(dead_letter, has_row);
        // Bounded only while degraded: otherwise the next batch takes them.
        if self.is_store_degraded {
            self.enforce_unwritten_limit();
        }
    }

    fn insert_dead_letter(&mut self, dead_letter: DeadLetter, has_row: bool) {
        let position = dead_letter.delivery.position;
        self.remove_dead_letter(position);
        // The dead letter replaces the owed row, so it settles the position as well.
        self.settled.remove(&position);
        self.urge(position);
        self.dead_letter_bytes += dead_letter.payload.len();
        self.dead_letters.insert(position, UnwrittenDeadLetter { dead_letter, has_row });
    }

    fn remove_dead_letter(&mut self, position: u64) -> Option<UnwrittenDeadLetter> {
        let unwritten_letter = self.dead_letters.remove(&position)?;
        self.dead_letter_bytes -= unwritten_letter.dead_letter.payload.len();
        Some(unwritten_letter)
    }

    /// Drops the oldest dead letters beyond the bound. One with a row in the store is not lost:
    /// after a restart its delivery is tried and given up again.
    fn enforce_unwritten_limit(&mut self) {
        while self.dead_letters.len() > MAX_UNWRITTEN_DEAD_LETTERS
            || self.dead_letter_bytes > MAX_UNWRITTEN_DEAD_LETTER_BYTES
        {
            let Some((position, _)) = self.dead_letters.first_key_value() else { return };
            let position = *position;
            let is_lost = self
                .remove_dead_letter(position)
                .is_some_and(|unwritten_letter| !unwritten_letter.has_row);
            self.lost_dead_letters += u64::from(is_lost);
        }
    }

    /// Returns how many dead letters were lost since the last call.
    pub(super) fn take_lost_count(&mut self) -> u64 {
        std::mem::take(&mut self.lost_dead_letters)
    }

    /// Returns whether a settlement or dead letter of this position is still to be written, or in
    /// flight.
    pub(super) fn is_unwritten(&self, position: u64) -> bool {
        let committing = self.committing.as_ref();
        self.settled.contains(&position)
            || self.dead_letters.contains_key(&position)
            || committing.is_some_and(|committing| {
                committing.settled.contains(&position)
                    || committing.dead_letters.contains_key(&position)
            })
    }

    /// Returns whether a change is urgent and no batch is in flight.
    pub(super) fn is_due(&self) -> bool {
        self.is_urgent && self.committing.is_none()
    }

    /// Returns whether there is any change and no batch is in flight.
    pub(super) fn has_changes(&self, cursor: u64) -> bool {
        self.committing.is_none()
            && (self.is_urgent || self.has_deliveries() || cursor > self.committed_cursor)
    }

    /// Makes all changes urgent that were here at the last call. The caller calls this at even
    /// intervals, so that the cursor is behind by two of them at most.
    pub(super) fn urge_aged(&mut self, cursor: u64) {
        let aged_through = std::mem::replace(&mut self.aged_through, cursor);
        self.urgent_through = self.urgent_through.max(aged_through);
        let first_dirty = self.dirty.first().copied();
        let reach = self.first_waiting().map_or(cursor, |waiting| waiting.saturating_sub(1));
        self.is_urgent |= first_dirty.is_some_and(|first| first <= self.urgent_through)
            || reach > self.committed_cursor;
    }

    /// Makes all changes urgent, if there are any.
    pub(super) fn urge_all(&mut self, cursor: u64) {
        if cursor > self.committed_cursor || self.has_deliveries() {
            self.urge(cursor);
        }
    }

    fn has_deliveries(&self) -> bool {
        !(self.dirty.is_empty() && self.settled.is_empty() && self.dead_letters.is_empty())
    }

    /// Returns the first row that is not urgent.
    fn first_waiting(&self) -> Option<u64> {
        self.dirty.range(self.urgent_through.saturating_add(1)..).next().copied()
    }

    /// Takes the changes of one batch; `row_of` gives the row of an owed delivery and what the
    /// store has of it.
    ///
    /// First rows behind the last urgent change stay, and so do changes beyond the bound. The
    /// batch's cursor stays before the lowest of them: a cursor past a delivery without a row would
    /// declare it settled. If an urgent change stays, occupied slots stay occupied, because
    /// settlements behind the cursor are not recorded by this batch.
    pub(super) fn take_batch(
        &mut self,
        cursor: u64,
        row_of: impl Fn(u64) -> Option<(OwedDelivery, RowState)>,
    ) -> WebhookChanges {
        let beyond_bound = self.first_deferred();
        let deferred = beyond_bound.into_iter().chain(self.first_waiting()).min();
        let cursor = deferred.map_or(cursor, |rest| cursor.min(rest.saturating_sub(1)));
        let leaves_urgent = deferred.is_some_and(|rest| rest <= self.urgent_through);
        let slots = if leaves_urgent { 0 } else { std::mem::take(&mut self.occupied_slots) };
        let mut committing =
            CommittingBatch { cursor, occupied_slots: slots, ..CommittingBatch::default() };
        let mut deliveries = BTreeMap::new();
        let deferred_dirty = deferred.map(|rest| self.dirty.split_off(&rest)).unwrap_or_default();
        for position in std::mem::replace(&mut self.dirty, deferred_dirty) {
            let Some((owed, row)) = row_of(position) else { continue };
            // Remembered until the commit: the delivery may be settled meanwhile, and then its
            // settlement must delete this row (`row_state`).
            if row != RowState::Present {
                committing.new_rows.insert(position);
            }
            deliveries.insert(position, DeliveryChange::Owed(owed));
        }
        let deferred_settled =
            deferred.map(|rest| self.settled.split_off(&rest)).unwrap_or_default();
        committing.settled = std::mem::replace(&mut self.settled, deferred_settled);
        deliveries
            .extend(committing.settled.iter().map(|position| (*position, DeliveryChange::Settled)));
        let deferred_dead_letters =
            deferred.map(|rest| self.dead_letters.split_off(&rest)).unwrap_or_default();
        for (position, UnwrittenDeadLetter { dead_letter, has_row }) in
            std::mem::replace(&mut self.dead_letters, deferred_dead_letters)
        {
            self.dead_letter_bytes -= dead_letter.payload.len();
            committing
                .dead_letters
                .insert(position, (dead_letter.delivery.session.clone(), has_row));
            deliveries.insert(position, DeliveryChange::Dead(dead_letter));
        }
        // What was deferred follows at once, so that its slots are free soon.
        (self.is_urgent, self.committing) = (leaves_urgent, Some(committing));
        WebhookChanges { position: cursor, deliveries }
    }

    /// Returns the lowest position that does not fit the batch, if any.
    fn first_deferred(&self) -> Option<u64> {
        let beyond = |positions: &BTreeSet<u64>| positions.iter().nth(self.max_batch_rows).copied();
        let (mut count, mut bytes) = (0, 0);
        // Bytes are compared before the payload is added: a batch takes at least one dead letter,
        // however large.
        let first_dead_letter = self.dead_letters.iter().find(|(_, unwritten_letter)| {
            let is_beyond = count >= self.max_batch_rows || bytes >= MAX_BATCH_PAYLOAD_BYTES;
            (count, bytes) = (count + 1, bytes + unwritten_letter.dead_letter.payload.len());
            is_beyond
        });
        let first_dead_letter = first_dead_letter.map(|(position, _)| *position);
        [beyond(&self.dirty), beyond(&self.settled), first_dead_letter].into_iter().flatten().min()
    }

    /// Records that the batch is in the store, and returns the positions that have a row now.
    pub(super) fn record_commit(&mut self) -> BTreeSet<u64> {
        let Some(committing) = self.committing.take() else { return BTreeSet::new() };
        self.is_store_degraded = false;
        self.committed_cursor = self.committed_cursor.max(committing.cursor);
        committing.new_rows
    }

    /// Records that the store cannot be written. Delivery continues: all slots are free, and
    /// the number of duplicates after a crash is unbounded until the next commit.
    pub(super) fn mark_store_degraded(&mut self) {
        (self.is_store_degraded, self.occupied_slots) = (true, 0);
        // The batch in flight gives up its slots too: its reply may take as long as the outage.
        if let Some(committing) = &mut self.committing {
            committing.occupied_slots = 0;
        }
        self.enforce_unwritten_limit();
    }

    /// Merges a batch whose commit was reported as failed under newer changes, and returns the
    /// positions that may have got their first row all the same.
    ///
    /// Settlements of such rows are kept: if the commit succeeded after all they are needed, and
    /// otherwise they do nothing.
    pub(super) fn record_commit_failure(
        &mut self,
        changes: WebhookChanges,
        is_owed: impl Fn(u64) -> bool,
    ) -> BTreeSet<u64> {
        let Some(committing) = self.committing.take() else { return BTreeSet::new() };
        // Also for its cursor, which may have been committed: the next one is not before it.
        self.urge(committing.cursor);
        // A row that may not exist must not be relied on to bring a dropped dead letter back.
        for position in &committing.new_rows {
            if let Some(unwritten_letter) = self.dead_letters.get_mut(position) {
                unwritten_letter.has_row = false;
            }
        }
        for (position, change) in changes.deliveries {
            // Newer changes win: an owed row only if the delivery is still owed, a settlement
            // unless it was given up since, a dead letter unless it was settled or erased since.
            match change {
                DeliveryChange::Owed(_) if is_owed(position) => self.mark_dirty(position, true),
                DeliveryChange::Settled if !self.dead_letters.contains_key(&position) => {
                    self.settle(position);
                }
                DeliveryChange::Dead(dead_letter) if !self.is_unwritten(position) => {
                    self.insert_dead_letter(
                        dead_letter,
                        committing.dead_letters.get(&position).is_some_and(|(_, has_row)| *has_row),
                    );
                }
                DeliveryChange::Owed(_) | DeliveryChange::Settled | DeliveryChange::Dead(_) => {}
            }
        }
        self.mark_store_degraded();
        committing.new_rows
    }

    /// Records that the store has a new, empty file. Dead letters still here are still to be
    /// written.
    pub(super) fn rewrite_all(&mut self) {
        (self.committed_cursor, self.is_urgent) = (0, true);
        self.settled.clear(); // the new file has no rows to delete
        self.dead_letters
            .values_mut()
            .for_each(|unwritten_letter| unwritten_letter.has_row = false);
    }

    /// Removes the dead letters of erased events, and settles those that the batch in flight may be
    /// writing.
    pub(super) fn erase(&mut self, erased: &ErasedEvents) {
        let is_erased = |unwritten_letter: &UnwrittenDeadLetter| {
            let delivery = &unwritten_letter.dead_letter.delivery;
            erased.contains(delivery.position, delivery.session.as_ref())
        };
        let unwritten: Vec<u64> = self
            .dead_letters
            .iter()
            .filter(|(_, unwritten_letter)| is_erased(unwritten_letter))
            .map(|(position, _)| *position)
            .collect();
        let committing = self.committing.iter().flat_map(|committing| &committing.dead_letters);
        let committing = committing
            .filter(|(position, (session, _))| erased.contains(**position, session.as_ref()))
            .map(|(position, _)| *position);
        for position in unwritten.into_iter().chain(committing.collect::<Vec<u64>>()) {
            self.settle(position);
        }
    }
}
