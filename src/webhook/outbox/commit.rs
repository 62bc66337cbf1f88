//! Batches of changes for the store, and the outcome of their commit.
//!
//! At most one batch is in flight: `record_commit` or `record_commit_failure` follows each.
//!
//! May use: `store`.

use super::{
    Outbox,
    item::{DeliveryStage, ItemKind, NextAttempt, OutboxItem, RowState},
    unix_ms_of,
};
use crate::{
    store::{OwedDelivery, WebhookChanges},
    webhook::Now,
};

impl Outbox {
    /// Returns the next batch if a change is urgent and no batch is in flight.
    /// [`Outbox::record_commit`] or [`Outbox::record_commit_failure`] must follow.
    pub(in crate::webhook) fn take_urgent_changes(&mut self) -> Option<WebhookChanges> {
        self.journal.is_due().then(|| self.take_batch())
    }

    /// Returns the next batch if there is any change, also one that is not urgent, and no batch is
    /// in flight.
    #[cfg(test)]
    pub(in crate::webhook) fn take_all_changes(&mut self) -> Option<WebhookChanges> {
        if self.journal.has_changes(self.cursor) {
            self.urge_changes();
        }
        self.take_urgent_changes()
    }

    /// Makes every change urgent.
    pub(in crate::webhook) fn urge_changes(&mut self) {
        self.journal.urge_all(self.cursor);
    }

    /// Makes changes urgent that were here at the last call already: a delivery that is settled
    /// between two calls needs no row.
    pub(in crate::webhook) fn urge_aged_changes(&mut self) {
        self.journal.urge_aged(self.cursor);
    }

    /// Returns whether there is any change, also one that is not urgent, and no batch is in flight.
    pub(in crate::webhook) fn has_changes(&self) -> bool {
        self.journal.has_changes(self.cursor)
    }

    fn take_batch(&mut self) -> WebhookChanges {
        let (items, now) = (&self.items, self.clock);
        self.journal.take_batch(self.cursor, |position| {
            let item = items.get(&position).filter(|item| item.item_kind == ItemKind::Owed)?;
            Some((owed_of(item, now), item.row))
        })
    }

    /// Records that the last batch is in the store.
    pub(in crate::webhook) fn record_commit(&mut self) {
        // Deliveries settled since are not in `items`: `row_state` has seen their row in the batch.
        for position in self.journal.record_commit() {
            if let Some(item) = self.items.get_mut(&position) {
                item.row = RowState::Present;
            }
        }
    }

    /// Records that the commit of `changes` was reported as failed. They are part of the next
    /// batch, under newer changes.
    pub(in crate::webhook) fn record_commit_failure(&mut self, changes: WebhookChanges) {
        let items = &self.items;
        let is_owed =
            |position| items.get(&position).is_some_and(|item| item.item_kind == ItemKind::Owed);
        // SQLite may have committed although it reported an error, so the rows are uncertain.
        for position in self.journal.record_commit_failure(changes, is_owed) {
            if let Some(item) = self.items.get_mut(&position) {
                item.row = RowState::Uncertain;
            }
        }
    }

    /// Records that the store cannot be written at present, although a batch may be in flight: all
    /// slots are free until the next commit.
    pub(in crate::webhook) fn mark_store_degraded(&mut self) {
        self.journal.mark_store_degraded();
    }

    /// Records that the store has a new, empty file: everything owed is written again.
    pub(in crate::webhook) fn rewrite_all(&mut self) {
        self.journal.rewrite_all();
        for (position, item) in
            self.items.iter_mut().filter(|(_, item)| item.item_kind == ItemKind::Owed)
        {
            item.row = RowState::Absent;
            self.journal.mark_dirty(*position, true);
        }
    }

    /// Returns how many dead letters were lost since the last call, because the store could not be
    /// written for too long.
    pub(in crate::webhook) fn take_lost_count(&mut self) -> u64 {
        self.journal.take_lost_count()
    }
}

/// Returns the store's row of an owed delivery. For a delivery in flight with spent attempts the
/// row is due at once: after a crash the outcome is unknown, so the delivery is tried again.
fn owed_of(item: &OutboxItem, now: Now) -> OwedDelivery {
    let next_attempt_at = match item.stage {
        DeliveryStage::Idle(NextAttempt::Retry(Some(due))) => {
            Some(unix_ms_of(due, now.for_stored_waits()))
        }
        _ => (item.attempts_spent > 0).then_some(now.earliest_ms),
    };
    OwedDelivery { delivery: item.delivery.clone(), next_attempt_at }
}
