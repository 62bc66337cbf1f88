//! The admin router: health, readiness, status, metrics, and the routes of this folder.
//!
//! The admin side has a runtime of its own, so that it answers while the public side is saturated.
//! The probe listener has the routes of `health` alone, without a key.
//!
//! ```text
//! request ─► Host ─► host guard, without a key ─► /healthz /readyz /metrics, console files ─► answer
//!                                              └► key ─► /api/v1/…, /products, bodies bounded
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
    extract::{Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
};
use hyper::header::AUTHORIZATION;

use self::health::probes;
pub(crate) use self::state::{AdminState, REPLAY_GRACE};
use super::{
    Relay, host_guard::HostGuard, methods::RouteMethods, problem::Problem, public, request_head,
};
use crate::{auth, metrics::RefusingListener};

/// Builds the router of the admin listener. `guard` keeps web pages out where no key is configured:
/// a page cannot send the key, but without one it needs none.
pub(crate) fn router(admin: Arc<AdminState>, guard: HostGuard) -> Router {
    let key_layer = middleware::from_fn_with_state(Arc::clone(&admin), require_key);
    let one_webhook =
        RouteMethods::new().get(webhooks::read).put(webhooks::change).delete(webhooks::remove);
    let api = RouteMethods::router([
        ("/api/v1/status", RouteMethods::new().get(status::status)),
        ("/api/v1/subscribers", RouteMethods::new().get(subscribers::list)),
        ("/api/v1/subscribers/{id}", RouteMethods::new().delete(subscribers::disconnect)),
        ("/api/v1/stream/{product_id}", RouteMethods::new().get(operator_stream::tail)),
        ("/api/v1/events/{product_id}", RouteMethods::new().delete(erase::erase)),
        ("/api/v1/rejected", RouteMethods::new().get(rejected::list)),
        ("/products", RouteMethods::new().post(register::register)),
        ("/api/v1/webhooks", RouteMethods::new().get(webhooks::list).post(webhooks::create)),
        ("/api/v1/webhooks/{id}", one_webhook),
        ("/api/v1/webhooks/{id}/enable", RouteMethods::new().post(webhooks::enable)),
        ("/api/v1/webhooks/{id}/disable", RouteMethods::new().post(webhooks::disable)),
        ("/api/v1/webhooks/{id}/test", RouteMethods::new().post(webhooks::test)),
        ("/api/v1/webhooks/{id}/deliveries", RouteMethods::new().get(deliveries::list)),
        ("/api/v1/webhooks/{id}/redeliver", RouteMethods::new().post(deliveries::redeliver)),
    ])
    // A route layer: it runs for these routes alone, so an unknown path is a 404 without a key,
    // and the probes and the console files stay open.
    .route_layer(key_layer);
    let (requires_key, relay) = (admin.key.is_set(), Arc::clone(&admin.relay));
    let router = with_fallbacks(probes().merge(console::routes()).merge(api), admin);
    let router = match requires_key {
        true => router,
        false => router.layer(middleware::from_fn_with_state(Arc::new(guard), HostGuard::check)),
    };
    with_outer_layers(router.layer(middleware::from_fn_with_state(relay, record_refusals)))
}

/// Builds the router of the probe listener: health and metrics only.
pub(crate) fn probe_router(admin: Arc<AdminState>) -> Router {
    with_outer_layers(with_fallbacks(probes(), admin))
}

fn with_fallbacks(router: Router<Arc<AdminState>>, admin: Arc<AdminState>) -> Router {
    router.fallback(|| async { Problem::not_found("no such route") }).with_state(admin)
}

/// Adds the layers that every answer and every request of these listeners pass.
fn with_outer_layers(router: Router) -> Router {
    router
        .layer(middleware::from_fn(request_head::check))
        .layer(middleware::map_response(public::middleware::with_nosniff))
}

/// Counts the refusals among the answers of all routes, as a middleware. The public listener's own
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
