//! `GET /events/{product_id}`: one page of the log, for clients that poll.
//!
//! In: a request. Out: the entries that a subscriber at the same position would get, as far as they
//! are there, with the position to go on from. A page never crosses a gap: the gap is announced
//! before the page's first event, or ends the page.
//!
//! ```text
//! log     e1 e2 e3 ╳ e4 e5            ╳ a gap
//! pages  [e1 e2 e3][╳ e4 e5][ ]       the last one says how far the log has moved on
//! ```
//!
//! A page is in memory as a whole until it is sent. The number of pages at one time is therefore
//! bounded, with a quarter for one address; further clients wait a moment.
//!
//! May use: `config`, `event`, `fanout`, `net`, `timer_wheel`.

#[cfg(test)]
mod matrix;

use std::{
    future::poll_fn,
    io::Write,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::Body,
    extract::{Extension, Path, RawQuery, State, rejection::PathRejection},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::{
    HeaderMap, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE},
};
use tokio::time::{Instant, timeout};

use super::request::SubscriptionRequest;
use crate::{
    config::Permission,
    event::{Event, EventId, Gap, Scope, StartPosition},
    fanout::{Fanout, SubscriberSignal, Subscription, SubscriptionItem},
    http::{
        Relay,
        memory_quota::{MemoryQuota, QuotaPermit},
        problem::Problem,
    },
    net::{Connection, ForcedClose, Http2StreamState},
    timer_wheel::TimerWheel,
};

