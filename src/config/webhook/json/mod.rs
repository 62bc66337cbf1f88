//! Webhooks as JSON: for the admin API, and for the store.
//!
//! In: the body of a request, or a text of the store. Out: a [`WebhookConfig`], or all errors by
//! field. This module has no rules: it converts the body to the table that the file would have,
//! and reads that table.
//!
//! May use: `event`.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use toml::de::DeTable;

use super::WebhookConfig;
use crate::{
    config::{
        entry::ConfigEntry,
        environment::Environment,
        parse_context::ParseContext,
        secret::{MASK, Secret, SecretRule, SecretSources},
        section::Section,
        values::format_duration,
    },
    event::Only,
};

/// An error in one field of a body.
#[derive(Clone, Debug, Eq, PartialEq, serde::Serialize)]
pub(crate) struct FieldError {
    /// The field as the caller writes it, such as `types[1]`; empty for the body as a whole.
    pub(crate) field: String,
    /// The fault, and what to write instead, without a URL or a secret.
    pub(crate) message: String,
}

impl FieldError {
    /// Creates an error of one field.
    pub(crate) fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

/// The fields of a webhook in the order of the documentation. It has no `Debug` because the secret
/// may be unmasked.
#[derive(serde::Serialize)]
pub(crate) struct WebhookJson<'a> {
    id: &'a str,
    product_id: &'a str,
    url: String,
    types: Vec<&'a str>,
    session_ids: Vec<&'a str>,
    user_ids: Vec<&'a str>,
    headers: BTreeMap<&'a str, &'a str>,
    timeout: String,
    max_retries: u32,
    initial_backoff: String,
    max_backoff: String,
    max_in_flight: usize,
    secret: &'a str,
}

impl WebhookConfig {
    /// Reads a body of the admin API. If `existing` is given, the body changes that webhook: its id
    /// and product stay, and so does its secret unless the body has a new one; other missing fields
    /// get their defaults.
    ///
    /// # Errors
    ///
    /// All errors, by field.
    pub(crate) fn from_json(body: &[u8], existing: Option<&Self>) -> Result<Self, Vec<FieldError>> {
        let JsonObject(mut fields) =
            serde_json::from_slice(body).map_err(|error| vec![parse_error(&error)])?;
        if existing.is_some() {
            // A client may send an answer of the API back as it is.
            fields.retain(|(name, _)| !READ_ONLY_FIELDS.contains(&name.as_str()));
        }
        let mut body = WebhookBody::new(fields);
        if let Some(existing) = existing {
            body.fill_fixed_fields(existing);
        }
        body.read(existing)
    }

    /// Returns the webhook for an answer, with its secret masked.
    pub(crate) fn to_json(&self) -> WebhookJson<'_> {
        self.json(|_| MASK)
    }

    /// Returns the webhook for the store, with its secret, as [`WebhookConfig::from_stored`] reads
    /// it.
    pub(crate) fn to_stored(&self) -> String {
        // Serialization of texts and numbers cannot fail.
        serde_json::to_string(&self.json(Secret::expose)).unwrap_or_default()
    }

    /// Reads a text of [`WebhookConfig::to_stored`].
    ///
    /// # Errors
    ///
    /// All errors, by field.
    pub(crate) fn from_stored(text: &str) -> Result<Self, Vec<FieldError>> {
        Self::from_json(text.as_bytes(), None)
    }

    fn json<'a>(&'a self, show: impl Fn(&'a Secret) -> &'a str) -> WebhookJson<'a> {
        WebhookJson {
            id: &self.id,
            product_id: self.product_id.as_str(),
            url: self.url.to_string(),
            types: only_to_list(&self.types, String::as_str),
            session_ids: only_to_list(&self.session_ids, |session| session.as_str()),
            user_ids: only_to_list(&self.user_ids, |user| user.as_str()),
            headers: self.headers.to_map(&show),
            timeout: format_duration(self.timeout),
            max_retries: self.max_retries,
            initial_backoff: format_duration(self.initial_backoff),
            max_backoff: format_duration(self.max_backoff),
            max_in_flight: self.max_in_flight,
            secret: show(&self.secret),
        }
    }
}

fn only_to_list<'a, T>(only: &'a Only<T>, text: impl Fn(&'a T) -> &'a str) -> Vec<&'a str> {
    match only {
        Only::Everything => Vec::new(),
        Only::These(these) => these.iter().map(text).collect(),
    }
}

/// A body on its way to a table, and what is wrong with it so far.
struct WebhookBody {
    table: toml::Table,
    errors: Vec<FieldError>,
    reported_fields: BTreeSet<String>,
}

