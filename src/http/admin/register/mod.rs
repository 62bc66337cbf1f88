//! `POST /products`: the connector's registration call, for clients that register by another URL.
//!
//! In: the request forms that the connector takes. Out: a webhook with the product's name (push),
//! or a note that the product is registered (stream, which needs no registration here).
//!
//! May use: `config`, `event`, `webhook`.

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use hyper::StatusCode;
use serde_json::{Map, Value, json};

use super::{
    AdminState,
    webhooks::{RequestBody, read_body},
};
use crate::{
    config::{FieldError, WebhookConfig},
    event::ProductId,
    http::problem::Problem,
    webhook::{WebhookError, WebhookSource, WebhookSummary},
};

/// The products that were registered for streaming. There is nothing else to remember of that, and
/// a restart forgets it: the call is then answered by 201 once more.
#[derive(Debug, Default)]
pub(crate) struct StreamRegistrations(Mutex<BTreeSet<ProductId>>);

impl StreamRegistrations {
    fn lock(&self) -> MutexGuard<'_, BTreeSet<ProductId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Registers a product.
///
/// # Errors
///
/// 409 for one that is registered, unless `force_reregister` is true; 413, 422; 503 when the store
/// cannot be written.
pub(in crate::http) async fn register(
    State(admin): State<Arc<AdminState>>,
    request_body: RequestBody,
) -> Result<Response, Problem> {
    let RegistrationRequest { product, is_forced, mode } =
        RegistrationRequest::read(&read_body(request_body)?).map_err(Problem::invalid)?;
    if !admin.relay.products.contains_key(&product) {
        return Err(WebhookError::UnknownProduct.into());
    }
    let existing = ExistingWebhook::of(admin.webhooks.get(product.as_str()), &product);
    let is_registered = existing == ExistingWebhook::Registered
        || admin.stream_registrations.lock().contains(&product);
    if is_registered && !is_forced {
        return Err(Problem::conflict(
            "this product is registered; to replace that, send force_reregister: true",
        ));
    }
    let answer = mode.to_json(&product);
    match mode {
        RegistrationMode::Push(webhook) => {
            match existing {
                ExistingWebhook::None => admin.webhooks.create(*webhook).await?,
                ExistingWebhook::Registered => admin.webhooks.update(*webhook).await?,
                ExistingWebhook::FromConfig => return Err(WebhookError::DeclaredInFile.into()),
                ExistingWebhook::OtherProduct => return Err(WebhookError::AlreadyExists.into()),
            };
            admin.stream_registrations.lock().remove(&product);
        }
        RegistrationMode::Stream => {
            if existing == ExistingWebhook::Registered {
                admin.webhooks.remove(product.as_str()).await?;
            }
            admin.stream_registrations.lock().insert(product);
        }
    }
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

/// What is there under the product's name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum ExistingWebhook {
    /// No webhook.
    None,
    /// One that a registration has made, or could have.
    Registered,
    /// One that the file declares: no registration, but in the way of one for push.
    FromConfig,
    /// One for another product, in the same way.
    OtherProduct,
}

impl ExistingWebhook {
    fn of(view: Option<WebhookSummary>, product: &ProductId) -> Self {
        match view {
            None => Self::None,
            Some(view) if view.source == WebhookSource::File => Self::FromConfig,
            Some(view) if view.webhook.product_id != *product => Self::OtherProduct,
            Some(_) => Self::Registered,
        }
    }
}

/// What a call asks for.
#[derive(Debug, PartialEq)]
struct RegistrationRequest {
    product: ProductId,
    is_forced: bool,
    mode: RegistrationMode,
}

/// How the product's events are to go out.
#[derive(Debug, PartialEq)]
enum RegistrationMode {
    /// To those who subscribe.
    Stream,
    /// To this webhook, too.
    Push(Box<WebhookConfig>),
}

impl RegistrationMode {
    /// The JSON that a 201 brings; never a secret.
    fn to_json(&self, product: &ProductId) -> Value {
        match self {
            Self::Stream => {
                json!({ "status": "registered", "product_id": product.as_str(), "mode": "sse" })
            }
            Self::Push(webhook) => {
                let (product, id) = (product.as_str(), &webhook.id);
                json!({ "status": "registered", "product_id": product, "mode": "push", "webhook_id": id })
            }
        }
    }
}

impl RegistrationRequest {
    /// Reads a body in any of the connector's forms. Fields that mean nothing here are let through.
    ///
    /// # Errors
    ///
    /// What is wrong, by field.
    fn read(body: &[u8]) -> Result<Self, Vec<FieldError>> {
        let error = |field: &str, message: String| vec![FieldError::new(field, message)];
        let Ok(Value::Object(fields)) = serde_json::from_slice(body) else {
            return Err(error("", "must be a JSON object".to_owned()));
        };
        let product = match non_empty(fields.get("product_id")) {
            None => Err("is required".to_owned()),
            Some(Value::String(text)) => ProductId::new(text).map_err(|error| error.to_string()),
            Some(_) => Err("must be text".to_owned()),
        };
        let product = product.map_err(|message| error("product_id", message))?;
        let is_forced = match non_empty(fields.get("force_reregister")) {
            None => false,
            Some(Value::Bool(is_forced)) => *is_forced,
            Some(_) => return Err(error("force_reregister", "must be true or false".to_owned())),
        };
        let mode = RegistrationForm { fields: &fields }.mode(&product)?;
        Ok(Self { product, is_forced, mode })
    }
}

/// The fields of a body, and where in them something stands.
#[derive(Clone, Copy)]
struct RegistrationForm<'a> {
    fields: &'a Map<String, Value>,
}

