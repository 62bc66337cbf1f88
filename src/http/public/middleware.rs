//! The one layer around every public route: checks before it, headers after it.
//!
//! One layer for all of it, because each layer of a router is cloned, boxed and dropped with every
//! request.
//!
//! In: requests. Out: the requests that may go on. A client that arrives beyond the connection
//! limit is told that the relay is full, in the form that its kind understands, and the connection
//! ends.
//!
//! May use: `metrics`, `net`.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use hyper::header::{CONNECTION, HOST, HeaderValue, X_CONTENT_TYPE_OPTIONS};

use super::sse;
use crate::{
    http::host_guard::HostGuard,
    metrics::{Metrics, ShedReason},
    net::Connection,
};

/// The front of the public listener.
#[derive(Debug)]
pub(in crate::http) struct PublicMiddleware {
    /// None where a credential is demanded.
    pub(in crate::http) guard: Option<HostGuard>,
    /// Where those who are turned away are counted.
    pub(in crate::http) metrics: Arc<Metrics>,
}

impl PublicMiddleware {
    /// Lets a request through, if it may, and sees to its answer.
    pub(in crate::http) async fn handle(
        State(middleware): State<Arc<Self>>,
        mut request: Request,
        next: Next,
    ) -> Response {
        let mut response = match middleware.rejection(&request) {
            Some(rejection) => rejection,
            None => {
                set_host_from_authority(&mut request);
                next.run(request).await
            }
        };
        set_nosniff(&mut response);
        response
    }

    fn rejection(&self, request: &Request) -> Option<Response> {
        if let Some(Err(problem)) =
            self.guard.as_ref().map(|guard| guard.verify(request.uri(), request.headers()))
        {
            return Some(problem.into_response());
        }
        let is_over_limit = request
            .extensions()
            .get::<Connection>()
            .is_some_and(|connection| connection.is_over_limit);
        is_over_limit.then(|| self.shed(request))
    }

    fn shed(&self, request: &Request) -> Response {
        self.metrics.shed(ShedReason::MaxConnections).inc();
        let answer = match request.uri().path().starts_with("/stream/") {
            true => sse::shed(ShedReason::MaxConnections, request.headers()),
            false => Err(ShedReason::MaxConnections.into()),
        };
        let mut response = answer.into_response();
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        response
    }
}

/// HTTP/2 has the authority in place of `Host` (RFC 9113, section 8.3.1); what is behind this looks
/// at one of them only.
fn set_host_from_authority(request: &mut Request) {
    let authority = request
        .uri()
        .authority()
        .and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    if let Some(authority) = authority {
        request.headers_mut().insert(HOST, authority);
    }
}

/// Nothing that is answered is to be taken for something else than it says, such as a payload for a
/// page.
fn set_nosniff(response: &mut Response) {
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
}

/// The same, of what has no other front.
pub(in crate::http) async fn with_nosniff(mut response: Response) -> Response {
    set_nosniff(&mut response);
    response
}
