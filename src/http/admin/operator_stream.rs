//! `GET /api/v1/stream/{product_id}`: the stream as an operator sees it.
//!
//! In: a request that has shown the admin key. Out: the public stream, whatever the limits on subscribers. Who looks on is no
//! subscriber: it is in no list and no metric, keeps no drain waiting, and is sent away when the last events have come.
//!
//! May use: `auth`, `event`, `net`.

use std::sync::Arc;

use axum::{
    extract::{Extension, Path, RawQuery, State, rejection::PathRejection},
    response::Response,
};
use hyper::{HeaderMap, StatusCode};

use super::Admin;
use crate::{
    auth::{Holder, OPERATOR},
    event::ProductId,
    http::{
        problem::Problem,
        public::{
            request::{Wish, accepts_event_stream},
            sse::{self, Side},
        },
    },
    net::Connection,
};

/// Lets an operator look on.
///
/// # Errors
///
/// 404, 406, 400 in this order; 503 when too many look on, and while the relay is leaving.
pub(in crate::http) async fn watch(
    State(admin): State<Arc<Admin>>,
    Extension(connection): Extension<Connection>,
    path: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let product = path.ok().and_then(|Path(name)| ProductId::new(&name).ok());
    let product = product.and_then(|id| Some(Arc::clone(&*admin.relay.products.get(&id)?)));
    let product = product.ok_or_else(|| Problem::not_found("no such product"))?;
    if !accepts_event_stream(&headers) {
        return Err(Problem::new(StatusCode::NOT_ACCEPTABLE, "this is a text/event-stream, which Accept excludes"));
    }
    let wish = Wish::read(&query.unwrap_or_default(), &headers)?;
    let side = Side {
        subscribers: &admin.onlookers,
        wheel: &admin.wheel,
        key: OPERATOR.into(),
        holder: Holder::Key(OPERATOR.into()),
        proof: admin.key.proof(),
        max_age: None,
        farewell: None,
        shards: None, // they are on the other runtime
        is_onlooker: true,
    };
    sse::answer(&admin.relay, &side, &product, wish, &connection, &headers)
}

/// Those who may look on at one time: some consoles.
pub(crate) const MOST_ONLOOKERS: usize = 64;
