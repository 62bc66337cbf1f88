//! `DELETE /api/v1/events/{product_id}`: erasure of sessions (the right to be forgotten).
//!
//! In: sessions, in the query or in a JSON body. Out: the number of their events. Memory comes
//! first, then what webhooks are owed, then the store: an entry that the store's writer takes after
//! that is erased already, and an entry that it took before is in the file when the writer executes
//! the command.
//!
//! ```text
//! ring ─► WebSocket messages ─► rejected frames ─► webhooks ─► store ─► messages, webhooks again
//! ```
//!
//! May use: `config`, `event`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{
    Json,
    extract::{Path, RawQuery, State, rejection::PathRejection},
};
use hyper::StatusCode;
use serde::{Deserialize, de::IgnoredAny};

use super::{
    extract::{RequestBody, read_body},
    state::AdminState,
};
use crate::{
    config::FieldError,
    event::{ProductId, SessionId},
    http::{
        Product,
        problem::{Problem, STORE_RETRY_AFTER},
        query,
    },
};

/// Erases all that is kept of the sessions that the query, or the body, names.
///
/// # Errors
///
/// 400, 404, 413 and 422; 503 if the store cannot be written. Memory is erased then, the store is
/// not, and the client has to repeat the request.
pub(in crate::http) async fn erase(
    State(admin): State<Arc<AdminState>>,
    path: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
    sent: RequestBody,
) -> Result<Json<serde_json::Value>, Problem> {
    let Path(name) =
        path.map_err(|_| Problem::bad_request("the product id in the path is not UTF-8"))?;
    let sessions = parse_sessions(&query.unwrap_or_default(), &read_body(sent)?)?;
    let product = ProductId::new(&name)
        .ok()
        .and_then(|id| Some(Arc::clone(&*admin.relay.products.get(&id)?)));
    let product = product.ok_or_else(|| Problem::not_found("no such product"))?;
    let count = sessions.len();
    let erased = erase_all(&admin, &product, sessions).await;
    // The log line counts the sessions and does not name them: their names are erased data as well.
    match &erased {
        Ok(events) => {
            let product = &product.feed.id;
            tracing::info!(%product, sessions = count, events, "erased on request");
        }
        Err(_) => {
            let product = &product.feed.id;
            tracing::warn!(%product, sessions = count, "erased in memory, but not in the store");
        }
    }
    erased.map(|erased| Json(serde_json::json!({ "erased": erased })))
}

/// Returns the sessions that a request names.
///
/// # Errors
///
/// 400 for no session, for too many, for a name that no session can have, and for names in both the
/// query and the body; 422 for a body of another form.
fn parse_sessions(query: &str, body: &[u8]) -> Result<BTreeSet<SessionId>, Problem> {
    let mut sessions = sessions_in_query(query)?;
    if !body.is_empty() {
        if !sessions.is_empty() {
            return Err(Problem::bad_request(
                "session_id is in the query, and there is a body: name all sessions in one of them",
            ));
        }
        sessions = sessions_in_body(body)?;
    }
    match sessions.len() {
        0 => Err(Problem::bad_request("session_id is missing: whose events are to be erased?")),
        1..=MAX_ERASED_SESSIONS => Ok(sessions),
        _ => Err(Problem::bad_request(format!("at most {MAX_ERASED_SESSIONS} sessions"))),
    }
}

fn sessions_in_query(query: &str) -> Result<BTreeSet<SessionId>, Problem> {
    let mut sessions = BTreeSet::new();
    for pair in query::pairs(query, &["session_id", "user_id"]) {
        let ("session_id", value) = pair? else {
            // The caller would believe that the user's events are gone.
            return Err(Problem::bad_request("this relay erases by session_id, not by user_id"));
        };
        let session = SessionId::new(&value);
        let invalid = |error| Problem::bad_request(format!("session_id {error}"));
        sessions.insert(session.map_err(invalid)?);
    }
    Ok(sessions)
}

/// Reads `{"session_ids":[…]}`.
fn sessions_in_body(body: &[u8]) -> Result<BTreeSet<SessionId>, Problem> {
    let is_object = body.trim_ascii_start().starts_with(b"{");
    let erasure: Option<ErasureBody> = serde_json::from_slice(body).ok().filter(|_| is_object);
    let Some(ErasureBody { session_ids, unknown }) = erasure else {
        let message = "must be a JSON object: {\"session_ids\":[\"…\"]}";
        return Err(Problem::invalid_field("", message));
    };
    let refused = unknown.keys().map(|field| match field.as_str() {
        "user_ids" => FieldError::new(field, "this relay erases by session_ids, not by user_ids"),
        _ => FieldError::new(field, "unknown key; known is session_ids"),
    });
    let mut errors: Vec<_> = refused.collect();
    let mut sessions = BTreeSet::new();
    for (index, name) in session_ids.iter().enumerate() {
        match SessionId::new(name) {
            Ok(session) => drop(sessions.insert(session)),
            Err(error) => {
                errors.push(FieldError::new(format!("session_ids[{index}]"), error.to_string()));
            }
        }
    }
    if errors.is_empty() { Ok(sessions) } else { Err(Problem::invalid(errors)) }
}

