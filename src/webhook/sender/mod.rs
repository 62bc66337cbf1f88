//! One attempt: signs the body, posts it, and classifies the response.
//!
//! In: an event id and the payload. Out: the attempt's outcome and its consequence. Redirects are
//! not followed, no content coding is decoded, and only the beginning of a response body is read.
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
    header::InvalidHeaderValue,
};
use rustls::ClientConfig;
use tokio::time::{Instant, timeout_at};

use self::{classify::Classification, transport::EndpointClient};
use super::{Disposition, signature::Signer};
use crate::{
    config::{Secret, WebhookConfig},
    outbound::egress_guard::{EgressConnector, EgressGuard},
    webhook_delivery::Attempt,
};

/// Sends to one endpoint, over connections of its own, which close when the sender is dropped.
#[derive(Debug)]
pub(super) struct WebhookSender {
    url: Uri,
    timeout: Duration,
    signer: Signer,
    client: EndpointClient,
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
        tls: &ClientConfig,
    ) -> Self {
        Self::with_connector(EgressConnector::new(guard, webhook.timeout), webhook, previous, tls)
    }

    /// Creates a sender that dials with `connector`.
    pub(super) fn with_connector(
        connector: EgressConnector,
        webhook: &WebhookConfig,
        previous: Option<&Secret>,
        tls: &ClientConfig,
    ) -> Self {
        Self {
            url: webhook.url.as_uri().clone(),
            timeout: webhook.timeout,
            signer: Signer::new(&webhook.secret, previous),
            client: EndpointClient::new(connector, tls, webhook.timeout, webhook.max_in_flight),
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
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let classification = match self.request(id, at.as_secs(), payload) {
            Ok(request) => self.exchange(request, began + self.timeout).await,
            Err(_) => Classification::unsendable(),
        };
        let attempt = Attempt {
            at: milliseconds(at),
            duration_ms: milliseconds(began.elapsed()),
            outcome: classification.outcome,
            status: classification.status.map(|status| status.as_u16()),
            error: classification.error.map(String::into_boxed_str),
        };
        (attempt, classification.disposition)
    }

    fn request(
        &self,
        id: &str,
        timestamp: u64,
        payload: Bytes,
    ) -> Result<Request<Full<Bytes>>, InvalidHeaderValue> {
        let headers = self.signer.headers(id, timestamp, &payload)?;
        let mut request = Request::new(Full::new(payload));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.url.clone();
        *request.headers_mut() = headers;
        Ok(request)
    }

    async fn exchange(&self, request: Request<Full<Bytes>>, deadline: Instant) -> Classification {
        // One deadline for head and body: a receiver that trickles its answer gains no time.
        let response = match timeout_at(deadline, self.client.send(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(failure)) => return Classification::of_error(&failure),
            Err(_) => return Classification::timeout(self.timeout),
        };
        let status = response.status();
        // The body is read also for its own sake: a 2xx counts only with the whole body (RFC 9112,
        // §8), and HTTP/1.1 can use the connection again only then.
        let classification = Classification::of_response(status, response.headers());
        let body = timeout_at(deadline, read_bounded(response.into_body())).await;
        match body {
            // By its head the response is a failure, and a truncated body does not change which.
            _ if !status.is_success() => classification,
            Ok(Ok(())) => classification,
            Ok(Err(_)) => Classification::truncated().with_status(status),
            Err(_) => Classification::timeout(self.timeout).with_status(status),
        }
    }
}

/// Reads the body up to [`MAX_RESPONSE_BYTES`], so that its connection can be used again. A longer
/// body is dropped together with its connection.
async fn read_bounded(mut body: Incoming) -> Result<(), hyper::Error> {
    let mut read = 0;
    while read < MAX_RESPONSE_BYTES && !body.is_end_stream() {
        match body.frame().await {
            Some(frame) => read += frame?.data_ref().map_or(0, Bytes::len),
            None => break,
        }
    }
    Ok(())
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Bytes of a response body that are read: receivers answer "ok", and the body is not used.
const MAX_RESPONSE_BYTES: usize = 16 * 1024;
