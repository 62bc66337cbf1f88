//! Items of an outbox as they come, move and go.
//!
//! Every count and every index over the items is maintained by these functions and nowhere else, so
//! that an item and its index entries cannot diverge.
//!
//! May use: `event`.

use std::sync::Arc;

use super::{
    Outbox,
    item::{DeliveryStage, ItemKind, NextAttempt, OutboxItem},
};
use crate::event::Event;

impl Outbox {
    /// Inserts an item at the end of its session queue. An item whose position is taken is ignored.
    pub(super) fn insert_item(&mut self, item: OutboxItem, next_attempt: NextAttempt) {
        let position = item.delivery.position;
        if self.items.contains_key(&position) {
            return;
        }
        let is_head = self.session_queues.enqueue(item.delivery.session.as_ref(), position);
        self.update_counts(position, item.item_kind, true);
        if let Some(event) = &item.event {
            self.counts.count_loaded(event, true);
        }
        self.items.insert(position, item);
        if is_head {
            self.set_stage(position, DeliveryStage::Idle(next_attempt));
        }
    }

    /// Moves an item from one stage to another, with its index entries.
    pub(super) fn set_stage(&mut self, position: u64, stage: DeliveryStage) {
        let Some(item) = self.items.get_mut(&position) else { return };
        let previous = std::mem::replace(&mut item.stage, stage);
        let is_loaded = item.event.is_some();
        match previous {
            DeliveryStage::Blocked => {}
            DeliveryStage::Idle(next_attempt) => {
                self.queue_heads.remove(position, next_attempt, is_loaded);
            }
            DeliveryStage::InFlight { is_retry } => self.counts.count_in_flight(is_retry, false),
        }
        match stage {
            DeliveryStage::Blocked => {}
            DeliveryStage::Idle(next_attempt) => {
                self.queue_heads.insert(position, next_attempt, is_loaded);
            }
            DeliveryStage::InFlight { is_retry } => self.counts.count_in_flight(is_retry, true),
        }
    }

    /// Loads or unloads an item's event.
    pub(super) fn set_event(&mut self, position: u64, event: Option<Arc<Event>>) {
        let Some(stage) = self.items.get(&position).map(|item| item.stage) else { return };
        // Taken out of the index of heads and put back, because the index sorts loaded heads and
        // unloaded ones apart.
        self.set_stage(position, DeliveryStage::Blocked);
        if let Some(item) = self.items.get_mut(&position) {
            let previous = std::mem::replace(&mut item.event, event);
            previous.iter().for_each(|event| self.counts.count_loaded(event, false));
            item.event.iter().for_each(|event| self.counts.count_loaded(event, true));
        }
        self.set_stage(position, stage);
    }

    /// Changes the reason for which an item is here.
    pub(super) fn set_item_kind(&mut self, position: u64, item_kind: ItemKind) {
        let Some(item) = self.items.get_mut(&position) else { return };
        let previous = std::mem::replace(&mut item.item_kind, item_kind);
        self.update_counts(position, previous, false);
        self.update_counts(position, item_kind, true);
    }

    fn update_counts(&mut self, position: u64, item_kind: ItemKind, is_added: bool) {
        match item_kind {
            ItemKind::Owed => {
                self.counts.owed =
                    if is_added { self.counts.owed + 1 } else { self.counts.owed - 1 }
            }
            ItemKind::Redelivery if is_added => drop(self.redeliveries.insert(position)),
            ItemKind::Redelivery => drop(self.redeliveries.remove(&position)),
            ItemKind::Expired | ItemKind::Erased => {}
        }
    }

    /// Removes an item; the next delivery of its session becomes the head.
    pub(super) fn remove_item(&mut self, position: u64) -> Option<OutboxItem> {
        // Blocked items are in no index of heads and in no count of attempts.
        self.set_stage(position, DeliveryStage::Blocked);
        let item = self.items.remove(&position)?;
        self.update_counts(position, item.item_kind, false);
        if let Some(event) = &item.event {
            self.counts.count_loaded(event, false);
        }
        self.journal.clear_dirty(position);
        if let Some(next) = self.session_queues.dequeue(item.delivery.session.as_ref(), position) {
            let next_attempt =
                self.items.get(&next).map_or(NextAttempt::Fresh, OutboxItem::next_attempt);
            self.set_stage(next, DeliveryStage::Idle(next_attempt));
        }
        Some(item)
    }
}
