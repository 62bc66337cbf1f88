//! What a crash must not forget: the webhook's position, and the exceptions before it.
//!
//! In: the outcome of each delivery. Out: batches of changes for the store, one at a time. The work
//! of a batch is bounded by what has happened since the last one.
//!
//! May use: `event`, `store`, `webhook_delivery`.

use std::collections::{BTreeMap, BTreeSet};

use super::item::{ItemKind, RowState};
use crate::{
    event::SessionId,
    store::{DeliveryChange, OwedDelivery, WebhookChanges},
    webhook_delivery::DeadLetter,
};

/// Dead letters that wait for a store that cannot be written. A burst of refusals, not a day of
/// them.
pub(super) const MAX_UNWRITTEN_DEAD_LETTERS: usize = 1000;
/// Bytes of their payloads: a quarter of what the log of one product may take by default.
pub(super) const MAX_UNWRITTEN_DEAD_LETTER_BYTES: usize = 16 << 20;

/// Fates of one kind in one batch: some ten milliseconds of the store's writer, for whom all other
/// webhooks wait.
const MAX_BATCH_ROWS: usize = 1000;
/// Payloads of dead letters in one batch, and one more.
const MAX_BATCH_PAYLOAD_BYTES: usize = 1 << 20;

/// What is not in the store yet.
#[derive(Debug, Default)]
pub(super) struct OutboxJournal {
    /// How far the store knows that the webhook has come.
    committed_cursor: u64,
    /// Owed, and not in the store as they are here.
    dirty: BTreeSet<u64>,
    /// Settled for good, while the store has a row that says otherwise.
    settled: BTreeSet<u64>,
    /// Given up.
    dead_letters: BTreeMap<u64, UnwrittenDeadLetter>,
    dead_letter_bytes: usize,
    /// Settled since the last batch, whether a row is needed or not.
    occupied_slots: usize,
    /// Something should not wait.
    is_urgent: bool,
    /// The last batch could not be written.
    is_store_degraded: bool,
    committing: Option<CommittingBatch>,
    lost_dead_letters: u64,
    /// The bound of a batch.
    pub(super) max_batch_rows: usize,
}

/// A dead letter that is to be written.
#[derive(Debug)]
struct UnwrittenDeadLetter {
    dead_letter: DeadLetter,
    /// The store would bring it back by itself if this were never written.
    has_row: bool,
}

/// What the batch that is on its way holds.
#[derive(Debug, Default)]
struct CommittingBatch {
    cursor: u64,
    occupied_slots: usize,
    /// Owed, for the first time.
    new_rows: BTreeSet<u64>,
    settled: BTreeSet<u64>,
    /// Given up: of which session, and whether the store has a row of it.
    dead_letters: BTreeMap<u64, (Option<SessionId>, bool)>,
}

impl OutboxJournal {
    /// The journal of a webhook whose store says that it has come to `cursor`.
    pub(super) fn new(cursor: u64) -> Self {
        Self { committed_cursor: cursor, max_batch_rows: MAX_BATCH_ROWS, ..Self::default() }
    }

    /// Notes that a delivery is owed, or has changed. Only the latter should not wait.
    pub(super) fn mark_dirty(&mut self, position: u64, is_urgent: bool) {
        self.dirty.insert(position);
        self.is_urgent |= is_urgent;
    }

    /// Notes that a delivery is not to be written as owed any more.
    pub(super) fn clear_dirty(&mut self, position: u64) {
        self.dirty.remove(&position);
    }

    /// Notes that the store has made a dead letter of what was owed there.
    pub(super) fn expire(&mut self, position: u64) {
        self.clear_dirty(position);
        if let Some(committing) = &mut self.committing {
            committing.new_rows.remove(&position);
        }
    }

    /// Notes that a slot is in use until the next batch is written.
    pub(super) fn occupy_slot(&mut self) {
        self.occupied_slots += 1;
        self.is_urgent = true;
    }

    /// Slots of what is settled and may be forgotten by a crash.
    pub(super) fn occupied_slots(&self) -> usize {
        self.occupied_slots
            + self.committing.as_ref().map_or(0, |committing| committing.occupied_slots)
    }

    /// Whether the store has, or is about to have, a row of this place, of which it says itself
    /// that there is `row_state`.
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

