//! `/api/v1/webhooks/{id}/deliveries` and `…/redeliver`: the deliveries of one webhook.
//!
//! In: requests. Out: pages of deliveries as JSON, newest first; commands to try dead letters
//! again.
//!
//! May use: `config`, `event`, `webhook`, `webhook_delivery`.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::{
    Json,
    extract::{RawQuery, State},
    response::{IntoResponse, Response},
};
use hyper::StatusCode;
use serde::Serialize;
use serde_json::{Value, value::RawValue};

use super::{
    extract::{RequestBody, WebhookIdPath, read_body, webhook_id},
    state::{AdminState, find_webhook, rfc3339_from_unix},
};
use crate::{
    config::FieldError,
    event::EventId,
    http::{problem::Problem, query},
    webhook::{DeadLetterSelection, DeliveryState, ListedDelivery},
    webhook_delivery::{Attempt, DeadLetter, Delivery},
};

/// Answers with one page of a webhook's deliveries.
///
/// # Errors
///
/// 400, 404; 503 if the store cannot be read.
pub(in crate::http) async fn list(
    State(admin): State<Arc<AdminState>>,
    path: WebhookIdPath,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let id = find_webhook(&admin, &webhook_id(path)?)?.webhook.id.clone();
    let request = DeliveryQuery::read(&query.unwrap_or_default())?;
    let page = admin.webhooks.deliveries(&id, request.state, request.before, request.limit).await?;
    let deliveries = page.deliveries.iter().map(DeliveryView::new).collect();
    Ok(Json(DeliveryPageView { deliveries, next: page.next_cursor.map(|next| next.to_string()) })
        .into_response())
}

/// Puts dead letters back into the queue.
///
/// # Errors
///
/// 404, 413, 422; 503 if the store cannot be written.
pub(in crate::http) async fn redeliver(
    State(admin): State<Arc<AdminState>>,
    path: WebhookIdPath,
    sent: RequestBody,
) -> Result<Response, Problem> {
    let id = find_webhook(&admin, &webhook_id(path)?)?.webhook.id.clone();
    let selection = parse_selection(&read_body(sent)?).map_err(Problem::invalid)?;
    let requeued = admin.webhooks.redeliver(&id, selection).await?;
    Ok((StatusCode::ACCEPTED, Json(serde_json::json!({ "requeued": requeued }))).into_response())
}

/// State, cursor and length of the page that the client asks for.
#[derive(Debug, PartialEq)]
struct DeliveryQuery {
    state: DeliveryState,
    before: Option<u64>,
    limit: usize,
}

impl DeliveryQuery {
    /// Reads a query. Without a state it means pending deliveries, which are of most interest.
    ///
    /// # Errors
    ///
    /// 400 for a misspelt name, for an unknown state, and for a malformed limit or cursor.
    fn read(query: &str) -> Result<Self, Problem> {
        let (mut state, mut before, mut limit) =
            (DeliveryState::Pending, None, DEFAULT_DELIVERIES_PER_PAGE);
        for pair in query::pairs(query, &["state", "after", "limit"]) {
            match pair? {
                ("state", value) => state = parse_state(&value)?,
                ("after", value) => before = Some(parse_cursor(&value)?),
                (_, value) => limit = parse_limit(&value)?,
            }
        }
        Ok(Self { state, before, limit })
    }
}

fn parse_state(text: &str) -> Result<DeliveryState, Problem> {
    match text {
        "pending" => Ok(DeliveryState::Pending),
        "delivered" => Ok(DeliveryState::Delivered),
        "dead" => Ok(DeliveryState::Dead),
        _ => Err(Problem::bad_request(format!("state is unknown; {STATE_HINT}"))),
    }
}

fn parse_cursor(text: &str) -> Result<u64, Problem> {
    text.parse().map_err(|_| Problem::bad_request("after must be the next of the page before"))
}

fn parse_limit(text: &str) -> Result<usize, Problem> {
    let number =
        text.parse().ok().filter(|number| (1..=MAX_DELIVERIES_PER_REQUEST).contains(number));
    number.ok_or_else(|| {
        Problem::bad_request(format!(
            "limit must be a number from 1 to {MAX_DELIVERIES_PER_REQUEST}"
        ))
    })
}

/// Returns the dead letters that a body names: `{"delivery_ids":[…]}` or `{"state":"dead"}`.
fn parse_selection(body: &[u8]) -> Result<DeadLetterSelection, Vec<FieldError>> {
    let error = |field: &str, message: &str| vec![FieldError::new(field, message)];
    let Ok(Value::Object(mut fields)) = serde_json::from_slice(body) else {
        return Err(error("", "must be a JSON object"));
    };
    let (ids, state) = (fields.remove("delivery_ids"), fields.remove("state"));
    let unknown = fields
        .keys()
        .map(|field| FieldError::new(field, "unknown key; known are delivery_ids, state"));
    let unknown: Vec<_> = unknown.collect();
    match (ids, state) {
        _ if !unknown.is_empty() => Err(unknown),
        (Some(ids), None) => parse_event_ids(&ids).map(DeadLetterSelection::Events),
        (None, Some(Value::String(state))) if state == "dead" => Ok(DeadLetterSelection::All),
        (None, Some(_)) => {
            Err(error("state", "must be \"dead\": nothing else can be delivered again"))
        }
        _ => Err(error("", "must have either delivery_ids or state")),
    }
}

