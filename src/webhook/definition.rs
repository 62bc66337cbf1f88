//! Definition of one webhook: its registration, and the state that must outlive a restart.
//!
//! In: a webhook of the file or of the API. Out: a text for the store, and back. The configuration
//! of a webhook that the file declares is not stored: the file has it, with its secret.
//!
//! May use: `config`, `webhook_delivery`.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{Now, WebhookSource, outbox::EndpointStatus};
use crate::{
    config::{FieldError, Secret, WebhookConfig},
    webhook_delivery::EndpointState,
};

/// Configuration of a webhook, and the state that operators and the receiver have put it in.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Definition {
    /// The configuration as registered.
    pub(super) webhook: Arc<WebhookConfig>,
    /// Origin of the registration.
    pub(super) source: WebhookSource,
    /// Cause of a disabled endpoint; nothing is sent while this is set.
    pub(super) disabled: Option<String>,
    /// End of a pause that the receiver asked for, in Unix milliseconds.
    pub(super) throttled_until: Option<u64>,
    /// The secret before the current one, while both sign.
    pub(super) previous_secret: Option<PreviousSecret>,
}

/// A replaced secret that signs beside its successor for a while.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PreviousSecret {
    /// The secret.
    pub(super) secret: Secret,
    /// End of the overlap in Unix milliseconds.
    pub(super) until: u64,
}

/// A definition as read from the store; the configuration is missing for webhooks of the file.
#[derive(Debug)]
pub(super) struct RestoredDefinition {
    /// The configuration, if the webhook was registered through the API.
    pub(super) webhook: Option<WebhookConfig>,
    /// Cause of a disabled endpoint.
    pub(super) disabled: Option<String>,
    /// End of a pause that the receiver asked for, in Unix milliseconds.
    pub(super) throttled_until: Option<u64>,
    /// The secret before the current one, while both sign.
    pub(super) previous_secret: Option<PreviousSecret>,
}

impl Definition {
    /// Creates the definition of a newly registered webhook.
    pub(super) fn new(webhook: WebhookConfig, source: WebhookSource) -> Self {
        Self {
            webhook: Arc::new(webhook),
            source,
            disabled: None,
            throttled_until: None,
            previous_secret: None,
        }
    }

    /// Returns the definition after a change of the configuration. State is kept; if the secret
    /// changes, the former one signs beside it for [`SECRET_ROTATION_OVERLAP`].
    pub(super) fn replaced_by(&self, webhook: WebhookConfig, source: WebhookSource) -> Self {
        let previous = match self.webhook.secret == webhook.secret {
            true => self.previous_secret.clone(),
            false => Some(PreviousSecret {
                secret: self.webhook.secret.clone(),
                until: Now::read()
                    .unix_ms
                    .saturating_add(SECRET_ROTATION_OVERLAP.as_millis() as u64),
            }),
        };
        Self { webhook: Arc::new(webhook), source, previous_secret: previous, ..self.clone() }
    }

    /// Returns the definition that matches the endpoint's `endpoint`, or `None` if this one does.
    ///
    /// A change costs a write of the store, so throttles are compared with a tolerance of
    /// [`MIN_PERSISTED_THROTTLE_MS`].
    pub(super) fn refreshed(&self, endpoint: &EndpointStatus, now: Now) -> Option<Self> {
        let disabled = match endpoint.state {
            EndpointState::Disabled => Some(endpoint.problem.clone().unwrap_or_default()),
            _ => None,
        };
        let now = now.for_stored_waits();
        let throttled_until = match endpoint.state {
            EndpointState::Throttled => endpoint.until.map(|at| now.unix_ms_at(at)),
            _ => None,
        };
        let throttled_until =
            throttled_until.filter(|until| *until > now.unix_ms + MIN_PERSISTED_THROTTLE_MS);
        // `endpoint.until` is monotonic and converted at each look, so the Unix time of one and the
        // same throttle varies by the drift of the two clocks. Without the tolerance, every look
        // would be a change. A stored throttle counts until the state is active, even if its end
        // has passed.
        let is_longer = throttled_until.unwrap_or_default()
            > self.throttled_until.unwrap_or_default() + MIN_PERSISTED_THROTTLE_MS;
        let is_shorter = self.throttled_until.is_some() && endpoint.state == EndpointState::Active;
        // A clock that is ahead for some seconds must not end the overlap of the secrets.
        let is_over =
            self.previous_secret.as_ref().is_some_and(|previous| previous.until <= now.earliest_ms);
        if disabled == self.disabled && !is_over && !is_longer && !is_shorter {
            return None;
        }
        let previous = self.previous_secret.clone().filter(|_| !is_over);
        Some(Self { disabled, throttled_until, previous_secret: previous, ..self.clone() })
    }

