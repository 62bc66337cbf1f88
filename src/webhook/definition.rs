//! What is kept of a webhook beside its deliveries: as it was registered, and what has become of that since.
//!
//! In: a webhook of the file or of the API. Out: a text for the store, and back. What the file declares is not kept: it is in
//! the file, with its secret.
//!
//! May use: `config`, the webhook's words.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Source;
use crate::config::{FieldError, Secret, Webhook};

/// A webhook and what operators and its receiver have made of it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Definition {
    /// As it was registered.
    pub(super) webhook: Arc<Webhook>,
    /// By whom.
    pub(super) source: Source,
    /// Why nothing is sent, if nothing is.
    pub(super) disabled: Option<String>,
    /// Until when nothing is sent because the receiver asks for it, in Unix milliseconds.
    pub(super) throttled_until: Option<u64>,
    /// The secret before the present one.
    pub(super) former: Option<Former>,
}

/// A secret that still signs beside its successor.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Former {
    /// The secret.
    pub(super) secret: Secret,
    /// Until when, in Unix milliseconds.
    pub(super) until: u64,
}

/// What the store has of one that the file declares.
#[derive(Debug)]
pub(super) struct Remembered {
    /// The webhook, if the API has registered it.
    pub(super) webhook: Option<Webhook>,
    /// Why nothing is sent, if nothing is.
    pub(super) disabled: Option<String>,
    /// Until when nothing is sent because the receiver asks for it, in Unix milliseconds.
    pub(super) throttled_until: Option<u64>,
    /// The secret before the present one.
    pub(super) former: Option<Former>,
}

impl Definition {
    /// One that has just been registered.
    pub(super) fn new(webhook: Webhook, source: Source) -> Self {
        Self { webhook: Arc::new(webhook), source, disabled: None, throttled_until: None, former: None }
    }

    /// The text that [`Remembered::parse`] reads.
    pub(super) fn to_text(&self) -> String {
        let kept = Kept {
            webhook: (self.source == Source::Api).then(|| self.webhook.to_stored()),
            disabled: self.disabled.clone(),
            throttled_until: self.throttled_until,
            former: self
                .former
                .as_ref()
                .map(|it| KeptSecret { secret: it.secret.expose().to_owned(), until: it.until }),
        };
        // Texts and numbers can always be written.
        serde_json::to_string(&kept).unwrap_or_default()
    }
}

impl Remembered {
    /// Reads what [`Definition::to_text`] has written.
    ///
    /// # Errors
    ///
    /// When it is nothing that was written there.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let kept: Kept = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let unfit = |errors: Vec<FieldError>| {
            let problems: Vec<_> =
                errors.into_iter().map(|error| format!("{} {}", error.field, error.message)).collect();
            problems.join(", ")
        };
        let webhook = kept.webhook.as_deref().map(|text| Webhook::from_stored(text).map_err(unfit)).transpose()?;
        let former = |it: KeptSecret| Former { secret: Secret::inline(it.secret), until: it.until };
        let Kept { disabled, throttled_until, .. } = kept;
        Ok(Self { webhook, disabled, throttled_until, former: kept.former.map(former) })
    }
}

#[derive(Deserialize, Serialize)]
struct Kept {
    webhook: Option<String>,
    disabled: Option<String>,
    throttled_until: Option<u64>,
    former: Option<KeptSecret>,
}

#[derive(Deserialize, Serialize)]
struct KeptSecret {
    secret: String,
    until: u64,
}
