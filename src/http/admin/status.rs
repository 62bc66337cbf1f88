//! `/api/v1/status`: upstreams, logs, store, subscribers and webhooks at a glance.
//!
//! May use: `event`, `upstream`.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::{
    state::{AdminState, format_to_millis, rfc3339},
    webhooks::WebhookStatusView,
};
use crate::{event::ProductId, upstream::status::UpstreamSnapshot};

/// Answers with the state of the whole relay. Each part is read for itself, so numbers of two parts
/// may differ by events in between.
pub(super) async fn status(State(admin): State<Arc<AdminState>>) -> Response {
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

/// Answer of `/api/v1/status`.
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

/// Log of one product. `events` and `bytes` count the entries in memory.
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
