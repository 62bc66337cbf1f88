//! Dead letters that are delivered again: a walk over those that wait for it in the store, by place, again and again.
//!
//! ```text
//! store   a1 a2 b1 a3 c1 …      a1 fails and waits: a2, a3 are left for a later walk, b1 and c1 are taken
//!               through ─┘
//! ```
//!
//! A session whose first delivery waits for its next attempt has no other letters here, so that it keeps no other session's
//! from coming. Once one of a session is left, those behind it are, too, until the next walk: they keep their order.
//!
//! May use: `delivery`, `event`.

use std::{sync::Arc, time::Duration};

use super::{
    Outbox,
    item::{DeliveryStage, ItemKind, NextAttempt, OutboxItem},
    redelivery_scan::RedeliveryScan,
};
use crate::{
    event::{Event, SessionId},
    webhook::Now,
    webhook_delivery::DeadLetter,
};

/// Dead letters that are under way, or could be, at one time; and of one session. A thousand of them do not crowd out what is new.
const MAX_ACTIVE_REDELIVERIES: usize = 16;
/// All that are here, those that wait for their next attempt among them: of so many sessions that fail, none keeps the others
/// waiting.
const MAX_LOADED_REDELIVERIES: usize = 256;
/// Bytes of them, and one more: as much as dead letters that wait for the store may take.
const MAX_REDELIVERY_BYTES: usize = 16 << 20;
/// Sessions that one walk leaves behind; then it begins anew.
const MAX_SKIPPED_SESSIONS: usize = 1000;
/// Longer than any answer of a store that works is on its way.
const RECENT_REDELIVERY_WINDOW: Duration = Duration::from_secs(5);

impl Outbox {
    /// How many dead letters are here to be delivered again.
    pub(in crate::webhook) fn redelivery_count(&self) -> u64 {
        self.redeliveries.len() as u64
    }

    /// The place behind which to ask for dead letters, if there is room for any.
    pub(in crate::webhook) fn next_redelivery_after(&self) -> Option<u64> {
        self.has_redelivery_capacity().then_some(self.redelivery_scan.scanned_position)
    }

    fn has_redelivery_capacity(&self) -> bool {
        let redeliveries =
            || self.redeliveries.iter().filter_map(|position| self.items.get(position));
        let bytes: usize = redeliveries()
            .filter_map(|item| item.event.as_ref())
            .map(|event| event.size_bytes())
            .sum();
        let is_waiting = |item: &OutboxItem| {
            matches!(
                item.stage,
                DeliveryStage::Blocked | DeliveryStage::Idle(NextAttempt::Retry(Some(_)))
            )
        };
        let active = redeliveries().filter(|item| !is_waiting(item)).count();
        self.redeliveries.len() < MAX_LOADED_REDELIVERIES
            && bytes < MAX_REDELIVERY_BYTES
            && active < MAX_ACTIVE_REDELIVERIES
    }

    /// Takes dead letters for another delivery, as far as there is room: those that wait behind the place that was asked for, by
    /// place; none when there are no more. Those that are here, or were and are not written down yet, are left: the store does
    /// not know better. Word of an expiry comes first: else one of these may have just been accepted.
    ///
    /// Tells whether it is worth asking again soon: not if a whole walk has found nothing.
    pub(in crate::webhook) fn redeliver(
        &mut self,
        dead_letters: Vec<DeadLetter>,
        now: Now,
    ) -> bool {
        self.clock = now;
        let is_at_end = dead_letters.is_empty();
        let has_found = !is_at_end || self.redelivery_scan.has_enqueued;
        while self
            .redelivery_scan
            .recently_enqueued
            .pop_front_if(|(at, _)| *at + RECENT_REDELIVERY_WINDOW < now.instant)
            .is_some()
        {}
        for dead_letter in dead_letters {
            let (position, session) =
                (dead_letter.delivery.position, dead_letter.delivery.session.clone());
            let is_known =
                self.items.contains_key(&position) || self.journal.is_unwritten(position);
            if !is_known && !self.may_redeliver(position, session.as_ref()) {
                self.redelivery_scan.skipped_sessions.extend(session);
            } else if !is_known {
                if !self.has_redelivery_capacity() {
                    return has_found;
                }
                self.enqueue_redelivery(dead_letter);
            }
            self.redelivery_scan.scanned_position = position;
        }
        if is_at_end || self.redelivery_scan.skipped_sessions.len() > MAX_SKIPPED_SESSIONS {
            self.restart_redelivery_scan();
        }
        has_found
    }

