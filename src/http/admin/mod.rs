//! The admin router: health, readiness, status, metrics, and the routes of this folder.
//!
//! The admin side has a runtime of its own, so that it answers while the public side is saturated.
//! The probe listener has the same routes without the API.
//!
//! May use: `auth`, `config`, `event`, `rejected`, `timer_wheel`, `upstream`, `webhook`.

mod console;
pub(crate) mod deliveries;
mod erase;
pub(crate) mod operator_stream;
mod register;
mod rejected;
mod subscribers;
pub(crate) mod webhooks;

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, RawQuery, Request, State},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use hyper::{
    StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue},
};
use serde::Serialize;

use self::{
    register::StreamRegistrations,
    webhooks::{MAX_ADMIN_BODY_BYTES, WebhookStatusView, with_allowed_methods},
};
use super::{Relay, admission::Subscribers, host_guard::HostGuard, problem::Problem, public};
use crate::{
    auth::{self, ListenerKey},
    config::format_duration,
    event::ProductId,
    rejected::RejectedFrames,
    timer_wheel::TimerWheel,
    upstream::status::{UpstreamSnapshot, UpstreamState, UpstreamStatus},
    webhook::Webhooks,
};

/// What the admin routes share.
#[derive(Clone, Debug)]
pub(crate) struct AdminState {
    /// The public side.
    pub(crate) relay: Arc<Relay>,
    /// What the upstreams say of themselves.
    pub(crate) upstreams: Vec<(ProductId, Arc<UpstreamStatus>)>,
    /// The key of the API.
    pub(crate) key: ListenerKey,
    /// Operators who look on.
    pub(crate) operator_tails: Arc<Subscribers>,
    /// The timer of the admin side's connections.
    pub(crate) wheel: Arc<TimerWheel>,
    /// Who is pushed to.
    pub(crate) webhooks: Arc<Webhooks>,
    /// What the upstreams sent that could not be understood.
    pub(crate) rejected: Arc<RejectedFrames>,
    /// Which products were registered for streaming.
    pub(crate) stream_registrations: Arc<StreamRegistrations>,
    /// When the relay was started.
    pub(crate) started: SystemTime,
}

/// The routes of the admin listener. Without a key, `guard` keeps web pages out.
pub(crate) fn router(admin: Arc<AdminState>, guard: HostGuard) -> Router {
    let key_layer = middleware::from_fn_with_state(Arc::clone(&admin), require_key);
    let no_head = || async { Problem::method_not_allowed("GET") };
    let api = Router::new()
        .route("/api/v1/status", get(status))
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
        .merge(webhooks::routes())
        .layer(DefaultBodyLimit::max(MAX_ADMIN_BODY_BYTES))
        .route_layer(key_layer);
    let requires_key = admin.key.is_set();
    let router = with_fallbacks(probes().merge(console::routes()).merge(api), admin);
    let router = match requires_key {
        true => router,
        false => router.layer(middleware::from_fn_with_state(Arc::new(guard), HostGuard::check)),
    };
    router.layer(middleware::map_response(public::middleware::with_nosniff))
}

/// The routes of the probe listener: nothing but health and metrics.
pub(crate) fn probe_router(admin: Arc<AdminState>) -> Router {
    with_fallbacks(probes(), admin)
        .layer(middleware::map_response(public::middleware::with_nosniff))
}

fn probes() -> Router<Arc<AdminState>> {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
}

fn with_fallbacks(router: Router<Arc<AdminState>>, admin: Arc<AdminState>) -> Router {
    router
        .method_not_allowed_fallback(|| async { Problem::method_not_allowed("GET, HEAD") })
        .fallback(|| async { Problem::not_found("no such route") })
        .with_state(admin)
}

async fn require_key(
    State(admin): State<Arc<AdminState>>,
    request: Request,
    next: Next,
) -> Response {
    let headers = request.headers();
    let presented_key = match headers.get("x-admin-key") {
        Some(key) => Some(key.as_bytes()),
        None => headers.get(AUTHORIZATION).and_then(|value| auth::bearer_token(value.as_bytes())),
    };
    match admin.key.check(presented_key) {
        Ok(()) => next.run(request).await,
        Err(denial) => Problem::from(denial).into_response(),
    }
}

/// Alive as long as the wheel of the public runtime turns, and every lane with it.
async fn healthz(State(admin): State<Arc<AdminState>>) -> Response {
    let wheel = &admin.relay.wheel;
    let standstill = wheel.stalled_for().max(admin.relay.shards.longest_stall(wheel));
    if standstill < MAX_HEALTHY_STANDSTILL {
        return Json(serde_json::json!({ "status": "ok" })).into_response();
    }
    let detail =
        format!("the main loop, or a lane, has stood still for {}", format_to_millis(standstill));
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).into_response()
}

