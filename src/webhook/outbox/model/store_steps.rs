//! One function for each thing that can happen to the model's store: commits, crashes, expiry,
//! erasure, redelivery.

use super::*;

impl OutboxModel {
    /// Takes a batch, if none is in flight.
    pub(super) fn begin_commit(&mut self, everything: bool) {
        if self.committing.is_none() {
            self.committing = if everything {
                self.outbox.take_all_changes()
            } else {
                self.outbox.take_urgent_changes()
            };
        }
        assert!(
            self.committing.is_none() || self.outbox.take_all_changes().is_none(),
            "seed {}: two batches",
            self.seed
        );
    }

    pub(super) fn finish_commit(&mut self, succeeds: bool) {
        let Some(changes) = self.committing.take() else { return };
        if succeeds {
            self.commit(&changes);
            self.outbox.record_commit();
            // Slots stay free until every change is written, so duplicates are unbounded.
            self.is_degraded &= self.outbox.journal.has_changes(self.outbox.cursor);
        } else {
            if self.rng.bool() {
                self.commit(&changes); // succeeded, though reported as failed
            }
            self.is_degraded = true;
            self.outbox.record_commit_failure(changes);
        }
    }

    /// Simulates a store that takes very long to write; delivery does not wait for it.
    pub(super) fn stall_store(&mut self) {
        self.is_degraded = true;
        self.outbox.mark_store_degraded();
        assert_eq!(self.outbox.journal.occupied_slots(), 0, "seed {}", self.seed);
    }

    pub(super) fn commit(&mut self, changes: &WebhookChanges) {
        let dead = changes
            .deliveries
            .iter()
            .filter(|(_, change)| matches!(change, DeliveryChange::Dead(_)));
        self.ever_dead.extend(dead.map(|(position, _)| *position));
        self.store.apply(changes);
    }

    /// Commits every change, and asserts that the store and the outbox agree.
    pub(super) fn commit_all_and_check(&mut self) {
        self.finish_commit(true);
        self.report_expiry();
        let mut batches = 0..self.log.len() * 3 + 10;
        while batches.next().is_some() {
            self.begin_commit(true);
            if self.committing.is_none() {
                break;
            }
            self.finish_commit(true);
        }
        assert!(!batches.is_empty(), "seed {}: there is always something to write", self.seed);
        let pending = self.outbox.pending(None, usize::MAX, self.now());
        let mut pending: Vec<u64> = pending.iter().map(|(delivery, _)| delivery.position).collect();
        pending.reverse();
        let owed: Vec<u64> = self.store.owed.keys().copied().collect();
        assert_eq!(owed, pending, "seed {}: the store does not know what is owed", self.seed);
        assert_eq!(self.store.cursor, self.outbox.cursor(), "seed {}", self.seed);
        let oldest = self.store.owed.values().next().map(|owed| owed.delivery.created_at);
        assert_eq!(self.outbox.owed(), (owed.len() as u64, oldest), "seed {}", self.seed);
    }

    pub(super) fn crash(&mut self) {
        if let Some(changes) = self.committing.take()
            && self.rng.bool()
        {
            self.commit(&changes);
        }
        for attempt in std::mem::take(&mut self.in_flight) {
            if self.rng.bool() {
                self.accept(attempt.position);
            }
        }
        // A delivery that is accepted, and expires before its settlement is committed, is a dead
        // letter after the crash and may be redelivered.
        if self.is_degraded || self.store_has_expired {
            self.lives.last_mut().unwrap().0 = usize::MAX;
        }
        self.lives.push((self.policy.max_in_flight, 0));
        (self.has_unreported_expiry, self.store_has_expired) = (false, false);
        let owed = self.store.owed.values().cloned().collect();
        self.counted_lost += self.outbox.take_lost_count();
        self.outbox = Outbox::new(self.policy, self.store.cursor, owed, self.now());
        self.outbox.random = Rng::with_seed(self.seed);
        self.outbox.journal.max_batch_rows = self.max_batch_rows;
        self.is_degraded = false;
    }

