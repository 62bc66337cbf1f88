//! `GET /events/{product_id}`: a piece of the log, for those who ask every now and then.
//!
//! In: a request. Out: what a subscriber at the same place would be given, as far as it is there, with the place at which to
//! go on. A page never crosses a gap: the gap is announced before the page's first event, or ends the page.
//!
//! ```text
//! log     e1 e2 e3 ╳ e4 e5            ╳ a gap
//! pages  [e1 e2 e3][╳ e4 e5][ ]       the last one says how far the log has moved on
//! ```
//!
//! A page is in memory as a whole until it is sent, so there are only so many at one time, a quarter of them for one address;
//! further clients wait a moment.
//!
//! May use: `config`, `event`, `fanout`, `log`, `metrics`, `net`, `wheel`.

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

use super::request::Wish;
use crate::{
    config::Permission,
    event::{Event, EventId, Gap, Scope, Start},
    fanout::{Fanout, Item, Listener, Subscription},
    http::{
        Relay,
        memory_quota::{Held, Room},
        problem::Problem,
    },
    net::{Connection, Cut, Patience},
    timer_wheel::Wheel,
};

/// Answers one request for a page.
///
/// # Errors
///
/// 401, 403, 404, 400 in this order; 503 while the relay is leaving, has too many pages to send, or cannot say yet what
/// follows the client's id.
pub(crate) async fn page(
    State(relay): State<Arc<Relay>>,
    Extension(connection): Extension<Connection>,
    path: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let query = query.unwrap_or_default();
    let (grant, product) = relay.receive(path, &query, &headers)?;
    let wish = Wish::read(&query, &headers)?;
    let scope = grant.narrow(wish.scope)?;
    let most_events = limit(&query)?;
    relay.admits_newcomers()?;
    let mut place = relay.pages.0.enter(relay.client_address(connection.peer.ip(), &headers));
    place.grow_to(1).await?;
    let start = match wish.start {
        Start::Now => Start::Oldest, // who listens to news only would never be given any
        start => start,
    };
    let page = Page::read(&product.fanout, scope, &start, most_events).await?;
    // It may have waited, for a place and for the log.
    relay.still_admits(&grant, &product.id, Permission::Subscribe)?;
    product.paged.inc_by(page.events.len() as u64);
    let patience = Patience::of_stream();
    let cut = connection.cut(patience.as_deref());
    let body = PageBody::new(page.into_json(), place, &relay.wheel, cut, patience);
    let head = [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")];
    Ok((head, Body::new(body)).into_response())
}

/// The pages that may be in memory at one time.
#[derive(Clone, Debug)]
pub(crate) struct Pages(Room);

impl Default for Pages {
    fn default() -> Self {
        Self(Room::new(MOST_PAGES, MOST_PAGES / 4))
    }
}

/// A page on its way to the client. It leaves in pieces that are copies: what of the last one waits in the connection's buffers,
/// for as long as the client likes, would otherwise keep the whole page in memory.
struct PageBody {
    json: Bytes,
    /// None over HTTP/1.1, where the socket itself has a deadline.
    patience: Option<Arc<Patience>>,
    /// Ends it while nothing is asked of it.
    cut: Arc<Cut>,
    wheel: Arc<Wheel>,
    /// The tick by which it must have been taken.
    due: u64,
    _place: Held,
}

impl PageBody {
    fn new(json: Vec<u8>, place: Held, wheel: &Arc<Wheel>, cut: Arc<Cut>, patience: Option<Arc<Patience>>) -> Self {
        let due = wheel.after(PAGE_TIME);
        cut.at(due);
        Self { json: json.into(), patience, cut, wheel: Arc::clone(wheel), due, _place: place }
    }
}

impl Drop for PageBody {
    fn drop(&mut self) {
        self.cut.lift();
    }
}

/// The client has taken too long: it is cut off, since an end like any other would hide that something is missing.
#[derive(Debug, thiserror::Error)]
#[error("the page was not taken in time")]
struct Late;

impl http_body::Body for PageBody {
    type Data = Bytes;
    type Error = Late;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Late>>> {
        if let Some(patience) = &self.patience {
            patience.asked(false);
        }
        if self.wheel.now() >= self.due && !self.json.is_empty() {
            return Poll::Ready(Some(Err(Late)));
        }
        let bytes = self.json.len().min(PIECE_BYTES);
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
fn limit(query: &str) -> Result<usize, Problem> {
    let given = form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == "limit");
    given.map(|(_, value)| value).try_fold(DEFAULT_EVENTS, |_, value| {
        let number = value.parse().ok().filter(|number| (1..=MOST_EVENTS).contains(number));
        number.ok_or_else(|| Problem::bad_request(format!("limit must be a number from 1 to {MOST_EVENTS}")))
    })
}

/// What one client is given.
#[derive(Debug)]
struct Page {
    /// Stands before the first event.
    gap: Option<Gap>,
    events: Vec<Arc<Event>>,
    /// Bytes of the events' payloads.
    bytes: usize,
    /// From here the client goes on. None before anything.
    next: Option<EventId>,
    most_events: usize,
}

impl Page {
    /// Gathers what is there behind `start`.
    ///
    /// # Errors
    ///
    /// 503 when it would have to wait too long before it can say anything.
    async fn read(fanout: &Arc<Fanout>, scope: Scope, start: &Start, most_events: usize) -> Result<Self, Problem> {
        let newest = fanout.log().newest();
        let mut subscription = fanout.subscribe(Arc::new(Listener::default()), scope, start);
        let mut page = Self { gap: None, events: Vec::new(), bytes: 0, next: None, most_events };
        let give_up_at = Instant::now() + PATIENCE;
        // Nobody is told of a turn at the store that has come free, of an id that has arrived from the relay before this
        // one, or of others' events that the fan-out has passed.
        while timeout(LOOK_AGAIN, poll_fn(|context| page.poll(&mut subscription, newest, context))).await.is_err() {
            if Instant::now() < give_up_at {
                continue;
            }
            if subscription.is_at_end() {
                break; // the fan-out has ended, and so does the relay
            }
            if subscription.must_look_again() {
                page.give_up()?;
                break;
            }
        }
        page.next = page.next.or_else(|| subscription.given()).or_else(|| fanout.log().id(0));
        Ok(page)
    }

    /// Takes what comes, until the page is at its end.
    ///
    /// Everything up to `newest`, the end of the log when it was asked for, belongs to what there is: a client that has seen
    /// or sent an event finds it here.
    fn poll(&mut self, subscription: &mut Subscription, newest: u64, context: &mut Context<'_>) -> Poll<()> {
        while self.events.len() < self.most_events {
            match subscription.poll_next(context) {
                Poll::Ready(Item::Event { event, .. }) if self.has_room_for(&event) => self.take(event),
                Poll::Ready(Item::Gap(gap)) if self.is_blank() => {
                    self.next = Some(gap.id);
                    self.gap = Some(gap);
                }
                // It does not belong here: the next page begins with it.
                Poll::Ready(Item::Event { .. } | Item::Gap(_)) => return Poll::Ready(()),
                Poll::Pending if subscription.is_at_end() && subscription.has_passed(newest) => {
                    // So that what the filter hides is not looked at again.
                    self.next = subscription.move_on().or(self.next);
                    return Poll::Ready(());
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(())
    }

    fn has_room_for(&self, event: &Event) -> bool {
        self.events.is_empty() || self.bytes + event.payload().len() <= MOST_BYTES
    }

    fn take(&mut self, event: Arc<Event>) {
        self.bytes += event.payload().len();
        self.next = Some(event.id());
        self.events.push(event);
    }

    fn is_blank(&self) -> bool {
        self.events.is_empty() && self.gap.is_none()
    }

    /// Makes do with what there is.
    ///
    /// # Errors
    ///
    /// 503 when that is nothing: an empty page would say that there is nothing more.
    fn give_up(&self) -> Result<(), Problem> {
        if self.is_blank() {
            let detail = "the relay is still catching up and does not know yet what follows this id";
            return Err(Problem::busy(StatusCode::SERVICE_UNAVAILABLE, detail, PATIENCE));
        }
        Ok(())
    }

    /// The page as it is sent: payloads byte for byte, for they are JSON as they are.
    fn into_json(self) -> Vec<u8> {
        let mut json = Vec::with_capacity(self.bytes + self.events.len() * EVENT_OVERHEAD_BYTES + PAGE_OVERHEAD_BYTES);
        json.extend_from_slice(br#"{"events":["#);
        for (n, event) in self.events.iter().enumerate() {
            let comma = if n > 0 { "," } else { "" };
            // An id has nothing in it to be escaped. Writing into memory does not fail.
            let _ = write!(json, r#"{comma}{{"id":"{}","data":"#, event.id());
            json.extend_from_slice(&event.payload());
            json.push(b'}');
        }
        let next = self.next.map_or_else(|| EVERYTHING.to_owned(), |id| id.to_string());
        let gap = self.gap.map_or_else(|| "null".to_owned(), |gap| gap.notice());
        let _ = write!(json, r#"],"next":"{next}","gap":{gap}}}"#);
        json
    }
}

/// Events of a page whose client does not say how many.
const DEFAULT_EVENTS: usize = 100;

/// Events of a page, at the most: small ones are not worth a longer answer.
const MOST_EVENTS: usize = 1000;

/// Payload bytes after which no further event is added; one is always given.
const MOST_BYTES: usize = 1 << 20;

/// Pages at one time. One takes milliseconds, unless its client is slow: these can pin 16 MiB, or as many of the largest events.
const MOST_PAGES: u32 = 16;

/// What a page may take to be sent: enough for the largest over a bad mobile link, short for whoever takes it byte by byte.
const PAGE_TIME: Duration = Duration::from_secs(30);

/// What is handed on at one time, as much as is gathered for one write.
const PIECE_BYTES: usize = 16 << 10;

/// What stands around a payload, roughly.
const EVENT_OVERHEAD_BYTES: usize = 64;

/// What stands around the events, roughly.
const PAGE_OVERHEAD_BYTES: usize = 512;

/// The `last_event_id` of whoever has nothing.
const EVERYTHING: &str = "0";

/// Short enough not to be noticed, long enough to cost nothing.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// How long a page waits while it cannot go on: less than clients and proxies wait for an answer.
const PATIENCE: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use http_body_util::BodyExt;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        event::{GapReason, Only, ProductId},
        log::{Bounds, Log, Numbering},
        metrics::Metrics,
    };

    const ALL: Scope = Scope { sessions: Only::Everything, kinds: Only::Everything };

    fn fanout() -> Arc<Fanout> {
        let product = ProductId::new("p").unwrap();
        let bounds = Bounds { events: 100, bytes: u64::MAX };
        let log = Log::new(product.clone(), bounds, Metrics::new().unwrap().log(&product));
        Arc::new(Fanout::new(Arc::new(log), 1))
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_whose_id_may_still_come_is_not_kept_waiting_for_ever() {
        let fanout = fanout();
        fanout.log().numbered_by(Numbering::Upstream);
        fanout.log().recovers();
        let began = Instant::now();
        let start = Start::After(EventId::new(1, 1));
        let problem = Page::read(&fanout, ALL, &start, 10).await.unwrap_err().into_response();
        assert_eq!(problem.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!((PATIENCE..PATIENCE * 2).contains(&began.elapsed()), "{:?}", began.elapsed());
        let body = to_bytes(problem.into_body(), usize::MAX).await.unwrap();
        assert!(String::from_utf8_lossy(&body).contains("catching up"), "{body:?}");
        fanout.log().has_recovered();
        let page = Page::read(&fanout, ALL, &start, 10).await.unwrap();
        assert_eq!(page.gap.map(|gap| gap.reason), Some(GapReason::UnknownId), "now it is known not to come");
    }

    #[tokio::test(start_paused = true)]
    async fn a_page_that_is_not_taken_in_time_breaks_off_however_it_is_taken() {
        let (wheel, stop) = (Wheel::new(), CancellationToken::new());
        let turning = tokio::spawn({
            let (wheel, stop) = (Arc::clone(&wheel), stop.clone());
            async move { wheel.run(stop).await }
        });
        let cut = Cut::new(&wheel);
        let place = Pages::default().0.enter([192, 0, 2, 1].into());
        let body = PageBody::new(vec![b' '; PIECE_BYTES * 10], place, &wheel, Arc::clone(&cut), None);
        let mut body = Box::pin(body);
        let due = cut.due(std::task::Waker::noop());
        assert_eq!(due, wheel.after(PAGE_TIME), "while it is blocked");
        let mut taken = 0;
        let late = loop {
            match body.frame().await.expect("it has no end") {
                Ok(_) => taken += 1,
                Err(late) => break late,
            }
            tokio::time::sleep(PAGE_TIME / 5).await;
        };
        assert!((5..=6).contains(&taken), "{taken} pieces, then {late}");
        drop(body);
        assert!(cut.due(std::task::Waker::noop()) > due, "what follows on the connection has its own time");
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
        let (page, ()) = tokio::join!(Page::read(&fanout, ALL, &Start::Oldest, 10), late);
        assert_eq!(page.unwrap().gap.map(|gap| gap.place), Some(1), "it was in the log before anybody asked");
        fanout.log().append_gap(GapReason::UpstreamReconnect);
        let began = Instant::now();
        let newest_shown = Start::After(fanout.log().id(1).unwrap());
        let page = Page::read(&fanout, ALL, &newest_shown, 10).await.unwrap();
        assert_eq!((page.gap, page.next), (None, fanout.log().id(1)), "nobody has shown it anything else");
        assert!((PATIENCE..PATIENCE * 2).contains(&began.elapsed()), "{:?}", began.elapsed());
    }
}