/// Answers one request for a page.
///
/// # Errors
///
/// 401, 403, 404, 400 in this order; 503 while the relay is leaving, has too many pages to send, or
/// cannot say yet what follows the client's id.
pub(crate) async fn page(
    State(relay): State<Arc<Relay>>,
    Extension(connection): Extension<Connection>,
    path: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let query = query.unwrap_or_default();
    let (grant, product) = relay.authorize_subscribe(path, &query, &headers)?;
    let requested = SubscriptionRequest::parse(&query, &headers)?;
    let scope = grant.narrow(requested.scope)?;
    let max_events = parse_limit(&query)?;
    relay.ensure_not_draining()?;
    let mut permit =
        relay.page_quota.0.permit_for(relay.client_address(connection.peer.ip(), &headers));
    permit.grow_to(1).await?;
    let start = match requested.start {
        // who listens to news only would never be given any
        StartPosition::Now => StartPosition::Oldest,
        start => start,
    };
    let page = EventPage::read(&product.feed.fanout, scope, &start, max_events).await?;
    // It may have waited, for a place and for the log.
    relay.ensure_still_granted(&grant, &product.feed.id, Permission::Subscribe)?;
    product.paged_events.inc_by(page.events.len() as u64);
    let stream_state = Http2StreamState::current();
    let forced_close = connection.forced_close(stream_state.as_deref());
    let body = PageBody::new(page.into_json(), permit, &relay.wheel, forced_close, stream_state);
    let head = [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")];
    Ok((head, Body::new(body)).into_response())
}

/// The pages that may be in memory at one time.
#[derive(Clone, Debug)]
pub(crate) struct PageQuota(MemoryQuota);

impl Default for PageQuota {
    fn default() -> Self {
        Self(MemoryQuota::new(MAX_CONCURRENT_PAGES, MAX_CONCURRENT_PAGES / 4))
    }
}

/// A page on its way to the client. It leaves in pieces that are copies: what of the last one waits
/// in the connection's buffers, for as long as the client likes, would otherwise keep the whole
/// page in memory.
struct PageBody {
    json: Bytes,
    /// None over HTTP/1.1, where the socket itself has a deadline.
    stream_state: Option<Arc<Http2StreamState>>,
    /// Ends it while nothing is asked of it.
    forced_close: Arc<ForcedClose>,
    wheel: Arc<TimerWheel>,
    /// The tick by which it must have been taken.
    send_due: u64,
    _permit: QuotaPermit,
}

impl PageBody {
    fn new(
        json: Vec<u8>,
        permit: QuotaPermit,
        wheel: &Arc<TimerWheel>,
        forced_close: Arc<ForcedClose>,
        stream_state: Option<Arc<Http2StreamState>>,
    ) -> Self {
        let send_due = wheel.tick_after(PAGE_SEND_TIMEOUT);
        forced_close.schedule_at(send_due);
        Self {
            json: json.into(),
            stream_state,
            forced_close,
            wheel: Arc::clone(wheel),
            send_due,
            _permit: permit,
        }
    }
}

impl Drop for PageBody {
    fn drop(&mut self) {
        self.forced_close.cancel();
    }
}

/// The client has taken too long: it is cut off, since an end like any other would hide that
/// something is missing.
#[derive(Debug, thiserror::Error)]
#[error("the page was not taken in time")]
struct PageSendTimeout;

impl http_body::Body for PageBody {
    type Data = Bytes;
    type Error = PageSendTimeout;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, PageSendTimeout>>> {
        if let Some(stream_state) = &self.stream_state {
            stream_state.record_body_poll(false);
        }
        if self.wheel.current_tick() >= self.send_due && !self.json.is_empty() {
            return Poll::Ready(Some(Err(PageSendTimeout)));
        }
        let bytes = self.json.len().min(PAGE_CHUNK_BYTES);
        let piece = self.json.split_to(bytes);
        Poll::Ready((!piece.is_empty()).then(|| Ok(Frame::data(Bytes::copy_from_slice(&piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.json.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.json.len() as u64)
    }
}

/// How many events a page may have.
///
/// # Errors
///
/// 400 for anything but a number within the bounds.
fn parse_limit(query: &str) -> Result<usize, Problem> {
    let given = form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == "limit");
    given.map(|(_, value)| value).try_fold(DEFAULT_PAGE_EVENTS, |_, value| {
        let number = value.parse().ok().filter(|number| (1..=MAX_PAGE_EVENTS).contains(number));
        number.ok_or_else(|| {
            Problem::bad_request(format!("limit must be a number from 1 to {MAX_PAGE_EVENTS}"))
        })
    })
}

/// What one client is given.
#[derive(Debug)]
struct EventPage {
    /// Stands before the first event.
    gap: Option<Gap>,
    events: Vec<Arc<Event>>,
    /// Bytes of the events' payloads.
    bytes: usize,
    /// From here the client goes on. None before anything.
    next: Option<EventId>,
    max_events: usize,
}

impl EventPage {
    /// Gathers what is there behind `start`.
    ///
    /// # Errors
    ///
    /// 503 when it would have to wait too long before it can say anything.
    async fn read(
        fanout: &Arc<Fanout>,
        scope: Scope,
        start: &StartPosition,
        max_events: usize,
    ) -> Result<Self, Problem> {
        let newest = fanout.log().newest_position();
        let mut subscription =
            fanout.subscribe(Arc::new(SubscriberSignal::default()), scope, start);
        let mut page = Self { gap: None, events: Vec::new(), bytes: 0, next: None, max_events };
        let give_up_at = Instant::now() + PAGE_WAIT_TIMEOUT;
        // Nobody is told of a turn at the store that has come free, of an id that has arrived from
        // the relay before this one, or of others' events that the fan-out has passed.
        while timeout(
            PAGE_POLL_INTERVAL,
            poll_fn(|context| page.poll_fill(&mut subscription, newest, context)),
        )
        .await
        .is_err()
        {
            if Instant::now() < give_up_at {
                continue;
            }
            if subscription.is_caught_up() {
                break; // the fan-out has ended, and so does the relay
            }
            if subscription.must_poll_again() {
                page.ensure_not_empty()?;
                break;
            }
        }
        page.next = page
            .next
            .or_else(|| subscription.last_delivered_id())
            .or_else(|| fanout.log().id_at(0));
        Ok(page)
    }

    /// Takes what comes, until the page is at its end.
    ///
    /// Everything up to `newest`, the end of the log when it was asked for, belongs to what there
    /// is: a client that has seen or sent an event finds it here.
    fn poll_fill(
        &mut self,
        subscription: &mut Subscription,
        newest: u64,
        context: &mut Context<'_>,
    ) -> Poll<()> {
        while self.events.len() < self.max_events {
            match subscription.poll_next(context) {
                Poll::Ready(SubscriptionItem::Event { event, .. }) if self.has_room_for(&event) => {
                    self.push(event);
                }
                Poll::Ready(SubscriptionItem::Gap(gap)) if self.is_empty() => {
                    self.next = Some(gap.id);
                    self.gap = Some(gap);
                }
                // It does not belong here: the next page begins with it.
                Poll::Ready(SubscriptionItem::Event { .. } | SubscriptionItem::Gap(_)) => {
                    return Poll::Ready(());
                }
                Poll::Pending if subscription.is_caught_up() && subscription.has_passed(newest) => {
                    // So that what the filter hides is not looked at again.
                    self.next = subscription.advance_last_id().or(self.next);
                    return Poll::Ready(());
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(())
    }

    fn has_room_for(&self, event: &Event) -> bool {
        self.events.is_empty() || self.bytes + event.payload().len() <= MAX_PAGE_BYTES
    }

    fn push(&mut self, event: Arc<Event>) {
        self.bytes += event.payload().len();
        self.next = Some(event.id());
        self.events.push(event);
    }

    fn is_empty(&self) -> bool {
        self.events.is_empty() && self.gap.is_none()
    }

    /// Makes do with what there is.
    ///
    /// # Errors
    ///
    /// 503 when that is nothing: an empty page would say that there is nothing more.
    fn ensure_not_empty(&self) -> Result<(), Problem> {
        if self.is_empty() {
            let detail =
                "the relay is still catching up and does not know yet what follows this id";
            return Err(Problem::retry_later(
                StatusCode::SERVICE_UNAVAILABLE,
                detail,
                PAGE_WAIT_TIMEOUT,
            ));
        }
        Ok(())
    }

    /// The page as it is sent: payloads byte for byte, for they are JSON as they are.
    fn into_json(self) -> Vec<u8> {
        let mut json = Vec::with_capacity(
            self.bytes + self.events.len() * EVENT_OVERHEAD_BYTES + PAGE_OVERHEAD_BYTES,
        );
        json.extend_from_slice(br#"{"events":["#);
        for (n, event) in self.events.iter().enumerate() {
            let comma = if n > 0 { "," } else { "" };
            // An id has nothing in it to be escaped. Writing into memory does not fail.
            let _ = write!(json, r#"{comma}{{"id":"{}","data":"#, event.id());
            json.extend_from_slice(&event.payload());
            json.push(b'}');
        }
        let next = self.next.map_or_else(|| BEFORE_FIRST_ID.to_owned(), |id| id.to_string());
        let gap = self.gap.map_or_else(|| "null".to_owned(), |gap| gap.notice_json());
        let _ = write!(json, r#"],"next":"{next}","gap":{gap}}}"#);
        json
    }
}

/// Events of a page whose client does not say how many.
const DEFAULT_PAGE_EVENTS: usize = 100;

/// Events of a page, at the most: small ones are not worth a longer answer.
const MAX_PAGE_EVENTS: usize = 1000;

/// Payload bytes after which no further event is added; one is always given.
const MAX_PAGE_BYTES: usize = 1 << 20;

/// Pages at one time. One takes milliseconds, unless its client is slow: these can pin 16 MiB, or
/// as many of the largest events.
const MAX_CONCURRENT_PAGES: u32 = 16;

/// What a page may take to be sent: enough for the largest over a bad mobile link, short for
/// whoever takes it byte by byte.
const PAGE_SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// What is handed on at one time, as much as is gathered for one write.
const PAGE_CHUNK_BYTES: usize = 16 << 10;

/// What stands around a payload, roughly.
const EVENT_OVERHEAD_BYTES: usize = 64;

/// What stands around the events, roughly.
const PAGE_OVERHEAD_BYTES: usize = 512;

/// The `last_event_id` of whoever has nothing.
const BEFORE_FIRST_ID: &str = "0";

/// Short enough not to be noticed, long enough to cost nothing.
const PAGE_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// How long a page waits while it cannot go on: less than clients and proxies wait for an answer.
const PAGE_WAIT_TIMEOUT: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use http_body_util::BodyExt;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        event::{GapReason, Only, ProductId},
        log::{Log, MemoryBounds, Numbering},
        metrics::Metrics,
    };

    const ALL: Scope = Scope { sessions: Only::Everything, kinds: Only::Everything };

    fn fanout() -> Arc<Fanout> {
        let product = ProductId::new("p").unwrap();
        let bounds = MemoryBounds { events: 100, bytes: u64::MAX };
        let log = Log::new(product.clone(), bounds, Metrics::new().unwrap().log(&product));
        Arc::new(Fanout::new(Arc::new(log), 1))
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_whose_id_may_still_come_is_not_kept_waiting_for_ever() {
        let fanout = fanout();
        fanout.log().set_numbering(Numbering::Upstream);
        fanout.log().begin_recovery();
        let began = Instant::now();
        let start = StartPosition::After(EventId::new(1, 1));
        let problem = EventPage::read(&fanout, ALL, &start, 10).await.unwrap_err().into_response();
        assert_eq!(problem.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(
            (PAGE_WAIT_TIMEOUT..PAGE_WAIT_TIMEOUT * 2).contains(&began.elapsed()),
            "{:?}",
            began.elapsed()
        );
        let body = to_bytes(problem.into_body(), usize::MAX).await.unwrap();
        assert!(String::from_utf8_lossy(&body).contains("catching up"), "{body:?}");
        fanout.log().finish_replay();
        let page = EventPage::read(&fanout, ALL, &start, 10).await.unwrap();
        assert_eq!(
            page.gap.map(|gap| gap.reason),
            Some(GapReason::UnknownId),
            "now it is known not to come"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_page_that_is_not_taken_in_time_breaks_off_however_it_is_taken() {
        let (wheel, stop) = (TimerWheel::new(), CancellationToken::new());
        let turning = tokio::spawn({
            let (wheel, stop) = (Arc::clone(&wheel), stop.clone());
            async move { wheel.run(stop).await }
        });
        let forced_close = ForcedClose::new(&wheel);
        let permit = PageQuota::default().0.permit_for([192, 0, 2, 1].into());
        let body = PageBody::new(
            vec![b' '; PAGE_CHUNK_BYTES * 10],
            permit,
            &wheel,
            Arc::clone(&forced_close),
            None,
        );
        let mut body = Box::pin(body);
        let due = forced_close.due_tick(std::task::Waker::noop());
        assert_eq!(due, wheel.tick_after(PAGE_SEND_TIMEOUT), "while it is blocked");
        let mut taken = 0;
        let late = loop {
            match body.frame().await.expect("it has no end") {
                Ok(_) => taken += 1,
                Err(late) => break late,
            }
            tokio::time::sleep(PAGE_SEND_TIMEOUT / 5).await;
        };
        assert!((5..=6).contains(&taken), "{taken} pieces, then {late}");
        drop(body);
        assert!(
            forced_close.due_tick(std::task::Waker::noop()) > due,
            "what follows on the connection has its own time"
        );
        stop.cancel();
        turning.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_page_waits_for_the_fanout_but_not_for_one_that_has_ended() {
        let fanout = fanout();
        fanout.log().append_gap(GapReason::UpstreamReconnect);
        let late = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let _ = timeout(Duration::from_secs(1), fanout.run(CancellationToken::new())).await;
        };
        let (page, ()) =
            tokio::join!(EventPage::read(&fanout, ALL, &StartPosition::Oldest, 10), late);
        assert_eq!(
            page.unwrap().gap.map(|gap| gap.position),
            Some(1),
            "it was in the log before anybody asked"
        );
        fanout.log().append_gap(GapReason::UpstreamReconnect);
        let began = Instant::now();
        let newest_shown = StartPosition::After(fanout.log().id_at(1).unwrap());
        let page = EventPage::read(&fanout, ALL, &newest_shown, 10).await.unwrap();
        assert_eq!(
            (page.gap, page.next),
            (None, fanout.log().id_at(1)),
            "nobody has shown it anything else"
        );
        assert!(
            (PAGE_WAIT_TIMEOUT..PAGE_WAIT_TIMEOUT * 2).contains(&began.elapsed()),
            "{:?}",
            began.elapsed()
        );
    }
}
