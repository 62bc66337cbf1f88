//! Health, readiness and metrics: the routes of the probe listener, and of the admin listener too.
//!
//! May use: `upstream`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{RawQuery, State},
    response::{IntoResponse, Response},
};
use hyper::{
    StatusCode,
    header::{CONTENT_TYPE, HeaderValue},
};
use tokio::time::Instant;

use super::state::{AdminState, format_to_millis};
use crate::{
    http::{Relay, methods::RouteMethods, problem::Problem, query},
    upstream::status::UpstreamState,
};

/// Returns the routes that both the admin and the probe listener have.
pub(super) fn probes() -> Router<Arc<AdminState>> {
    RouteMethods::router([
        ("/healthz", RouteMethods::new().get(healthz)),
        ("/readyz", RouteMethods::new().get(readyz)),
        ("/metrics", RouteMethods::new().get(metrics)),
    ])
}

/// Answers 200 while the timer wheel, the public runtime and every shard turn, and 503 otherwise.
/// Neither a disk nor an upstream counts: a restart would help neither.
async fn healthz(State(admin): State<Arc<AdminState>>) -> Response {
    let Relay { wheel, pulse, shards, .. } = &*admin.relay;
    // The other two are counted in ticks, so they say nothing once the wheel stands still.
    let standstill =
        wheel.stalled_for().max(pulse.stalled_for(wheel)).max(shards.longest_stall(wheel));
    if standstill < MAX_HEALTHY_STANDSTILL {
        return Json(serde_json::json!({ "status": "ok" })).into_response();
    }
    let detail = format!(
        "the timer wheel, the runtime or a shard has not turned for {}",
        format_to_millis(standstill)
    );
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).into_response()
}

/// Answers 200 unless the relay shuts down or a log is still being recovered.
///
/// A degraded store does not count: the relay still serves. Upstreams count only with
/// `require=upstream`, and the replay of an upstream relay for [`REPLAY_GRACE`] after the start.
/// From then on `degraded` names the products whose replay is not over.
///
/// [`REPLAY_GRACE`]: super::REPLAY_GRACE
async fn readyz(State(admin): State<Arc<AdminState>>, RawQuery(query): RawQuery) -> Response {
    let query = query.unwrap_or_default();
    let mut requires_upstream = false;
    // A misspelt name, too, is an error: the relay would seem to be more than it was asked for.
    for pair in query::pairs(&query, &["require"]) {
        match pair {
            Ok((_, value)) if value == "upstream" => requires_upstream = true,
            Ok((_, value)) => {
                return Problem::bad_request(format!(
                    "require={value} is not known; only require=upstream is"
                ))
                .into_response();
            }
            Err(problem) => return problem.into_response(),
        }
    }
    let upstreams: BTreeMap<_, _> = admin
        .upstreams
        .iter()
        .map(|(product, status)| (product.as_str(), status.snapshot().state))
        .collect();
    // SeqCst as everywhere for this flag: it is read once a request, and a weaker order would save
    // nothing.
    let is_draining = admin.relay.is_draining.load(Ordering::SeqCst);
    let in_replay_grace = Instant::now() < admin.replay_grace_end;
    let all_connected = upstreams.values().all(|state| *state == UpstreamState::Connected);
    let state = match () {
        () if is_draining => "draining",
        () if admin.relay.is_checking_store() => "recovering",
        () if in_replay_grace && admin.relay.is_receiving_history() => "recovering",
        () if requires_upstream && !all_connected => "upstream_not_connected",
        () => READY,
    };
    let upstreams: BTreeMap<_, _> =
        upstreams.into_iter().map(|(product, state)| (product, state.as_str())).collect();
    let code = if state == READY { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = serde_json::json!({
        "status": state,
        "degraded": degraded(&admin.relay, in_replay_grace),
        // Beside the products of `degraded`, which would hide it.
        "log_degraded": admin.relay.is_degraded(),
        "upstreams": upstreams,
    });
    (code, Json(body)).into_response()
}

/// Returns the products whose replay is not over, unless it still keeps the relay from being ready;
/// without any, whether the store is degraded.
fn degraded(relay: &Relay, in_replay_grace: bool) -> serde_json::Value {
    let replaying = if in_replay_grace { BTreeSet::new() } else { relay.replaying_products() };
    if replaying.is_empty() {
        return relay.is_degraded().into();
    }
    replaying.iter().map(|product| product.as_str()).collect()
}

async fn metrics(State(admin): State<Arc<AdminState>>) -> Response {
    let metrics = &admin.relay.metrics;
    // Set at each scrape: the store has no reason to look at its health in between.
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

/// The wheel turns every 100 ms, a shard and the runtime report once a second, so half a minute is
/// no delay by load: such a runtime does not recover by itself.
const MAX_HEALTHY_STANDSTILL: Duration = Duration::from_secs(30);

/// `status` of a relay that is ready, as `/readyz` names it.
const READY: &str = "ready";
