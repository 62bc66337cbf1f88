//! What a worker still does when the relay leaves.
//!
//! May use: `log` (words), the worker's own state.

use super::*;

impl Worker {
    /// Whether anything new is sent. When the relay leaves, only what would be lost otherwise.
    pub(super) fn may_send(&self) -> bool {
        !(self.is_leaving && self.tools.is_durable)
    }

    /// Finishes what is under way. What is owed in memory alone is sent now or never.
    pub(super) async fn leave(&mut self) {
        self.is_leaving = true;
        if time::timeout(LEAVING, self.finish()).await.is_err() {
            let webhook = &self.board.definition().webhook.id;
            error!(webhook, attempts = self.attempts.len(), "attempts are cut off: it is not known how they went");
        }
        self.show(Now::read()); // what has been heard last of the endpoint is to be kept, too
        self.records.close(&mut self.outbox, self.reader.committed()).await;
        let owed = self.outbox.owed().0;
        if owed > 0 && !self.tools.is_durable {
            self.lost(owed, "deliveries are lost: without log.data_dir they do not outlive the relay");
        }
    }

    async fn finish(&mut self) {
        let may_send = self.may_send();
        if may_send && self.board.definition().disabled.is_none() {
            self.outbox.enable(); // what waits for another attempt gets its last
        }
        loop {
            if may_send {
                self.send(Now::read());
            }
            self.records.write_down(&mut self.outbox, self.reader.committed());
            // What is being written down holds slots, in which more may be sent.
            let is_more = may_send && (self.reader.behind() > 0 || self.records.is_writing());
            if self.attempts.is_empty() && !is_more {
                return;
            }
            self.step().await;
        }
    }
}

/// How long attempts may take that are under way when the relay leaves: less than orchestrators wait for it.
const LEAVING: Duration = Duration::from_secs(10);