/// Ready while listening and not leaving, once every log is whole. One that keeps less than it
/// promises still serves.
async fn readyz(State(admin): State<Arc<AdminState>>, RawQuery(query): RawQuery) -> Response {
    let query = query.unwrap_or_default();
    let mut requirements =
        form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == "require");
    let unknown = requirements.clone().find(|(_, value)| value != "upstream");
    if let Some((_, value)) = unknown {
        return Problem::bad_request(format!(
            "require={value} is not known; only require=upstream is"
        ))
        .into_response();
    }
    let requires_upstream = requirements.next().is_some();
    let upstreams: BTreeMap<_, _> = admin
        .upstreams
        .iter()
        .map(|(product, status)| (product.as_str(), status.snapshot().state))
        .collect();
    let is_draining = admin.relay.is_draining.load(Ordering::SeqCst);
    let all_connected = upstreams.values().all(|state| *state == UpstreamState::Connected);
    let state = match () {
        () if is_draining => "draining",
        () if admin.relay.is_recovering() => "recovering",
        () if requires_upstream && !all_connected => "upstream_not_connected",
        () => READY,
    };
    let upstreams: BTreeMap<_, _> =
        upstreams.into_iter().map(|(product, state)| (product, state.as_str())).collect();
    let code = if state == READY { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let is_degraded = admin.relay.is_degraded();
    (
        code,
        Json(
            serde_json::json!({ "status": state, "degraded": is_degraded, "upstreams": upstreams }),
        ),
    )
        .into_response()
}

async fn metrics(State(admin): State<Arc<AdminState>>) -> Response {
    let metrics = &admin.relay.metrics;
    metrics.store().degraded.set(admin.relay.is_degraded().into());
    match metrics.render() {
        Ok(body) => ([(CONTENT_TYPE, HeaderValue::from_static(prometheus::TEXT_FORMAT))], body)
            .into_response(),
        Err(error) => {
            tracing::error!(%error, "cannot write the metrics");
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "cannot write the metrics")
                .into_response()
        }
    }
}

async fn status(State(admin): State<Arc<AdminState>>) -> Response {
    let mut log = BTreeMap::new();
    for product in &*admin.relay.products {
        let facts = product.feed.log.stats();
        log.insert(
            product.feed.id.as_str().to_owned(),
            LogView {
                events: facts.events,
                bytes: facts.bytes,
                disk: facts.stored.map(|(events, bytes)| DiskView { events, bytes }),
                oldest: facts.oldest_id.map(|id| id.to_string()),
                newest: facts.newest_id.map(|id| id.to_string()),
            },
        );
    }
    let count = admin.relay.subscribers.count();
    let webhooks = admin.webhooks.list();
    let status = StatusView {
        version: env!("CARGO_PKG_VERSION"),
        started_at: rfc3339(admin.started),
        uptime: format_to_millis(admin.started.elapsed().unwrap_or_default()),
        upstreams: admin
            .upstreams
            .iter()
            .map(|(product, status)| UpstreamView::new(product, status.snapshot()))
            .collect(),
        subscribers: count
            .into_iter()
            .map(|(product, count)| (product.as_str().to_owned(), count))
            .collect(),
        log,
        store: admin.relay.store.as_ref().map(|store| StoreView {
            degraded: store.is_degraded(),
            recovering: store.is_recovering(),
        }),
        webhooks: webhooks.iter().map(WebhookStatusView::new).collect(),
    };
    Json(status).into_response()
}

/// The answer of `/api/v1/status`.
#[derive(Serialize)]
struct StatusView<'a> {
    version: &'static str,
    started_at: String,
    uptime: String,
    upstreams: Vec<UpstreamView>,
    subscribers: BTreeMap<String, BTreeMap<&'static str, usize>>,
    log: BTreeMap<String, LogView>,
    store: Option<StoreView>,
    webhooks: Vec<WebhookStatusView<'a>>,
}

#[derive(Serialize)]
struct UpstreamView {
    product_id: String,
    state: &'static str,
    since: String,
    last_event: Option<String>,
    last_heartbeat: Option<String>,
    lag: Option<String>,
    problem: Option<String>,
}

impl UpstreamView {
    fn new(product: &ProductId, facts: UpstreamSnapshot) -> Self {
        Self {
            product_id: product.as_str().to_owned(),
            state: facts.state.as_str(),
            since: rfc3339(facts.since),
            last_event: facts.last_event.map(rfc3339),
            last_heartbeat: facts.last_heartbeat.map(rfc3339),
            lag: facts.lag.map(format_to_millis),
            problem: facts.problem,
        }
    }
}

/// `events` and `bytes` are those in memory.
#[derive(Serialize)]
struct LogView {
    events: usize,
    bytes: u64,
    disk: Option<DiskView>,
    oldest: Option<String>,
    newest: Option<String>,
}

#[derive(Serialize)]
struct DiskView {
    events: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct StoreView {
    degraded: bool,
    recovering: bool,
}

/// RFC 3339 in UTC.
pub(super) fn rfc3339(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}

/// The same of Unix milliseconds.
pub(super) fn rfc3339_from_unix(milliseconds: u64) -> String {
    rfc3339(
        SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds.min(MAX_RFC3339_UNIX_MILLIS)),
    )
}

/// As durations stand in the configuration, to the millisecond.
fn format_to_millis(duration: Duration) -> String {
    format_duration(Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
}

/// The last millisecond of the year 9999: later ones cannot be written.
const MAX_RFC3339_UNIX_MILLIS: u64 = 253_402_300_799_999;

/// A runtime that has not turned for this long will not serve anybody.
const MAX_HEALTHY_STANDSTILL: Duration = Duration::from_secs(30);

/// As `/readyz` says it.
const READY: &str = "ready";
