//! `GET /stream/{product_id}`: a subscription as Server-Sent Events.
//!
//! In: a request. Out: a head at once, then frames as the log has them, heartbeats in between.
//!
//! Also answers operators who look on (`watch`).
//!
//! May use: `auth`, `event`, `fanout`, `metrics`, `net`, `sse`, `wheel`.

mod frame;
mod h2_body;
mod on_shard;
mod subscriber;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Extension, Path, RawQuery, State, rejection::PathRejection},
    response::Response,
};
use hyper::{
    HeaderMap, StatusCode, Version,
    header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue},
};

use self::h2_body::EventBody;
pub(crate) use self::{on_shard::SseConnection, subscriber::SseSubscriber};
use super::request::{SubscriptionRequest, accepts_event_stream};
use crate::{
    auth::{CredentialHolder, CredentialProof, Grant, StreamExpiry},
    http::{
        admission::Subscribers,
        problem::{Problem, SHED_RETRY_AFTER, jittered},
        state::{Product, Relay},
    },
    metrics::ShedReason,
    net::{Connection, DetachedConnection, Http2StreamState},
    shard::{ShardPlacement, ShardSubscriber},
    sse,
    timer_wheel::TimerWheel,
};

/// Answers one subscriber.
///
/// # Errors
///
/// 401, 403, 404, 406, 400 in this order; 429 or 503 past a limit, which browsers do not see.
pub(crate) async fn stream(
    State(relay): State<Arc<Relay>>,
    Extension(connection): Extension<Connection>,
    version: Version,
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
    let source = SubscriptionSource::public(&relay, &grant, supports_detach(version));
    open_stream(&relay, &source, &product, requested, &connection, &headers)
}

/// Answers whoever may have what it wishes for.
///
/// # Errors
///
/// 429 or 503 past a limit, which browsers do not see.
pub(crate) fn open_stream(
    relay: &Relay,
    source: &SubscriptionSource<'_>,
    product: &Arc<Product>,
    requested: SubscriptionRequest,
    connection: &Connection,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    // Who writes to a socket of its own sees for itself when the time is over.
    let stream_state = Http2StreamState::current();
    let forced_close =
        source.shards.is_none().then(|| connection.forced_close(stream_state.as_deref()));
    let subscriber = match SseSubscriber::admit(
        relay,
        source,
        &product.feed,
        requested,
        connection.peer.ip(),
        headers,
        forced_close,
    ) {
        Ok(events) => events,
        Err(reason) => return shed(reason, headers),
    };
    let first = sse::encode_retry(jittered(SSE_RETRY_DELAY));
    let body = match source.shards {
        Some(shards) => {
            let (shards, home_shard) = (Arc::clone(shards), product.feed.home_shard);
            let scope = subscriber.scope().clone();
            connection.detach(first, move |socket, session| {
                let factory = |socket| {
                    Box::new(SseConnection::new(
                        DetachedConnection::new(socket, session),
                        subscriber,
                    )) as Box<dyn ShardSubscriber>
                };
                // Its client, which comes back whatever the end, needs no more if it is too late for a lane.
                drop(shards.take(socket, &scope, home_shard, Box::new(factory)));
            })
        }
        None => Body::new(EventBody::new(first, subscriber, connection, stream_state)),
    };
    let mut response = event_stream_response(body);
    if source.shards.is_some() {
        // It is the last answer on its connection (RFC 9112, section 9.6).
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// What differs between the listeners that a stream is asked of.
#[derive(Debug)]
pub(crate) struct SubscriptionSource<'a> {
    /// Where it gets its seat.
    pub(crate) subscribers: &'a Arc<Subscribers>,
    /// The timer of its runtime.
    pub(crate) wheel: &'a Arc<TimerWheel>,
    /// The name of its key.
    pub(crate) key: Arc<str>,
    /// Whom it is counted for.
    pub(crate) holder: CredentialHolder,
    /// What it was let in for.
    pub(crate) proof: Arc<CredentialProof>,
    /// About the age at which it ends.
    pub(crate) max_age: Option<Duration>,
    /// When it has to end, if it has to.
    pub(crate) expiry: Option<StreamExpiry>,
    /// Who writes the stream, if it is not to be hyper.
    pub(crate) shards: Option<&'a Arc<ShardPlacement>>,
    /// An operator looks on: it is not counted as a subscriber, and leaves at once when it is to.
    pub(crate) is_operator_tail: bool,
}

impl<'a> SubscriptionSource<'a> {
    fn public(relay: &'a Relay, grant: &Grant, can_detach: bool) -> Self {
        Self {
            subscribers: &relay.subscribers,
            wheel: &relay.wheel,
            key: Arc::clone(&grant.key),
            holder: grant.holder.clone(),
            proof: Arc::clone(&grant.proof),
            max_age: relay.max_connection_age,
            expiry: grant.stream_expiry(),
            shards: can_detach.then_some(&relay.shards),
            is_operator_tail: false,
        }
    }
}

/// Whether the socket can be taken out of hyper while it answers a request of this version: on HTTP/1.0 there are no chunks, on
/// HTTP/2 there are other streams.
fn supports_detach(version: Version) -> bool {
    version == Version::HTTP_11
}

/// The head of every event stream, and of what stands for one.
fn event_stream_response(body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    headers.insert("autoplay-relay", HeaderValue::from_static("resume"));
    response
}

/// Turns a subscriber away. A browser's `EventSource` gives up for good on any status but 200, so it gets one.
///
/// # Errors
///
/// What everybody else gets: 429 or 503.
pub(crate) fn shed(reason: ShedReason, headers: &HeaderMap) -> Result<Response, Problem> {
    if headers.contains_key("sec-fetch-mode") {
        let mut response =
            event_stream_response(Body::from(sse::encode_retry(jittered(SHED_RETRY_AFTER))));
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        return Ok(response);
    }
    Err(reason.into())
}

/// A restarted relay is back within seconds; those who lost it should be, too.
const SSE_RETRY_DELAY: Duration = Duration::from_secs(2);
