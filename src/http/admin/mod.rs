//! The admin router: health, readiness, status, metrics, and the routes of this folder.
//!
//! The admin side has a runtime of its own, so that it answers while the public side is saturated.
//! The probe listener has the routes of `health` alone, without a key.
//!
//! ```text
//! request ─► host guard, without a key ─► /healthz /readyz /metrics, console files ─► answer
//!                                      └► key ─► body bound ─► /api/v1/…, /products
//! ```
//!
//! May use: `auth`, `metrics`.

mod console;
pub(crate) mod deliveries;
mod erase;
mod extract;
mod health;
pub(crate) mod operator_stream;
mod register;
mod rejected;
mod state;
mod status;
mod subscribers;
pub(crate) mod webhooks;

use std::sync::Arc;

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use hyper::header::AUTHORIZATION;

pub(crate) use self::state::AdminState;
use self::{
    extract::{MAX_ADMIN_BODY_BYTES, with_allowed_methods},
    health::probes,
};
use super::{Relay, host_guard::HostGuard, problem::Problem, public};
use crate::{auth, metrics::RefusingListener};

/// Builds the router of the admin listener. `guard` keeps web pages out where no key is configured:
/// a page cannot send the key, but without one it needs none.
pub(crate) fn router(admin: Arc<AdminState>, guard: HostGuard) -> Router {
    let key_layer = middleware::from_fn_with_state(Arc::clone(&admin), require_key);
    // axum answers HEAD by running the GET handler, which would open a stream without a reader.
    let no_head = || async { Problem::method_not_allowed("GET") };
    let api = Router::new()
        .route("/api/v1/status", get(status::status))
        .route("/api/v1/subscribers", get(subscribers::list))
        .route(
            "/api/v1/subscribers/{id}",
            with_allowed_methods(delete(subscribers::disconnect), "DELETE"),
        )
        .route(
            "/api/v1/stream/{product_id}",
            with_allowed_methods(get(operator_stream::tail).head(no_head), "GET"),
        )
        .route("/api/v1/events/{product_id}", with_allowed_methods(delete(erase::erase), "DELETE"))
        .route("/api/v1/rejected", get(rejected::list))
        .route("/products", with_allowed_methods(post(register::register), "POST"))
        .merge(webhook_routes())
        .layer(DefaultBodyLimit::max(MAX_ADMIN_BODY_BYTES))
        // A route layer: it runs for these routes alone, so an unknown path is a 404 without a key,
        // and the probes and the console files stay open.
        .route_layer(key_layer);
    let (requires_key, relay) = (admin.key.is_set(), Arc::clone(&admin.relay));
    let router = with_fallbacks(probes().merge(console::routes()).merge(api), admin);
    let router = match requires_key {
        true => router,
        false => router.layer(middleware::from_fn_with_state(Arc::new(guard), HostGuard::check)),
    };
    router
        .layer(middleware::from_fn_with_state(relay, record_refusals))
        .layer(middleware::map_response(public::middleware::with_nosniff))
}

/// Builds the router of the probe listener: health and metrics only.
pub(crate) fn probe_router(admin: Arc<AdminState>) -> Router {
    with_fallbacks(probes(), admin)
        .layer(middleware::map_response(public::middleware::with_nosniff))
}

fn webhook_routes() -> Router<Arc<AdminState>> {
    Router::new()
        .route(
            "/api/v1/webhooks",
            with_allowed_methods(get(webhooks::list).post(webhooks::create), "GET, HEAD, POST"),
        )
        .route(
            "/api/v1/webhooks/{id}",
            with_allowed_methods(
                get(webhooks::read).put(webhooks::change).delete(webhooks::remove),
                "GET, HEAD, PUT, DELETE",
            ),
        )
        .route("/api/v1/webhooks/{id}/enable", with_allowed_methods(post(webhooks::enable), "POST"))
        .route(
            "/api/v1/webhooks/{id}/disable",
            with_allowed_methods(post(webhooks::disable), "POST"),
        )
        .route("/api/v1/webhooks/{id}/test", with_allowed_methods(post(webhooks::test), "POST"))
        .route("/api/v1/webhooks/{id}/deliveries", get(deliveries::list))
        .route(
            "/api/v1/webhooks/{id}/redeliver",
            with_allowed_methods(post(deliveries::redeliver), "POST"),
        )
}

fn with_fallbacks(router: Router<Arc<AdminState>>, admin: Arc<AdminState>) -> Router {
    router
        .method_not_allowed_fallback(|| async { Problem::method_not_allowed("GET, HEAD") })
        .fallback(|| async { Problem::not_found("no such route") })
        .with_state(admin)
}

/// Middleware around all routes: counts the refusals among their answers. The public listener's own
/// middleware does the same.
async fn record_refusals(
    State(relay): State<Arc<Relay>>,
    request: Request,
    next: Next,
) -> Response {
    let client = relay.client_of(&request);
    let response = next.run(request).await;
    relay.refusals.record(RefusingListener::Admin, client, &response);
    response
}

async fn require_key(
    State(admin): State<Arc<AdminState>>,
    request: Request,
    next: Next,
) -> Response {
    let headers = request.headers();
    // The connector's header is `X-Admin-Key`, which its clients send here as well; it counts
    // before `Authorization`.
    let presented_key = match headers.get("x-admin-key") {
        Some(key) => Some(key.as_bytes()),
        // A header of another scheme is a bad credential, and not a missing one.
        None => headers
            .get(AUTHORIZATION)
            .map(|value| auth::bearer_token(value.as_bytes()).unwrap_or_default()),
    };
    match admin.key.check(presented_key) {
        Ok(()) => next.run(request).await,
        Err(denial) => Problem::from(denial).into_response(),
    }
}
