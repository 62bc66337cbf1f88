//! Public listener: its router, and a module for each route.
//!
//! ```text
//! GET  /stream/{product_id}   sse       Server-Sent Events
//! GET  /ws/{product_id}       ws        WebSocket
//! GET  /events/{product_id}   page      one page of events
//! POST /events/{product_id}   publish   appends an event
//! ```
//!
//! Requests pass `cors`, then `middleware`, then `credential` and `request`.
//!
//! May use: `config`.

pub(crate) mod cors;
pub(crate) mod credential;
pub(crate) mod middleware;
pub(crate) mod page;
pub(crate) mod publish;
pub(crate) mod request;
pub(crate) mod sse;
pub(crate) mod ws;

use std::sync::Arc;

use axum::{
    Router,
    extract::Extension,
    middleware::{from_fn_with_state, map_response},
    routing::get,
};

use self::middleware::PublicMiddleware;
use super::{host_guard::HostGuard, problem::Problem, state::Relay};
use crate::config::Origin;

/// Builds the router of the public listener.
pub(crate) fn router(relay: Arc<Relay>, guard: Option<HostGuard>, origins: &[Origin]) -> Router {
    // axum answers HEAD by running the GET handler. Here that would open a stream without a reader.
    let stream = get(sse::stream).head(|| async { Problem::method_not_allowed("GET") });
    // A HEAD request would take a page out of the quota and throw it away.
    let events = get(page::page)
        .post(publish::publish)
        .head(|| async { Problem::method_not_allowed("GET, POST") });
    let events = events.fallback(|| async { Problem::method_not_allowed("GET, POST") });
    let socket = get(ws::socket).head(|| async { Problem::method_not_allowed("GET") });
    let has_cookie = relay.credential_sources.accepts_cookie();
    let public_middleware = Arc::new(PublicMiddleware { guard, relay: Arc::clone(&relay) });
    let router = Router::new()
        .route("/ws/{product_id}", socket.layer(Extension(Arc::<[Origin]>::from(origins))))
        .route("/stream/{product_id}", stream)
        .route("/events/{product_id}", events)
        .method_not_allowed_fallback(|| async { Problem::method_not_allowed("GET") })
        .fallback(|| async { Problem::not_found("no such route") })
        .with_state(relay)
        .layer(from_fn_with_state(public_middleware, PublicMiddleware::handle));
    match origins.is_empty() {
        true => router,
        // The CORS layer answers preflights before the middleware, so `nosniff` is set again here.
        false => router
            .layer(cors::layer(origins, has_cookie))
            .layer(map_response(middleware::with_nosniff)),
    }
}
