//! `GET /stream/{product_id}`: a subscription as Server-Sent Events.
//!
//! In: a request. Out: a head at once, then frames as the log has them, heartbeats in between.
//!
//! Also answers operators who look on (`watch`).
//!
//! May use: `auth`, `config`, `event`, `fanout`, `metrics`, `net`, `sse`, `wheel`.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::Body,
    extract::{Extension, Path, RawQuery, State, rejection::PathRejection},
    response::Response,
};
use bytes::Bytes;
use http_body::Frame;
use hyper::{
    HeaderMap, StatusCode,
    header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue},
};

use tokio::time::Instant;

use super::{
    Product, Relay,
    error::{Problem, SHED_WAIT, spread},
    request::{Wish, accepts_event_stream},
    subscribers::{Leave, Newcomer, Seat, Subscribers},
};
use crate::{
    auth::{Farewell, Grant, Holder},
    fanout::{Item, Listener, Subscription},
    metrics::{ShedReason, Transport},
    net::{Connection, Cut, Patience},
    sse,
    wheel::{Alarm, Wheel},
};

/// Answers one subscriber.
///
/// # Errors
///
/// 401, 403, 404, 406, 400 in this order; 429 or 503 past a limit, which browsers do not see.
pub(crate) async fn stream(
    State(relay): State<Arc<Relay>>,
    Extension(connection): Extension<Connection>,
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
    let side = Side::public(&relay, &grant);
    answer(&relay, &side, &product, wish, &connection, &headers)
}

/// Answers whoever may have what it wishes for.
///
/// # Errors
///
/// 429 or 503 past a limit, which browsers do not see.
pub(super) fn answer(
    relay: &Relay,
    side: &Side<'_>,
    product: &Arc<Product>,
    wish: Wish,
    connection: &Connection,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    match EventBody::open(relay, side, product, wish, connection, headers) {
        Ok(body) => Ok(event_stream(Body::new(body))),
        Err(reason) => shed(reason, headers),
    }
}

/// What differs between the listeners that a stream is asked of.
#[derive(Debug)]
pub(super) struct Side<'a> {
    /// Where it gets its seat.
    pub(super) subscribers: &'a Arc<Subscribers>,
    /// The timer of its runtime.
    pub(super) wheel: &'a Arc<Wheel>,
    /// The name of its key.
    pub(super) key: Arc<str>,
    /// Whom it is counted for.
    pub(super) holder: Holder,
    /// About the age at which it ends.
    pub(super) max_age: Option<Duration>,
    /// When it has to end, if it has to.
    pub(super) farewell: Option<Farewell>,
    /// An operator looks on: it is not counted as a subscriber, and leaves at once when it is to.
    pub(super) is_onlooker: bool,
}

