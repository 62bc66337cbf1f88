//! The admin side: is it alive, is it ready, what is it doing; and the routes of `audience`,
//! `console`, `erasure`, `products`, `rejected`, `watch`, `webhooks`.
//!
//! Served on a runtime of its own, so that it answers while the public side is saturated. The probe listener has the same
//! routes without the API.
//!
//! May use: `auth`, `http`, `metrics`, `rejected`, `status`, `webhook`, `wheel`.

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
    register::Streamed,
    webhooks::{MAX_BODY_BYTES, Standing, only},
};
use super::{Relay, admission::Subscribers, host_guard::Guard, problem::Problem, public};
use crate::{
    auth::{self, SoleKey},
    config::duration_text,
    event::ProductId,
    rejected::Rejected,
    timer_wheel::Wheel,
    upstream::status::{UpstreamFacts, UpstreamState, UpstreamStatus},
    webhook::Webhooks,
};

/// What the admin routes share.
#[derive(Clone, Debug)]
pub(crate) struct Admin {
    /// The public side.
    pub(crate) relay: Arc<Relay>,
    /// What the upstreams say of themselves.
    pub(crate) upstreams: Vec<(ProductId, Arc<UpstreamStatus>)>,
    /// The key of the API.
    pub(crate) key: SoleKey,
    /// Operators who look on.
    pub(crate) onlookers: Arc<Subscribers>,
    /// The timer of the admin side's connections.
    pub(crate) wheel: Arc<Wheel>,
    /// Who is pushed to.
    pub(crate) webhooks: Arc<Webhooks>,
    /// What the upstreams sent that could not be understood.
    pub(crate) rejected: Arc<Rejected>,
    /// Which products were registered for streaming.
    pub(crate) streamed: Arc<Streamed>,
    /// When the relay was started.
    pub(crate) started: SystemTime,
}

/// The routes of the admin listener. Without a key, `guard` keeps web pages out.
pub(crate) fn router(admin: Arc<Admin>, guard: Guard) -> Router {
    let needs_key = middleware::from_fn_with_state(Arc::clone(&admin), demand_key);
    let no_head = || async { Problem::method_not_allowed("GET") };
    let api = Router::new()
        .route("/api/v1/status", get(status))
        .route("/api/v1/subscribers", get(subscribers::list))
        .route("/api/v1/subscribers/{id}", only(delete(subscribers::disconnect), "DELETE"))
        .route("/api/v1/stream/{product_id}", only(get(operator_stream::watch).head(no_head), "GET"))
        .route("/api/v1/events/{product_id}", only(delete(erase::erase), "DELETE"))
        .route("/api/v1/rejected", get(rejected::list))
        .route("/products", only(post(register::register), "POST"))
        .merge(webhooks::routes())
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .route_layer(needs_key);
    let demands_key = admin.key.is_set();
    let router = finish(probes().merge(console::routes()).merge(api), admin);
    let router = match demands_key {
        true => router,
        false => router.layer(middleware::from_fn_with_state(Arc::new(guard), Guard::check)),
    };
    router.layer(middleware::map_response(public::middleware::declared))
}

/// The routes of the probe listener: nothing but health and metrics.
pub(crate) fn probe_router(admin: Arc<Admin>) -> Router {
    finish(probes(), admin).layer(middleware::map_response(public::middleware::declared))
}

fn probes() -> Router<Arc<Admin>> {
    Router::new().route("/healthz", get(healthz)).route("/readyz", get(readyz)).route("/metrics", get(metrics))
}

fn finish(router: Router<Arc<Admin>>, admin: Arc<Admin>) -> Router {
    router
        .method_not_allowed_fallback(|| async { Problem::method_not_allowed("GET, HEAD") })
        .fallback(|| async { Problem::not_found("no such route") })
        .with_state(admin)
}

async fn demand_key(State(admin): State<Arc<Admin>>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let offered = match headers.get("x-admin-key") {
        Some(key) => Some(key.as_bytes()),
        None => headers.get(AUTHORIZATION).and_then(|value| auth::bearer(value.as_bytes())),
    };
    match admin.key.check(offered) {
        Ok(()) => next.run(request).await,
        Err(denial) => Problem::from(denial).into_response(),
    }
}

/// Alive as long as the wheel of the public runtime turns, and every lane with it.
async fn healthz(State(admin): State<Arc<Admin>>) -> Response {
    let wheel = &admin.relay.wheel;
    let standstill = wheel.standstill().max(admin.relay.shards.standstill(wheel));
    if standstill < STANDSTILL_LIMIT {
        return Json(serde_json::json!({ "status": "ok" })).into_response();
    }
    let detail = format!("the main loop, or a lane, has stood still for {}", text(standstill));
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).into_response()
}

