//! Published status of one webhook: its definition, the endpoint's state, counts.
//!
//! The worker writes; the registry and the admin API read without asking the worker. What has come
//! for the worker since it wrote is added by the read: a caller that has published an event, or
//! requeued a dead letter, finds it counted as pending until it is settled.
//!
//! May use: `fanout`, `log_limit`, `metrics`, `store`, `webhook_delivery`.

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tracing::{info, warn};

use super::{
    Now, WebhookStatus,
    definition::Definition,
    outbox::Outbox,
    reader::{ReadProgress, WebhookReader},
};
use crate::{
    fanout::Fanout,
    log_limit::LogRateLimit,
    metrics::WebhookMetrics,
    store::{WebhookNotice, WebhookNotices},
    webhook_delivery::EndpointState,
};

/// Status of one webhook, shared by its worker and all callers that read it.
#[derive(Debug)]
pub(super) struct SharedStatus {
    /// The lock is held for copies only.
    published: Mutex<PublishedStatus>,
    progress: Arc<ReadProgress>,
    notices: Arc<WebhookNotices>,
}

#[derive(Debug)]
struct PublishedStatus {
    definition: Arc<Definition>,
    status: WebhookStatus,
    counts: PublishedCounts,
    log_limits: StateLogLimits,
}

/// Parts of the pending deliveries, of one moment.
#[derive(Clone, Copy, Debug, Default)]
struct PublishedCounts {
    owed: u64,
    requeued: u64,
    /// Every event of the scope up to this position is owed or settled.
    read_through: u64,
}

/// Limits of the lines about an endpoint's states: a receiver chooses how often they change.
#[derive(Debug, Default)]
struct StateLogLimits {
    active: LogRateLimit,
    throttled: LogRateLimit,
    open: LogRateLimit,
    disabled: LogRateLimit,
    dead_letters: DeadLetterLogLimit,
}

/// Limit of the lines about dead letters: their number doubles some sixty times at most, but it can
/// also fall and rise again, where a bound on dead letters removes the oldest.
#[derive(Debug, Default)]
struct DeadLetterLogLimit {
    highest: u64,
    others: LogRateLimit,
}

impl DeadLetterLogLimit {
    /// Returns whether to log that there are `dead` dead letters after `before`: the first, and
    /// each doubling, but those below the highest number so far once a minute.
    fn allow(&mut self, before: u64, dead: u64) -> bool {
        // The logarithm of 0 is `None`, which is below any other.
        if dead.checked_ilog2() <= before.checked_ilog2() {
            return false;
        }
        let is_highest = dead.checked_ilog2() > self.highest.checked_ilog2();
        self.highest = self.highest.max(dead);
        // Asked in any case: a line of the first kind counts for the minute of the second.
        self.others.allow() || is_highest
    }
}

impl StateLogLimits {
    fn of(&mut self, state: EndpointState) -> &mut LogRateLimit {
        match state {
            EndpointState::Active => &mut self.active,
            EndpointState::Throttled => &mut self.throttled,
            EndpointState::Open => &mut self.open,
            EndpointState::Disabled => &mut self.disabled,
        }
    }
}

impl SharedStatus {
    /// Creates the status of a webhook whose worker has not run yet.
    pub(super) fn new(definition: Definition, fanout: &Arc<Fanout>) -> Self {
        let problem = definition.disabled.clone();
        let state = if problem.is_some() { EndpointState::Disabled } else { EndpointState::Active };
        let status = WebhookStatus {
            state,
            until: None,
            problem,
            pending: 0,
            oldest_pending: None,
            dead: 0,
        };
        let published = PublishedStatus {
            definition: Arc::new(definition),
            status,
            counts: PublishedCounts::default(),
            log_limits: StateLogLimits::default(),
        };
        Self {
            published: Mutex::new(published),
            progress: Arc::new(ReadProgress::new(Arc::clone(fanout))),
            notices: Arc::default(),
        }
    }

    /// Returns the progress of the worker's reader.
    pub(super) fn progress(&self) -> &Arc<ReadProgress> {
        &self.progress
    }

    /// Returns the channel from the store to the worker.
    pub(super) fn notices(&self) -> &Arc<WebhookNotices> {
        &self.notices
    }

    /// Returns the current definition.
    pub(super) fn definition(&self) -> Arc<Definition> {
        Arc::clone(&self.lock().definition)
    }

