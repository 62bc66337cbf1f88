//! Parts of a request that several admin routes read: an id in the path, a bounded body.
//!
//! May use: `webhook`.

use std::convert::Infallible;

use axum::{
    body::Bytes,
    extract::{FromRequest, Path, Request, rejection::PathRejection},
};
use bytes::BytesMut;
use hyper::StatusCode;
use tokio::time::timeout;

use crate::{
    http::{
        bounded_body::{BODY_TIMEOUT, BodyFault, BoundedBody},
        problem::Problem,
    },
    webhook::WebhookError,
};

/// Path segment that names a webhook; an error if it is not UTF-8.
pub(super) type WebhookIdPath = Result<Path<String>, PathRejection>;

/// Body of a request; the refusal if it is over the bound, malformed or late.
#[derive(Debug)]
pub(in crate::http) struct RequestBody(Result<Bytes, Problem>);

impl<S: Sync> FromRequest<S> for RequestBody {
    type Rejection = Infallible;

    async fn from_request(request: Request, _: &S) -> Result<Self, Infallible> {
        let mut body = BoundedBody::new(request.into_body(), MAX_ADMIN_BODY_BYTES);
        let all = async {
            let mut bytes = BytesMut::new();
            while let Some(piece) = body.next_piece().await? {
                bytes.extend_from_slice(&piece);
            }
            Ok(bytes.freeze())
        };
        Ok(Self(match timeout(BODY_TIMEOUT, all).await {
            Ok(read) => read.map_err(|fault| match fault {
                BodyFault::TooLarge => Problem::new(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("the body is over {MAX_ADMIN_BODY_BYTES} bytes"),
                ),
                BodyFault::Malformed => Problem::malformed_body(),
            }),
            Err(_) => Err(Problem::late_body()),
        }))
    }
}

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
/// 413 for a body over the bound, 400 for one that breaks off or has malformed chunks, and 408 for
/// one that takes too long.
pub(super) fn read_body(request_body: RequestBody) -> Result<Bytes, Problem> {
    request_body.0
}

/// Room for a thousand delivery ids, or for a webhook with a thousand sessions.
const MAX_ADMIN_BODY_BYTES: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use axum::{body::Body, response::IntoResponse};
    use tokio::time::Instant;

    use super::*;

    async fn status(body: Body) -> u16 {
        let Ok(read) = RequestBody::from_request(Request::new(body), &()).await;
        read_body(read).map_or_else(|problem| problem.into_response().status().as_u16(), |_| 200)
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_does_not_come_is_answered_408_after_its_time() {
        let began = Instant::now();
        let never = Body::from_stream(tokio_stream::pending::<Result<Bytes, Infallible>>());
        assert_eq!(status(never).await, 408);
        assert_eq!(began.elapsed(), BODY_TIMEOUT);
    }

    #[tokio::test]
    async fn a_body_is_read_up_to_its_bound() {
        assert_eq!(status(Body::from(vec![b' '; MAX_ADMIN_BODY_BYTES])).await, 200);
        assert_eq!(status(Body::from(vec![b' '; MAX_ADMIN_BODY_BYTES + 1])).await, 413);
        let pieces = [Ok(Bytes::from(vec![b' '; MAX_ADMIN_BODY_BYTES])), Err("reset")];
        assert_eq!(status(Body::from_stream(tokio_stream::iter(pieces))).await, 400);
    }
}
