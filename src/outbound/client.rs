//! Opening of an event stream over HTTP.
//!
//! In: the target and its token. Out: an [`EventStream`], or why there is none. One exchange is one
//! connection, which is closed with it: a caller that drops or closes a stream before it opens the
//! next never holds two.
//!
//! May use: `config`, `sse`, `wall_clock`.

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
use tokio::time::timeout;
use tower::Service;

use super::{
    event_stream::EventStream,
    header_spelling::contract_spelling,
    http_connection::HttpConnection,
    interim_answers::{InterimAnswerLimit, MAX_INTERIM_ANSWERS},
    tls::{TlsError, tls_client_config},
    tls_problem::{describe_tls_problem, ends_in_handshake},
};
use crate::{config::Secret, sse::Decoder, wall_clock};

/// HTTP/1.1 client for `http` and `https`, with a connection for each request.
#[derive(Clone, Debug)]
pub(crate) struct EventStreamClient {
    connector: HttpsConnector<HttpConnector>,
}

impl EventStreamClient {
    /// Creates a client that trusts the platform's roots (and `SSL_CERT_FILE`, `SSL_CERT_DIR`), and
    /// those in `ca_file`.
    ///
    /// # Errors
    ///
    /// When `ca_file` cannot be read as PEM certificates. A platform without roots is no error:
    /// `http` still works.
    pub(crate) fn new(ca_file: Option<&Path>) -> Result<Self, TlsError> {
        let mut tcp = HttpConnector::new();
        // Otherwise the connector refuses `https` URLs before the TLS layer sees them.
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

    /// Opens an event stream whose events may have up to `max_event_bytes`.
    ///
    /// Follows up to [`MAX_REDIRECTS`] redirects; the token is sent to the origin of `target` only.
    ///
    /// # Errors
    ///
    /// Why there is no stream; [`OpenError::is_permanent`] and [`OpenError::retry_after`] tell the
    /// caller when to retry. The connection is closed.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connection.
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
            // A redirect may lead to another operator's host, which must not learn the token.
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
                // Before the next request: never two connections for one target.
                drop(exchange);
                url = location.ok_or(OpenError::Redirect { status })?;
                continue;
            }
            require_event_stream(&exchange.response)?;
            return Ok(exchange.into_stream(max_event_bytes));
        }
        Err(OpenError::TooManyRedirects)
    }

    /// Sends one GET on a connection of its own.
    ///
    /// # Errors
    ///
    /// When the peer cannot be reached or does not answer in HTTP.
    pub(crate) async fn get(&self, url: &Uri, headers: HeaderMap) -> Result<Exchange, OpenError> {
        let stream =
            self.connector.clone().call(url.clone()).await.map_err(OpenError::of_connect)?;
        let (mut sender, connection) =
            http1_builder().handshake(stream).await.map_err(OpenError::of_exchange)?;
        let mut connection = HttpConnection::new(connection);
        let path = url.path_and_query().map_or("/", |path| path.as_str());
        let mut request =
            Request::get(path).body(Empty::<Bytes>::new()).map_err(|_| OpenError::Header)?;
        *request.headers_mut() = headers;
        *request.extensions_mut() = contract_spelling();
        let host = url.authority().map_or("", |authority| authority.as_str());
        request
            .headers_mut()
            .insert(HOST, HeaderValue::from_str(host).map_err(|_| OpenError::Header)?);
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(RELAY_USER_AGENT));
        let limit = InterimAnswerLimit::of(&mut request);
        let response = limit
            .run(connection.drive(sender.send_request(request)))
            .await
            .ok_or(OpenError::InterimAnswers)?
            .map_err(OpenError::of_exchange)?;
        Ok(Exchange { response, connection })
    }
}

/// Address of an event stream, and how to ask for it.
#[derive(Clone, Debug)]
pub(crate) struct StreamTarget {
    /// Address of the stream.
    pub(crate) url: Uri,
    /// Bearer token, sent to the origin of `url` only.
    pub(crate) token: Option<Secret>,
    /// Id behind which the stream is to continue.
    pub(crate) last_event_id: Option<String>,
    /// Whether the target is known to be a relay. The request then says that it comes from a relay,
    /// and the target tells when its replay ends.
    pub(crate) is_relay: bool,
}

/// Response and its connection, which is closed when this is dropped.
#[derive(Debug)]
pub(crate) struct Exchange {
    /// The response, its body unread.
    pub(crate) response: Response<Incoming>,
    connection: HttpConnection,
}

impl Exchange {
    fn into_stream(self, max_event_bytes: usize) -> EventStream {
        let is_relay = self
            .response
            .headers()
            .get(RELAY_HEADER)
            .is_some_and(|value| value.as_bytes() == b"resume");
        let decoder = Decoder::new(max_event_bytes);
        EventStream::new(self.connection, self.response.into_body(), decoder, is_relay)
    }
}

/// Checks that a response is an event stream (WHATWG HTML, section 9.2.3).
///
/// # Errors
///
/// When the status is not 200, the content type is another one, or the body is compressed.
fn require_event_stream(response: &Response<Incoming>) -> Result<(), OpenError> {
    let (status, headers) = (response.status(), response.headers());
    if status != StatusCode::OK {
        return Err(OpenError::Status { status, retry_after: parse_retry_after(headers) });
    }
    let content_type =
        headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case(EVENT_STREAM) {
        // Cut, because the text comes from the peer and is logged.
        return Err(OpenError::ContentType { found: essence.chars().take(80).collect() });
    }
    let is_identity = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    if headers.get(CONTENT_ENCODING).is_some_and(|value| !is_identity(value)) {
        return Err(OpenError::ContentEncoding);
    }
    Ok(())
}

