//! `/api/v1/webhooks`: who is registered, and the orders of operators.
//!
//! In: requests. Out: what the registry says, as JSON. What a webhook may be is `config`'s business, what becomes of it
//! `webhook`'s.
//!
//! May use: `config`, `delivery`, `webhook`.

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

use super::{Admin, deliveries, unix_time};
use crate::{
    config::{Webhook, WebhookJson},
    http::problem::Problem,
    webhook::{Facts, Source, View, WebhookError},
    webhook_delivery::Attempt,
};

/// The routes of webhooks.
pub(in crate::http) fn routes() -> Router<Arc<Admin>> {
    Router::new()
        .route("/api/v1/webhooks", only(get(list).post(create), "GET, HEAD, POST"))
        .route("/api/v1/webhooks/{id}", only(get(show).put(change).delete(remove), "GET, HEAD, PUT, DELETE"))
        .route("/api/v1/webhooks/{id}/enable", only(post(enable), "POST"))
        .route("/api/v1/webhooks/{id}/disable", only(post(disable), "POST"))
        .route("/api/v1/webhooks/{id}/test", only(post(test), "POST"))
        .route("/api/v1/webhooks/{id}/deliveries", get(deliveries::list))
        .route("/api/v1/webhooks/{id}/redeliver", only(post(deliveries::redeliver), "POST"))
}

/// A route that says which methods it knows.
pub(in crate::http) fn only(route: MethodRouter<Arc<Admin>>, methods: &'static str) -> MethodRouter<Arc<Admin>> {
    route.fallback(move || async move { Problem::method_not_allowed(methods) })
}

/// The segment of the path that names a webhook.
pub(in crate::http) type Named = Result<Path<String>, PathRejection>;

/// The body of a request.
pub(in crate::http) type Sent = Result<Bytes, BytesRejection>;

/// The id in the path.
///
/// # Errors
///
/// 404: no webhook has an id that is not UTF-8.
pub(in crate::http) fn id(named: Named) -> Result<String, Problem> {
    named.map(|Path(id)| id).map_err(|_| WebhookError::Unknown.into())
}

/// The body, whatever type it is said to have: as for `curl -d`, and web pages are kept out by other means.
///
/// # Errors
///
/// 413, and 400 when it breaks off.
pub(in crate::http) fn body(sent: Sent) -> Result<Bytes, Problem> {
    sent.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => {
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body is over {MAX_BODY_BYTES} bytes"))
        }
        _ => Problem::bad_request("the body breaks off"),
    })
}

async fn list(State(admin): State<Arc<Admin>>) -> Response {
    let views = admin.webhooks.list();
    let webhooks = views.iter().map(WebhookView::new).collect();
    Json(List { webhooks }).into_response()
}

async fn create(State(admin): State<Arc<Admin>>, sent: Sent) -> Result<Response, Problem> {
    let webhook = Webhook::from_json(&body(sent)?, None).map_err(Problem::invalid)?;
    let view = admin.webhooks.create(webhook).await?;
    let location = format!("/api/v1/webhooks/{}", view.webhook.id);
    Ok((StatusCode::CREATED, [(LOCATION, location)], answer(&view)).into_response())
}

async fn show(State(admin): State<Arc<Admin>>, named: Named) -> Result<Response, Problem> {
    Ok(answer(&known(&admin, &id(named)?)?))
}

async fn change(State(admin): State<Arc<Admin>>, named: Named, sent: Sent) -> Result<Response, Problem> {
    let known = known(&admin, &id(named)?)?;
    if known.source == Source::File {
        return Err(WebhookError::FromFile.into());
    }
    let webhook = Webhook::from_json(&body(sent)?, Some(&known.webhook)).map_err(Problem::invalid)?;
    Ok(answer(&admin.webhooks.change(webhook).await?))
}