    /// Notes that the store's row of this place is void.
    pub(super) fn settle(&mut self, position: u64) {
        self.remove_dead_letter(position);
        self.settled.insert(position);
        self.is_urgent = true;
    }

    /// Notes a dead letter.
    pub(super) fn record_dead_letter(&mut self, dead_letter: DeadLetter, has_row: bool) {
        self.is_urgent = true;
        self.insert_dead_letter(dead_letter, has_row);
        if self.is_store_degraded {
            self.enforce_unwritten_limit();
        }
    }

    fn insert_dead_letter(&mut self, dead_letter: DeadLetter, has_row: bool) {
        let position = dead_letter.delivery.position;
        self.remove_dead_letter(position);
        self.settled.remove(&position);
        self.dead_letter_bytes += dead_letter.payload.len();
        self.dead_letters.insert(position, UnwrittenDeadLetter { dead_letter, has_row });
    }

    fn remove_dead_letter(&mut self, position: u64) -> Option<UnwrittenDeadLetter> {
        let unwritten_letter = self.dead_letters.remove(&position)?;
        self.dead_letter_bytes -= unwritten_letter.dead_letter.payload.len();
        Some(unwritten_letter)
    }

    /// Lets the oldest go until the bound is kept. Of what the store has a row, it will find out by
    /// itself.
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

    /// Dead letters that were lost since the last look, because the store could not be written for
    /// too long.
    pub(super) fn take_lost_count(&mut self) -> u64 {
        std::mem::take(&mut self.lost_dead_letters)
    }

    /// Whether what has become of this place is still to be written.
    pub(super) fn is_unwritten(&self, position: u64) -> bool {
        let committing = self.committing.as_ref();
        self.settled.contains(&position)
            || self.dead_letters.contains_key(&position)
            || committing.is_some_and(|committing| {
                committing.settled.contains(&position)
                    || committing.dead_letters.contains_key(&position)
            })
    }

    /// Whether there is something that should not wait, and no batch is on its way.
    pub(super) fn is_due(&self) -> bool {
        self.is_urgent && self.committing.is_none()
    }

    /// Whether there is anything, and no batch is on its way.
    pub(super) fn has_changes(&self, cursor: u64) -> bool {
        let has_fates =
            !(self.dirty.is_empty() && self.settled.is_empty() && self.dead_letters.is_empty());
        self.committing.is_none() && (self.is_urgent || has_fates || cursor > self.committed_cursor)
    }

    /// What is not in the store, as much as goes into one batch; `owed` gives the row of a delivery
    /// and what the store has of it. The position stays before what is left for the next one. What
    /// has been settled behind that keeps its slots.
    pub(super) fn take_batch(
        &mut self,
        cursor: u64,
        row_of: impl Fn(u64) -> Option<(OwedDelivery, RowState)>,
    ) -> WebhookChanges {
        let deferred = self.first_deferred();
        let cursor = deferred.map_or(cursor, |rest| cursor.min(rest.saturating_sub(1)));
        let slots = if deferred.is_none() { std::mem::take(&mut self.occupied_slots) } else { 0 };
        let mut committing =
            CommittingBatch { cursor, occupied_slots: slots, ..CommittingBatch::default() };
        let mut fates = BTreeMap::new();
        let deferred_dirty = deferred.map(|rest| self.dirty.split_off(&rest)).unwrap_or_default();
        for position in std::mem::replace(&mut self.dirty, deferred_dirty) {
            let Some((owed, row)) = row_of(position) else { continue };
            if row != RowState::Present {
                committing.new_rows.insert(position);
            }
            fates.insert(position, DeliveryChange::Owed(owed));
        }
        let deferred_settled =
            deferred.map(|rest| self.settled.split_off(&rest)).unwrap_or_default();
        committing.settled = std::mem::replace(&mut self.settled, deferred_settled);
        fates
            .extend(committing.settled.iter().map(|position| (*position, DeliveryChange::Settled)));
        let deferred_dead_letters =
            deferred.map(|rest| self.dead_letters.split_off(&rest)).unwrap_or_default();
        for (position, UnwrittenDeadLetter { dead_letter: letter, has_row }) in
            std::mem::replace(&mut self.dead_letters, deferred_dead_letters)
        {
            self.dead_letter_bytes -= letter.payload.len();
            committing.dead_letters.insert(position, (letter.delivery.session.clone(), has_row));
            fates.insert(position, DeliveryChange::Dead(letter));
        }
        (self.is_urgent, self.committing) = (deferred.is_some(), Some(committing));
        WebhookChanges { position: cursor, deliveries: fates }
    }

