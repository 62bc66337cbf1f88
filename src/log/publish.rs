//! The log as publishers see it: appends an event, and reports when it is committed.
//!
//! May use: `event`.

use tokio::time::{Duration, timeout};

use super::{Log, Numbering, append::Appended};
use crate::event::Draft;

/// Refusal to publish: the upstream, itself a relay, gives the ids, so the event has to be
/// published there.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("this log is numbered by its upstream")]
pub(crate) struct NumberedByUpstream;

impl Log {
    /// Returns whether the upstream, itself a relay, gives the ids, as far as that is known.
    pub(crate) fn is_numbered_by_upstream(&self) -> bool {
        self.state().numbering == Numbering::Upstream
    }

    /// Appends an event that did not come from the upstream. Never waits for a disk or a reader.
    ///
    /// # Errors
    ///
    /// [`NumberedByUpstream`], from the moment at which that is known. The event is not appended.
    pub(crate) fn publish(&self, draft: Draft) -> Result<Appended, NumberedByUpstream> {
        let state = self.state();
        if state.numbering == Numbering::Upstream {
            return Err(NumberedByUpstream);
        }
        Ok(self.append_with_own_id(state, draft))
    }

    /// Waits until the entry at `position` is committed, and returns whether it is. Returns `false`
    /// without a store, as soon as the store is degraded, and if the entry is lost.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future changes nothing: the entry is committed all the same.
    pub(crate) async fn wait_durable(&self, position: u64) -> bool {
        timeout(DURABLE_WAIT_TIMEOUT, self.wait_durable_untimed(position)).await.unwrap_or(false)
    }

    async fn wait_durable_untimed(&self, position: u64) -> bool {
        let Some(backing) = &self.backing else { return false };
        let mut persisted = self.watch_persisted();
        // The guard that `wait_for` returns is dropped before the log's lock is taken: the store's
        // writer takes them the other way round.
        let commit = async { drop(persisted.wait_for(|persisted| *persisted >= position).await) };
        let is_persisted = tokio::select! {
            biased; // a commit counts although the store is degraded
            () = commit => true,
            () = backing.wait_until_degraded() => false,
        };
        is_persisted && self.has_committed(position)
    }

    fn has_committed(&self, position: u64) -> bool {
        self.state().durable.as_ref().is_some_and(|durable| durable.has_committed(position))
    }
}

/// Longest wait for a commit. A store whose write takes longer than two seconds is degraded, which
/// ends the wait; this bound is for a store that hangs without a sign of it.
const DURABLE_WAIT_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::{sync::Arc, sync::mpsc, thread};

    use bytes::Bytes;
    use tokio::{runtime, time::Instant};

    use super::*;
    use crate::{
        event::{Kind, ProductId},
        log::{MemoryBounds, PersistedLog, backing::LogBacking},
        metrics::Metrics,
    };

    fn durable_log() -> Arc<Log> {
        let (product, bounds) =
            (ProductId::new("p").unwrap(), MemoryBounds { events: 16, bytes: u64::MAX });
        let persisted = PersistedLog {
            product_number: 1,
            newest: 0,
            evicted_through: 0,
            events: 0,
            bytes: 0,
            highest_epoch: 0,
            spans: Vec::new(),
            empty_epochs: Vec::new(),
            holes: Vec::new(),
        };
        let metrics = Metrics::new().unwrap().log(&product);
        let backing = LogBacking::new(1);
        Arc::new(Log::restored(product, bounds, persisted, 7, false, backing, metrics))
    }

    fn publish_and_wait(log: &Log) -> bool {
        let draft = Draft {
            kind: Kind::Actions,
            session: None,
            user: None,
            forwarded_at: None,
            payload: Bytes::from_static(b"{}"),
            received: Instant::now(),
        };
        let appended = log.publish(draft).unwrap();
        let runtime = runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(log.wait_durable(appended.position))
    }

    #[test]
    fn publishers_that_see_their_commits_and_the_writer_that_makes_them_do_not_wait_for_each_other()
    {
        const EVENTS: usize = 2000;
        let (log, (published, done)) = (durable_log(), mpsc::channel());
        for _ in 0..4 {
            let (log, published) = (Arc::clone(&log), published.clone());
            // Not joined: a thread that waits for good must not keep the test from failing.
            thread::spawn(move || {
                (0..EVENTS / 4).all(|_| published.send(publish_and_wait(&log)).is_ok())
            });
        }
        let writer = Arc::clone(&log);
        thread::spawn(move || {
            while Arc::strong_count(&writer) > 1 {
                if let Some(batch) = writer.next_unpersisted(1000) {
                    writer.mark_persisted(&batch);
                }
            }
        });
        for nth in 0..EVENTS {
            let is_durable = done.recv_timeout(Duration::from_secs(30));
            assert_eq!(is_durable, Ok(true), "event {nth}");
        }
    }
}
