//! What is stored of a webhook beside its deliveries: its registration and its endpoint's state.
//!
//! In: a webhook of the configuration file or of the API. Out: a text for the store, and back. A
//! webhook that the configuration file declares is not stored: the file has it, with its secret.
//!
//! May use: `config`.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::WebhookSource;
use crate::config::{FieldError, Secret, WebhookConfig};

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

    /// The text that [`RestoredDefinition::from_stored`] reads.
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
    /// Reads what [`Definition::to_stored`] has written.
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
