//! `GET /stream/{product_id}`: a subscription as Server-Sent Events (WHATWG HTML, section 9.2).
//!
//! In: a request of a subscriber, or of an operator tail. Out: the response head at once, then
//! frames in the log's order, with heartbeats in between.
//!
//! ```text
//! HTTP/1.1               connection.detach(retry line) ─► ShardPlacement ─► SseConnection
//! HTTP/2, 1.0, operator  hyper_body: EventBody, which hyper writes
//!                        both read subscriber: SseSubscriber, independent of the socket
//! ```
//!
//! May use: `metrics`, `net`, `shard`, `sse`, `subscriber`.

mod connection;
mod frame;
mod hyper_body;
#[cfg(test)]
mod idle_size;
#[cfg(test)]
mod rest_model;
mod subscriber;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::{
    body::Body,
    extract::{Extension, Path, RawQuery, State, rejection::PathRejection},
    response::Response,
};
use hyper::{
    HeaderMap, Method, StatusCode, Version,
    header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue},
};

pub(crate) use self::{connection::SseConnection, subscriber::SseSubscriber};
use self::{frame::SSE_RETRY_DELAY, hyper_body::EventBody};
use super::{
    admit::SubscriptionSource,
    request::{SubscriptionRequest, accepts_event_stream},
};
use crate::{
    http::{
        methods::body_for_head,
        problem::{Problem, SHED_RETRY_AFTER, jittered},
        state::{Product, Relay},
    },
    metrics::{ShedReason, Transport},
    net::{Connection, DetachedConnection, Http2StreamState},
    shard::ShardSubscriber,
    sse,
    subscriber::SubscriberSocket,
};

/// Opens the event stream of one subscriber.
///
/// # Errors
///
/// 401, 403, 404, 406, 400 in this order; 429 or 503 past a limit, except for browsers (see
/// [`shed`]).
pub(crate) async fn stream(
    State(relay): State<Arc<Relay>>,
    Extension(connection): Extension<Connection>,
    (method, version): (Method, Version),
    path: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let query = query.unwrap_or_default();
    let (grant, product) = relay.authorize_subscribe(path, &query, &headers)?;
    if !accepts_event_stream(&headers) {
        return Err(Problem::new(
            StatusCode::NOT_ACCEPTABLE,
            "this is a text/event-stream, which Accept excludes",
        ));
    }
    let mut requested = SubscriptionRequest::parse(&query, &headers)?;
    requested.scope = grant.narrow(requested.scope)?;
    if method == Method::HEAD {
        relay.ensure_not_draining()?;
        return Ok(stream_head());
    }
    let source = SubscriptionSource::public(&relay, &grant, supports_detach(version));
    open_stream(&relay, &source, &product, requested, &connection, &headers)
}

/// Admits a subscriber whose request has been authorized, and answers with its stream.
///
/// # Errors
///
/// 429 or 503 past a limit, except for browsers: see [`shed`].
pub(crate) fn open_stream(
    relay: &Relay,
    source: &SubscriptionSource<'_>,
    product: &Arc<Product>,
    requested: SubscriptionRequest,
    connection: &Connection,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    // A subscriber on a shard checks its end at every poll, even while its socket is full. hyper
    // does not poll the body of a blocked stream, so a forced close has to end that one.
    let stream_state = Http2StreamState::current();
    let forced_close = connection.forced_close(stream_state.as_deref());
    let connected = source.admit(
        relay,
        &product.feed,
        requested,
        (connection.peer.ip(), headers),
        Transport::Sse,
        source.shards.is_none().then_some(&forced_close),
    );
    let subscriber = match connected {
        Ok(connected) => SseSubscriber::new(connected, headers),
        Err(reason) => return shed(reason, headers),
    };
    let first = sse::encode_retry(jittered(SSE_RETRY_DELAY));
    let body = match source.shards {
        Some(shards) => {
            let (shards, home_shard) = (Arc::clone(shards), product.feed.home_shard);
            let scope = subscriber.connected.scope().clone();
            connection.detach(first, move |socket, session| {
                let factory = |socket| {
                    let socket = SubscriberSocket::new(DetachedConnection::new(socket, session));
                    Box::new(SseConnection::new(socket, subscriber)) as Box<dyn ShardSubscriber>
                };
                // `take` returns a subscriber that is too late for the shards. Dropping it closes
                // the socket; the client reconnects, as after any end of a stream.
                drop(shards.take(socket, &scope, home_shard, Box::new(factory)));
            })
        }
        None => {
            Body::new(EventBody::new(first, subscriber, forced_close, connection, stream_state))
        }
    };
    let mut response = event_stream_response(body);
    if source.shards.is_some() {
        // The socket leaves hyper, so no other response follows (RFC 9112, section 9.6).
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// Returns whether the socket can leave hyper after a request of this version.
///
/// HTTP/1.0 has no chunked bodies, and an HTTP/2 connection carries other streams.
fn supports_detach(version: Version) -> bool {
    version == Version::HTTP_11
}

/// Returns the answer to HEAD: what a subscriber would get, without a subscription.
pub(in crate::http) fn stream_head() -> Response {
    event_stream_response(body_for_head())
}

/// Returns the response of every event stream, and of the empty one that sheds a browser.
fn event_stream_response(body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform"));
    // nginx would buffer the body otherwise.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    // Tells a relay that follows this one that it may resume by id.
    headers.insert("autoplay-relay", HeaderValue::from_static("resume"));
    response
}

/// Sheds a subscriber.
///
/// A browser's `EventSource` gives up for good on any status but 200 (WHATWG HTML, section 9.2.3),
/// so a browser gets an empty stream with a retry delay.
///
/// # Errors
///
/// 429 or 503, for all other clients.
pub(crate) fn shed(reason: ShedReason, headers: &HeaderMap) -> Result<Response, Problem> {
    // Browsers send Fetch Metadata, and scripts cannot set `Sec-` headers there.
    if headers.contains_key("sec-fetch-mode") {
        let mut response =
            event_stream_response(Body::from(sse::encode_retry(jittered(SHED_RETRY_AFTER))));
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        return Ok(response);
    }
    Err(reason.into())
}
