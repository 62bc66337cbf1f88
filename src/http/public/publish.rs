//! `POST /events/{product_id}`: an event from a client instead of the upstream.
//!
//! In: a request with one JSON object. Out: the event in the log, after everything so far, and its
//! id. From there the event goes the way of all events. The answer waits for the store; the event's
//! readers do not.
//!
//! ```text
//! credential ─► rate ─► announced length ─► body, quota by piece ─► envelope ─► log ─► 202 after commit
//! ```
//!
//! Quota is taken for bytes that have arrived, not for bytes that are announced: a client that
//! announces much and sends nothing takes none.
//!
//! May use: `auth`, `config`, `envelope`, `event`, `net`.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::{Extension, Path, RawQuery, State, rejection::PathRejection},
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use hyper::{HeaderMap, StatusCode, header::CACHE_CONTROL};
use tokio::time::{Instant, timeout};

use crate::{
    auth::Grant,
    config::Permission,
    envelope,
    event::Draft,
    http::{
        Product, Relay,
        bounded_body::{BODY_TIMEOUT, BodyFault, BoundedBody},
        memory_quota::{BODY_QUOTA_UNIT_BYTES, QuotaPermit},
        problem::Problem,
    },
    net::Connection,
};

/// Appends one published event to the log.
///
/// # Errors
///
/// 401, 403, 404, 503, 429, 413, 408, 400, in about this order. The event is in no log then.
///
/// # Cancel safety
///
/// hyper drops this future when the client disconnects. Before the append nothing has happened;
/// after it the event is published all the same, and only the answer is lost.
pub(crate) async fn publish(
    State(relay): State<Arc<Relay>>,
    Extension(connection): Extension<Connection>,
    path: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let (grant, product) =
        relay.authorize(path, &query.unwrap_or_default(), &headers, Permission::Publish)?;
    if product.feed.log.is_numbered_by_upstream() {
        return Err(numbered_elsewhere(&product));
    }
    relay.ensure_not_draining()?;
    // Before the body: a request that turns out to be invalid or too large costs as much.
    grant.take_publish().map_err(too_many)?;
    let max_bytes = product.max_publish_bytes;
    let mut permit =
        relay.body_quota.permit_for(relay.client_address(connection.peer.ip(), &headers));
    let draft = parse_draft(&product, &grant, read_body(body, max_bytes, &mut permit).await?)?;
    // Receiving the body may take up to 30 s. Meanwhile the publisher's key may have been revoked,
    // the product removed, or graceful shutdown have begun, after which webhooks deliver no more.
    relay.ensure_still_granted(&grant, &product.feed.id, Permission::Publish)?;
    relay.ensure_still_served(&product.feed)?;
    relay.ensure_not_draining()?;
    // No await between the checks above and the append: a request is either refused or published.
    let appended = product.feed.log.publish(draft).map_err(|_| numbered_elsewhere(&product))?;
    drop(permit); // from here on the event counts in the log's own bounds
    product.published_events.inc();
    let durable = product.feed.log.wait_durable(appended.position).await;
    let answer = Json(serde_json::json!({ "id": appended.id.to_string(), "durable": durable }));
    Ok((StatusCode::ACCEPTED, [(CACHE_CONTROL, "no-store")], answer).into_response())
}

/// Parses the body into a draft, and checks that the grant covers its session and type.
///
/// # Errors
///
/// 400, 403 and 413.
fn parse_draft(product: &Product, grant: &Grant, body: Bytes) -> Result<Draft, Problem> {
    let draft = envelope::parse_published(body, &product.feed.id, Instant::now())
        .map_err(|refusal| Problem::bad_request(refusal.to_string()))?;
    // Checked again: the envelope adds the product's name if it is missing, and a payload over the
    // limit would be refused by a relay that follows this one.
    if draft.payload.len() > product.max_publish_bytes {
        return Err(too_large(product.max_publish_bytes));
    }
    grant.check_publish(draft.scope_key())?;
    Ok(draft)
}

