//! What is known of one webhook by those who ask: its definition, how it stands, what it owes. Its worker writes it.
//!
//! May use: `delivery`, `log` (words), `metrics`, the webhook's own rooms.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::{info, warn};

use super::{Now, WebhookStatus, definition::Definition, outbox::Outbox};
use crate::{metrics::WebhookMetrics, store::WebhookNotice, webhook_delivery::EndpointState};

/// The shared board of one webhook.
#[derive(Debug)]
pub(super) struct SharedStatus(Mutex<PublishedStatus>);

#[derive(Debug)]
struct PublishedStatus {
    definition: Arc<Definition>,
    status: WebhookStatus,
}

impl SharedStatus {
    /// A webhook of which nothing is known but its definition.
    pub(super) fn new(definition: Definition) -> Self {
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
        Self(Mutex::new(PublishedStatus { definition: Arc::new(definition), status }))
    }

    /// As it was registered, and what has become of that.
    pub(super) fn definition(&self) -> Arc<Definition> {
        Arc::clone(&self.lock().definition)
    }

    /// How it stands.
    pub(super) fn status(&self) -> WebhookStatus {
        self.lock().status.clone()
    }

    /// Notes another definition.
    pub(super) fn redefine(&self, definition: Definition) {
        self.lock().definition = Arc::new(definition);
    }

    /// Shows how the outbox stands, with `unread` entries that nobody has looked at. Returns another definition where the
    /// present one does not say any more whether it is disabled, or has a secret whose time is over.
    pub(super) fn publish(
        &self,
        outbox: &Outbox,
        notice: &WebhookNotice,
        unread: u64,
        now: Now,
        metrics: &WebhookMetrics,
    ) -> Option<Definition> {
        let standing = outbox.endpoint_status();
        let (owed, oldest_pending) = outbox.owed();
        let status = WebhookStatus {
            state: standing.state,
            until: standing.until.map(|at| now.unix_ms_at(at)),
            problem: standing.problem.clone(),
            pending: owed + notice.requeued + unread,
            oldest_pending,
            dead: notice.dead,
        };
        metrics.record_status(status.state, status.pending, status.dead, oldest_pending);
        let mut published = self.lock();
        log_changes(&published, &status);
        published.status = status;
        published.definition.refreshed(&standing, now)
    }

    fn lock(&self) -> MutexGuard<'_, PublishedStatus> {
        // Each note is whole: a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Logs what operators should know.
fn log_changes(before: &PublishedStatus, status: &WebhookStatus) {
    let webhook = before.definition.webhook.id.as_str();
    let problem = status.problem.as_deref().unwrap_or_default();
    if before.status.state != status.state {
        match status.state {
            EndpointState::Active => {
                info!(webhook, pending = status.pending, "the webhook is active")
            }
            EndpointState::Throttled => {
                warn!(webhook, problem, "the webhook is throttled: its receiver asks to wait")
            }
            EndpointState::Open => {
                warn!(
                    webhook,
                    problem,
                    "the webhook is held back: its receiver fails; it is probed now and then"
                );
            }
            EndpointState::Disabled => {
                warn!(
                    webhook,
                    problem, "the webhook is disabled: what it is owed waits until it is enabled"
                );
            }
        }
    }
    // The first, and then each time they have doubled: a receiver that refuses everything must not fill the log.
    if status.dead > before.status.dead
        && status.dead.ilog2() > before.status.dead.checked_ilog2().unwrap_or_default()
        || (status.dead > 0 && before.status.dead == 0)
    {
        warn!(
            webhook,
            dead = status.dead,
            "deliveries have been given up; they are listed as dead and can be redelivered"
        );
    }
}
