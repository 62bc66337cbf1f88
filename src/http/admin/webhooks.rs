//! `/api/v1/webhooks`: lists, registers and changes webhooks, and carries the operators' commands.
//!
//! In: requests. Out: the registry's answers as JSON. `config` decides what a valid webhook is, and
//! `webhook` what happens to it.
//!
//! May use: `config`, `webhook`, `webhook_delivery`.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, State, rejection::BytesRejection, rejection::PathRejection},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, post},
};
use hyper::{StatusCode, header::LOCATION};
use serde::Serialize;

use super::{AdminState, deliveries, rfc3339_from_unix};
use crate::{
    config::{WebhookConfig, WebhookJson},
    http::problem::Problem,
    webhook::{WebhookError, WebhookSource, WebhookStatus, WebhookSummary},
    webhook_delivery::Attempt,
};

/// The routes of webhooks.
pub(in crate::http) fn routes() -> Router<Arc<AdminState>> {
    Router::new()
        .route("/api/v1/webhooks", with_allowed_methods(get(list).post(create), "GET, HEAD, POST"))
        .route(
            "/api/v1/webhooks/{id}",
            with_allowed_methods(get(read).put(change).delete(remove), "GET, HEAD, PUT, DELETE"),
        )
        .route("/api/v1/webhooks/{id}/enable", with_allowed_methods(post(enable), "POST"))
        .route("/api/v1/webhooks/{id}/disable", with_allowed_methods(post(disable), "POST"))
        .route("/api/v1/webhooks/{id}/test", with_allowed_methods(post(test), "POST"))
        .route("/api/v1/webhooks/{id}/deliveries", get(deliveries::list))
        .route(
            "/api/v1/webhooks/{id}/redeliver",
            with_allowed_methods(post(deliveries::redeliver), "POST"),
        )
}

/// A route that says which methods it knows.
pub(in crate::http) fn with_allowed_methods(
    route: MethodRouter<Arc<AdminState>>,
    methods: &'static str,
) -> MethodRouter<Arc<AdminState>> {
    route.fallback(move || async move { Problem::method_not_allowed(methods) })
}

/// The segment of the path that names a webhook.
pub(in crate::http) type WebhookIdPath = Result<Path<String>, PathRejection>;

/// The body of a request.
pub(in crate::http) type RequestBody = Result<Bytes, BytesRejection>;

/// The id in the path.
///
/// # Errors
///
/// 404: no webhook has an id that is not UTF-8.
pub(in crate::http) fn webhook_id(path: WebhookIdPath) -> Result<String, Problem> {
    path.map(|Path(id)| id).map_err(|_| WebhookError::Unknown.into())
}

/// The body, whatever type it is said to have: as for `curl -d`, and web pages are kept out by
/// other means.
///
/// # Errors
///
/// 413, and 400 when it breaks off.
pub(in crate::http) fn read_body(request_body: RequestBody) -> Result<Bytes, Problem> {
    request_body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body is over {MAX_ADMIN_BODY_BYTES} bytes"),
        ),
        _ => Problem::bad_request("the body breaks off"),
    })
}

async fn list(State(admin): State<Arc<AdminState>>) -> Response {
    let views = admin.webhooks.list();
    let webhooks = views.iter().map(WebhookView::new).collect();
    Json(WebhookListView { webhooks }).into_response()
}

async fn create(
    State(admin): State<Arc<AdminState>>,
    request_body: RequestBody,
) -> Result<Response, Problem> {
    let webhook =
        WebhookConfig::from_json(&read_body(request_body)?, None).map_err(Problem::invalid)?;
    let view = admin.webhooks.create(webhook).await?;
    let location = format!("/api/v1/webhooks/{}", view.webhook.id);
    Ok((StatusCode::CREATED, [(LOCATION, location)], webhook_json(&view)).into_response())
}

async fn read(
    State(admin): State<Arc<AdminState>>,
    path: WebhookIdPath,
) -> Result<Response, Problem> {
    Ok(webhook_json(&find_webhook(&admin, &webhook_id(path)?)?))
}

