//! One attempt: signs the body, posts it, and judges the answer.
//!
//! In: an event id and the payload. Out: how it went, and what to do. Redirects are not followed, nothing is
//! decompressed, and of the answer's body only the beginning is read.
//!
//! May use: `client` (TLS), `config`, `delivery`, `egress`, `signature`.

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

use self::{classify::Judgement, transport::Transport};
use super::{Verdict, signature::Signer};
use crate::{
    config::{Secret, Webhook},
    outbound::egress_guard::{Connector, Guard},
    webhook_delivery::Attempt,
};

/// Sends to one endpoint, over connections of its own, which close when it is dropped.
#[derive(Debug)]
pub(super) struct Sender {
    url: Uri,
    timeout: Duration,
    signer: Signer,
    transport: Transport,
}

impl Sender {
    /// A sender to `webhook` that reaches what `guard` lets through, and speaks TLS as `tls` says (without ALPN).
    ///
    /// While its secret is being rotated, `former` signs beside it.
    pub(super) fn new(webhook: &Webhook, former: Option<&Secret>, guard: Arc<Guard>, tls: &ClientConfig) -> Self {
        Self::over(Connector::new(guard, webhook.timeout), webhook, former, tls)
    }

    /// A sender that dials with `connector`.
    pub(super) fn over(connector: Connector, webhook: &Webhook, former: Option<&Secret>, tls: &ClientConfig) -> Self {
        Self {
            url: webhook.url.as_uri().clone(),
            timeout: webhook.timeout,
            signer: Signer::new(&webhook.secret, former),
            transport: Transport::new(connector, tls, webhook.timeout, webhook.max_in_flight),
        }
    }

    /// Makes one attempt to deliver `payload` under the event id `id`, within the webhook's `timeout`.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the attempt; whether the receiver has got it is not known then.
    pub(super) async fn send(&self, id: &str, payload: Bytes) -> (Attempt, Verdict) {
        let began = Instant::now();
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let judgement = match self.request(id, at.as_secs(), payload) {
            Ok(request) => self.exchange(request, began + self.timeout).await,
            Err(_) => Judgement::unsendable(),
        };
        let attempt = Attempt {
            at: milliseconds(at),
            duration_ms: milliseconds(began.elapsed()),
            outcome: judgement.outcome,
            status: judgement.status.map(|status| status.as_u16()),
            error: judgement.error.map(String::into_boxed_str),
        };
        (attempt, judgement.verdict)
    }

    fn request(&self, id: &str, timestamp: u64, payload: Bytes) -> Result<Request<Full<Bytes>>, InvalidHeaderValue> {
        let headers = self.signer.headers(id, timestamp, &payload)?;
        let mut request = Request::new(Full::new(payload));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.url.clone();
        *request.headers_mut() = headers;
        Ok(request)
    }

    async fn exchange(&self, request: Request<Full<Bytes>>, deadline: Instant) -> Judgement {
        let response = match timeout_at(deadline, self.transport.send(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(failure)) => return Judgement::of_failure(&failure),
            Err(_) => return Judgement::timeout(self.timeout),
        };
        let status = response.status();
        let judgement = Judgement::of_answer(status, response.headers());
        let body = timeout_at(deadline, read_some(response.into_body())).await;
        match body {
            // By its head it is no success, and the rest cannot make it one.
            _ if !status.is_success() => judgement,
            Ok(Ok(())) => judgement,
            Ok(Err(_)) => Judgement::broken().after(status),
            Err(_) => Judgement::timeout(self.timeout).after(status),
        }
    }
}

/// Reads the body so that its connection can be used again, but not for ever: of a long one, the rest goes with the
/// connection.
async fn read_some(mut body: Incoming) -> Result<(), hyper::Error> {
    let mut read = 0;
    while read < MOST_READ && !body.is_end_stream() {
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
const MOST_READ: usize = 16 * 1024;
