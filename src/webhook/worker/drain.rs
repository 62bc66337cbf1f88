//! What a worker still does when the relay leaves.
//!
//! May use: `log` (words), the worker's own state.

use std::time::Duration;

use tokio::time;
use tracing::error;

use super::Worker;
use crate::webhook::Now;

impl Worker {
    /// Whether anything new is sent. When the relay leaves, only what would be lost otherwise.
    pub(super) fn may_send(&self) -> bool {
        !(self.is_draining && self.context.is_durable)
    }

    /// Finishes what is under way. What is owed in memory alone is sent now or never.
    pub(super) async fn drain(&mut self) {
        self.is_draining = true;
        if time::timeout(ATTEMPT_DRAIN_TIMEOUT, self.finish_attempts()).await.is_err() {
            let webhook = &self.shared.definition().webhook.id;
            error!(
                webhook,
                attempts = self.attempts.len(),
                "attempts are cut off: it is not known how they went"
            );
        }
        self.publish_status(Now::read()); // what has been heard last of the endpoint is to be kept, too
        self.store_sync.flush(&mut self.outbox, self.reader.committed_position()).await;
        let owed = self.outbox.owed().0;
        if owed > 0 && !self.context.is_durable {
            self.report_lost(
                owed,
                "deliveries are lost: without log.data_dir they do not outlive the relay",
            );
        }
    }

    async fn finish_attempts(&mut self) {
        let may_send = self.may_send();
        if may_send && self.shared.definition().disabled.is_none() {
            self.outbox.enable(); // what waits for another attempt gets its last
        }
        loop {
            if may_send {
                self.send_due(Now::read());
            }
            self.store_sync.start_writes(&mut self.outbox, self.reader.committed_position());
            // What is being written down holds slots, in which more may be sent.
            let has_more = may_send && (self.reader.lag() > 0 || self.store_sync.is_writing());
            if self.attempts.is_empty() && !has_more {
                return;
            }
            self.step().await;
        }
    }
}

/// How long attempts may take that are under way when the relay leaves: less than orchestrators wait for it.
const ATTEMPT_DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
