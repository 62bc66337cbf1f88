//! `POST /events/{product_id}`: an event from somebody else than the upstream.
//!
//! In: a request with one JSON object. Out: the event in the log, behind everything so far, and its id. From there it goes the
//! way of all events. The answer waits for the store, the event's readers do not.
//!
//! ```text
//! who asks ─► what is announced ─► body, with room for each piece ─► envelope ─► log ─► 202 once the store has it
//! ```
//!
//! Room is taken for what has come, not for what is announced: who announces much and sends nothing takes none.
//!
//! May use: `auth`, `config`, `envelope`, `event`, `log`, `net`.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::{Extension, Path, RawQuery, State, rejection::PathRejection},
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use http_body_util::BodyExt;
use hyper::{HeaderMap, StatusCode, header::CACHE_CONTROL};
use tokio::time::{Instant, timeout};

use crate::{
    auth::Grant,
    config::Permission,
    envelope,
    event::Draft,
    http::{
        Product, Relay,
        memory_quota::{Held, Room},
        problem::Problem,
    },
    net::Connection,
};

/// Takes one event from a publisher.
///
/// # Errors
///
/// 401, 403, 404, 413, 503, 408, 400, in about this order.
pub(crate) async fn publish(
    State(relay): State<Arc<Relay>>,
    Extension(connection): Extension<Connection>,
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
    if body.size_hint().lower() > most as u64 {
        return Err(too_large(most));
    }
    let mut room = relay.bodies.0.enter(relay.client_address(connection.peer.ip(), &headers));
    let draft = read(&product, &grant, gather(body, most, &mut room).await?)?;
    // The body may have taken its time: its publisher may not publish any more, the product be gone, webhooks have left.
    relay.still_admits(&grant, &product.id, Permission::Publish)?;
    relay.still_serves(&product)?;
    relay.admits_newcomers()?;
    // From here to the log nothing waits: a client that is gone by now has published all the same.
    let appended = product.log.publish(draft).map_err(|_| elsewhere(&product))?;
    drop(room); // from here on it counts in the log
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
/// 413; 408 when it does not come in time; 503 when there is no room for it; 400 when it breaks off.
async fn gather(mut body: Body, most: usize, room: &mut Held) -> Result<Bytes, Problem> {
    let all = async {
        let mut gathered = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Problem::bad_request("the body breaks off"))?;
            let Ok(piece) = frame.into_data() else { continue };
            if gathered.len() + piece.len() > most {
                return Err(too_large(most));
            }
            room.grow_to((gathered.len() + piece.len()) / UNIT_BYTES + 1).await?;
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
#[derive(Clone, Debug)]
pub(crate) struct Bodies(Room);

impl Default for Bodies {
    fn default() -> Self {
        Self(Room::new(ROOM_UNITS, ROOM_UNITS / 4))
    }
}

/// Enough for the largest body over a bad mobile link, short against a client that sends it byte by byte.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

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

    fn held(bodies: &Bodies, last: u8) -> Held {
        bodies.0.enter([192, 0, 2, last].into())
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_drips_is_given_up() {
        let began = Instant::now();
        let slow = Body::new(Slow(Box::pin(tokio::time::sleep(Duration::ZERO))));
        assert_eq!(status(gather(slow, 1000, &mut held(&Bodies::default(), 1)).await), 408);
        assert_eq!(began.elapsed().as_secs(), BODY_TIMEOUT.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_have_room_for_what_has_come_and_each_address_a_quarter_of_it() {
        let bodies = Bodies::default();
        let share = ROOM_UNITS as usize / 4 * UNIT_BYTES;
        let body = |bytes: usize| Body::from(vec![b' '; bytes]);
        let mut rooms: Vec<_> = (0..4).map(|last| held(&bodies, last)).collect();
        for room in &mut rooms {
            assert_eq!(status(gather(body(share - 1), share, room).await), 200);
        }
        assert_eq!(status(gather(body(1), share, &mut held(&bodies, 1)).await), 503);
        assert_eq!(status(gather(body(1), share, &mut held(&bodies, 9)).await), 503, "there is an end to it for all");
        rooms.pop();
        assert_eq!(status(gather(body(1), share, &mut held(&bodies, 1)).await), 503);
        assert_eq!(status(gather(body(1), share, &mut held(&bodies, 9)).await), 200);
    }
}