impl<'a> RegistrationForm<'a> {
    /// `event_stream_response` with its mode, or `webhook`, which is push in older words.
    fn mode(self, product: &ProductId) -> Result<RegistrationMode, Vec<FieldError>> {
        let error = |field: &str, message: &str| Err(vec![FieldError::new(field, message)]);
        let config = non_empty(self.fields.get("integration_config"));
        if config.is_some_and(|config| !config.is_object()) {
            return error("integration_config", "must be an object");
        }
        match non_empty(self.fields.get("integration_type")).map(Value::as_str) {
            Some(Some("webhook")) => self.push(product, "forward_url"),
            Some(Some("event_stream")) => {
                match self.lookup("integration_config.mode").and_then(Value::as_str) {
                    Some("push") => self.push(product, "integration_config.url"),
                    Some("sse") => Ok(RegistrationMode::Stream),
                    _ => error("integration_config.mode", "must be \"push\" or \"sse\""),
                }
            }
            _ => error("integration_type", "must be \"event_stream\" or \"webhook\""),
        }
    }

    /// The webhook that the connector would push to. `url` is where a URL is missed if there is
    /// none.
    fn push(
        self,
        product: &ProductId,
        url: &'static str,
    ) -> Result<RegistrationMode, Vec<FieldError>> {
        let url = self
            .first_given(&["integration_config.url", "forward_url"])
            .unwrap_or((url, &Value::Null));
        let secrets = ["integration_config.secret", "forward_secret", "webhook_secret"];
        let secret =
            self.first_given(&secrets).unwrap_or(("integration_config.secret", &Value::Null));
        let mut body = Map::new();
        body.extend(["id", "product_id"].map(|key| (key.to_owned(), product.as_str().into())));
        body.insert("types".to_owned(), json!(["actions"]));
        let given = [("url", url.1), ("secret", secret.1)]
            .into_iter()
            .filter(|(_, value)| !value.is_null());
        body.extend(given.map(|(key, value)| (key.to_owned(), value.clone())));
        let webhook = WebhookConfig::from_json(Value::Object(body).to_string().as_bytes(), None);
        let webhook = webhook.map_err(|errors| {
            errors
                .into_iter()
                .map(|error| in_caller_terms(error, url.0, secret.0))
                .collect::<Vec<_>>()
        })?;
        Ok(RegistrationMode::Push(Box::new(webhook)))
    }

    /// The first of these that is given, with its name.
    fn first_given(self, paths: &[&'static str]) -> Option<(&'static str, &'a Value)> {
        paths.iter().find_map(|path| Some((*path, self.lookup(path)?)))
    }

    /// What is given at the top or in `integration_config`.
    fn lookup(self, path: &str) -> Option<&'a Value> {
        match path.split_once('.') {
            Some((outer, inner)) => non_empty(self.fields.get(outer)?.get(inner)),
            None => non_empty(self.fields.get(path)),
        }
    }
}

/// The SDK sends empty texts for what it has not.
fn non_empty(value: Option<&Value>) -> Option<&Value> {
    value.filter(|value| !value.is_null() && value.as_str() != Some(""))
}

/// A webhook's error in the words of the caller.
fn in_caller_terms(error: FieldError, url: &str, secret: &str) -> FieldError {
    match error.field.as_str() {
        "url" => FieldError::new(url, error.message),
        "secret" => FieldError::new(secret, error.message),
        "id" => {
            let hint = "to push, register a webhook of another id by POST /api/v1/webhooks";
            FieldError::new("product_id", format!("{}; {hint}", error.message))
        }
        _ => error,
    }
}
