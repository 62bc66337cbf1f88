//! Redelivery: a repeated scan, by position, over the dead letters that wait in the store for
//! another delivery.
//!
//! ```text
//! store   a1 a2 b1 a3 c1 …      a1 fails and waits: a2, a3 wait for a later scan, b1 and c1 do not
//!               scanned ─┘
//! ```
//!
//! A session whose head waits for a retry has no other dead letter in memory, so that it cannot
//! keep the dead letters of other sessions in the store. Once the scan has skipped one dead letter
//! of a session, it skips all later ones until the next scan: they keep their order.
//!
//! May use: `event`, `webhook_delivery`.

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

/// Redeliveries that are in flight or could be, and redeliveries of one session: a thousand
/// requeued dead letters do not displace new events.
const MAX_ACTIVE_REDELIVERIES: usize = 16;
/// All redeliveries in memory, including those that wait for a retry: up to this many failing
/// sessions do not keep other sessions from being redelivered.
const MAX_LOADED_REDELIVERIES: usize = 256;
/// Bytes of redeliveries after which no further one is enqueued: as much as unwritten dead letters
/// may take.
const MAX_REDELIVERY_BYTES: usize = 16 << 20;
/// Sessions that one scan remembers as skipped; beyond that it starts again.
const MAX_SKIPPED_SESSIONS: usize = 1000;
/// Longer than a reply of a working store is under way.
const RECENT_REDELIVERY_WINDOW: Duration = Duration::from_secs(5);

impl Outbox {
    /// Returns how many redeliveries are in memory.
    pub(in crate::webhook) fn redelivery_count(&self) -> u64 {
        self.redeliveries.len() as u64
    }

    /// Returns the position after which to ask the store for dead letters, if there is capacity.
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

    /// Enqueues dead letters as far as there is capacity. `dead_letters` are those after the
    /// position that was asked for, in order; none means the end of the scan.
    ///
    /// A dead letter that is in memory, or was and is not committed as settled, is ignored: the
    /// store's view of it is old. The caller applies a pending expiry first; otherwise one of these
    /// may be a delivery that was just accepted.
    ///
    /// Returns whether another request is worthwhile soon: not after a whole scan without a dead
    /// letter that could be enqueued.
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
            // A known one is passed over without skipping its session: it is in its queue already.
            if !is_known && !self.may_redeliver(position, session.as_ref()) {
                self.redelivery_scan.skipped_sessions.extend(session);
            } else if !is_known {
                // The scan continues here once there is capacity.
                if !self.has_redelivery_capacity() {
                    return has_found;
                }
                self.enqueue_redelivery(dead_letter);
            }
            self.redelivery_scan.scanned_position = position;
        }
        // Too many skipped sessions also end the scan: forgetting one of them would break the order
        // within it.
        if is_at_end || self.redelivery_scan.skipped_sessions.len() > MAX_SKIPPED_SESSIONS {
            self.restart_redelivery_scan();
        }
        has_found
    }

    /// Starts the scan again, because dead letters were requeued whose positions may be lower than
    /// the scan's. A reply of the store that is in flight is ignored.
    pub(in crate::webhook) fn restart_redelivery_scan(&mut self) {
        self.redelivery_scan = RedeliveryScan {
            // Kept: replies from before the restart may still arrive.
            recently_enqueued: std::mem::take(&mut self.redelivery_scan.recently_enqueued),
            ..RedeliveryScan::default()
        };
    }

    /// Returns whether a dead letter may be enqueued: no earlier one of its session was skipped,
    /// and the session's head does not wait for a retry.
    fn may_redeliver(&self, position: u64, session: Option<&SessionId>) -> bool {
        if self.redelivery_scan.recently_enqueued.iter().any(|(_, enqueued)| *enqueued == position)
        {
            return false; // it may be settled already, and the reply older than the settlement
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

    /// Iterates over the redeliveries of one session.
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
        // The user matters to filters alone, and a redelivery passes none.
        let names = (session.clone(), None);
        let event = Arc::new(Event::restored(id, position, kind, names, &payload));
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

    /// Makes a redelivery the head of its session if it is older than the head and the head has no
    /// spent attempt.
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

    /// Drops the blocked redeliveries of a session whose head waits for a retry: the store still
    /// has them.
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
