//! Errors as clients see them: `application/problem+json` (RFC 9457).
//!
//! This file alone turns errors into status codes: the client learns what to change, the log what
//! broke.
//!
//! May use: `auth`, `config`, `metrics`, `webhook`.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use hyper::{
    StatusCode,
    header::{
        ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
    },
};

use super::memory_quota::QuotaExhausted;
use crate::{
    auth::Denial,
    config::FieldError,
    metrics::{RefusalReason, ShedReason},
    webhook::WebhookError,
};

/// A refusal: status, detail and at most one header beside the usual ones.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    detail: String,
    header: Option<(HeaderName, HeaderValue)>,
    errors: Box<[FieldError]>,
    /// Set if the request is refused for its credential, for `refusals` to count.
    refusal: Option<RefusalReason>,
}

impl Problem {
    /// Returns a problem with this status; `detail` says what the client has to change.
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), header: None, errors: Box::default(), refusal: None }
    }

    /// Returns a 400.
    pub(crate) fn bad_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, detail)
    }

    /// Returns a 403.
    pub(crate) fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, detail).refused_for(RefusalReason::NotAllowed)
    }

    /// Returns a 404.
    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    /// Returns the 405 of a route that has only the methods `allowed` (RFC 9110, section 15.5.6,
    /// demands `Allow`).
    pub(crate) fn method_not_allowed(allowed: &str) -> Self {
        let problem =
            Self::new(StatusCode::METHOD_NOT_ALLOWED, "this route does not know that method");
        match HeaderValue::from_str(allowed) {
            Ok(allowed) => problem.with_header(ALLOW, allowed),
            Err(_) => problem, // names of methods are always valid
        }
    }

    /// Returns the 400 of a body that cannot be read to its end.
    pub(crate) fn malformed_body() -> Self {
        Self::bad_request("the body breaks off, or its chunks are malformed")
    }

    /// Returns the 408 of a body that takes too long.
    pub(crate) fn late_body() -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time")
    }

    /// Returns the 414 of a target over its bound.
    pub(crate) fn target_too_long() -> Self {
        let detail = "a path and query may have 60 KiB here: for a longer filter open the WebSocket \
                      and send {\"subscribe\":{\"session_ids\":[…],\"user_ids\":[…]}}";
        Self::new(StatusCode::URI_TOO_LONG, detail)
    }

    /// Returns the 431 of a head over its bound.
    pub(crate) fn head_too_large() -> Self {
        let detail = "the method and the header fields may have 16 KiB together, and be a hundred";
        Self::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, detail)
    }

    /// Returns a 409.
    pub(crate) fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, detail)
    }

    /// Returns a 422 for a body that can be parsed, with the errors by field.
    pub(crate) fn invalid(errors: Vec<FieldError>) -> Self {
        let problem =
            Self::new(StatusCode::UNPROCESSABLE_ENTITY, "the body is invalid; see errors");
        Self { errors: errors.into(), ..problem }
    }

    /// Returns a 422 for one field.
    pub(crate) fn invalid_field(field: &str, message: impl Into<String>) -> Self {
        Self::invalid(vec![FieldError::new(field, message)])
    }

    /// Returns a 429 or 503 with `Retry-After`.
    pub(crate) fn retry_later(
        status: StatusCode,
        detail: impl Into<String>,
        retry_after: Duration,
    ) -> Self {
        Self::new(status, detail)
            // A second at least: `Retry-After` counts in whole seconds, and 0 would invite a retry
            // at once.
            .with_header(RETRY_AFTER, HeaderValue::from(retry_after.as_secs().max(1)))
    }

    /// Returns the problem as one that `refused_total` counts.
    pub(crate) fn refused_for(self, reason: RefusalReason) -> Self {
        Self { refusal: Some(reason), ..self }
    }

    fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.header = Some((name, value));
        self
    }
}

