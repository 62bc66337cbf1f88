//! `/api/v1/webhooks`: lists, registers and changes webhooks, and carries the operators' commands.
//!
//! In: requests. Out: the registry's answers as JSON. `config` decides what a valid webhook is, and
//! `webhook` what happens to it.
//!
//! May use: `config`, `webhook`, `webhook_delivery`.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use hyper::{StatusCode, header::LOCATION};
use serde::Serialize;

use super::{
    extract::{RequestBody, WebhookIdPath, read_body, webhook_id},
    state::{AdminState, find_webhook, rfc3339_from_unix},
};
use crate::{
    config::{WebhookConfig, WebhookJson},
    http::problem::Problem,
    webhook::{WebhookError, WebhookSource, WebhookStatus, WebhookSummary},
    webhook_delivery::Attempt,
};

pub(super) async fn list(State(admin): State<Arc<AdminState>>) -> Response {
    let views = admin.webhooks.list();
    let webhooks = views.iter().map(WebhookView::new).collect();
    Json(WebhookListView { webhooks }).into_response()
}

pub(super) async fn create(
    State(admin): State<Arc<AdminState>>,
    request_body: RequestBody,
) -> Result<Response, Problem> {
    let webhook =
        WebhookConfig::from_json(&read_body(request_body)?, None).map_err(Problem::invalid)?;
    let view = admin.webhooks.create(webhook).await?;
    let location = format!("/api/v1/webhooks/{}", view.webhook.id);
    Ok((StatusCode::CREATED, [(LOCATION, location)], webhook_json(&view)).into_response())
}

pub(super) async fn read(
    State(admin): State<Arc<AdminState>>,
    path: WebhookIdPath,
) -> Result<Response, Problem> {
    Ok(webhook_json(&find_webhook(&admin, &webhook_id(path)?)?))
}

pub(super) async fn change(
    State(admin): State<Arc<AdminState>>,
    path: WebhookIdPath,
    request_body: RequestBody,
) -> Result<Response, Problem> {
    let existing = find_webhook(&admin, &webhook_id(path)?)?;
    if existing.source == WebhookSource::File {
        return Err(WebhookError::DeclaredInFile.into());
    }
    let webhook = WebhookConfig::from_json(&read_body(request_body)?, Some(&existing.webhook))
        .map_err(Problem::invalid)?;
    Ok(webhook_json(&admin.webhooks.update(webhook).await?))
}

pub(super) async fn remove(
    State(admin): State<Arc<AdminState>>,
    path: WebhookIdPath,
) -> Result<StatusCode, Problem> {
    admin.webhooks.remove(&webhook_id(path)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn enable(
    State(admin): State<Arc<AdminState>>,
    path: WebhookIdPath,
) -> Result<Response, Problem> {
    Ok(webhook_json(&admin.webhooks.enable(&webhook_id(path)?).await?))
}

pub(super) async fn disable(
    State(admin): State<Arc<AdminState>>,
    path: WebhookIdPath,
) -> Result<Response, Problem> {
    Ok(webhook_json(&admin.webhooks.disable(&webhook_id(path)?).await?))
}

pub(super) async fn test(
    State(admin): State<Arc<AdminState>>,
    path: WebhookIdPath,
) -> Result<Response, Problem> {
    let attempt = admin.webhooks.test(&webhook_id(path)?).await?;
    Ok(Json(TestView::new(&attempt)).into_response())
}

fn webhook_json(view: &WebhookSummary) -> Response {
    Json(WebhookView::new(view)).into_response()
}

#[derive(Serialize)]
struct WebhookListView<'a> {
    webhooks: Vec<WebhookView<'a>>,
}

/// Webhook in an answer. A client can send it back to change the webhook: its secret is masked, and
/// the mask means the present one.
#[derive(Serialize)]
struct WebhookView<'a> {
    #[serde(flatten)]
    webhook: WebhookJson<'a>,
    source: &'static str,
    #[serde(flatten)]
    facts: FactsView<'a>,
}

impl<'a> WebhookView<'a> {
    fn new(view: &'a WebhookSummary) -> Self {
        let source = view.source.as_str();
        Self { webhook: view.webhook.to_json(), source, facts: FactsView::new(&view.status) }
    }
}

/// Webhook in the status of the relay.
#[derive(Serialize)]
pub(super) struct WebhookStatusView<'a> {
    id: &'a str,
    product_id: &'a str,
    #[serde(flatten)]
    facts: FactsView<'a>,
}

impl<'a> WebhookStatusView<'a> {
    /// Returns the view of one webhook.
    pub(super) fn new(view: &'a WebhookSummary) -> Self {
        let WebhookConfig { id, product_id, .. } = &*view.webhook;
        Self { id, product_id: product_id.as_str(), facts: FactsView::new(&view.status) }
    }
}