/// Reads the whole body, and no byte beyond the limit.
///
/// # Errors
///
/// 413; 408 after [`BODY_TIMEOUT`]; 503 without quota for it; 400 when it breaks off.
async fn read_body(
    body: Body,
    max_bytes: usize,
    permit: &mut QuotaPermit,
) -> Result<Bytes, Problem> {
    let all = async {
        let (mut body, mut bytes) = (BoundedBody::new(body, max_bytes), BytesMut::new());
        let refusal = |fault| match fault {
            BodyFault::TooLarge => too_large(max_bytes),
            BodyFault::Malformed => Problem::malformed_body(),
        };
        while let Some(piece) = body.next_piece().await.map_err(refusal)? {
            // Before the bytes are kept. The frame itself is in memory already, within the bounds
            // of the connection's buffers.
            permit.grow_to((bytes.len() + piece.len()) / BODY_QUOTA_UNIT_BYTES + 1).await?;
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes.freeze())
    };
    timeout(BODY_TIMEOUT, all).await.unwrap_or_else(|_| Err(Problem::late_body()))
}

fn too_large(max_bytes: usize) -> Problem {
    let detail = format!("an event may have {max_bytes} bytes here");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
}

fn too_many(wait: Duration) -> Problem {
    let detail = "this key publishes more than its max_publishes_per_second";
    Problem::retry_later(StatusCode::TOO_MANY_REQUESTS, detail, wait)
}

/// Returns the refusal of a relay whose ids come from its upstream: an id of its own would be
/// unknown to other relays behind the same upstream, and clients move between them.
fn numbered_elsewhere(product: &Product) -> Problem {
    let place =
        product.upstream.as_deref().map_or(String::new(), |at| format!(": publish at {at}"));
    Problem::forbidden(format!("the ids of this relay come from its upstream{place}"))
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        pin::Pin,
        task::{Context, Poll},
    };

    use http_body::Frame;

    use super::*;
    use crate::{
        client_address::ClientAddress,
        http::memory_quota::{BODY_QUOTA_UNITS, BodyQuota},
    };

    /// Body that sends a byte every ten seconds, without end.
    struct DrippingBody(Pin<Box<tokio::time::Sleep>>);

    impl http_body::Body for DrippingBody {
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

    fn permit_for(bodies: &BodyQuota, last: u8) -> QuotaPermit {
        bodies.permit_for(ClientAddress::new([192, 0, 2, last].into()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_arrives_too_slowly_is_aborted() {
        let began = Instant::now();
        let slow = Body::new(DrippingBody(Box::pin(tokio::time::sleep(Duration::ZERO))));
        assert_eq!(
            status(read_body(slow, 1000, &mut permit_for(&BodyQuota::default(), 1)).await),
            408
        );
        assert_eq!(began.elapsed().as_secs(), BODY_TIMEOUT.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_have_quota_for_what_has_come_and_each_address_a_quarter_of_it() {
        let bodies = BodyQuota::default();
        let share = BODY_QUOTA_UNITS as usize / 4 * BODY_QUOTA_UNIT_BYTES;
        let body = |bytes: usize| Body::from(vec![b' '; bytes]);
        let mut permits: Vec<_> = (0..4).map(|last| permit_for(&bodies, last)).collect();
        for permit in &mut permits {
            assert_eq!(status(read_body(body(share - 1), share, permit).await), 200);
        }
        assert_eq!(status(read_body(body(1), share, &mut permit_for(&bodies, 1)).await), 503);
        assert_eq!(
            status(read_body(body(1), share, &mut permit_for(&bodies, 9)).await),
            503,
            "there is an end to it for all"
        );
        permits.pop();
        assert_eq!(status(read_body(body(1), share, &mut permit_for(&bodies, 1)).await), 503);
        assert_eq!(status(read_body(body(1), share, &mut permit_for(&bodies, 9)).await), 200);
    }
}