impl From<Denial> for Problem {
    fn from(denial: Denial) -> Self {
        let unauthorized = |reason| {
            Self::new(StatusCode::UNAUTHORIZED, denial.to_string())
                .with_header(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
                .refused_for(reason)
        };
        match denial {
            Denial::NoCredential => unauthorized(RefusalReason::NoCredential),
            Denial::Unauthenticated => unauthorized(RefusalReason::BadCredential),
            Denial::Forbidden => Self::forbidden(denial.to_string()),
        }
    }
}

impl From<WebhookError> for Problem {
    fn from(error: WebhookError) -> Self {
        let message = error.to_string();
        match error {
            WebhookError::Unknown => Self::not_found(message),
            WebhookError::AlreadyExists
            | WebhookError::DeclaredInFile
            | WebhookError::TooMany
            | WebhookError::TooManyVisitors => Self::conflict(message),
            WebhookError::UnknownProduct | WebhookError::ProductChanged => {
                Self::invalid_field("product_id", message)
            }
            WebhookError::StoreUnavailable | WebhookError::ShuttingDown => {
                Self::retry_later(StatusCode::SERVICE_UNAVAILABLE, message, STORE_RETRY_AFTER)
            }
        }
    }
}

impl From<QuotaExhausted> for Problem {
    fn from(_: QuotaExhausted) -> Self {
        let detail = "too many pages or bodies are in memory at this moment, \
            of all clients or of your address";
        Self::retry_later(StatusCode::SERVICE_UNAVAILABLE, detail, jittered(SHED_RETRY_AFTER))
    }
}

impl From<ShedReason> for Problem {
    fn from(reason: ShedReason) -> Self {
        let (status, detail) = match reason {
            ShedReason::PerIp => {
                (StatusCode::TOO_MANY_REQUESTS, "too many subscribers from this address")
            }
            ShedReason::PerKey => {
                (StatusCode::TOO_MANY_REQUESTS, "too many subscribers with this key")
            }
            ShedReason::ConnectRate => {
                (StatusCode::SERVICE_UNAVAILABLE, "too many subscribers at this moment")
            }
            ShedReason::Draining => (StatusCode::SERVICE_UNAVAILABLE, "the relay is shutting down"),
            ShedReason::MaxSubscribers
            | ShedReason::NoFileDescriptor
            | ShedReason::MaxConnections => (StatusCode::SERVICE_UNAVAILABLE, "the relay is full"),
        };
        Self::retry_later(status, detail, jittered(SHED_RETRY_AFTER))
    }
}

/// Returns a random time from half to one and a half times the mean, so that clients that were
/// disconnected together do not come back together.
pub(super) fn jittered(mean: Duration) -> Duration {
    mean.mul_f64(0.5 + fastrand::f64())
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut body = serde_json::json!({
            "type": "about:blank",
            "title": self.status.canonical_reason().unwrap_or("Error"),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        if let (Some(members), false) = (body.as_object_mut(), self.errors.is_empty()) {
            members.insert("errors".to_owned(), serde_json::json!(self.errors));
        }
        // `no-store`: a cache must not keep a moment's refusal and answer later requests with it.
        let headers = [
            (CONTENT_TYPE, HeaderValue::from_static("application/problem+json")),
            (CACHE_CONTROL, HeaderValue::from_static("no-store")),
        ];
        let mut response = (self.status, headers, body.to_string()).into_response();
        response.headers_mut().extend(self.header);
        // An extension stays in the process.
        if let Some(reason) = self.refusal {
            response.extensions_mut().insert(reason);
        }
        response
    }
}

/// Long enough for a burst of connects to pass, short enough that a short overload goes unnoticed.
pub(super) const SHED_RETRY_AFTER: Duration = Duration::from_secs(10);

/// The store reopens its file a second after an error; with a second more it has had one attempt.
pub(super) const STORE_RETRY_AFTER: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_of_a_webhook_has_its_status() {
        for (error, status) in [
            (WebhookError::Unknown, 404),
            (WebhookError::AlreadyExists, 409),
            (WebhookError::DeclaredInFile, 409),
            (WebhookError::TooMany, 409),
            (WebhookError::TooManyVisitors, 409),
            (WebhookError::UnknownProduct, 422),
            (WebhookError::ProductChanged, 422),
            (WebhookError::StoreUnavailable, 503),
            (WebhookError::ShuttingDown, 503),
        ] {
            let label = format!("{error:?}");
            let problem = Problem::from(error);
            assert_eq!(
                (problem.status.as_u16(), problem.header.is_some()),
                (status, status == 503),
                "{label}"
            );
            let fields: Vec<_> = problem.errors.iter().map(|error| error.field.as_str()).collect();
            assert_eq!(fields, if status == 422 { &["product_id"][..] } else { &[] }, "{label}");
        }
    }
}
