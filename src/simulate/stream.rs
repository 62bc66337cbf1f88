//! What a client of the stand-in connector sees over HTTP.
//!
//! In: requests. Out: event streams of a product's frames with a heartbeat among them, or a problem.
//!
//! May use: `audience`.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{Digest, SHA256, digest};
use axum::Router;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header::{ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use http_body::Frame;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tracing::debug;

use super::audience::Audience;

/// What requests are answered from.
pub(crate) struct Connector {
    audiences: BTreeMap<String, Audience>,
    /// Compared as digests: equal lengths give nothing away, and the text of the token is not kept.
    token: Option<Digest>,
    heartbeat: Duration,
}

impl Connector {
    /// A connector for these products. Without a token it lets everybody in.
    pub(crate) fn new(products: &[String], token: Option<&str>, heartbeat: Duration) -> Connector {
        Connector {
            audiences: products
                .iter()
                .map(|product| (product.clone(), Audience::new(product)))
                .collect(),
            token: token.map(|token| digest(&SHA256, token.as_bytes())),
            heartbeat,
        }
    }

    /// Who listens to a product, unless it is unknown.
    pub(crate) fn audience(&self, product: &str) -> Option<&Audience> {
        self.audiences.get(product)
    }

    fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(token) = &self.token else { return true };
        let presented = digest(&SHA256, bearer(headers).unwrap_or_default());
        verify_slices_are_equal(token.as_ref(), presented.as_ref()).is_ok()
    }
}

/// The routes: the stream, and problems for everything else.
pub(crate) fn router(connector: Arc<Connector>) -> Router {
    // `get` would answer HEAD with a stream that nobody reads.
    let stream = get(stream).head(method_not_allowed).fallback(method_not_allowed);
    Router::new()
        .route("/stream/{product_id}", stream)
        .fallback(no_such_path)
        .with_state(connector)
}

async fn stream(
    State(connector): State<Arc<Connector>>,
    product: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Response {
    if !connector.admits(&headers) {
        let challenge = [(WWW_AUTHENTICATE, "Bearer")];
        return (
            challenge,
            problem(StatusCode::UNAUTHORIZED, "missing or invalid bearer token"),
        )
            .into_response();
    }
    let Ok(Path(product)) = product else {
        return no_such_path().await;
    };
    let Some(audience) = connector.audience(&product) else {
        return problem(StatusCode::NOT_FOUND, "this product is not registered");
    };
    let Some(frames) = audience.try_join() else {
        return problem(StatusCode::SERVICE_UNAVAILABLE, "the connector is stopping");
    };
    debug!(product, "client connected");
    let head = [
        (CONTENT_TYPE, "text/event-stream"),
        (CACHE_CONTROL, "no-cache"),
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (head, Body::new(Listener::new(frames, connector.heartbeat))).into_response()
}

async fn no_such_path() -> Response {
    problem(StatusCode::NOT_FOUND, "the only path here is /stream/{product_id}")
}

async fn method_not_allowed() -> Response {
    (
        [(ALLOW, "GET")],
        problem(StatusCode::METHOD_NOT_ALLOWED, "a stream is read with GET"),
    )
        .into_response()
}

/// The credential of an `Authorization: Bearer` header; the scheme's case does not count.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, credential) = headers.get(AUTHORIZATION)?.as_bytes().split_at_checked(SCHEME.len())?;
    scheme.eq_ignore_ascii_case(SCHEME).then_some(credential)
}

/// The body of an error, as RFC 9457 has it.
#[derive(Serialize)]
struct Problem {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: &'static str,
}

fn problem(status: StatusCode, detail: &'static str) -> Response {
    let title = status.canonical_reason().unwrap_or_default();
    let body = axum::Json(Problem {
        r#type: "about:blank",
        title,
        status: status.as_u16(),
        detail,
    });
    (status, [(CONTENT_TYPE, "application/problem+json")], body).into_response()
}

/// The body of one stream. It ends when the product's audience is closed.
struct Listener {
    frames: mpsc::Receiver<Bytes>,
    heartbeat: Interval,
}

impl Listener {
    fn new(frames: mpsc::Receiver<Bytes>, period: Duration) -> Listener {
        let mut heartbeat = interval_at(Instant::now() + period, period);
        // A client that read nothing for an hour has no use for the heartbeats of that hour.
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Listener { frames, heartbeat }
    }
}

impl http_body::Body for Listener {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let listener = self.get_mut();
        // The heartbeat first: a queue that is never empty must not silence it.
        if listener.heartbeat.poll_tick(context).is_ready() {
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(HEARTBEAT)))));
        }
        listener
            .frames
            .poll_recv(context)
            .map(|frame| frame.map(|frame| Ok(Frame::data(frame))))
    }
}

const SCHEME: &[u8] = b"Bearer ";
const HEARTBEAT: &[u8] = b"event: heartbeat\ndata:\n\n";

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use http_body::Body as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_queue_that_is_never_empty_does_not_silence_the_heartbeat() {
        let (queue, frames) = mpsc::channel(3);
        let mut listener = Listener::new(frames, Duration::from_secs(30));
        for _ in 0..3 {
            queue.try_send(Bytes::from_static(b"event")).unwrap();
        }
        assert_eq!(next(&mut listener).await, "event");
        tokio::time::advance(Duration::from_secs(300)).await;
        assert_eq!(next(&mut listener).await, HEARTBEAT);
        assert_eq!(
            next(&mut listener).await,
            "event",
            "what was missed of the heartbeats is not made up for"
        );
    }

    async fn next(listener: &mut Listener) -> Bytes {
        poll_fn(|context| Pin::new(&mut *listener).poll_frame(context))
            .await
            .unwrap()
            .unwrap()
            .into_data()
            .unwrap()
    }
}
