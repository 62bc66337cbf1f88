//! One attempt: signs the body, posts it, and classifies the response.
//!
//! In: an event id and the payload. Out: the attempt's outcome and its consequence, by the head of
//! the response. Redirects are not followed, no content coding is decoded, and of a response body
//! only the beginning is read, to use its connection again.
//!
//! May use: `config`, `outbound`, `webhook_delivery`.

mod classify;
#[cfg(test)]
mod tests;
mod transport;

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Uri,
    body::{Body, Incoming},
    header::{HeaderName, HeaderValue, InvalidHeaderValue},
};
use rustls::ClientConfig;
use tokio::time::{Instant, timeout_at};

use self::{
    classify::{Classification, proves_unprocessed},
    transport::EndpointClient,
};
use super::{Disposition, MAX_WEBHOOKS, signature::Signer};
use crate::{
    config::{Secret, WebhookConfig},
    outbound::{
        answer_budget::AnswerBudget,
        egress_guard::{EgressConnections, EgressConnector, EgressGuard},
        header_spelling::contract_spelling,
        interim_answers::InterimAnswerLimit,
    },
    webhook_delivery::Attempt,
};

/// Sends to one endpoint, over connections of its own, which close when the sender is dropped.
#[derive(Debug)]
pub(super) struct WebhookSender {
    url: Uri,
    timeout: Duration,
    signer: Signer,
    /// Further headers of each request.
    headers: Vec<(HeaderName, HeaderValue)>,
    client: EndpointClient,
    budget: Arc<AnswerBudget>,
}

impl WebhookSender {
    /// Creates a sender to `webhook` that reaches addresses that `guard` admits, with `tls`
    /// (without ALPN).
    ///
    /// While the secret is being rotated, `previous` signs beside it.
    pub(super) fn new(
        webhook: &WebhookConfig,
        previous: Option<&Secret>,
        guard: Arc<EgressGuard>,
        connections: Option<&EgressConnections>,
        tls: &ClientConfig,
    ) -> Self {
        let connector = EgressConnector::new(guard, webhook.timeout);
        let Some(connections) = connections else {
            return Self::with_connector(connector, webhook, previous, tls, webhook.max_in_flight);
        };
        // An idle connection keeps its permit, so all webhooks together must leave some.
        let max_idle = (connections.max() / MAX_WEBHOOKS).min(webhook.max_in_flight);
        let connector = connector.bounded_by(connections);
        Self::with_connector(connector, webhook, previous, tls, max_idle)
    }

    /// Creates a sender that dials with `connector`, and keeps up to `max_idle` idle connections.
    pub(super) fn with_connector(
        connector: EgressConnector,
        webhook: &WebhookConfig,
        previous: Option<&Secret>,
        tls: &ClientConfig,
        max_idle: usize,
    ) -> Self {
        let budget = Arc::new(AnswerBudget::new(webhook.max_in_flight));
        let connector = connector.within(Arc::clone(&budget));
        Self {
            url: webhook.url.as_uri().clone(),
            timeout: webhook.timeout,
            signer: Signer::new(&webhook.secret, previous),
            headers: webhook.headers.to_fields(),
            client: EndpointClient::new(connector, tls, webhook.timeout, max_idle),
            budget,
        }
    }

    /// Makes one attempt to deliver `payload` under the event id `id`, within the webhook's
    /// `timeout`.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the attempt; the receiver may or may not have got the request.
    pub(super) async fn send(&self, id: &str, payload: Bytes) -> (Attempt, Disposition) {
        let began = Instant::now();
        let deadline = began + self.timeout;
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (classification, body) = match self.request(id, at.as_secs(), payload) {
            Ok(request) => self.exchange(request, deadline).await,
            Err(_) => (Classification::unsendable(), None),
        };
        let attempt = Attempt {
            at: milliseconds(at),
            duration_ms: milliseconds(began.elapsed()),
            outcome: classification.outcome,
            status: classification.status.map(|status| status.as_u16()),
            error: classification.error.map(String::into_boxed_str),
        };
        if let Some(body) = body {
            drain(body, deadline).await;
        }
        (attempt, classification.disposition)
    }

    fn request(
        &self,
        id: &str,
        timestamp: u64,
        payload: Bytes,
    ) -> Result<Request<Full<Bytes>>, InvalidHeaderValue> {
        let mut headers = self.signer.headers(id, timestamp, &payload)?;
        headers.extend(self.headers.iter().cloned());
        let mut request = Request::new(Full::new(payload));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.url.clone();
        *request.headers_mut() = headers;
        *request.extensions_mut() = contract_spelling();
        Ok(request)
    }

    /// Sends the request, and classifies the response by its head. Returns the body unread.
    ///
    /// A request that the receiver has provably not processed is sent again at once, up to
    /// [`MAX_RESENDS`] times, within the same attempt: a receiver that renews its connections must
    /// cost neither an attempt nor a wait (RFC 9113, section 8.7).
    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
        deadline: Instant,
    ) -> (Classification, Option<Incoming>) {
        let mut resends = 0;
        loop {
            let mut request = request.clone();
            let limit = InterimAnswerLimit::of(&mut request);
            self.budget.grant();
            let sent = timeout_at(deadline, limit.run(self.client.send(request))).await;
            match sent {
                Ok(Some(Ok(response))) => {
                    let (head, body) = response.into_parts();
                    return (Classification::of_response(head.status, &head.headers), Some(body));
                }
                Ok(Some(Err(failure))) if resends < MAX_RESENDS && proves_unprocessed(&failure) => {
                    resends += 1;
                }
                Ok(Some(Err(failure))) => return (Classification::of_error(&failure), None),
                Ok(None) => return (Classification::interim_answers(), None),
                Err(_) => return (Classification::timeout(self.timeout), None),
            }
        }
    }
}

/// Reads the body up to [`MAX_RESPONSE_BYTES`] or [`MAX_RESPONSE_FRAMES`], so that HTTP/1.1 can
/// use the connection again.
///
/// The outcome is decided by the head: a body that is truncated, reset or late costs only its
/// connection, as a longer body does. Common servers end a TLS connection without `close_notify`,
/// which looks like a truncated body.
async fn drain(mut body: Incoming, deadline: Instant) {
    let drained = async {
        let mut read = 0;
        for _ in 0..MAX_RESPONSE_FRAMES {
            if read >= MAX_RESPONSE_BYTES || body.is_end_stream() {
                return;
            }
            let Some(Ok(frame)) = body.frame().await else { return };
            read += frame.data_ref().map_or(0, Bytes::len);
        }
    };
    let _ = timeout_at(deadline.min(Instant::now() + DRAIN_TIMEOUT), drained).await;
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Bytes of a response body that are read: receivers answer "ok", and the body is not used.
const MAX_RESPONSE_BYTES: usize = 16 * 1024;

/// Chunks and frames of a response body that are read: with a byte in each, the bytes alone would
/// be thousands of them for each delivery.
const MAX_RESPONSE_FRAMES: usize = 64;

/// Resends of a request that was not processed. A receiver renews a connection once in a while; the
/// next one takes the request unless all slots meet a receiver that takes very few streams at once.
const MAX_RESENDS: usize = 10;

/// Time for a response body after its head: the attempt's slot is taken until then, and a new
/// connection costs less than a longer wait.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);
