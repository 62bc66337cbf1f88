//! `POST /events/{product_id}`: an event from somebody else than the upstream.
//!
//! In: a request with one JSON object. Out: the event in the log, behind everything so far, and its id. From there it goes the
//! way of all events. The answer waits for the store, the event's readers do not.
//!
//! ```text
//! who asks ─► what is announced ─► room for it ─► body ─► envelope ─► log ─► 202 once the store has it
//! ```
//!
//! May use: `auth`, `config`, `envelope`, `event`, `log`.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::{Path, RawQuery, State, rejection::PathRejection},
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::{HeaderMap, StatusCode, header::CACHE_CONTROL};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};

use super::{
    Product, Relay,
    error::{Problem, SHED_WAIT, spread},
};
use crate::{auth::Grant, config::Permission, envelope, event::Draft};

/// Takes one event from a publisher.
///
/// # Errors
///
/// 401, 403, 404, 503, 413, 408, 400, in about this order.
pub(crate) async fn publish(
    State(relay): State<Arc<Relay>>,
    path: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let (grant, product) = relay.receive_for(path, &query.unwrap_or_default(), &headers, Permission::Publish)?;
    if product.log.is_numbered_elsewhere() {
        return Err(elsewhere(&product));
    }
    relay.admits_newcomers()?;
    let most = product.max_publish_bytes;
    let announced = body.size_hint();
    if announced.lower() > most as u64 {
        return Err(too_large(most));
    }
    let bytes = announced.exact().and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(most);
    let _room = relay.bodies.enter(bytes).await?;
    let draft = read(&product, &grant, gather(body, most).await?)?;
    // The body may have taken its time: its publisher's token may be over, and webhooks may have left.
    grant.still_counts()?;
    relay.admits_newcomers()?;
    // From here to the log nothing waits: a client that is gone by now has published all the same.
    let appended = product.log.publish(draft).map_err(|_| elsewhere(&product))?;
    product.published.inc();
    let durable = product.log.is_durable(appended.place).await;
    let answer = Json(serde_json::json!({ "id": appended.id.to_string(), "durable": durable }));
    Ok((StatusCode::ACCEPTED, [(CACHE_CONTROL, "no-store")], answer).into_response())
}

/// What the body says, if its publisher may say it.
///
/// # Errors
///
/// 400, 403 and 413.
fn read(product: &Product, grant: &Grant, body: Bytes) -> Result<Draft, Problem> {
    let draft = envelope::published(body, &product.id, Instant::now())
        .map_err(|rejection| Problem::bad_request(format!("{}: {rejection}", rejection.as_str())))?;
    // With the product's name added, it would be more than a relay behind this one takes.
    if draft.payload.len() > product.max_publish_bytes {
        return Err(too_large(product.max_publish_bytes));
    }
    grant.may_publish(draft.session.as_ref(), &draft.kind)?;
    Ok(draft)
}

/// The whole body, and no byte beyond the limit.
///
/// # Errors
///
/// 413; 408 when it does not come in time; 400 when it breaks off.
async fn gather(mut body: Body, most: usize) -> Result<Bytes, Problem> {
    let all = async {
        let mut gathered = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Problem::bad_request("the body breaks off"))?;
            let Ok(piece) = frame.into_data() else { continue };
            if gathered.len() + piece.len() > most {
                return Err(too_large(most));
            }
            gathered.extend_from_slice(&piece);
        }
        Ok(gathered.freeze())
    };
    let late = || Problem::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time");
    timeout(BODY_TIMEOUT, all).await.unwrap_or_else(|_| Err(late()))
}

fn too_large(most: usize) -> Problem {
    let detail = format!("an event may have {most} bytes here");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
}

/// An id of this log's would not be known to the others behind the same upstream.
fn elsewhere(product: &Product) -> Problem {
    Problem::forbidden(format!("this relay passes on what another one numbers: publish at {}", product.upstream))
}

/// Room for the bodies that are being received.
#[derive(Debug)]
pub(crate) struct Bodies(Arc<Semaphore>);

impl Default for Bodies {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(ROOM_UNITS as usize)))
    }
}

impl Bodies {
    /// Waits for room for a body of so many bytes, in the order they come.
    ///
    /// # Errors
    ///
    /// 503 when that takes too long.
    async fn enter(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Problem> {
        // One that is larger than all the room has it for itself.
        let units = u32::try_from(bytes / UNIT_BYTES + 1).unwrap_or(ROOM_UNITS).min(ROOM_UNITS);
        let room = timeout(PATIENCE_AT_THE_DOOR, Arc::clone(&self.0).acquire_many_owned(units)).await;
        // Nobody ever closes it.
        room.ok().and_then(Result::ok).ok_or_else(|| {
            let detail = "too much is being published at this moment";
            Problem::busy(StatusCode::SERVICE_UNAVAILABLE, detail, spread(SHED_WAIT))
        })
    }
}

/// Enough for the largest body over a bad mobile link, short against a client that sends it byte by byte.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a client waits before its body is asked for.
const PATIENCE_AT_THE_DOOR: Duration = Duration::from_secs(5);

/// Room is given in pieces of this size.
const UNIT_BYTES: usize = 1024;

/// 64 MiB of bodies at one time: as much as one event can have, or tens of thousands of the usual size.
const ROOM_UNITS: u32 = 64 * 1024;

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        pin::Pin,
        task::{Context, Poll},
    };

    use http_body::Frame;

    use super::*;

    /// A body that sends a byte every ten seconds, for ever.
    struct Slow(Pin<Box<tokio::time::Sleep>>);

    impl http_body::Body for Slow {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            std::task::ready!(self.0.as_mut().poll(context));
            self.0 = Box::pin(tokio::time::sleep(Duration::from_secs(10)));
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b" ")))))
        }
    }

    fn status<T>(result: Result<T, Problem>) -> u16 {
        result.map_or_else(|problem| problem.into_response().status().as_u16(), |_| 200)
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_drips_is_given_up() {
        let began = Instant::now();
        let slow = Body::new(Slow(Box::pin(tokio::time::sleep(Duration::ZERO))));
        assert_eq!(status(gather(slow, 1000).await), 408);
        assert_eq!(began.elapsed().as_secs(), BODY_TIMEOUT.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_wait_for_room_and_not_for_ever() {
        let bodies = Bodies::default();
        let most = ROOM_UNITS as usize * UNIT_BYTES;
        let all = bodies.enter(most * 2).await.unwrap();
        assert_eq!(status(bodies.enter(0).await), 503);
        drop(all);
        assert_eq!(status(bodies.enter(most).await), 200);
        let many: Vec<_> = futures_of(&bodies, 64).await;
        assert_eq!(many.iter().filter(|room| room.is_ok()).count(), 63, "each takes a little more than a MiB");
    }

    async fn futures_of(bodies: &Bodies, count: usize) -> Vec<Result<OwnedSemaphorePermit, Problem>> {
        let mut rooms = Vec::new();
        for _ in 0..count {
            rooms.push(bodies.enter(1 << 20).await);
        }
        rooms
    }
}
