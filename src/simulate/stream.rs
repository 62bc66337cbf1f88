//! HTTP side of the stand-in connector.
//!
//! In: requests. Out: event streams of the frames of a product with heartbeats among them, or a
//! problem.
//!
//! May use: `auth`, `http`, `sse`.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Path, State, rejection::PathRejection},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use http_body::Frame;
use hyper::{
    HeaderMap, StatusCode,
    header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE},
};
use tokio::{
    sync::mpsc,
    time::{Instant, Interval, MissedTickBehavior, interval_at},
};
use tracing::debug;

use super::viewers::ConnectorClients;
use crate::{
    auth::{self, ListenerKey},
    http::problem::Problem,
    sse,
};

/// State that requests are answered from.
pub(crate) struct SimulatedConnector {
    clients_by_product: BTreeMap<String, ConnectorClients>,
    token: ListenerKey,
    heartbeat: Duration,
}

impl SimulatedConnector {
    /// Creates a connector for these products. Without a token, clients need none.
    pub(crate) fn new(
        products: &[String],
        token: Option<&str>,
        heartbeat: Duration,
    ) -> SimulatedConnector {
        SimulatedConnector {
            clients_by_product: products
                .iter()
                .map(|product| (product.clone(), ConnectorClients::new(product)))
                .collect(),
            token: ListenerKey::new(token),
            heartbeat,
        }
    }

    /// Returns the clients of a product; [`None`] if the product is unknown.
    pub(crate) fn clients(&self, product: &str) -> Option<&ConnectorClients> {
        self.clients_by_product.get(product)
    }
}

/// Returns the routes: the stream, and problems for all other paths.
pub(crate) fn router(connector: Arc<SimulatedConnector>) -> Router {
    // HEAD would otherwise be answered by a stream whose body is never read.
    let stream = get(stream).head(|| async { Problem::method_not_allowed("GET") });
    Router::new()
        .route("/stream/{product_id}", stream)
        .method_not_allowed_fallback(|| async { Problem::method_not_allowed("GET") })
        .fallback(|| async { Problem::not_found("the only path here is /stream/{product_id}") })
        .with_state(connector)
}

async fn stream(
    State(connector): State<Arc<SimulatedConnector>>,
    product: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    connector
        .token
        .check(headers.get(AUTHORIZATION).and_then(|value| auth::bearer_token(value.as_bytes())))?;
    let unknown = || Problem::not_found("this product is not registered");
    let Path(product) = product.map_err(|_| unknown())?;
    let clients = connector.clients(&product).ok_or_else(unknown)?;
    let stopping = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the connector is stopping");
    let frames = clients.try_connect().ok_or_else(stopping)?;
    debug!(product, "client connected");
    let head = [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-cache")];
    Ok((head, Body::new(SimulatedStreamBody::new(frames, connector.heartbeat))).into_response())
}

/// Body of one stream. It ends when the clients of the product are closed.
struct SimulatedStreamBody {
    frames: mpsc::Receiver<Bytes>,
    heartbeat: Interval,
}

impl SimulatedStreamBody {
    fn new(frames: mpsc::Receiver<Bytes>, period: Duration) -> SimulatedStreamBody {
        let mut heartbeat = interval_at(Instant::now() + period, period);
        // A client that has read nothing for an hour does not need the heartbeats of that hour.
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        SimulatedStreamBody { frames, heartbeat }
    }
}

impl http_body::Body for SimulatedStreamBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let body = self.get_mut();
        // The heartbeat is polled first, because a queue that is never empty would otherwise
        // suppress it.
        if body.heartbeat.poll_tick(context).is_ready() {
            return Poll::Ready(Some(Ok(Frame::data(sse::encode_heartbeat(None::<&str>)))));
        }
        body.frames.poll_recv(context).map(|frame| frame.map(|frame| Ok(Frame::data(frame))))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use http_body::Body as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_queue_that_is_never_empty_does_not_silence_the_heartbeat() {
        let (queue, frames) = mpsc::channel(3);
        let mut body = SimulatedStreamBody::new(frames, Duration::from_secs(30));
        for _ in 0..3 {
            queue.try_send(Bytes::from_static(b"event")).unwrap();
        }
        assert_eq!(next(&mut body).await, "event");
        tokio::time::advance(Duration::from_secs(300)).await;
        assert_eq!(next(&mut body).await, sse::encode_heartbeat(None::<&str>));
        assert_eq!(next(&mut body).await, "event", "missed heartbeats are not made up for");
    }

    async fn next(body: &mut SimulatedStreamBody) -> Bytes {
        poll_fn(|context| Pin::new(&mut *body).poll_frame(context))
            .await
            .unwrap()
            .unwrap()
            .into_data()
            .unwrap()
    }
}