    /// The lowest place that is left for the batch behind this one, if any is.
    fn first_deferred(&self) -> Option<u64> {
        let beyond = |positions: &BTreeSet<u64>| positions.iter().nth(self.max_batch_rows).copied();
        let (mut count, mut bytes) = (0, 0);
        let first_dead_letter = self.dead_letters.iter().find(|(_, unwritten_letter)| {
            let is_beyond = count >= self.max_batch_rows || bytes >= MAX_BATCH_PAYLOAD_BYTES;
            (count, bytes) = (count + 1, bytes + unwritten_letter.dead_letter.payload.len());
            is_beyond
        });
        let first_dead_letter = first_dead_letter.map(|(position, _)| *position);
        [beyond(&self.dirty), beyond(&self.settled), first_dead_letter].into_iter().flatten().min()
    }

    /// Notes that the batch is in the store, and tells of which places it has a row now.
    pub(super) fn record_commit(&mut self) -> BTreeSet<u64> {
        let Some(committing) = self.committing.take() else { return BTreeSet::new() };
        self.is_store_degraded = false;
        self.committed_cursor = self.committed_cursor.max(committing.cursor);
        committing.new_rows
    }

    /// Notes that the store is degraded, so that nothing is written for now. Delivery goes on: all
    /// slots are free, and the bound of what is delivered twice after a crash is void.
    pub(super) fn mark_store_degraded(&mut self) {
        (self.is_store_degraded, self.occupied_slots) = (true, 0);
        if let Some(committing) = &mut self.committing {
            committing.occupied_slots = 0;
        }
        self.enforce_unwritten_limit();
    }

    /// Puts a batch that could not be written under what has happened since, and tells of which
    /// places it may have written a row for the first time all the same. What says that such a row
    /// is void stays: there, it is needed; else it does no harm.
    pub(super) fn record_commit_failure(
        &mut self,
        changes: WebhookChanges,
        is_owed: impl Fn(u64) -> bool,
    ) -> BTreeSet<u64> {
        let Some(committing) = self.committing.take() else { return BTreeSet::new() };
        self.is_urgent = true;
        for position in &committing.new_rows {
            if let Some(unwritten_letter) = self.dead_letters.get_mut(position) {
                unwritten_letter.has_row = false;
            }
        }
        for (position, fate) in changes.deliveries {
            match fate {
                DeliveryChange::Owed(_) if is_owed(position) => self.mark_dirty(position, true),
                DeliveryChange::Settled if !self.dead_letters.contains_key(&position) => {
                    self.settle(position);
                }
                DeliveryChange::Dead(letter) if !self.is_unwritten(position) => {
                    self.insert_dead_letter(
                        letter,
                        committing.dead_letters.get(&position).is_some_and(|(_, has_row)| *has_row),
                    );
                }
                DeliveryChange::Owed(_) | DeliveryChange::Settled | DeliveryChange::Dead(_) => {}
            }
        }
        self.mark_store_degraded();
        committing.new_rows
    }

    /// Notes that the store has forgotten everything. Dead letters that are still here are still to
    /// be written.
    pub(super) fn rewrite_all(&mut self) {
        (self.committed_cursor, self.is_urgent) = (0, true);
        self.settled.clear();
        self.dead_letters
            .values_mut()
            .for_each(|unwritten_letter| unwritten_letter.has_row = false);
    }

    /// Forgets the dead letters of a session, also the one that is just being written.
    pub(super) fn erase(&mut self, session: &SessionId) {
        let belongs_to_session = |unwritten_letter: &UnwrittenDeadLetter| {
            unwritten_letter.dead_letter.delivery.session.as_ref() == Some(session)
        };
        let unwritten: Vec<u64> = self
            .dead_letters
            .iter()
            .filter(|(_, unwritten_letter)| belongs_to_session(unwritten_letter))
            .map(|(position, _)| *position)
            .collect();
        let committing = self.committing.iter().flat_map(|committing| &committing.dead_letters);
        let committing = committing
            .filter(|(_, (of, _))| of.as_ref() == Some(session))
            .map(|(position, _)| *position);
        for position in unwritten.into_iter().chain(committing.collect::<Vec<u64>>()) {
            self.settle(position);
        }
    }
}