/// Reasons for which a stream could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// No TCP connection.
    #[error("cannot connect")]
    Connect(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A TCP connection, and no TLS on it; the text says why, and what to do.
    #[error("{0}")]
    Tls(String),
    /// The connection was lost before the response, or the response is not HTTP.
    #[error("no HTTP answer")]
    Http(#[source] hyper::Error),
    /// Connection and response took longer than [`OPEN_TIMEOUT`].
    #[error("no answer within {} s", OPEN_TIMEOUT.as_secs())]
    Timeout,
    /// More than [`MAX_INTERIM_ANSWERS`] interim answers.
    #[error("more than {MAX_INTERIM_ANSWERS} interim answers (1xx) and no other")]
    InterimAnswers,
    /// A status other than 200.
    #[error("answered {status}")]
    Status {
        /// Status of the response.
        status: StatusCode,
        /// Wait that the peer asks for.
        retry_after: Option<Duration>,
    },
    /// A redirect without a usable address.
    #[error("answered {status} without a usable location")]
    Redirect {
        /// Status of the response.
        status: StatusCode,
    },
    /// More than [`MAX_REDIRECTS`] redirects.
    #[error("redirected more than {MAX_REDIRECTS} times")]
    TooManyRedirects,
    /// A content type other than that of an event stream.
    #[error("content type is \"{found}\", not {EVENT_STREAM}")]
    ContentType {
        /// Content type of the response.
        found: String,
    },
    /// A compressed body, which the request did not ask for.
    #[error("the answer is compressed, which was not asked for")]
    ContentEncoding,
    /// The token, the id or the address contains bytes that no request may contain.
    #[error("token, last event id or address cannot stand in a request")]
    Header,
}

impl OpenError {
    fn of_connect(error: Box<dyn std::error::Error + Send + Sync>) -> Self {
        if let Some(problem) = describe_tls_problem(&*error) {
            return Self::Tls(problem);
        }
        if ends_in_handshake(&*error) {
            return Self::Tls("no TLS on the connection: it was lost on the way".to_owned());
        }
        Self::Connect(error)
    }

    /// Describes an exchange without an answer. A server that uses TLS 1.3 and rejects the relay's
    /// side of the handshake reports that only after the handshake.
    fn of_exchange(error: hyper::Error) -> Self {
        describe_tls_problem(&error).map_or(Self::Http(error), Self::Tls)
    }

    /// Returns whether only a person can mend the failure: the response was 400, 401, 403 or 404.
    pub(crate) fn is_permanent(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status.as_u16(), 400 | 401 | 403 | 404),
            _ => false,
        }
    }

    /// Returns the wait that the peer asks for, at most [`MAX_RETRY_AFTER`].
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => retry_after.map(|wait| wait.min(MAX_RETRY_AFTER)),
            _ => None,
        }
    }
}

/// Returns the settings of a connection, which read what common clients read: see
/// [`MAX_RESPONSE_HEADERS`].
fn http1_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .title_case_headers(true)
        .max_headers(MAX_RESPONSE_HEADERS)
        // RFC 9112, sections 5.1 and 5.2: a client reads a blank before the colon and a folded
        // line, though no server may send them.
        .allow_spaces_after_header_name_in_responses(true)
        .allow_obsolete_multiline_headers_in_responses(true)
        // A line that is no header at all is skipped, as browsers do: the few headers that count
        // here are whole, or missing.
        .ignore_invalid_headers_in_responses(true);
    builder
}

fn bearer_header(token: &Secret) -> Result<HeaderValue, OpenError> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose()))
        .map_err(|_| OpenError::Header)?;
    // Keeps the token out of `Debug` output.
    value.set_sensitive(true);
    Ok(value)
}

/// Returns the wait that a response asks for, in seconds or until a date (RFC 9110, section
/// 10.2.3), without a limit.
pub(crate) fn parse_retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    httpdate::parse_http_date(text).ok()?.duration_since(wall_clock::now().to_system_time()).ok()
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

/// Returns the address that a redirect leads to: absolute, or relative to the host (RFC 9110,
/// section 10.2.2).
fn redirect_target(from: &Uri, headers: &HeaderMap) -> Option<Uri> {
    let location = headers.get(LOCATION)?.to_str().ok()?;
    // `//host/path` is a reference to another host without a scheme, and not a path: it is not
    // followed.
    if location.starts_with('/') && !location.starts_with("//") {
        let mut parts = from.clone().into_parts();
        parts.path_and_query = Some(location.parse().ok()?);
        return Uri::from_parts(parts).ok();
    }
    let to: Uri = location.parse().ok()?;
    matches!(to.scheme_str(), Some("http" | "https")).then_some(to)
}

/// Header by which relays recognise each other: `resume` in a relay's response, `follow` in a
/// relay's request.
const RELAY_HEADER: &str = "autoplay-relay";

const EVENT_STREAM: &str = "text/event-stream";

/// User agent of all requests that the relay sends.
pub(crate) const RELAY_USER_AGENT: &str = concat!("autoplay-relay/", env!("CARGO_PKG_VERSION"));

/// Time to connect to one address: an address that does not answer must not use up the time of the
/// others.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for name resolution, connection, TLS, redirects and the response's head together.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// Headers of one response. hyper's own limit is 100, which servers behind several proxies exceed;
/// Node.js reads 2000, curl 5000. The size of the head is bounded as well.
pub(crate) const MAX_RESPONSE_HEADERS: usize = 1024;

/// An endpoint that has moved needs one or two.
const MAX_REDIRECTS: usize = 5;

/// A mistaken date must not silence a product for days.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);
