//! Opening an event stream over HTTP, and reading it frame by frame.
//!
//! In: where from and with which token. Out: decoded frames, or why there are none. One exchange is one connection, closed
//! with it: whoever opens another stream after dropping this one never holds two.
//!
//! May use: `config` (secrets, files of certificates), `sse`.

use std::{path::Path, time::Duration};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::{
    Request, Response, StatusCode, Uri,
    body::Incoming,
    client::conn::http1,
    header::{
        ACCEPT, AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, HOST, HeaderMap,
        HeaderValue, LOCATION, RETRY_AFTER, USER_AGENT,
    },
};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};
use tower::Service;

use super::{
    event_stream::EventStream,
    tls::{TlsError, tls_client_config},
};
use crate::{config::Secret, sse::Decoder};

/// Dials `http` and `https`.
#[derive(Clone, Debug)]
pub(crate) struct EventStreamClient {
    connector: HttpsConnector<HttpConnector>,
}

impl EventStreamClient {
    /// A client that trusts the platform's roots (and `SSL_CERT_FILE`, `SSL_CERT_DIR`), and those in `ca_file`.
    ///
    /// # Errors
    ///
    /// When `ca_file` cannot be read as PEM certificates. A platform without roots is none: `http` still works.
    pub(crate) fn new(ca_file: Option<&Path>) -> Result<Self, TlsError> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(DIAL_TIMEOUT));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls_client_config(ca_file)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        Ok(Self { connector })
    }

    /// Opens an event stream that lets through events of up to `max_event_bytes`.
    ///
    /// Redirects are followed a few times; the token goes no further than the origin it was meant for.
    ///
    /// # Errors
    ///
    /// Why there is no stream; [`OpenError::is_permanent`] and [`OpenError::retry_after`] say what to do.
    pub(crate) async fn open(
        &self,
        target: &StreamTarget,
        max_event_bytes: usize,
    ) -> Result<EventStream, OpenError> {
        timeout(OPEN_TIMEOUT, self.open_following_redirects(target, max_event_bytes))
            .await
            .map_err(|_| OpenError::Timeout)?
    }

    async fn open_following_redirects(
        &self,
        target: &StreamTarget,
        max_event_bytes: usize,
    ) -> Result<EventStream, OpenError> {
        let mut url = target.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_static(EVENT_STREAM));
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            if let Some(token) = target.token.as_ref().filter(|_| same_origin(&url, &target.url)) {
                headers.insert(AUTHORIZATION, bearer_header(token)?);
            }
            if let Some(id) = &target.last_event_id {
                headers.insert(
                    "last-event-id",
                    HeaderValue::from_str(id).map_err(|_| OpenError::Header)?,
                );
            }
            if target.is_relay {
                headers.insert(RELAY_HEADER, HeaderValue::from_static("follow"));
            }
            let exchange = self.get(&url, headers).await?;
            let status = exchange.response.status();
            if status.is_redirection() {
                let location = redirect_target(&url, exchange.response.headers());
                exchange.close().await;
                url = location.ok_or(OpenError::Redirect { status })?;
                continue;
            }
            return match require_event_stream(&exchange.response) {
                Ok(()) => Ok(exchange.into_stream(max_event_bytes)),
                Err(error) => {
                    exchange.close().await;
                    Err(error)
                }
            };
        }
        Err(OpenError::TooManyRedirects)
    }

    /// Sends one GET on a connection of its own.
    ///
    /// # Errors
    ///
    /// When the peer cannot be reached or does not answer in HTTP.
    pub(crate) async fn get(&self, url: &Uri, headers: HeaderMap) -> Result<Exchange, OpenError> {
        let stream = self.connector.clone().call(url.clone()).await.map_err(OpenError::Connect)?;
        let (mut sender, connection) = http1::handshake(stream).await.map_err(OpenError::Http)?;
        let mut connection_task = JoinSet::new();
        connection_task.spawn(async move {
            // What goes wrong here shows where the response is read.
            let _ = connection.await;
        });
        let path = url.path_and_query().map_or("/", |path| path.as_str());
        let mut request =
            Request::get(path).body(Empty::<Bytes>::new()).map_err(|_| OpenError::Header)?;
        *request.headers_mut() = headers;
        let host = url.authority().map_or("", |authority| authority.as_str());
        request
            .headers_mut()
            .insert(HOST, HeaderValue::from_str(host).map_err(|_| OpenError::Header)?);
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(RELAY_USER_AGENT));
        let response = sender.send_request(request).await.map_err(OpenError::Http)?;
        Ok(Exchange { response, connection_task })
    }
}

/// What to open.
#[derive(Clone, Debug)]
pub(crate) struct StreamTarget {
    /// The stream's address.
    pub(crate) url: Uri,
    /// Sent as bearer token to this origin and no other.
    pub(crate) token: Option<Secret>,
    /// Where to go on.
    pub(crate) last_event_id: Option<String>,
    /// A relay is known to be there. It is told that a relay asks, and says when its replay is at its end.
    pub(crate) is_relay: bool,
}

/// A response and the connection it comes on, which closes when this is dropped.
#[derive(Debug)]
pub(crate) struct Exchange {
    /// The response, its body not read yet.
    pub(crate) response: Response<Incoming>,
    connection_task: JoinSet<()>,
}

