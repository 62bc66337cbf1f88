//! Those who come when there is no place for another connection.
//!
//! In: their requests. Out: that the relay is full, in the way that each of them bears, and the connection ended.
//!
//! May use: `metrics`, `net`.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use hyper::header::{CONNECTION, HeaderValue};

use super::sse;
use crate::{
    metrics::{Metrics, ShedReason},
    net::Connection,
};

/// Answers a request unless its connection has no place.
pub(super) async fn turn_away(State(metrics): State<Arc<Metrics>>, request: Request, next: Next) -> Response {
    let is_surplus = request.extensions().get::<Connection>().is_some_and(|connection| connection.is_surplus);
    if !is_surplus {
        return next.run(request).await;
    }
    metrics.shed(ShedReason::MaxConnections).inc();
    let answer = match request.uri().path().starts_with("/stream/") {
        true => sse::shed(ShedReason::MaxConnections, request.headers()),
        false => Err(ShedReason::MaxConnections.into()),
    };
    let mut response = answer.into_response();
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}