    /// Returns when to look again at a definition that ends by time alone, for a webhook to which
    /// nothing else happens.
    pub(super) fn due(&self, now: Now) -> Option<Instant> {
        let previous = self.previous_secret.as_ref()?;
        let remaining = Duration::from_millis(previous.until.saturating_sub(now.earliest_ms));
        Some(now.instant + remaining.min(SECRET_CHECK_INTERVAL))
    }

    /// Serialises the definition in the form that [`RestoredDefinition::from_stored`] parses.
    pub(super) fn to_stored(&self) -> String {
        let stored = StoredDefinition {
            webhook: (self.source == WebhookSource::Api).then(|| self.webhook.to_stored()),
            disabled: self.disabled.clone(),
            throttled_until: self.throttled_until,
            former: self
                .previous_secret
                .as_ref()
                .map(|it| StoredSecret { secret: it.secret.expose().to_owned(), until: it.until }),
        };
        // Serialisation cannot fail: the value consists of strings and numbers.
        serde_json::to_string(&stored).unwrap_or_default()
    }
}

impl RestoredDefinition {
    /// Parses the text that [`Definition::to_stored`] wrote.
    ///
    /// # Errors
    ///
    /// A description if the text is not JSON of this form, or its configuration is not valid any
    /// more.
    pub(super) fn from_stored(text: &str) -> Result<Self, String> {
        let stored: StoredDefinition =
            serde_json::from_str(text).map_err(|error| error.to_string())?;
        let join_errors = |errors: Vec<FieldError>| {
            let problems: Vec<_> = errors
                .into_iter()
                .map(|error| format!("{} {}", error.field, error.message))
                .collect();
            problems.join(", ")
        };
        let webhook = stored
            .webhook
            .as_deref()
            .map(|text| WebhookConfig::from_stored(text).map_err(join_errors))
            .transpose()?;
        let previous = |it: StoredSecret| PreviousSecret {
            secret: Secret::inline(it.secret),
            until: it.until,
        };
        let StoredDefinition { disabled, throttled_until, .. } = stored;
        Ok(Self {
            webhook,
            disabled,
            throttled_until,
            previous_secret: stored.former.map(previous),
        })
    }
}

#[derive(Deserialize, Serialize)]
struct StoredDefinition {
    webhook: Option<String>,
    disabled: Option<String>,
    throttled_until: Option<u64>,
    // The name is part of the stored form.
    former: Option<StoredSecret>,
}

#[derive(Deserialize, Serialize)]
struct StoredSecret {
    secret: String,
    until: u64,
}

/// Overlap of two secrets: 24 h cover a receiver's deploy and the night before it.
const SECRET_ROTATION_OVERLAP: Duration = Duration::from_secs(24 * 60 * 60);

/// Longest time between two looks at the end of the overlap: the wall clock may be set meanwhile.
const SECRET_CHECK_INTERVAL: Duration = Duration::from_secs(60);

/// Shortest throttle that is stored: a restart would outlast a shorter one, so it is not worth a
/// write.
const MIN_PERSISTED_THROTTLE_MS: u64 = 5000;