impl Exchange {
    fn into_stream(self, max_event_bytes: usize) -> EventStream {
        let is_relay = self
            .response
            .headers()
            .get(RELAY_HEADER)
            .is_some_and(|value| value.as_bytes() == b"resume");
        EventStream {
            is_relay,
            body: self.response.into_body(),
            decoder: Decoder::new(max_event_bytes),
            connection_task: self.connection_task,
            received_at: Instant::now(),
        }
    }

    /// Closes the connection, and returns when it is closed.
    async fn close(mut self) {
        self.connection_task.shutdown().await;
    }
}

/// Whether a response is an event stream.
fn require_event_stream(response: &Response<Incoming>) -> Result<(), OpenError> {
    let (status, headers) = (response.status(), response.headers());
    if status != StatusCode::OK {
        return Err(OpenError::Status { status, retry_after: parse_retry_after(headers) });
    }
    let content_type =
        headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case(EVENT_STREAM) {
        return Err(OpenError::ContentType { found: essence.chars().take(80).collect() });
    }
    let is_identity = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    if headers.get(CONTENT_ENCODING).is_some_and(|value| !is_identity(value)) {
        return Err(OpenError::ContentEncoding);
    }
    Ok(())
}

/// Why a stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// No connection, or no TLS on it.
    #[error("cannot connect")]
    Connect(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The connection was lost before the answer, or the answer is not HTTP.
    #[error("no HTTP answer")]
    Http(#[source] hyper::Error),
    /// Connection and answer took longer than 30 s.
    #[error("no answer within {} s", OPEN_TIMEOUT.as_secs())]
    Timeout,
    /// Some other status than 200.
    #[error("answered {status}")]
    Status {
        /// What was answered.
        status: StatusCode,
        /// How long the peer asks to wait.
        retry_after: Option<Duration>,
    },
    /// A redirect without a usable address.
    #[error("answered {status} without a usable location")]
    Redirect {
        /// What was answered.
        status: StatusCode,
    },
    /// Redirected again and again.
    #[error("redirected more than {MAX_REDIRECTS} times")]
    TooManyRedirects,
    /// Something else than an event stream.
    #[error("content type is \"{found}\", not {EVENT_STREAM}")]
    ContentType {
        /// What it is.
        found: String,
    },
    /// Compressed although that was not asked for.
    #[error("the answer is compressed, which was not asked for")]
    ContentEncoding,
    /// The token, the id or the address cannot be written in a request.
    #[error("token, last event id or address cannot stand in a request")]
    Header,
}

impl OpenError {
    /// Whether only a person can help: the answer was 400, 401, 403 or 404.
    pub(crate) fn is_permanent(&self) -> bool {
        matches!(self, Self::Status { status, .. } if matches!(status.as_u16(), 400 | 401 | 403 | 404))
    }

    /// How long the peer asks to wait, at most five minutes of it.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => retry_after.map(|wait| wait.min(MAX_RETRY_AFTER)),
            _ => None,
        }
    }
}

fn bearer_header(token: &Secret) -> Result<HeaderValue, OpenError> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose()))
        .map_err(|_| OpenError::Header)?;
    value.set_sensitive(true);
    Ok(value)
}

/// How long a peer asks to wait, in seconds or until a date (RFC 9110, section 10.2.3); uncapped.
pub(crate) fn parse_retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    httpdate::parse_http_date(text).ok()?.duration_since(std::time::SystemTime::now()).ok()
}

fn same_origin(one: &Uri, other: &Uri) -> bool {
    let port = |url: &Uri| {
        url.port_u16().unwrap_or(if url.scheme_str() == Some("https") { 443 } else { 80 })
    };
    let same_host = match (one.host(), other.host()) {
        (Some(one), Some(other)) => one.eq_ignore_ascii_case(other),
        _ => false,
    };
    same_host && one.scheme() == other.scheme() && port(one) == port(other)
}

/// The address a redirect leads to: absolute, or relative to the host. RFC 9110, section 10.2.2.
fn redirect_target(from: &Uri, headers: &HeaderMap) -> Option<Uri> {
    let location = headers.get(LOCATION)?.to_str().ok()?;
    if location.starts_with('/') && !location.starts_with("//") {
        let mut parts = from.clone().into_parts();
        parts.path_and_query = Some(location.parse().ok()?);
        return Uri::from_parts(parts).ok();
    }
    let to: Uri = location.parse().ok()?;
    matches!(to.scheme_str(), Some("http" | "https")).then_some(to)
}

/// A relay answers `resume`, and a relay that asks another one says `follow`.
const RELAY_HEADER: &str = "autoplay-relay";

const EVENT_STREAM: &str = "text/event-stream";

/// How the relay names itself to those it connects to.
pub(crate) const RELAY_USER_AGENT: &str = concat!("autoplay-relay/", env!("CARGO_PKG_VERSION"));

/// One address that does not answer must not use up the time for the others.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Name, connection, TLS, redirects and head together.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// A moved endpoint needs one or two.
const MAX_REDIRECTS: usize = 5;

/// A mistaken date must not silence a product for days.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);
