//! Public listener: its router, and a module for each route.
//!
//! ```text
//! GET  /stream/{product_id}   sse       Server-Sent Events
//! GET  /ws/{product_id}       ws        WebSocket
//! GET  /events/{product_id}   page      one page of events
//! POST /events/{product_id}   publish   appends an event
//! ```
//!
//! HEAD is answered where GET is, but on `/ws`. Requests pass `middleware`, with `cors` around it,
//! then `credential` and `request`.
//!
//! May use: `config`.

pub(crate) mod admit;
pub(crate) mod cors;
pub(crate) mod credential;
pub(crate) mod middleware;
pub(crate) mod page;
pub(crate) mod publish;
pub(crate) mod request;
pub(crate) mod sse;
pub(crate) mod ws;

use std::sync::Arc;

use axum::{Router, extract::Extension, middleware::from_fn_with_state};

use self::{cors::CorsPolicy, middleware::PublicMiddleware};
use super::{host_guard::HostGuard, methods::RouteMethods, problem::Problem, state::Relay};
use crate::config::Origin;

/// Builds the router of the public listener.
pub(crate) fn router(relay: Arc<Relay>, guard: Option<HostGuard>, origins: &[Origin]) -> Router {
    let public_middleware = Arc::new(PublicMiddleware {
        guard,
        cors: CorsPolicy::new(origins, relay.credential_sources.accepts_cookie()),
        relay: Arc::clone(&relay),
    });
    let sockets = [("/ws/{product_id}", RouteMethods::new().get_without_head(ws::socket))];
    let origins = Extension(Arc::<[Origin]>::from(origins));
    RouteMethods::router([
        ("/stream/{product_id}", RouteMethods::new().get(sse::stream)),
        ("/events/{product_id}", RouteMethods::new().get(page::page).post(publish::publish)),
    ])
    .merge(RouteMethods::router(sockets).route_layer(origins))
    .fallback(|| async { Problem::not_found("no such route") })
    .with_state(relay)
    .layer(from_fn_with_state(public_middleware, PublicMiddleware::handle))
}