impl<'a> Side<'a> {
    fn public(relay: &'a Relay, grant: &Grant) -> Self {
        Self {
            subscribers: &relay.subscribers,
            wheel: &relay.wheel,
            key: Arc::clone(&grant.key),
            holder: grant.holder.clone(),
            max_age: relay.max_connection_age,
            farewell: grant.farewell(),
            is_onlooker: false,
        }
    }
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
fn shed(reason: ShedReason, headers: &HeaderMap) -> Result<Response, Problem> {
    if headers.contains_key("sec-fetch-mode") {
        let mut response = event_stream(Body::from(sse::encode_retry(spread(SHED_WAIT))));
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        return Ok(response);
    }
    Err(reason.into())
}

/// What one subscriber receives.
#[derive(Debug)]
struct EventBody {
    subscription: Subscription,
    seat: Seat,
    product: Arc<Product>,
    connection: Connection,
    is_onlooker: bool,
    patience: Option<Arc<Patience>>,
    /// Ends it while nothing is asked of it.
    cut: Arc<Cut>,
    alarm: Alarm,
    /// The line that tells how long to wait before a reconnect; sent first, and again on leaving.
    retry: Option<Bytes>,
    /// Place of the last entry it gets, once it has been told to leave.
    leave_after: Option<u64>,
    has_left: bool,
    /// A relay asks: it has not been told yet that the replay is at its end.
    owes_end_of_replay: bool,
    /// The time, read once for all frames that are handed over at one wake-up.
    clock: Option<Instant>,
    heartbeat_interval: Duration,
    heartbeat_due: u64,
    leave_due: u64,
    /// When its token's time is over, and the tick at which it is woken for that.
    expires: Option<Instant>,
    expires_due: u64,
}

impl EventBody {
    fn open(
        relay: &Relay,
        side: &Side<'_>,
        product: &Arc<Product>,
        wish: Wish,
        connection: &Connection,
        headers: &HeaderMap,
    ) -> Result<Self, ShedReason> {
        relay.admits_newcomers()?;
        let listener = Arc::new(Listener::default());
        let patience = Patience::of_stream();
        let cut = connection.cut(patience.as_deref());
        let seat = side.subscribers.admit(Newcomer {
            product: product.id.clone(),
            transport: Transport::Sse,
            key: Arc::clone(&side.key),
            holder: side.holder.clone(),
            address: relay.client_address(connection.peer.ip(), headers),
            listener: Arc::clone(&listener),
            cut: Some(Arc::clone(&cut)),
        })?;
        if relay.is_draining.load(Ordering::SeqCst) {
            seat.dismiss(Leave::Drain); // it was let in at the very moment of closing
        }
        let subscription = product.fanout.subscribe(listener, wish.scope, &wish.start);
        if !side.is_onlooker {
            product.sse.subscribers.inc();
        }
        let wheel = side.wheel;
        // Each a little earlier than the interval: ten thousand subscribers of one event must not all be idle in one tick.
        let heartbeat_interval = relay.heartbeat_interval.mul_f64(1.0 - fastrand::f64() / 10.0);
        let within = |at: Instant| wheel.within(at.saturating_duration_since(Instant::now()));
        if let Some(farewell) = side.farewell {
            cut.at(within(farewell.ends));
        }
        let age = side.max_age.map(|age| age.mul_f64(0.8 + 0.4 * fastrand::f64()));
        Ok(Self {
            subscription,
            seat,
            product: Arc::clone(product),
            connection: connection.clone(),
            is_onlooker: side.is_onlooker,
            patience,
            cut,
            alarm: Alarm::new(wheel),
            retry: Some(sse::encode_retry(spread(RETRY))),
            leave_after: None,
            has_left: false,
            owes_end_of_replay: headers.get("autoplay-relay").is_some_and(|value| value.as_bytes() == b"follow"),
            clock: None,
            heartbeat_interval,
            heartbeat_due: wheel.after(heartbeat_interval),
            leave_due: age.map_or(u64::MAX, |age| wheel.after(age)),
            expires: side.farewell.map(|farewell| farewell.begins),
            expires_due: side.farewell.map_or(u64::MAX, |farewell| within(farewell.begins)),
        })
    }

    /// The next bytes to send, none when the stream is at its end.
    fn poll_bytes(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(retry) = self.retry.take() {
            return Poll::Ready(Some(retry));
        }
        if self.has_left {
            return Poll::Ready(None);
        }
        if self.has_expired() {
            // At once, whatever is still in the log: it is there for whoever comes back with a new token.
            self.seat.dismiss(Leave::Expired);
            return self.leave();
        }
        self.heed_dismissal();
        if self.is_onlooker && self.leave_after.is_some() {
            return self.leave(); // the fan-out may be gone before it
        }
        if self
            .leave_after
            .is_some_and(|last| self.subscription.has_passed(last) || self.subscription.reads_from_store())
        {
            return self.leave(); // what is in the store is there for whoever comes back
        }
        if let Poll::Ready(item) = self.subscription.poll_next(context) {
            return Poll::Ready(Some(self.frame(item)));
        }
        self.clock = None;
        self.note_position();
        // Again, now that whoever dismisses it knows whom to wake.
        self.heed_dismissal();
        let has_everything = |last| self.is_onlooker || self.subscription.has_passed(last);
        if self.leave_after.is_some_and(has_everything) {
            return self.leave();
        }
        // Who is leaving waits for the fan-out to come to the end of the log, which takes it no longer than a tick.
        // So does a relay that asks, until the log it reads has caught up itself.
        let looks_again = self.leave_after.is_some() || self.subscription.must_look_again() || self.owes_end_of_replay;
        let is_end = self.owes_end_of_replay && self.subscription.is_at_end() && self.product.log.has_caught_up();
        if is_end || self.alarm.wheel().now() >= self.heartbeat_due {
            return Poll::Ready(Some(self.heartbeat()));
        }
        let due = self.heartbeat_due.min(self.leave_due).min(self.expires_due);
        let due = if looks_again { due.min(self.alarm.wheel().after(Duration::ZERO)) } else { due };
        self.alarm.set(due, context.waker());
        Poll::Pending
    }

