//! `DELETE /api/v1/events/{product_id}`: erasure of sessions (the right to be forgotten).
//!
//! In: sessions. Out: the number of their events. Memory comes first, then what webhooks are owed,
//! then the store: an entry that the store's writer takes after that is erased already, and an
//! entry that it took before is in the file when the writer executes the command.
//!
//! May use: `event`.

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    Json,
    extract::{Path, RawQuery, State, rejection::PathRejection},
};
use hyper::StatusCode;

use super::AdminState;
use crate::{
    event::{ProductId, SessionId},
    http::{
        Product,
        problem::{Problem, STORE_RETRY_AFTER},
    },
};

/// Erases what is kept of the sessions that the query names.
///
/// # Errors
///
/// 400 and 404; 503 when the store cannot be written, which must be repeated.
pub(in crate::http) async fn erase(
    State(admin): State<Arc<AdminState>>,
    path: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
) -> Result<Json<serde_json::Value>, Problem> {
    let Path(name) =
        path.map_err(|_| Problem::bad_request("the product id in the path is not UTF-8"))?;
    let sessions = parse_sessions(&query.unwrap_or_default())?;
    let product = ProductId::new(&name)
        .ok()
        .and_then(|id| Some(Arc::clone(&*admin.relay.products.get(&id)?)));
    let product = product.ok_or_else(|| Problem::not_found("no such product"))?;
    let count = sessions.len();
    let erased = erase_all(&admin, &product, sessions).await;
    // Whose events is nobody's business any more.
    match &erased {
        Ok(events) => {
            tracing::info!(product = %product.feed.id, sessions = count, events, "erased on request");
        }
        Err(_) => {
            tracing::warn!(product = %product.feed.id, sessions = count, "erased in memory, but not in the store");
        }
    }
    erased.map(|erased| Json(serde_json::json!({ "erased": erased })))
}

/// The sessions in a query.
///
/// # Errors
///
/// 400 when there is none, when one cannot be a session's name, and when there are too many.
fn parse_sessions(query: &str) -> Result<BTreeSet<SessionId>, Problem> {
    let values = form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == "session_id");
    let sessions: Result<BTreeSet<_>, _> =
        values.map(|(_, value)| SessionId::new(&value)).collect();
    let sessions = sessions.map_err(|error| Problem::bad_request(format!("session_id {error}")))?;
    match sessions.len() {
        0 => Err(Problem::bad_request("session_id is missing: whose events are to be erased?")),
        1..=MAX_ERASED_SESSIONS => Ok(sessions),
        _ => Err(Problem::bad_request(format!("at most {MAX_ERASED_SESSIONS} session_id values"))),
    }
}

/// Erases sessions in memory, of webhooks and in the store, and returns how many events there were,
/// each counted once.
///
/// A client that leaves before it is answered may leave some of it undone. It has no 200, so it has
/// to ask again.
async fn erase_all(
    admin: &AdminState,
    product: &Product,
    sessions: BTreeSet<SessionId>,
) -> Result<u64, Problem> {
    let mut erased: u64 = sessions.iter().map(|session| product.feed.log.erase(session)).sum();
    product.ws_messages.clear();
    admin.rejected.erase(&product.feed.id);
    erase_from_webhooks(admin, product, &sessions).await;
    let store = admin.webhooks.store();
    let erasures: Vec<_> = sessions
        .iter()
        .map(|session| store.erase(product.feed.id.clone(), session.clone()))
        .collect();
    for erasure in erasures {
        erased += erasure.await.map_err(|_| {
            let detail =
                "erased in memory, but the store cannot be written now: repeat this until it is answered by 200";
            Problem::retry_later(StatusCode::SERVICE_UNAVAILABLE, detail, STORE_RETRY_AFTER)
        })?;
    }
    // What was on its way to subscribers, and what webhooks have read from the store, in the
    // meantime.
    product.ws_messages.clear();
    erase_from_webhooks(admin, product, &sessions).await;
    Ok(erased)
}

async fn erase_from_webhooks(
    admin: &AdminState,
    product: &Product,
    sessions: &BTreeSet<SessionId>,
) {
    for session in sessions {
        admin.webhooks.erase(&product.feed.id, session).await;
    }
}

/// Each is a transaction of its own.
const MAX_ERASED_SESSIONS: usize = 1000;
