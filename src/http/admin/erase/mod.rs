//! `DELETE /api/v1/events/{product_id}`: erasure of sessions and users (the right to be forgotten).
//!
//! In: sessions and users, in the query or in a JSON body. Out: the number of their events. With a
//! user go all sessions in which the user acted: what came before a login is the person's, too.
//!
//! The sessions of users are looked up first, so that nothing is erased while the store cannot be
//! used. Then memory comes first, then what webhooks are owed, then the store: an entry that the
//! store's writer takes after that is erased already, and an entry that it took before is in the
//! file when the writer executes the command.
//!
//! ```text
//! store: sessions of users ─► ring    twice
//! WebSocket messages ─► rejected frames ─► webhooks ─► store ─► messages, webhooks again
//! ```
//!
//! May use: `event`, `store`.

mod request;

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    Json,
    extract::{Path, RawQuery, State, rejection::PathRejection},
};
use hyper::StatusCode;

use self::request::ErasureRequest;
use super::{
    extract::{RequestBody, read_body},
    state::AdminState,
};
use crate::{
    event::{ErasedEvents, ProductId, UserId, VisitorId},
    http::{
        Product,
        problem::{Problem, STORE_RETRY_AFTER},
    },
    store::StoreUnwritable,
};

/// Erases all that is kept of the sessions and users that the query, or the body, names.
///
/// # Errors
///
/// 400, 404, 413 and 422; 503 if the store cannot be written. Memory may be erased then, and the
/// store is not, and the client has to repeat the request.
pub(in crate::http) async fn erase(
    State(admin): State<Arc<AdminState>>,
    path: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
    sent: RequestBody,
) -> Result<Json<serde_json::Value>, Problem> {
    let Path(name) =
        path.map_err(|_| Problem::bad_request("the product id in the path is not UTF-8"))?;
    let request = ErasureRequest::parse(&query.unwrap_or_default(), &read_body(sent)?)?;
    let product = ProductId::new(&name)
        .ok()
        .and_then(|id| Some(Arc::clone(&*admin.relay.products.get(&id)?)));
    let product = product.ok_or_else(|| Problem::not_found("no such product"))?;
    let (sessions, users) = (request.sessions.len(), request.users.len());
    let erased = erase_all(&admin, &product, request).await;
    // The log line counts sessions and users and does not name them: their names are erased data as
    // well.
    let id = &product.feed.id;
    match &erased {
        Ok(events) => {
            tracing::info!(product = %id, sessions, users, events, "erased on request");
        }
        Err(_) => {
            tracing::warn!(product = %id, sessions, users, "not erased, or in memory alone");
        }
    }
    erased.map(|erased| Json(serde_json::json!({ "erased": erased })))
}

/// Erases sessions and users in memory, from webhooks and from the store, and returns the number of
/// their events, each counted once.
///
/// # Cancel safety
///
/// A client that disconnects before its answer may leave a part undone. It has no 200, so it has to
/// repeat the request; erasing twice changes nothing.
async fn erase_all(
    admin: &AdminState,
    product: &Product,
    request: ErasureRequest,
) -> Result<u64, Problem> {
    let ErasureRequest { mut sessions, users } = request;
    let (mut erased, mut positions) = (0, BTreeSet::new());
    // Twice: the store may get to know a user's entry, and so a session, between the look at it and
    // the erasure in memory.
    for _ in 0..if users.is_empty() { 1 } else { 2 } {
        let mut found = find_traces(admin, product, &users).await?;
        sessions.append(&mut found.sessions);
        positions.append(&mut found.positions);
        let (mut in_memory, in_memory_alone) = product.feed.log.erase(&mut sessions, &users);
        positions.append(&mut in_memory);
        erased += in_memory_alone;
    }
    let found = Arc::new(ErasedEvents { sessions, positions });
    product.feed.clear_ws_messages();
    // All excerpts of the product: a rejected frame has no session that could be trusted.
    admin.rejected.erase(&product.feed.id);
    admin.webhooks.erase(&product.feed.id, &found).await;
    // Users last, with what they have without a session: their rows tell which sessions are theirs,
    // should this be cut short and the request repeated.
    let sessions = found.sessions.iter().cloned().map(VisitorId::Session);
    let visitors = sessions.chain(users.into_iter().map(VisitorId::User));
    erased += erase_from_store(admin, product, visitors).await?;
    // Again: meanwhile a subscriber may have had a message encoded from an entry that it held, and
    // a webhook may have read owed events from the store.
    product.feed.clear_ws_messages();
    admin.webhooks.erase(&product.feed.id, &found).await;
    Ok(erased)
}

/// Returns the sessions in which the users acted, and the positions of their events without one, as
/// far as the store knows.
async fn find_traces(
    admin: &AdminState,
    product: &Product,
    users: &BTreeSet<UserId>,
) -> Result<ErasedEvents, Problem> {
    let store = admin.webhooks.store();
    // All commands are queued before the first is awaited: the writer need not wait for this task
    // between them.
    let lookups: Vec<_> =
        users.iter().map(|user| store.find_traces(product.feed.id.clone(), user.clone())).collect();
    let mut found = ErasedEvents::default();
    for lookup in lookups {
        let mut traces = lookup.await.map_err(cannot_erase)?;
        found.sessions.append(&mut traces.sessions);
        found.positions.append(&mut traces.positions);
    }
    Ok(found)
}

/// Erases sessions and users from the store, and returns the number of their events.
async fn erase_from_store(
    admin: &AdminState,
    product: &Product,
    visitors: impl Iterator<Item = VisitorId>,
) -> Result<u64, Problem> {
    let store = admin.webhooks.store();
    // Queued together: the writer rewrites the file once no command waits, and then not for an
    // hour.
    let mut erased = 0;
    let mut visitors = visitors.peekable();
    while visitors.peek().is_some() {
        let erasures: Vec<_> = visitors
            .by_ref()
            .take(MAX_QUEUED_ERASURES)
            .map(|visitor| store.erase(product.feed.id.clone(), visitor))
            .collect();
        for erasure in erasures {
            erased += erasure.await.map_err(cannot_erase)?;
        }
    }
    Ok(erased)
}

fn cannot_erase(_: StoreUnwritable) -> Problem {
    let detail = "the store cannot be written now, and what was erased is erased in memory alone: \
        repeat this until it is answered by 200";
    Problem::retry_later(StatusCode::SERVICE_UNAVAILABLE, detail, STORE_RETRY_AFTER)
}

/// Erasures that wait for the store's writer at one time: far below the commands that it takes, and
/// more sessions than one person has.
const MAX_QUEUED_ERASURES: usize = 4096;
