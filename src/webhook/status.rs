//! What is known of one webhook by those who ask: its definition, how it stands, what it owes. Its worker writes it.
//!
//! May use: `delivery`, `log` (words), `metrics`, the webhook's own rooms.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::{info, warn};

use super::{
    Facts, Now,
    definition::Definition,
    outbox::{Outbox, Standing},
};
use crate::{metrics::WebhookMetrics, store::Notice, webhook_delivery::EndpointState};

/// The shared board of one webhook.
#[derive(Debug)]
pub(super) struct Board(Mutex<Content>);

#[derive(Debug)]
struct Content {
    definition: Arc<Definition>,
    facts: Facts,
}

impl Board {
    /// A webhook of which nothing is known but its definition.
    pub(super) fn new(definition: Definition) -> Self {
        let problem = definition.disabled.clone();
        let state = if problem.is_some() { EndpointState::Disabled } else { EndpointState::Active };
        let facts = Facts { state, until: None, problem, pending: 0, oldest_pending: None, dead: 0 };
        Self(Mutex::new(Content { definition: Arc::new(definition), facts }))
    }

    /// As it was registered, and what has become of that.
    pub(super) fn definition(&self) -> Arc<Definition> {
        Arc::clone(&self.content().definition)
    }

    /// How it stands.
    pub(super) fn facts(&self) -> Facts {
        self.content().facts.clone()
    }

    /// Notes another definition.
    pub(super) fn redefine(&self, definition: Definition) {
        self.content().definition = Arc::new(definition);
    }

    /// Shows how the outbox stands, with `unread` entries that nobody has looked at. Returns another definition where the
    /// present one does not say any more whether it is disabled, or has a secret whose time is over.
    pub(super) fn show(
        &self,
        outbox: &Outbox,
        notice: &Notice,
        unread: u64,
        now: Now,
        metrics: &WebhookMetrics,
    ) -> Option<Definition> {
        let standing = outbox.standing();
        let (owed, oldest_pending) = outbox.owed();
        let facts = Facts {
            state: standing.state,
            until: standing.until.map(|at| now.unix_ms_at(at)),
            problem: standing.problem.clone(),
            pending: owed + notice.requeued + unread,
            oldest_pending,
            dead: notice.dead,
        };
        metrics.show(facts.state, facts.pending, facts.dead, oldest_pending);
        let mut content = self.content();
        tell(&content, &facts);
        content.facts = facts;
        content.definition.outdated(&standing, now)
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        // Each note is whole: a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Definition {
    /// The definition as it should be, if it is not.
    fn outdated(&self, standing: &Standing, now: Now) -> Option<Self> {
        let disabled = match standing.state {
            EndpointState::Disabled => Some(standing.problem.clone().unwrap_or_default()),
            _ => None,
        };
        let throttled_until = match standing.state {
            EndpointState::Throttled => standing.until.map(|at| now.unix_ms_at(at)),
            _ => None,
        };
        let throttled_until = throttled_until.filter(|until| *until > now.unix_ms + NOTABLE_MS);
        // The two clocks do not run quite alike; and a wait that is over is none.
        let is_longer = throttled_until.unwrap_or_default() > self.throttled_until.unwrap_or_default() + NOTABLE_MS;
        let is_shorter = self.throttled_until.is_some() && standing.state == EndpointState::Active;
        let is_over = self.former.as_ref().is_some_and(|former| former.until <= now.unix_ms);
        if disabled == self.disabled && !is_over && !is_longer && !is_shorter {
            return None;
        }
        let former = self.former.clone().filter(|_| !is_over);
        Some(Self { disabled, throttled_until, former, ..self.clone() })
    }
}

/// Logs what operators should know.
fn tell(before: &Content, facts: &Facts) {
    let webhook = before.definition.webhook.id.as_str();
    let problem = facts.problem.as_deref().unwrap_or_default();
    if before.facts.state != facts.state {
        match facts.state {
            EndpointState::Active => info!(webhook, pending = facts.pending, "the webhook is active"),
            EndpointState::Throttled => warn!(webhook, problem, "the webhook is throttled: its receiver asks to wait"),
            EndpointState::Open => {
                warn!(webhook, problem, "the webhook is held back: its receiver fails; it is probed now and then");
            }
            EndpointState::Disabled => {
                warn!(webhook, problem, "the webhook is disabled: what it is owed waits until it is enabled");
            }
        }
    }
    // The first, and then each time they have doubled: a receiver that refuses everything must not fill the log.
    if facts.dead > before.facts.dead && facts.dead.ilog2() > before.facts.dead.checked_ilog2().unwrap_or_default()
        || (facts.dead > 0 && before.facts.dead == 0)
    {
        warn!(
            webhook,
            dead = facts.dead,
            "deliveries have been given up; they are listed as dead and can be redelivered"
        );
    }
}

/// A throttle that is shorter is not worth to be remembered across a restart.
const NOTABLE_MS: u64 = 5000;