    /// Whether its token's time is over. The clock is asked, too: the wheel could stand still.
    fn has_expired(&self) -> bool {
        let Some(at) = self.expires else { return false };
        self.alarm.wheel().now() >= self.expires_due || Instant::now() >= at
    }

    /// Who is dismissed still gets what is in the log at that moment: memory is gone with the process.
    fn heed_dismissal(&mut self) {
        if self.alarm.wheel().now() >= self.leave_due {
            self.seat.dismiss(Leave::Rotated);
        }
        if self.leave_after.is_none() && self.seat.dismissed().is_some() {
            self.leave_after = Some(self.product.log.newest());
        }
    }

    /// One last line: when to come back.
    fn leave(&mut self) -> Poll<Option<Bytes>> {
        self.has_left = true;
        Poll::Ready(Some(sse::encode_retry(spread(RETRY))))
    }

    fn frame(&mut self, item: Item) -> Bytes {
        match item {
            Item::Event { event, received } => {
                self.seat.stands_at(event.place());
                if !self.is_onlooker {
                    self.count(received);
                }
                event.wire()
            }
            Item::Gap(gap) => {
                self.seat.stands_at(gap.place);
                sse::encode_gap(gap.id, &gap.notice())
            }
        }
    }

    fn count(&mut self, received: Option<Instant>) {
        self.product.sse.delivered.inc();
        if let Some(received) = received {
            let now = *self.clock.get_or_insert_with(Instant::now);
            self.product.sse.lag.observe(now.saturating_duration_since(received).as_secs_f64());
        }
    }

    /// Tells its seat where it stands when it falls asleep.
    fn note_position(&self) {
        match self.subscription.is_at_end() {
            true => self.seat.has_nothing_to_get(),
            false => self.seat.stands_at(self.subscription.returned_through()),
        }
    }

    /// Moves the client's id on where the log has moved past what its filter let through. To a relay, the first one says that
    /// what comes from now on is news.
    fn heartbeat(&mut self) -> Bytes {
        let log = &self.product.log;
        let is_replaying = !self.subscription.is_at_end() || log.is_replaying() || log.is_recovering();
        if self.owes_end_of_replay && is_replaying {
            return sse::encode_keep_alive();
        }
        self.owes_end_of_replay = false;
        sse::encode_heartbeat(self.subscription.move_on())
    }
}

impl http_body::Body for EventBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let bytes = self.poll_bytes(context);
        if let Some(patience) = &self.patience {
            patience.asked(bytes.is_pending());
        }
        if let Poll::Ready(Some(_)) = &bytes {
            self.heartbeat_due = self.alarm.wheel().after(self.heartbeat_interval);
        }
        bytes.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

impl Drop for EventBody {
    fn drop(&mut self) {
        if self.has_expired() {
            self.seat.dismiss(Leave::Expired); // nobody asked it for its last bytes
        }
        self.cut.lift();
        let is_stalled =
            self.connection.fate.is_stalled() || self.patience.as_ref().is_some_and(|patience| patience.is_stalled());
        let reason = match self.seat.dismissed() {
            _ if is_stalled => "stalled",
            Some(leave) => leave.as_str(),
            None => "client",
        };
        if !self.is_onlooker {
            self.product.metrics.disconnects(Transport::Sse, reason).inc();
            self.product.sse.subscribers.dec();
        }
        if is_stalled {
            tracing::debug!(product = %self.product.id, "subscriber took nothing for the write time-out");
        }
    }
}

/// A restarted relay is back within seconds; those who lost it should be, too.
const RETRY: Duration = Duration::from_secs(2);
