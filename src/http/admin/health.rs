//! Health, readiness and metrics: the routes of the probe listener, which the admin listener has too.
//!
//! May use: `http`, `upstream`.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{RawQuery, State},
    response::{IntoResponse, Response},
    routing::get,
};
use hyper::{
    StatusCode,
    header::{CONTENT_TYPE, HeaderValue},
};

use super::state::{AdminState, format_to_millis};
use crate::{http::problem::Problem, upstream::status::UpstreamState};

pub(super) fn probes() -> Router<Arc<AdminState>> {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
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

/// A runtime that has not turned for this long will not serve anybody.
const MAX_HEALTHY_STANDSTILL: Duration = Duration::from_secs(30);

/// As `/readyz` says it.
const READY: &str = "ready";