    pub(super) fn reload(&mut self) {
        self.policy = policy(&mut self.rng, self.policy.event_storage);
        self.outbox.set_policy(self.policy);
        let limit = &mut self.lives.last_mut().unwrap().0;
        *limit = (*limit).max(self.policy.max_in_flight);
    }

    /// Enables the endpoint, as an operator or a new URL does.
    pub(super) fn enable(&mut self) {
        self.outbox.enable();
        for attempt in &mut self.in_flight {
            (attempt.is_probe, attempt.is_superseded) = (false, true);
        }
    }

    /// Expires deliveries in the store that were owed for too long. The outbox gets the notice
    /// later.
    pub(super) fn expire(&mut self) {
        let expired_through =
            self.rng.u64(0..=self.log.len() as u64).max(self.store.expired_through);
        for position in 1..=expired_through {
            let entry = self.entry(position);
            let is_owed = self.store.owed.remove(&position).is_some()
                || position > self.store.cursor && entry.is_ours;
            if is_owed && !entry.is_erased {
                let event = self.event(position);
                let delivery = delivery_of(&event);
                let (reason, payload) = (DeadLetterReason::Expired, event.payload());
                self.store.dead_letters.insert(
                    position,
                    (DeadLetter { delivery, reason, died_at: 0, payload }, false),
                );
                self.ever_dead.insert(position);
            }
        }
        self.store.cursor = self.store.cursor.max(expired_through);
        self.store.expired_through = expired_through;
        (self.has_unreported_expiry, self.store_has_expired) = (true, true);
    }

    pub(super) fn report_expiry(&mut self) {
        if std::mem::take(&mut self.has_unreported_expiry) {
            self.outbox.expire_through(self.store.expired_through);
        }
    }

    pub(super) fn erase(&mut self) {
        let erased = self.rng.usize(1..SESSIONS.len());
        let session = SessionId::new(SESSIONS[erased]).unwrap();
        self.log
            .iter_mut()
            .filter(|entry| entry.session == erased)
            .for_each(|entry| entry.is_erased = true);
        self.store.owed.retain(|_, owed| owed.delivery.session.as_ref() != Some(&session));
        self.store
            .dead_letters
            .retain(|_, (dead_letter, _)| dead_letter.delivery.session.as_ref() != Some(&session));
        let sessions = [session].into();
        self.outbox.erase(&ErasedEvents { sessions, ..ErasedEvents::default() });
        let delivered = self.outbox.delivered(None, usize::MAX);
        assert!(
            delivered.iter().all(|(_, delivery)| !self.entry(delivery.position).is_erased),
            "seed {}",
            self.seed
        );
    }

    pub(super) fn requeue(&mut self) {
        self.store.dead_letters.values_mut().for_each(|(_, is_requeued)| *is_requeued = true);
        self.outbox.restart_redelivery_scan();
    }

    pub(super) fn redeliver(&mut self) {
        self.report_expiry();
        if let Some(after) = self.outbox.next_redelivery_after() {
            let behind =
                self.store.dead_letters.range(after + 1..).map(|(_, dead_letter)| dead_letter);
            let dead_letters = behind
                .filter(|(_, is_requeued)| *is_requeued)
                .map(|(dead_letter, _)| dead_letter.clone());
            let dead_letters = dead_letters.take(self.rng.usize(1..40)).collect();
            self.outbox.redeliver(dead_letters, self.now());
        }
    }

    /// Removes the store's file, with all dead letters.
    pub(super) fn lose_store_file(&mut self) {
        self.finish_commit(false);
        self.report_expiry();
        self.lost_with_file.extend(self.store.dead_letters.keys());
        let expired_through = self.store.expired_through;
        self.store = ModelStore { expired_through, ..ModelStore::default() };
        self.is_degraded = true;
        self.outbox.rewrite_all();
        // Committed at once: after a crash before that, the new file would know nothing at all.
        self.commit_all_and_check();
    }
}
