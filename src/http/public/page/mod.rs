//! `GET /events/{product_id}`: one page of the log, for clients that poll.
//!
//! In: a request. Out: the entries that a subscriber at the same position would get, as far as the
//! log has them, and the next position. A page never crosses a gap: the gap is announced
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
//! May use: `config`, `event`, `fanout`, `log`, `net`, `subscription`.

mod body;
#[cfg(test)]
mod matrix;

use std::{
    future::poll_fn,
    io::Write,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::Body,
    extract::{Extension, Path, RawQuery, State, rejection::PathRejection},
    response::{IntoResponse, Response},
};
use hyper::{
    HeaderMap, Method, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE},
};
use tokio::time::{Instant, timeout};

use self::body::PageBody;
use super::request::{SubscriptionParameters, SubscriptionRequest};
use crate::{
    config::Permission,
    event::{Event, EventId, Gap, Scope, StartPosition},
    fanout::{Fanout, SubscriberSignal},
    http::{
        Relay,
        methods::body_for_head,
        problem::Problem,
        query::{self, LAST_EVENT_ID},
    },
    log::ReplayClient,
    net::{Connection, Http2StreamState},
    subscription::{Subscription, SubscriptionItem},
};

/// Answers one request for a page.
///
/// # Errors
///
/// 401, 403, 404, 400 in this order; 503 during graceful shutdown, with too many pages in memory,
/// or while the log cannot say yet what follows the client's id.
///
/// # Cancel safety
///
/// Dropping the future returns the quota and ends the subscription; nothing else refers to them.
pub(crate) async fn page(
    State(relay): State<Arc<Relay>>,
    Extension(connection): Extension<Connection>,
    method: Method,
    path: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let query = query.unwrap_or_default();
    let (grant, product) = relay.authorize_subscribe(path, &query, &headers)?;
    let (requested, max_events) = parse_query(&query, &headers)?;
    let scope = grant.narrow(requested.scope)?;
    relay.ensure_not_draining()?;
    let head = [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")];
    if method == Method::HEAD {
        // A page would be taken out of the quota and thrown away.
        return Ok((head, body_for_head()).into_response());
    }
    let address = relay.client_address(connection.peer.ip(), &headers);
    let replay_client = ReplayClient::new(&grant.holder, &address.block());
    let mut permit = relay.page_quota.permit_for(address);
    permit.grow_to(1).await?;
    let start = match requested.start {
        // A page of live events only would always be empty.
        StartPosition::Now => StartPosition::Oldest,
        start => start,
    };
    let page =
        EventPage::read(&product.feed.fanout, scope, &start, max_events, replay_client).await?;
    // The request may have waited for quota and for the log, and its token may have expired
    // meanwhile.
    relay.ensure_still_granted(&grant, &product.feed.id, Permission::Subscribe)?;
    product.paged_events.inc_by(page.events.len() as u64);
    // Here and not when the body is polled: the task-local is set while the stream's future runs.
    let stream_state = Http2StreamState::current();
    let forced_close = connection.forced_close(stream_state.as_deref());
    let body = PageBody::new(page.into_json(), permit, &relay.wheel, forced_close, stream_state);
    let body = body.with_exemption(connection.exempt_from_displacement());
    Ok((head, Body::new(body)).into_response())
}

/// Returns what the client asks for, and the number of events that the page may have.
///
/// # Errors
///
/// As [`SubscriptionRequest::parse`], and 400 for a limit that is no number within the bounds.
fn parse_query(query: &str, headers: &HeaderMap) -> Result<(SubscriptionRequest, usize), Problem> {
    let mut parameters = SubscriptionParameters::default();
    let mut max_events = DEFAULT_PAGE_EVENTS;
    for pair in query::pairs(query, PAGE_NAMES) {
        match pair? {
            ("limit", value) => max_events = parse_limit(&value)?,
            (name, value) => parameters.take(name, &value)?,
        }
    }
    Ok((parameters.into_request(headers)?, max_events))
}

fn parse_limit(value: &str) -> Result<usize, Problem> {
    let number = value.parse().ok().filter(|number| (1..=MAX_PAGE_EVENTS).contains(number));
    number.ok_or_else(|| {
        Problem::bad_request(format!("limit must be a number from 1 to {MAX_PAGE_EVENTS}"))
    })
}

/// Entries for one client, and the id to continue from.
#[derive(Debug)]
struct EventPage {
    /// Gap before the first event.
    gap: Option<Gap>,
    events: Vec<Arc<Event>>,
    /// Bytes of the events' payloads.
    bytes: usize,
    /// Id from which the client continues; `None` at the position before the first entry.
    next: Option<EventId>,
    max_events: usize,
}

impl EventPage {
    /// Collects entries after `start`.
    ///
    /// # Errors
    ///
    /// 503 after [`PAGE_WAIT_TIMEOUT`] without knowing what follows `start`.
    async fn read(
        fanout: &Arc<Fanout>,
        scope: Scope,
        start: &StartPosition,
        max_events: usize,
        replay_client: ReplayClient,
    ) -> Result<Self, Problem> {
        // Taken before the subscription: an entry that arrives later may be in the page, but the
        // page does not wait for it.
        let newest = fanout.log().newest_position();
        let mut subscription =
            Subscription::start(fanout, SubscriberSignal::default(), scope, start);
        subscription = subscription.for_client(replay_client);
        let mut page = Self { gap: None, events: Vec::new(), bytes: 0, next: None, max_events };
        let give_up_at = Instant::now() + PAGE_WAIT_TIMEOUT;
        // Polled at intervals, because two changes wake no subscription of this kind: an id that
        // arrives while the upstream relay repeats its log, and entries outside the scope that the
        // fan-out has passed.
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
                break; // only a fan-out that has ended is this late: the relay shuts down
            }
            if subscription.must_poll_again() || subscription.reads_from_store() {
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

    /// Takes entries until the page is complete.
    ///
    /// All entries up to `newest`, the end of the log when the page was asked for, belong to the
    /// page if they fit: a client that has seen or published an event finds it here.
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
                // It does not fit, and is dropped here: `next` stays before it, so the next page
                // begins with it.
                Poll::Ready(SubscriptionItem::Event { .. } | SubscriptionItem::Gap(_)) => {
                    return Poll::Ready(());
                }
                Poll::Pending if subscription.is_caught_up() && subscription.has_passed(newest) => {
                    // Past the entries outside the scope, which the next page then need not look at
                    // again.
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

    /// Accepts a page that has ended early.
    ///
    /// # Errors
    ///
    /// 503 for an empty one: an empty page would say that no entries follow.
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

    /// Returns the page as it is sent. Payloads are JSON already and are copied byte for byte.
    fn into_json(self) -> Vec<u8> {
        let mut json = Vec::with_capacity(
            self.bytes + self.events.len() * EVENT_OVERHEAD_BYTES + PAGE_OVERHEAD_BYTES,
        );
        json.extend_from_slice(br#"{"events":["#);
        for (n, event) in self.events.iter().enumerate() {
            let comma = if n > 0 { "," } else { "" };
            // An id has no character that JSON escapes, and writing to a `Vec` cannot fail.
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

/// Names that a page reads from its query: those of a subscription, and `limit`.
const PAGE_NAMES: &[&str] = &[
    "session_id",
    "type",
    LAST_EVENT_ID,
    "limit",
    "access_token",
    "user_id",
    "since",
    "consumer",
    "ack",
];

/// Events of a page whose client sets no limit.
const DEFAULT_PAGE_EVENTS: usize = 100;

/// Events of a page at most. More small events would make a longer answer for no gain.
const MAX_PAGE_EVENTS: usize = 1000;

/// Payload bytes after which no further event is added. The first event is added at any size, or
/// no page could ever pass it.
const MAX_PAGE_BYTES: usize = 1 << 20;

/// Estimate of the JSON around one payload, for the capacity of the buffer.
const EVENT_OVERHEAD_BYTES: usize = 64;

/// Estimate of the JSON around all events.
const PAGE_OVERHEAD_BYTES: usize = 512;

/// The `last_event_id` of a client that has no entry.
const BEFORE_FIRST_ID: &str = "0";

/// Short enough to go unnoticed in an answer, long enough to cost no measurable time.
const PAGE_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Maximum time to gather a page: shorter than clients and proxies wait for an answer.
const PAGE_WAIT_TIMEOUT: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        event::{GapReason, ProductId},
        log::{Log, MemoryBounds, Numbering},
        metrics::Metrics,
    };

    const ALL: Scope = Scope::EVERYTHING;

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
        let problem = EventPage::read(&fanout, ALL, &start, 10, ReplayClient::default())
            .await
            .unwrap_err()
            .into_response();
        assert_eq!(problem.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(
            (PAGE_WAIT_TIMEOUT..PAGE_WAIT_TIMEOUT * 2).contains(&began.elapsed()),
            "{:?}",
            began.elapsed()
        );
        let body = to_bytes(problem.into_body(), usize::MAX).await.unwrap();
        assert!(String::from_utf8_lossy(&body).contains("catching up"), "{body:?}");
        fanout.log().finish_replay();
        let page =
            EventPage::read(&fanout, ALL, &start, 10, ReplayClient::default()).await.unwrap();
        assert_eq!(
            page.gap.map(|gap| gap.reason),
            Some(GapReason::UnknownId),
            "after the replay the id is known not to come"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_page_waits_for_the_fanout_but_not_for_one_that_has_ended() {
        let fanout = fanout();
        fanout.log().append_gap(GapReason::UpstreamReconnect);
        let late = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let _ = timeout(Duration::from_secs(1), fanout.run(CancellationToken::new())).await;
        };
        let (page, ()) = tokio::join!(
            EventPage::read(&fanout, ALL, &StartPosition::Oldest, 10, ReplayClient::default()),
            late
        );
        assert_eq!(
            page.unwrap().gap.map(|gap| gap.position),
            Some(1),
            "the gap was in the log before the request"
        );
        fanout.log().append_gap(GapReason::UpstreamReconnect);
        let began = Instant::now();
        let newest_shown = StartPosition::After(fanout.log().id_at(1).unwrap());
        let page = EventPage::read(&fanout, ALL, &newest_shown, 10, ReplayClient::default())
            .await
            .unwrap();
        assert_eq!(
            (page.gap, page.next),
            (None, fanout.log().id_at(1)),
            "the ended fan-out has passed no further entry"
        );
        assert!(
            (PAGE_WAIT_TIMEOUT..PAGE_WAIT_TIMEOUT * 2).contains(&began.elapsed()),
            "{:?}",
            began.elapsed()
        );
    }
}