impl WebhookBody {
    fn new(fields: Vec<(String, Value)>) -> Self {
        let mut body = Self {
            table: toml::Table::new(),
            errors: Vec::new(),
            reported_fields: BTreeSet::new(),
        };
        for (name, value) in fields {
            let value = body.convert_value(&name, value);
            if body.table.contains_key(&name) {
                body.report(&name, "is given twice");
            }
            body.table.insert(name, value);
        }
        body
    }

    /// Fills in the fields that a change cannot alter, and reports other values of them.
    fn fill_fixed_fields(&mut self, existing: &WebhookConfig) {
        for (field, fixed) in
            [("id", existing.id.as_str()), ("product_id", existing.product_id.as_str())]
        {
            let given = self.table.insert(field.to_owned(), fixed.into());
            if given.is_some_and(|given| given.as_str() != Some(fixed)) {
                self.report(field, "cannot be changed; register another webhook");
            }
        }
    }

    fn read(mut self, existing: Option<&WebhookConfig>) -> Result<WebhookConfig, Vec<FieldError>> {
        let text = self.table.to_string();
        // A table that was serialized here can be parsed here; if it cannot, the error does not
        // repeat its text.
        let document =
            DeTable::parse(&text).map_err(|_| vec![FieldError::new("", "cannot be read")])?;
        let environment = Environment::default();
        let context = ParseContext::new("", &text, &environment);
        let mut section = Section::root(&context, document.get_ref());
        let webhook = WebhookConfig::read_keys(
            &mut section,
            |section, key| read_secret(&section.entry(key), existing),
            SecretSources::TextOnly,
        );
        section.finish();
        if let Err(findings) = context.finish() {
            findings.into_fields().for_each(|(field, message)| self.report(&field, &message));
        }
        match webhook {
            Some(webhook) if self.errors.is_empty() => Ok(webhook),
            _ => Err(self.errors),
        }
    }

    /// Records the first error of each field: a later one may concern the value that replaced an
    /// invalid one.
    fn report(&mut self, field: &str, message: &str) {
        if self.reported_fields.insert(field.to_owned()) {
            self.errors.push(FieldError::new(field, message));
        }
    }

    /// Converts a value to TOML. Of values that are nested deeper than any field allows, only the
    /// kind is kept.
    fn convert_value(&mut self, field: &str, value: Value) -> toml::Value {
        match value {
            Value::Array(elements) => {
                let elements = elements.iter().enumerate();
                let elements = elements
                    .map(|(index, value)| self.scalar_to_toml(&format!("{field}[{index}]"), value));
                toml::Value::Array(elements.collect())
            }
            Value::Object(members) => {
                let members = members.into_iter().map(|(name, value)| {
                    let value = self.scalar_to_toml(&format!("{field}.{name}"), &value);
                    (name, value)
                });
                toml::Value::Table(members.collect())
            }
            scalar => self.scalar_to_toml(field, &scalar),
        }
    }

    fn scalar_to_toml(&mut self, field: &str, value: &Value) -> toml::Value {
        match value {
            Value::Bool(value) => (*value).into(),
            Value::String(text) => text.as_str().into(),
            Value::Number(number) => match number.as_i64() {
                Some(integer) => integer.into(),
                None => number.as_f64().unwrap_or(f64::MAX).into(),
            },
            Value::Array(_) => toml::Value::Array(Vec::new()),
            Value::Object(_) => toml::Value::Table(toml::Table::new()),
            Value::Null => {
                self.report(field, "must not be null; leave it out instead");
                toml::Value::Table(toml::Table::new())
            }
        }
    }
}

/// Reads the secret, which the API accepts only directly: if it accepted the name of a variable or
/// a file, its callers could read those of the relay.
fn read_secret(entry: &ConfigEntry<'_>, existing: Option<&WebhookConfig>) -> Option<Secret> {
    match existing {
        // A form that was filled from an answer sends the mask, or an empty text.
        Some(existing) if entry.non_empty_text() == Some(MASK) || !entry.is_given() => {
            Some(existing.secret.clone())
        }
        _ => Secret::from_entry(entry, SecretRule::Header),
    }
}

fn parse_error(error: &serde_json::Error) -> FieldError {
    // Only the position is reported: the message of the parser may repeat text of the body.
    let message = match error.classify() {
        serde_json::error::Category::Data => "must be a JSON object".to_owned(),
        _ => format!("is not JSON: see line {}, column {}", error.line(), error.column()),
    };
    FieldError::new("", message)
}

/// The fields of an object in the order of the text, including repeated ones.
struct JsonObject(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for JsonObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(JsonObjectVisitor)
    }
}

struct JsonObjectVisitor;

impl<'de> Visitor<'de> for JsonObjectVisitor {
    type Value = JsonObject;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<JsonObject, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(JsonObject(fields))
    }
}

/// Fields that an answer has beside the fields that can be set.
const READ_ONLY_FIELDS: [&str; 7] =
    ["source", "state", "until", "problem", "pending", "oldest_pending_at", "dead"];
