//! Errors as clients see them: `application/problem+json` (RFC 9457).
//!
//! The one place that turns errors into status codes: the client learns what to change, the log what broke.
//!
//! May use: `auth`.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use hyper::{
    StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE},
};

use crate::auth::Denial;

/// A request that is not answered as asked.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    detail: String,
    header: Option<(HeaderName, HeaderValue)>,
}

impl Problem {
    /// A problem with this status; `detail` says what to change.
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), header: None }
    }

    /// 400.
    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    /// 403.
    pub(crate) fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, detail)
    }

    /// 404.
    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    /// 405, from a route that knows only the methods `allowed`.
    pub(crate) fn method_not_allowed(allowed: &'static str) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "this route does not know that method")
            .with(ALLOW, HeaderValue::from_static(allowed))
    }

    /// 429 or 503, with the time to wait.
    pub(crate) fn busy(status: StatusCode, detail: impl Into<String>, wait: Duration) -> Self {
        Self::new(status, detail).with(RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)))
    }

    fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.header = Some((name, value));
        self
    }
}

impl From<Denial> for Problem {
    fn from(denial: Denial) -> Self {
        match denial {
            Denial::Unauthenticated => Self::new(StatusCode::UNAUTHORIZED, denial.to_string())
                .with(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")),
            Denial::Forbidden => Self::forbidden(denial.to_string()),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::json!({
            "type": "about:blank",
            "title": self.status.canonical_reason().unwrap_or("Error"),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        let headers = [
            (CONTENT_TYPE, HeaderValue::from_static("application/problem+json")),
            (CACHE_CONTROL, HeaderValue::from_static("no-store")),
        ];
        let mut response = (self.status, headers, body.to_string()).into_response();
        response.headers_mut().extend(self.header);
        response
    }
}