/// State of a webhook. `until` and `problem` are null while it is active, and `oldest_pending_at`
/// while nothing is owed.
#[derive(Serialize)]
struct FactsView<'a> {
    state: &'static str,
    until: Option<String>,
    problem: Option<&'a str>,
    pending: u64,
    oldest_pending_at: Option<String>,
    dead: u64,
}

impl<'a> FactsView<'a> {
    fn new(facts: &'a WebhookStatus) -> Self {
        Self {
            state: facts.state.as_str(),
            until: facts.until.map(rfc3339_from_unix),
            problem: facts.problem.as_deref(),
            pending: facts.pending,
            oldest_pending_at: facts.oldest_pending.map(rfc3339_from_unix),
            dead: facts.dead,
        }
    }
}

/// Response of a receiver to the sample event.
#[derive(Serialize)]
struct TestView<'a> {
    outcome: &'static str,
    status: Option<u16>,
    duration_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

impl<'a> TestView<'a> {
    fn new(attempt: &'a Attempt) -> Self {
        let Attempt { outcome, status, duration_ms, .. } = *attempt;
        Self { outcome: outcome.as_str(), status, duration_ms, error: attempt.error.as_deref() }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::webhook_delivery::{EndpointState, Outcome};

    fn view(facts: WebhookStatus) -> WebhookSummary {
        let body = json!({
            "id": "crm",
            "product_id": "p",
            "url": "http://h/",
            "secret": "sesame",
            "types": ["actions"],
        });
        let webhook = WebhookConfig::from_json(body.to_string().as_bytes(), None).unwrap();
        WebhookSummary { webhook: Arc::new(webhook), source: WebhookSource::Api, status: facts }
    }

    const IDLE_FACTS: WebhookStatus = WebhookStatus {
        state: EndpointState::Active,
        until: None,
        problem: None,
        pending: 0,
        oldest_pending: None,
        dead: 0,
    };

    #[test]
    fn a_webhook_is_shown_with_all_its_fields_and_without_its_secret() {
        let expected = concat!(
            r#"{"id":"crm","product_id":"p","url":"http://h/","types":["actions"],"#,
            r#""session_ids":[],"user_ids":[],"headers":{},"timeout":"10s","max_retries":8,"initial_backoff":"2s","#,
            r#""max_backoff":"5m","max_in_flight":16,"secret":"********","source":"api","#,
            r#""state":"active","until":null,"problem":null,"pending":0,"#,
            r#""oldest_pending_at":null,"dead":0}"#,
        );
        assert_eq!(serde_json::to_string(&WebhookView::new(&view(IDLE_FACTS))).unwrap(), expected);
    }

    #[test]
    fn a_shown_webhook_can_be_sent_back() {
        let view = view(WebhookStatus {
            problem: Some("it said 410".to_owned()),
            until: Some(1),
            ..IDLE_FACTS
        });
        let shown = serde_json::to_vec(&WebhookView::new(&view)).unwrap();
        assert_eq!(
            WebhookConfig::from_json(&shown, Some(&view.webhook)).as_ref(),
            Ok(&*view.webhook)
        );
    }

    #[test]
    fn the_status_has_the_state_of_each_webhook() {
        let facts = WebhookStatus {
            state: EndpointState::Open,
            until: Some(1_800_000_000_123),
            problem: Some("5 failures in a row".to_owned()),
            pending: 7,
            oldest_pending: Some(1_799_999_999_000),
            dead: 2,
        };
        let expected = json!({
            "id": "crm",
            "product_id": "p",
            "state": "open",
            "until": "2027-01-15T08:00:00.123Z",
            "problem": "5 failures in a row",
            "pending": 7,
            "oldest_pending_at": "2027-01-15T07:59:59.000Z",
            "dead": 2,
        });
        assert_eq!(serde_json::to_value(WebhookStatusView::new(&view(facts))).unwrap(), expected);
    }

    #[test]
    fn a_test_result_has_an_error_only_if_there_is_one() {
        let mut attempt = Attempt {
            at: 1,
            duration_ms: 12,
            outcome: Outcome::Accepted,
            status: Some(204),
            error: None,
        };
        let to_json = |attempt: &Attempt| serde_json::to_string(&TestView::new(attempt)).unwrap();
        assert_eq!(to_json(&attempt), r#"{"outcome":"accepted","status":204,"duration_ms":12}"#);
        attempt = Attempt {
            outcome: Outcome::Dns,
            status: None,
            error: Some("no address".into()),
            ..attempt
        };
        assert_eq!(
            to_json(&attempt),
            r#"{"outcome":"dns","status":null,"duration_ms":12,"error":"no address"}"#
        );
    }
}