async fn change(
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

async fn remove(
    State(admin): State<Arc<AdminState>>,
    path: WebhookIdPath,
) -> Result<StatusCode, Problem> {
    admin.webhooks.remove(&webhook_id(path)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn enable(
    State(admin): State<Arc<AdminState>>,
    path: WebhookIdPath,
) -> Result<Response, Problem> {
    Ok(webhook_json(&admin.webhooks.enable(&webhook_id(path)?).await?))
}

async fn disable(
    State(admin): State<Arc<AdminState>>,
    path: WebhookIdPath,
) -> Result<Response, Problem> {
    Ok(webhook_json(&admin.webhooks.disable(&webhook_id(path)?).await?))
}

async fn test(
    State(admin): State<Arc<AdminState>>,
    path: WebhookIdPath,
) -> Result<Response, Problem> {
    let attempt = admin.webhooks.test(&webhook_id(path)?).await?;
    Ok(Json(TestView::new(&attempt)).into_response())
}

/// One webhook.
///
/// # Errors
///
/// 404.
pub(in crate::http) fn find_webhook(
    admin: &AdminState,
    id: &str,
) -> Result<WebhookSummary, Problem> {
    admin.webhooks.get(id).ok_or_else(|| WebhookError::Unknown.into())
}

fn webhook_json(view: &WebhookSummary) -> Response {
    Json(WebhookView::new(view)).into_response()
}

#[derive(Serialize)]
struct WebhookListView<'a> {
    webhooks: Vec<WebhookView<'a>>,
}

/// A webhook in an answer.
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

/// A webhook in the status of the relay.
#[derive(Serialize)]
pub(in crate::http) struct WebhookStatusView<'a> {
    id: &'a str,
    product_id: &'a str,
    #[serde(flatten)]
    facts: FactsView<'a>,
}

impl<'a> WebhookStatusView<'a> {
    /// How this one stands.
    pub(in crate::http) fn new(view: &'a WebhookSummary) -> Self {
        let WebhookConfig { id, product_id, .. } = &*view.webhook;
        Self { id, product_id: product_id.as_str(), facts: FactsView::new(&view.status) }
    }
}

/// `until` and `problem` are null while it is active, `oldest_pending_at` is while nothing is owed.
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

/// How a sample was received.
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

/// A thousand ids, or a webhook with as many sessions.
pub(in crate::http) const MAX_ADMIN_BODY_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::webhook_delivery::{EndpointState, Outcome};

    fn view(facts: WebhookStatus) -> WebhookSummary {
        let body = r#"{"id":"crm","product_id":"p","url":"http://h/","secret":"sesame","types":["actions"]}"#;
        let webhook = WebhookConfig::from_json(body.as_bytes(), None).unwrap();
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
        let expected = r#"{"id":"crm","product_id":"p","url":"http://h/","types":["actions"],"session_ids":[],"#
            .to_owned()
            + r#""timeout":"10s","max_retries":8,"initial_backoff":"2s","max_backoff":"5m","max_in_flight":16,"#
            + r#""secret":"********","source":"api","state":"active","until":null,"problem":null,"pending":0,"#
            + r#""oldest_pending_at":null,"dead":0}"#;
        assert_eq!(serde_json::to_string(&WebhookView::new(&view(IDLE_FACTS))).unwrap(), expected);
    }

    #[test]
    fn what_is_shown_can_be_sent_back() {
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
    fn the_status_tells_how_it_stands() {
        let facts = WebhookStatus {
            state: EndpointState::Open,
            until: Some(1_800_000_000_123),
            problem: Some("5 failures in a row".to_owned()),
            pending: 7,
            oldest_pending: Some(1_799_999_999_000),
            dead: 2,
        };
        let expected = json!({ "id": "crm", "product_id": "p", "state": "open", "until": "2027-01-15T08:00:00.123Z",
            "problem": "5 failures in a row", "pending": 7, "oldest_pending_at": "2027-01-15T07:59:59.000Z", "dead": 2 });
        assert_eq!(serde_json::to_value(WebhookStatusView::new(&view(facts))).unwrap(), expected);
    }

    #[test]
    fn a_test_tells_an_error_only_if_there_is_one() {
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