/// Body of an erasure. A key that is given twice is an error of serde: one of the two lists would
/// be lost.
#[derive(Deserialize)]
struct ErasureBody {
    #[serde(default)]
    session_ids: Vec<String>,
    #[serde(flatten)]
    unknown: BTreeMap<String, IgnoredAny>,
}

/// Erases sessions in memory, from webhooks and from the store, and returns the number of their
/// events, each counted once.
///
/// # Cancel safety
///
/// A client that disconnects before its answer may leave a part undone. It has no 200, so it has to
/// repeat the request; erasing twice changes nothing.
async fn erase_all(
    admin: &AdminState,
    product: &Product,
    sessions: BTreeSet<SessionId>,
) -> Result<u64, Problem> {
    let mut erased: u64 = sessions.iter().map(|session| product.feed.log.erase(session)).sum();
    product.feed.clear_ws_messages();
    // All excerpts of the product: a rejected frame has no session that could be trusted.
    admin.rejected.erase(&product.feed.id);
    erase_from_webhooks(admin, product, &sessions).await;
    let store = admin.webhooks.store();
    // All commands are queued before the first is awaited: the writer need not wait for this task
    // between them.
    let erasures: Vec<_> = sessions
        .iter()
        .map(|session| store.erase(product.feed.id.clone(), session.clone()))
        .collect();
    for erasure in erasures {
        erased += erasure.await.map_err(|_| {
            let detail = "erased in memory, but the store cannot be written now: \
                repeat this until it is answered by 200";
            Problem::retry_later(StatusCode::SERVICE_UNAVAILABLE, detail, STORE_RETRY_AFTER)
        })?;
    }
    // Again: meanwhile a subscriber may have had a message encoded from an entry that it held, and
    // a webhook may have read owed events from the store.
    product.feed.clear_ws_messages();
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

/// Bound on one request, because each session is a transaction of its own in the store.
const MAX_ERASED_SESSIONS: usize = 1000;

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;

    use super::*;

    fn parse(query: &str, body: &str) -> Result<Vec<String>, u16> {
        let sessions = parse_sessions(query, body.as_bytes())
            .map_err(|problem| problem.into_response().status().as_u16())?;
        Ok(sessions.iter().map(|session| session.as_str().to_owned()).collect())
    }

    #[test]
    fn sessions_are_named_in_the_query_or_in_the_body() {
        assert_eq!(parse("session_id=b&session_id=a&_=1", ""), Ok(vec!["a".into(), "b".into()]));
        let body = r#" {"session_ids":["b","a","b"]} "#;
        assert_eq!(parse("_=1", body), Ok(vec!["a".into(), "b".into()]));
        assert_eq!(parse("session_id=a", body), Err(400), "not in both");
        for query in ["", "session_ids=a", "sessionId=a", "session_id=a&session_id[]=b"] {
            assert_eq!(parse(query, ""), Err(400), "{query}");
        }
        assert_eq!(parse("session_id=a&user_id=u", ""), Err(400));
    }

    #[test]
    fn a_body_of_another_form_erases_nothing() {
        for body in [
            "x",
            "[]",
            r#"[["a"]]"#,
            r#"{"session_ids":"a"}"#,
            r#"{"session_ids":["a",7]}"#,
            r#"{"session_ids":[""]}"#,
            r#"{"session_ids":["a"],"session_id":["b"]}"#,
            r#"{"session_ids":["a"],"user_ids":["u"]}"#,
            r#"{"session_ids":["a"],"session_ids":["b"]}"#,
        ] {
            assert_eq!(parse("", body), Err(422), "{body}");
        }
        for body in ["{}", r#"{"session_ids":[]}"#] {
            assert_eq!(parse("", body), Err(400), "{body}");
        }
        let many: Vec<_> = (0..=MAX_ERASED_SESSIONS).map(|n| n.to_string()).collect();
        assert_eq!(parse("", &serde_json::json!({ "session_ids": many }).to_string()), Err(400));
    }
}
