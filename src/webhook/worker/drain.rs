//! Graceful shutdown of one worker.
//!
//! May use: no other module.

use std::time::Duration;

use tokio::time;
use tracing::error;

use super::Worker;
use crate::webhook::Now;

impl Worker {
    /// Returns whether new attempts may begin: always, except while draining with a durable store,
    /// which keeps owed deliveries for the next start.
    pub(super) fn may_send(&self) -> bool {
        !(self.is_draining && self.context.is_durable)
    }

    /// Finishes attempts in flight and flushes the outbox. Without a durable store, owed deliveries
    /// get one last attempt.
    pub(super) async fn drain(&mut self) {
        self.is_draining = true;
        if time::timeout(ATTEMPT_DRAIN_TIMEOUT, self.finish_attempts()).await.is_err() {
            let webhook = &self.shared.definition().webhook.id;
            error!(
                webhook,
                attempts = self.attempts.len(),
                "attempts are cut off: their outcome is unknown"
            );
        }
        self.begin_look(Now::read());
        self.outbox.advance_to(self.reader.passed_position());
        // Before the flush: a state that the last attempts caused (disabled, throttled) becomes
        // part of the definition, and the flush writes it.
        self.publish_status(Now::read());
        self.store_sync.flush(&mut self.outbox, self.reader.committed_position()).await;
        let owed = self.outbox.owed().0;
        if owed > 0 && !self.context.is_durable {
            self.report_lost(
                owed,
                "deliveries are lost: without log.data_dir they do not outlive the relay",
            );
        }
    }

    /// Waits until no attempt is in flight and, where new attempts are allowed, nothing is left to
    /// send.
    async fn finish_attempts(&mut self) {
        let may_send = self.may_send();
        if may_send && self.shared.definition().disabled.is_none() {
            self.outbox.enable(); // retries are due at once: each gets its last attempt
        }
        loop {
            self.begin_look(Now::read());
            if may_send {
                self.send_due(Now::read());
            }
            self.store_sync.start_writes(&mut self.outbox, self.reader.committed_position());
            self.publish_status(Now::read());
            // A journal in flight holds slots; once committed, more deliveries may begin.
            // Entries that the reader has not returned count too: they are lost otherwise.
            let has_more = may_send && (self.reader.lag() > 0 || self.store_sync.is_writing());
            if self.attempts.is_empty() && !has_more {
                return;
            }
            self.step().await;
        }
    }
}

/// Time for attempts in flight at shutdown: less than orchestrators wait before they kill the
/// process (Kubernetes: 30 s by default).
const ATTEMPT_DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