    /// Returns the current status, which counts what the worker has not taken yet as pending.
    pub(super) fn status(&self) -> WebhookStatus {
        // Before the published status, see `ReadProgress::extent`.
        let extent = self.progress.extent();
        let published = self.lock();
        let PublishedCounts { owed, requeued, read_through } = published.counts;
        // The greater of the two: a redelivery that the store no longer counts may still be in the
        // published status, together with a dead letter that it has become again.
        let requeued = requeued.max(self.notices.requeued());
        let pending = owed + requeued + extent.unread_after(read_through);
        WebhookStatus { pending, ..published.status.clone() }
    }

    /// Replaces the definition.
    pub(super) fn redefine(&self, definition: Definition) {
        self.lock().definition = Arc::new(definition);
    }

    /// Publishes the state of the outbox and how far the reader has read, and logs changes that
    /// operators should see.
    ///
    /// Returns another definition if the current one no longer matches: the endpoint was disabled,
    /// enabled or throttled, or a replaced secret has expired. The caller stores that definition.
    pub(super) fn publish(
        &self,
        outbox: &Outbox,
        notice: &WebhookNotice,
        reader: &WebhookReader,
        now: Now,
        metrics: &WebhookMetrics,
    ) -> Option<Definition> {
        let endpoint = outbox.endpoint_status();
        let (owed, oldest_pending) = outbox.owed();
        let counts = PublishedCounts {
            owed,
            requeued: notice.requeued,
            read_through: reader.returned_through(),
        };
        // A full outbox, or an event that waits for its commit, stops the reader. The entries
        // behind it count as pending, which is an upper bound: some may be outside the scope.
        let is_stopped = !outbox.has_capacity() || reader.has_uncommitted();
        let unread = if is_stopped { reader.lag() } else { 0 };
        let status = WebhookStatus {
            state: endpoint.state,
            until: endpoint.until.map(|at| now.unix_ms_at(at)),
            problem: endpoint.problem.clone(),
            pending: owed + notice.requeued + unread,
            oldest_pending,
            dead: notice.dead,
        };
        metrics.record_status(status.state, status.pending, status.dead, oldest_pending);
        let mut published = self.lock();
        log_changes(&mut published, &status);
        (published.status, published.counts) = (status, counts);
        published.definition.refreshed(&endpoint, now)
    }

    fn lock(&self) -> MutexGuard<'_, PublishedStatus> {
        self.published.lock()
    }
}

/// Logs a change of the endpoint's state, and dead letters.
fn log_changes(before: &mut PublishedStatus, status: &WebhookStatus) {
    let webhook = before.definition.webhook.id.as_str();
    let problem = status.problem.as_deref().unwrap_or_default();
    if before.status.state != status.state && before.log_limits.of(status.state).allow() {
        match status.state {
            EndpointState::Active => {
                info!(webhook, pending = status.pending, "the webhook is active");
            }
            EndpointState::Throttled => {
                warn!(webhook, problem, "the webhook is throttled: its receiver asks to wait");
            }
            EndpointState::Open => {
                warn!(
                    webhook,
                    problem,
                    "the webhook's circuit is open: \
                     its receiver fails; probes follow at growing intervals"
                );
            }
            EndpointState::Disabled => {
                warn!(
                    webhook,
                    problem, "the webhook is disabled: owed deliveries wait until it is enabled"
                );
            }
        }
    }
    // The first dead letter is logged, and then each doubling: a receiver that refuses everything
    // must not fill the log.
    if before.log_limits.dead_letters.allow(before.status.dead, status.dead) {
        warn!(
            webhook,
            dead = status.dead,
            "deliveries have been given up; they are listed as dead and can be redelivered"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn dead_letters_are_logged_at_each_doubling_and_again_once_a_minute() {
        let mut limit = DeadLetterLogLimit::default();
        let lines = |limit: &mut DeadLetterLogLimit, numbers: &[u64]| {
            let steps = numbers.windows(2).map(|pair| limit.allow(pair[0], pair[1]));
            steps.filter(|logged| *logged).count()
        };
        let to_a_thousand: Vec<u64> = (0..=1000).collect();
        assert_eq!(lines(&mut limit, &to_a_thousand), 10, "1, 2, 4 … 512");
        // A bound on dead letters lets their number swing around 512, or around none.
        assert_eq!(lines(&mut limit, &[511, 512].repeat(1000)), 0);
        assert_eq!(lines(&mut limit, &[0, 1].repeat(1000)), 0);
        tokio::time::advance(Duration::from_secs(61)).await;
        assert_eq!(lines(&mut limit, &[511, 512].repeat(1000)), 1);
        assert_eq!(lines(&mut limit, &[1000, 2000]), 1, "a new height is logged at once");
    }
}
