//! Parts of a request that several admin routes read: an id in the path, a bounded body.
//!
//! May use: `webhook`.

use axum::{
    body::Bytes,
    extract::{Path, rejection::BytesRejection, rejection::PathRejection},
};
use hyper::StatusCode;

use crate::{http::problem::Problem, webhook::WebhookError};

/// Path segment that names a webhook; an error if it is not UTF-8.
pub(super) type WebhookIdPath = Result<Path<String>, PathRejection>;

/// Body of a request; an error if it is over the bound or breaks off.
pub(super) type RequestBody = Result<Bytes, BytesRejection>;

/// Returns the webhook id in the path.
///
/// # Errors
///
/// 404, since no webhook has an id that is not UTF-8.
pub(super) fn webhook_id(path: WebhookIdPath) -> Result<String, Problem> {
    path.map(|Path(id)| id).map_err(|_| WebhookError::Unknown.into())
}

/// Returns the body. Its declared content type is not looked at, so that `curl -d` works; web pages
/// are kept out by the key or the host guard.
///
/// # Errors
///
/// 413 for a body over the bound, and 400 for one that breaks off.
pub(super) fn read_body(request_body: RequestBody) -> Result<Bytes, Problem> {
    request_body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body is over {MAX_ADMIN_BODY_BYTES} bytes"),
        ),
        _ => Problem::bad_request("the body breaks off"),
    })
}

/// Room for a thousand delivery ids, or for a webhook with a thousand sessions.
pub(super) const MAX_ADMIN_BODY_BYTES: usize = 64 * 1024;
