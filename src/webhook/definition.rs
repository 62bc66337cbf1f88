//! What is kept of a webhook beside its deliveries: as it was registered, and what has become of that since.
//!
//! In: a webhook of the file or of the API. Out: a text for the store, and back. What the file declares is not kept: it is in
//! the file, with its secret.
//!
//! May use: `config`, the webhook's words.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Now, WebhookSource, outbox::EndpointStatus};
use crate::{
    config::{FieldError, Secret, WebhookConfig},
    webhook_delivery::EndpointState,
};

/// A webhook and what operators and its receiver have made of it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Definition {
    /// As it was registered.
    pub(super) webhook: Arc<WebhookConfig>,
    /// By whom.
    pub(super) source: WebhookSource,
    /// Why nothing is sent, if nothing is.
    pub(super) disabled: Option<String>,
    /// Until when nothing is sent because the receiver asks for it, in Unix milliseconds.
    pub(super) throttled_until: Option<u64>,
    /// The secret before the present one.
    pub(super) previous_secret: Option<PreviousSecret>,
}

/// A secret that still signs beside its successor.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PreviousSecret {
    /// The secret.
    pub(super) secret: Secret,
    /// Until when, in Unix milliseconds.
    pub(super) until: u64,
}

/// What the store has of one that the file declares.
#[derive(Debug)]
pub(super) struct RestoredDefinition {
    /// The webhook, if the API has registered it.
    pub(super) webhook: Option<WebhookConfig>,
    /// Why nothing is sent, if nothing is.
    pub(super) disabled: Option<String>,
    /// Until when nothing is sent because the receiver asks for it, in Unix milliseconds.
    pub(super) throttled_until: Option<u64>,
    /// The secret before the present one.
    pub(super) previous_secret: Option<PreviousSecret>,
}

impl Definition {
    /// One that has just been registered.
    pub(super) fn new(webhook: WebhookConfig, source: WebhookSource) -> Self {
        Self {
            webhook: Arc::new(webhook),
            source,
            disabled: None,
            throttled_until: None,
            previous_secret: None,
        }
    }

    /// The definition when the webhook is changed. A former secret signs beside a new one for a while.
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

    /// The definition as it should be, if it is not.
    pub(super) fn refreshed(&self, standing: &EndpointStatus, now: Now) -> Option<Self> {
        let disabled = match standing.state {
            EndpointState::Disabled => Some(standing.problem.clone().unwrap_or_default()),
            _ => None,
        };
        let throttled_until = match standing.state {
            EndpointState::Throttled => standing.until.map(|at| now.unix_ms_at(at)),
            _ => None,
        };
        let throttled_until =
            throttled_until.filter(|until| *until > now.unix_ms + MIN_PERSISTED_THROTTLE_MS);
        // The two clocks do not run quite alike; and a wait that is over is none.
        let is_longer = throttled_until.unwrap_or_default()
            > self.throttled_until.unwrap_or_default() + MIN_PERSISTED_THROTTLE_MS;
        let is_shorter = self.throttled_until.is_some() && standing.state == EndpointState::Active;
        let is_over =
            self.previous_secret.as_ref().is_some_and(|previous| previous.until <= now.unix_ms);
        if disabled == self.disabled && !is_over && !is_longer && !is_shorter {
            return None;
        }
        let previous = self.previous_secret.clone().filter(|_| !is_over);
        Some(Self { disabled, throttled_until, previous_secret: previous, ..self.clone() })
    }

    /// The text that [`Remembered::parse`] reads.
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
        // Texts and numbers can always be written.
        serde_json::to_string(&stored).unwrap_or_default()
    }
}

impl RestoredDefinition {
    /// Reads what [`Definition::to_text`] has written.
    ///
    /// # Errors
    ///
    /// When it is nothing that was written there.
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
    former: Option<StoredSecret>,
}

#[derive(Deserialize, Serialize)]
struct StoredSecret {
    secret: String,
    until: u64,
}

/// How long a secret signs beside its successor: a receiver's deploy, and the night before it.
const SECRET_ROTATION_OVERLAP: Duration = Duration::from_secs(24 * 60 * 60);

/// A throttle that is shorter is not worth to be remembered across a restart.
const MIN_PERSISTED_THROTTLE_MS: u64 = 5000;
