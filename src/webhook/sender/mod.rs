//! One attempt: signs the body, posts it, and classifies the answer.
//!
//! In: an event id and the payload. Out: the attempt's outcome. Redirects are not followed, nothing
//! is decompressed, and only the beginning of the answer's body is read.
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

/// Sends to one endpoint, over connections of its own, which close when it is dropped.
#[derive(Debug)]
pub(super) struct WebhookSender {
    url: Uri,
    timeout: Duration,
    signer: Signer,
    client: EndpointClient,
}

impl WebhookSender {
    /// A sender to `webhook` that reaches what `guard` lets through, and speaks TLS as `tls` says
    /// (without ALPN).
    ///
    /// While its secret is being rotated, `former` signs beside it.
    pub(super) fn new(
        webhook: &WebhookConfig,
        previous: Option<&Secret>,
        guard: Arc<EgressGuard>,
        tls: &ClientConfig,
    ) -> Self {
        Self::with_connector(EgressConnector::new(guard, webhook.timeout), webhook, previous, tls)
    }

    /// A sender that dials with `connector`.
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
    /// Dropping the future ends the attempt; whether the receiver has got it is not known then.
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
        let response = match timeout_at(deadline, self.client.send(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(failure)) => return Classification::of_error(&failure),
            Err(_) => return Classification::timeout(self.timeout),
        };
        let status = response.status();
        let classification = Classification::of_response(status, response.headers());
        let body = timeout_at(deadline, read_bounded(response.into_body())).await;
        match body {
            // By its head it is no success, and the rest cannot make it one.
            _ if !status.is_success() => classification,
            Ok(Ok(())) => classification,
            Ok(Err(_)) => Classification::truncated().with_status(status),
            Err(_) => Classification::timeout(self.timeout).with_status(status),
        }
    }
}

/// Reads the body so that its connection can be used again, but not for ever: of a long one, the
/// rest goes with the connection.
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

/// Receivers say "ok". Nobody reads more.
const MAX_RESPONSE_BYTES: usize = 16 * 1024;