async fn remove(State(admin): State<Arc<Admin>>, named: Named) -> Result<StatusCode, Problem> {
    admin.webhooks.remove(&id(named)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn enable(State(admin): State<Arc<Admin>>, named: Named) -> Result<Response, Problem> {
    Ok(answer(&admin.webhooks.enable(&id(named)?).await?))
}

async fn disable(State(admin): State<Arc<Admin>>, named: Named) -> Result<Response, Problem> {
    Ok(answer(&admin.webhooks.disable(&id(named)?).await?))
}

async fn test(State(admin): State<Arc<Admin>>, named: Named) -> Result<Response, Problem> {
    let attempt = admin.webhooks.test(&id(named)?).await?;
    Ok(Json(TestView::new(&attempt)).into_response())
}

/// One webhook.
///
/// # Errors
///
/// 404.
pub(in crate::http) fn known(admin: &Admin, id: &str) -> Result<View, Problem> {
    admin.webhooks.get(id).ok_or_else(|| WebhookError::Unknown.into())
}

fn answer(view: &View) -> Response {
    Json(WebhookView::new(view)).into_response()
}

#[derive(Serialize)]
struct List<'a> {
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
    fn new(view: &'a View) -> Self {
        let source = view.source.as_str();
        Self { webhook: view.webhook.to_json(), source, facts: FactsView::new(&view.facts) }
    }
}

/// A webhook in the status of the relay.
#[derive(Serialize)]
pub(in crate::http) struct Standing<'a> {
    id: &'a str,
    product_id: &'a str,
    #[serde(flatten)]
    facts: FactsView<'a>,
}

impl<'a> Standing<'a> {
    /// How this one stands.
    pub(in crate::http) fn new(view: &'a View) -> Self {
        let Webhook { id, product_id, .. } = &*view.webhook;
        Self { id, product_id: product_id.as_str(), facts: FactsView::new(&view.facts) }
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
    fn new(facts: &'a Facts) -> Self {
        Self {
            state: facts.state.as_str(),
            until: facts.until.map(unix_time),
            problem: facts.problem.as_deref(),
            pending: facts.pending,
            oldest_pending_at: facts.oldest_pending.map(unix_time),
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
pub(in crate::http) const MAX_BODY_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::webhook_delivery::{EndpointState, Outcome};

    fn view(facts: Facts) -> View {
        let body = r#"{"id":"crm","product_id":"p","url":"http://h/","secret":"sesame","types":["actions"]}"#;
        let webhook = Webhook::from_json(body.as_bytes(), None).unwrap();
        View { webhook: Arc::new(webhook), source: Source::Api, facts }
    }

    const QUIET: Facts =
        Facts { state: EndpointState::Active, until: None, problem: None, pending: 0, oldest_pending: None, dead: 0 };

    #[test]
    fn a_webhook_is_shown_with_all_its_fields_and_without_its_secret() {
        let expected = r#"{"id":"crm","product_id":"p","url":"http://h/","types":["actions"],"session_ids":[],"#
            .to_owned()
            + r#""timeout":"10s","max_retries":8,"initial_backoff":"2s","max_backoff":"5m","max_in_flight":16,"#
            + r#""secret":"********","source":"api","state":"active","until":null,"problem":null,"pending":0,"#
            + r#""oldest_pending_at":null,"dead":0}"#;
        assert_eq!(serde_json::to_string(&WebhookView::new(&view(QUIET))).unwrap(), expected);
    }

    #[test]
    fn what_is_shown_can_be_sent_back() {
        let view = view(Facts { problem: Some("it said 410".to_owned()), until: Some(1), ..QUIET });
        let shown = serde_json::to_vec(&WebhookView::new(&view)).unwrap();
        assert_eq!(Webhook::from_json(&shown, Some(&view.webhook)).as_ref(), Ok(&*view.webhook));
    }

    #[test]
    fn the_status_tells_how_it_stands() {
        let facts = Facts {
            state: EndpointState::Open,
            until: Some(1_800_000_000_123),
            problem: Some("5 failures in a row".to_owned()),
            pending: 7,
            oldest_pending: Some(1_799_999_999_000),
            dead: 2,
        };
        let expected = json!({ "id": "crm", "product_id": "p", "state": "open", "until": "2027-01-15T08:00:00.123Z",
            "problem": "5 failures in a row", "pending": 7, "oldest_pending_at": "2027-01-15T07:59:59.000Z", "dead": 2 });
        assert_eq!(serde_json::to_value(Standing::new(&view(facts))).unwrap(), expected);
    }

    #[test]
    fn a_test_tells_an_error_only_if_there_is_one() {
        let mut attempt =
            Attempt { at: 1, duration_ms: 12, outcome: Outcome::Accepted, status: Some(204), error: None };
        let told = |attempt: &Attempt| serde_json::to_string(&TestView::new(attempt)).unwrap();
        assert_eq!(told(&attempt), r#"{"outcome":"accepted","status":204,"duration_ms":12}"#);
        attempt = Attempt { outcome: Outcome::Dns, status: None, error: Some("no address".into()), ..attempt };
        assert_eq!(told(&attempt), r#"{"outcome":"dns","status":null,"duration_ms":12,"error":"no address"}"#);
    }
}