    /// Notes that there are others, which may stand before those that have been looked at. What has been asked for is void.
    pub(in crate::webhook) fn restart_redelivery_scan(&mut self) {
        self.redelivery_scan = RedeliveryScan {
            recently_enqueued: std::mem::take(&mut self.redelivery_scan.recently_enqueued),
            ..RedeliveryScan::default()
        };
    }

    /// Whether it is the turn of a letter: none of its session has been left behind, or holds it up.
    fn may_redeliver(&self, position: u64, session: Option<&SessionId>) -> bool {
        if self.redelivery_scan.recently_enqueued.iter().any(|(_, enqueued)| *enqueued == position)
        {
            return false; // it may be settled already
        }
        let Some(session) = session else { return true };
        let head = self.session_queues.head(session).and_then(|head| self.items.get(&head));
        let is_head_waiting = head.is_some_and(|head| {
            matches!(head.stage, DeliveryStage::Idle(NextAttempt::Retry(Some(_))))
        });
        !is_head_waiting
            && !self.redelivery_scan.skipped_sessions.contains(session)
            && self.redeliveries_of(session).count() < MAX_ACTIVE_REDELIVERIES
    }

    /// The letters of a session that are here.
    fn redeliveries_of<'a>(
        &'a self,
        session: &'a SessionId,
    ) -> impl Iterator<Item = &'a OutboxItem> {
        let redeliveries = self.redeliveries.iter().filter_map(|position| self.items.get(position));
        redeliveries.filter(move |item| item.delivery.session.as_ref() == Some(session))
    }

    fn enqueue_redelivery(&mut self, dead_letter: DeadLetter) {
        let DeadLetter { delivery, payload, .. } = dead_letter;
        let position = delivery.position;
        let (id, kind, session) =
            (delivery.event_id, delivery.kind.clone(), delivery.session.clone());
        let event = Arc::new(Event::restored(id, position, kind, session.clone(), &payload));
        self.redelivery_scan.recently_enqueued.push_back((self.clock.instant, position));
        self.redelivery_scan.has_enqueued = true;
        self.insert_item(
            OutboxItem::new(delivery, Some(event), ItemKind::Redelivery),
            NextAttempt::Fresh,
        );
        if let Some(session) = session {
            self.move_before_head(&session, position);
        }
    }

    /// Lets an item go before the head of its lane, if it is older and the head has not been tried.
    fn move_before_head(&mut self, session: &SessionId, position: u64) {
        let head = self.session_queues.head(session).and_then(|head| self.items.get(&head));
        let Some(head) = head.filter(|head| head.stage == DeliveryStage::Idle(NextAttempt::Fresh))
        else {
            return;
        };
        let head = head.delivery.position;
        if position < head {
            self.session_queues.move_to_front(session, position);
            self.set_stage(head, DeliveryStage::Blocked);
            self.set_stage(position, DeliveryStage::Idle(NextAttempt::Fresh));
        }
    }

    /// Leaves the letters of a session whose first delivery waits for its next attempt: the store has them.
    pub(super) fn drop_blocked_redeliveries(&mut self, session: &SessionId) {
        let blocked =
            self.redeliveries_of(session).filter(|item| item.stage == DeliveryStage::Blocked);
        let blocked: Vec<u64> = blocked.map(|item| item.delivery.position).collect();
        if !blocked.is_empty() {
            self.redelivery_scan.skipped_sessions.insert(session.clone());
        }
        for position in blocked {
            self.remove_item(position);
        }
    }
}
