//! Parts of a request that several admin routes read: an id in the path, a bounded body.
//!
//! May use: `http`, `webhook` (errors).

use axum::{
    body::Bytes,
    extract::{Path, rejection::BytesRejection, rejection::PathRejection},
    routing::MethodRouter,
};
use hyper::StatusCode;

use crate::{http::problem::Problem, webhook::WebhookError};

/// The segment of the path that names a webhook.
pub(super) type WebhookIdPath = Result<Path<String>, PathRejection>;

/// The body of a request.
pub(super) type RequestBody = Result<Bytes, BytesRejection>;

/// The id in the path.
///
/// # Errors
///
/// 404: no webhook has an id that is not UTF-8.
pub(super) fn webhook_id(path: WebhookIdPath) -> Result<String, Problem> {
    path.map(|Path(id)| id).map_err(|_| WebhookError::Unknown.into())
}

/// The body, whatever type it is said to have: as for `curl -d`, and web pages are kept out by
/// other means.
///
/// # Errors
///
/// 413, and 400 when it breaks off.
pub(super) fn read_body(request_body: RequestBody) -> Result<Bytes, Problem> {
    request_body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body is over {MAX_ADMIN_BODY_BYTES} bytes"),
        ),
        _ => Problem::bad_request("the body breaks off"),
    })
}

/// A route that says which methods it knows.
pub(super) fn with_allowed_methods<S: Clone + Send + Sync + 'static>(
    route: MethodRouter<S>,
    methods: &'static str,
) -> MethodRouter<S> {
    route.fallback(move || async move { Problem::method_not_allowed(methods) })
}

/// A thousand ids, or a webhook with as many sessions.
pub(super) const MAX_ADMIN_BODY_BYTES: usize = 64 * 1024;