fn parse_event_ids(ids: &Value) -> Result<Vec<EventId>, Vec<FieldError>> {
    let error = |message: String| vec![FieldError::new("delivery_ids", message)];
    let ids = ids.as_array().ok_or_else(|| error("must be a list of ids".to_owned()))?;
    if ids.len() > MAX_DELIVERIES_PER_REQUEST {
        return Err(error(format!("must be {MAX_DELIVERIES_PER_REQUEST} at the most")));
    }
    let (mut parsed, mut errors) = (Vec::new(), Vec::new());
    for (index, id) in ids.iter().enumerate() {
        match id.as_str().and_then(EventId::parse) {
            Some(id) => parsed.push(id),
            None => errors.push(FieldError::new(
                format!("delivery_ids[{index}]"),
                "must be the id of a delivery",
            )),
        }
    }
    if errors.is_empty() { Ok(parsed) } else { Err(errors) }
}

#[derive(Serialize)]
struct DeliveryPageView<'a> {
    deliveries: Vec<DeliveryView<'a>>,
    next: Option<String>,
}

/// Delivery in an answer. The last three fields are those of dead letters.
#[derive(Serialize)]
struct DeliveryView<'a> {
    id: String,
    event_id: String,
    #[serde(rename = "type")]
    kind: &'a str,
    session_id: Option<&'a str>,
    state: &'static str,
    created_at: String,
    next_attempt_at: Option<String>,
    attempts: Vec<AttemptView<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    died_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<Box<RawValue>>,
}

impl<'a> DeliveryView<'a> {
    fn new(listed: &'a ListedDelivery) -> Self {
        match listed {
            ListedDelivery::Pending(delivery, due) => Self {
                next_attempt_at: due.map(rfc3339_from_unix),
                ..Self::of(delivery, "pending")
            },
            ListedDelivery::Delivered(delivery) => Self::of(delivery, "delivered"),
            ListedDelivery::Dead(dead_letter) => Self::dead(dead_letter),
        }
    }

    fn dead(dead_letter: &'a DeadLetter) -> Self {
        Self {
            reason: Some(dead_letter.reason.as_str()),
            died_at: Some(rfc3339_from_unix(dead_letter.died_at)),
            payload: payload_json(&dead_letter.payload),
            ..Self::of(&dead_letter.delivery, "dead")
        }
    }

    fn of(delivery: &'a Delivery, state: &'static str) -> Self {
        let id = delivery.event_id.to_string();
        Self {
            event_id: id.clone(),
            id,
            kind: delivery.kind.as_str(),
            session_id: delivery.session.as_ref().map(|session| session.as_str()),
            state,
            created_at: rfc3339_from_unix(delivery.created_at),
            next_attempt_at: None,
            attempts: delivery.attempts.iter().map(AttemptView::new).collect(),
            reason: None,
            died_at: None,
            payload: None,
        }
    }
}

#[derive(Serialize)]
struct AttemptView<'a> {
    at: String,
    duration_ms: u64,
    outcome: &'static str,
    status: Option<u16>,
    error: Option<&'a str>,
}

impl<'a> AttemptView<'a> {
    fn new(attempt: &'a Attempt) -> Self {
        let Attempt { at, duration_ms, outcome, status, .. } = *attempt;
        Self {
            at: rfc3339_from_unix(at),
            duration_ms,
            outcome: outcome.as_str(),
            status,
            error: attempt.error.as_deref(),
        }
    }
}

/// Returns the payload as it was sent, or as a JSON string if it is not JSON; `None` for a dead
/// letter without a body. `RawValue` keeps the bytes: no number is rounded, no field is moved.
fn payload_json(bytes: &[u8]) -> Option<Box<RawValue>> {
    if bytes.is_empty() {
        return None;
    }
    let text = String::from_utf8_lossy(bytes);
    RawValue::from_string(text.clone().into_owned())
        .or_else(|_| RawValue::from_string(Value::from(text).to_string()))
        .ok()
}

/// About one screen of rows.
const DEFAULT_DELIVERIES_PER_PAGE: usize = 100;

/// Bound on a page, which is in memory as a whole until it is sent, and on the ids of one
/// redelivery.
const MAX_DELIVERIES_PER_REQUEST: usize = 1000;

const STATE_HINT: &str = "ask for state=pending, state=delivered or state=dead";
