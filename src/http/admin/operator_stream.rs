//! `GET /api/v1/stream/{product_id}`: the event stream as an operator sees it.
//!
//! In: a request with the admin key. Out: the public stream, outside the limits on subscribers. An
//! operator stream is no subscriber: no list and no metric counts it, the drain does not wait for
//! it, and it is disconnected after the last events.
//!
//! May use: `auth`, `event`, `net`.

use std::sync::Arc;

use axum::{
    extract::{Extension, Path, RawQuery, State, rejection::PathRejection},
    response::Response,
};
use hyper::{HeaderMap, Method, StatusCode};

use super::state::AdminState;
use crate::{
    auth::{ADMIN_KEY_NAME, CredentialHolder},
    event::ProductId,
    http::{
        problem::Problem,
        public::{
            admit::SubscriptionSource,
            request::{SubscriptionRequest, accepts_event_stream},
            sse,
        },
    },
    net::Connection,
};

/// Opens the event stream of one operator.
///
/// # Errors
///
/// 404, 406, 400 in this order; 503 with [`MAX_OPERATOR_TAILS`] open, and during graceful shutdown.
pub(in crate::http) async fn tail(
    State(admin): State<Arc<AdminState>>,
    Extension(connection): Extension<Connection>,
    method: Method,
    path: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let product = path.ok().and_then(|Path(name)| ProductId::new(&name).ok());
    let product = product.and_then(|id| Some(Arc::clone(&*admin.relay.products.get(&id)?)));
    let product = product.ok_or_else(|| Problem::not_found("no such product"))?;
    if !accepts_event_stream(&headers) {
        return Err(Problem::new(
            StatusCode::NOT_ACCEPTABLE,
            "this is a text/event-stream, which Accept excludes",
        ));
    }
    let request = SubscriptionRequest::parse(&query.unwrap_or_default(), &headers)?;
    if method == Method::HEAD {
        return Ok(sse::stream_head());
    }
    let source = SubscriptionSource {
        subscribers: &admin.operator_tails,
        wheel: &admin.relay.wheel,
        key: ADMIN_KEY_NAME.into(),
        holder: CredentialHolder::Key(ADMIN_KEY_NAME.into()),
        proof: admin.key.proof(),
        max_age: None,
        expiry: None,
        shards: None, // the socket belongs to the admin runtime, shards to others
        is_operator_tail: true,
    };
    sse::open_stream(&admin.relay, &source, &product, request, &connection, &headers)
}

/// Operator streams at one time: some consoles and terminals.
pub(crate) const MAX_OPERATOR_TAILS: usize = 64;
