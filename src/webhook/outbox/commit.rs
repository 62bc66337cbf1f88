//! What is written down, and what comes of it.
//!
//! May use: the store's words.

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
    /// What is to be written down, if anything is that should not wait, or the first part of it. One at a time: [`Outbox::committed`] or
    /// [`Outbox::not_committed`] follows.
    pub(in crate::webhook) fn take_urgent_changes(&mut self) -> Option<WebhookChanges> {
        self.journal.is_due().then(|| self.take_batch())
    }

    /// What is not written down yet, or the first part of it, also what can wait.
    pub(in crate::webhook) fn take_all_changes(&mut self) -> Option<WebhookChanges> {
        self.journal.has_changes(self.cursor).then(|| self.take_batch())
    }

    fn take_batch(&mut self) -> WebhookChanges {
        let (items, now) = (&self.items, self.clock);
        self.journal.take_batch(self.cursor, |position| {
            let item = items.get(&position).filter(|item| item.item_kind == ItemKind::Owed)?;
            Some((owed_of(item, now), item.row))
        })
    }

    /// Notes that the last changes are in the store.
    pub(in crate::webhook) fn record_commit(&mut self) {
        for position in self.journal.record_commit() {
            if let Some(item) = self.items.get_mut(&position) {
                item.row = RowState::Present;
            }
        }
    }

    /// Notes that these could not be written. They come again, with what has happened since.
    pub(in crate::webhook) fn record_commit_failure(&mut self, changes: WebhookChanges) {
        let items = &self.items;
        let is_owed =
            |position| items.get(&position).is_some_and(|item| item.item_kind == ItemKind::Owed);
        for position in self.journal.record_commit_failure(changes, is_owed) {
            if let Some(item) = self.items.get_mut(&position) {
                item.row = RowState::Uncertain;
            }
        }
    }

    /// Notes that nothing can be written now, though it may be on its way: what is sent from now on does not wait for that.
    pub(in crate::webhook) fn mark_store_degraded(&mut self) {
        self.journal.mark_store_degraded();
    }

    /// Notes that the store has forgotten everything.
    pub(in crate::webhook) fn rewrite_all(&mut self) {
        self.journal.rewrite_all();
        for (position, item) in
            self.items.iter_mut().filter(|(_, item)| item.item_kind == ItemKind::Owed)
        {
            item.row = RowState::Absent;
            self.journal.mark_dirty(*position, true);
        }
    }

    /// Dead letters that were lost since the last look, because the store could not be written for too long.
    pub(in crate::webhook) fn take_lost_count(&mut self) -> u64 {
        self.journal.take_lost_count()
    }
}

/// What the store keeps of a delivery that is owed. One that is under way may be tried again at once after a crash.
fn owed_of(item: &OutboxItem, now: Now) -> OwedDelivery {
    let next_attempt_at = match item.stage {
        DeliveryStage::Idle(NextAttempt::Retry(Some(due))) => Some(unix_ms_of(due, now)),
        _ => (item.attempts_spent > 0).then_some(now.unix_ms),
    };
    OwedDelivery { delivery: item.delivery.clone(), next_attempt_at }
}