/// Ready while listening and not leaving, once every log is whole. One that keeps less than it promises still serves.
async fn readyz(State(admin): State<Arc<Admin>>, RawQuery(query): RawQuery) -> Response {
    let query = query.unwrap_or_default();
    let mut wants = form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == "require");
    let unknown = wants.clone().find(|(_, value)| value != "upstream");
    if let Some((_, value)) = unknown {
        return Problem::bad_request(format!("require={value} is not known; only require=upstream is")).into_response();
    }
    let requires_upstream = wants.next().is_some();
    let upstreams: BTreeMap<_, _> =
        admin.upstreams.iter().map(|(product, status)| (product.as_str(), status.facts().state)).collect();
    let is_draining = admin.relay.is_draining.load(Ordering::SeqCst);
    let all_connected = upstreams.values().all(|state| *state == UpstreamState::Connected);
    let state = match () {
        () if is_draining => "draining",
        () if admin.relay.is_recovering() => "recovering",
        () if requires_upstream && !all_connected => "upstream_not_connected",
        () => READY,
    };
    let upstreams: BTreeMap<_, _> = upstreams.into_iter().map(|(product, state)| (product, state.as_str())).collect();
    let code = if state == READY { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let is_degraded = admin.relay.is_degraded();
    (code, Json(serde_json::json!({ "status": state, "degraded": is_degraded, "upstreams": upstreams })))
        .into_response()
}

async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    let metrics = &admin.relay.metrics;
    metrics.store().degraded.set(admin.relay.is_degraded().into());
    match metrics.render() {
        Ok(body) => ([(CONTENT_TYPE, HeaderValue::from_static(prometheus::TEXT_FORMAT))], body).into_response(),
        Err(error) => {
            tracing::error!(%error, "cannot write the metrics");
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "cannot write the metrics").into_response()
        }
    }
}

async fn status(State(admin): State<Arc<Admin>>) -> Response {
    let mut log = BTreeMap::new();
    for product in &*admin.relay.products {
        let facts = product.log.facts();
        log.insert(
            product.id.as_str().to_owned(),
            LogStatus {
                events: facts.events,
                bytes: facts.bytes,
                disk: facts.shelf.map(|(events, bytes)| DiskStatus { events, bytes }),
                oldest: facts.oldest.map(|id| id.to_string()),
                newest: facts.newest.map(|id| id.to_string()),
            },
        );
    }
    let count = admin.relay.subscribers.count();
    let webhooks = admin.webhooks.list();
    let status = Status {
        version: env!("CARGO_PKG_VERSION"),
        started_at: time(admin.started),
        uptime: text(admin.started.elapsed().unwrap_or_default()),
        upstreams: admin.upstreams.iter().map(|(product, status)| UpstreamView::new(product, status.facts())).collect(),
        subscribers: count.into_iter().map(|(product, count)| (product.as_str().to_owned(), count)).collect(),
        log,
        store: admin
            .relay
            .store
            .as_ref()
            .map(|store| StoreStatus { degraded: store.is_degraded(), recovering: store.is_recovering() }),
        webhooks: webhooks.iter().map(Standing::new).collect(),
    };
    Json(status).into_response()
}

/// The answer of `/api/v1/status`.
#[derive(Serialize)]
struct Status<'a> {
    version: &'static str,
    started_at: String,
    uptime: String,
    upstreams: Vec<UpstreamView>,
    subscribers: BTreeMap<String, BTreeMap<&'static str, usize>>,
    log: BTreeMap<String, LogStatus>,
    store: Option<StoreStatus>,
    webhooks: Vec<Standing<'a>>,
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
    fn new(product: &ProductId, facts: UpstreamFacts) -> Self {
        Self {
            product_id: product.as_str().to_owned(),
            state: facts.state.as_str(),
            since: time(facts.since),
            last_event: facts.last_event.map(time),
            last_heartbeat: facts.last_heartbeat.map(time),
            lag: facts.lag.map(text),
            problem: facts.problem,
        }
    }
}

/// `events` and `bytes` are those in memory.
#[derive(Serialize)]
struct LogStatus {
    events: usize,
    bytes: u64,
    disk: Option<DiskStatus>,
    oldest: Option<String>,
    newest: Option<String>,
}

#[derive(Serialize)]
struct DiskStatus {
    events: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct StoreStatus {
    degraded: bool,
    recovering: bool,
}

/// RFC 3339 in UTC.
pub(super) fn time(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}

/// The same of Unix milliseconds.
pub(super) fn unix_time(milliseconds: u64) -> String {
    time(SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds.min(LATEST_TIME)))
}

/// As durations stand in the configuration, to the millisecond.
fn text(duration: Duration) -> String {
    duration_text(Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
}

/// The last millisecond of the year 9999: later ones cannot be written.
const LATEST_TIME: u64 = 253_402_300_799_999;

/// A runtime that has not turned for this long will not serve anybody.
const STANDSTILL_LIMIT: Duration = Duration::from_secs(30);

/// As `/readyz` says it.
const READY: &str = "ready";
