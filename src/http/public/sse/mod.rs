//! `GET /stream/{product_id}`: a subscription as Server-Sent Events.
//!
//! In: a request. Out: a head at once, then frames as the log has them, heartbeats in between.
//!
//! Also answers operators who look on (`watch`).
//!
//! May use: `auth`, `event`, `fanout`, `metrics`, `net`, `sse`, `wheel`.

mod h2_body;
mod on_shard;
mod subscriber;

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
pub(crate) use self::{on_shard::Stream, subscriber::Events};
use super::request::{Wish, accepts_event_stream};
use crate::{
    auth::{Farewell, Grant, Holder, Proof},
    http::{
        Product, Relay,
        admission::Subscribers,
        problem::{Problem, SHED_WAIT, spread},
    },
    metrics::ShedReason,
    net::{Connection, Patience, Wire},
    shard::{Follower, Shards},
    sse,
    timer_wheel::Wheel,
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
    let (grant, product) = relay.receive(path, &query, &headers)?;
    if !accepts_event_stream(&headers) {
        return Err(Problem::new(StatusCode::NOT_ACCEPTABLE, "this is a text/event-stream, which Accept excludes"));
    }
    let mut wish = Wish::read(&query, &headers)?;
    wish.scope = grant.narrow(wish.scope)?;
    let side = Side::public(&relay, &grant, can_hand_over(version));
    answer(&relay, &side, &product, wish, &connection, &headers)
}

/// Answers whoever may have what it wishes for.
///
/// # Errors
///
/// 429 or 503 past a limit, which browsers do not see.
pub(crate) fn answer(
    relay: &Relay,
    side: &Side<'_>,
    product: &Arc<Product>,
    wish: Wish,
    connection: &Connection,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    // Who writes to a socket of its own sees for itself when the time is over.
    let patience = Patience::of_stream();
    let cut = side.shards.is_none().then(|| connection.cut(patience.as_deref()));
    let events = match Events::open(relay, side, product, wish, connection.peer.ip(), headers, cut) {
        Ok(events) => events,
        Err(reason) => return shed(reason, headers),
    };
    let first = sse::encode_retry(spread(RETRY));
    let body = match side.shards {
        Some(shards) => {
            let (shards, home) = (Arc::clone(shards), product.lane);
            let scope = events.scope().clone();
            connection.hand_over(first, move |socket, session| {
                let introduce = |socket| Box::new(Stream::new(Wire::new(socket, session), events)) as Box<dyn Follower>;
                // Its client, which comes back whatever the end, needs no more if it is too late for a lane.
                drop(shards.take(socket, &scope, home, Box::new(introduce)));
            })
        }
        None => Body::new(EventBody::new(first, events, connection, patience)),
    };
    let mut response = event_stream(body);
    if side.shards.is_some() {
        // It is the last answer on its connection (RFC 9112, section 9.6).
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// What differs between the listeners that a stream is asked of.
#[derive(Debug)]
pub(crate) struct Side<'a> {
    /// Where it gets its seat.
    pub(crate) subscribers: &'a Arc<Subscribers>,
    /// The timer of its runtime.
    pub(crate) wheel: &'a Arc<Wheel>,
    /// The name of its key.
    pub(crate) key: Arc<str>,
    /// Whom it is counted for.
    pub(crate) holder: Holder,
    /// What it was let in for.
    pub(crate) proof: Arc<Proof>,
    /// About the age at which it ends.
    pub(crate) max_age: Option<Duration>,
    /// When it has to end, if it has to.
    pub(crate) farewell: Option<Farewell>,
    /// Who writes the stream, if it is not to be hyper.
    pub(crate) shards: Option<&'a Arc<Shards>>,
    /// An operator looks on: it is not counted as a subscriber, and leaves at once when it is to.
    pub(crate) is_onlooker: bool,
}

impl<'a> Side<'a> {
    fn public(relay: &'a Relay, grant: &Grant, can_hand_over: bool) -> Self {
        Self {
            subscribers: &relay.subscribers,
            wheel: &relay.wheel,
            key: Arc::clone(&grant.key),
            holder: grant.holder.clone(),
            proof: Arc::clone(&grant.proof),
            max_age: relay.max_connection_age,
            farewell: grant.farewell(),
            shards: can_hand_over.then_some(&relay.shards),
            is_onlooker: false,
        }
    }
}

/// Whether the socket can be taken out of hyper while it answers a request of this version: on HTTP/1.0 there are no chunks, on
/// HTTP/2 there are other streams.
fn can_hand_over(version: Version) -> bool {
    version == Version::HTTP_11
}

/// The head of every event stream, and of what stands for one.
fn event_stream(body: Body) -> Response {
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
        let mut response = event_stream(Body::from(sse::encode_retry(spread(SHED_WAIT))));
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        return Ok(response);
    }
    Err(reason.into())
}

/// A restarted relay is back within seconds; those who lost it should be, too.
const RETRY: Duration = Duration::from_secs(2);
