//! The one layer around every public route: checks before it, headers after it.
//!
//! One layer for all of it, because each layer of a router is cloned, boxed and dropped with every
//! request.
//!
//! In: requests. Out: the requests that pass all checks. A client beyond the connection limit
//! gets one answer, an empty stream for a browser's `EventSource` and 503 otherwise, and the
//! connection ends.
//!
//! May use: `metrics`, `net`.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use hyper::{
    StatusCode,
    header::{CONNECTION, HOST, HeaderValue, X_CONTENT_TYPE_OPTIONS},
};

use super::{cors::CorsPolicy, sse};
use crate::{
    http::{host_guard::HostGuard, request_head, state::Relay},
    metrics::{RefusingListener, ShedReason},
    net::Connection,
};

/// Middleware of the public listener.
#[derive(Debug)]
pub(in crate::http) struct PublicMiddleware {
    /// Guard against web pages of other sites; `None` where a credential is demanded.
    pub(in crate::http) guard: Option<HostGuard>,
    /// Pages that may read answers; `None` where no page may.
    pub(in crate::http) cors: Option<CorsPolicy>,
    /// Counters of refused connections and requests.
    pub(in crate::http) relay: Arc<Relay>,
}

impl PublicMiddleware {
    /// Passes a request on if it passes all checks, and completes the headers of its answer.
    pub(in crate::http) async fn handle(
        State(middleware): State<Arc<Self>>,
        mut request: Request,
        next: Next,
    ) -> Response {
        // Before the request is gone. Costs a look at the peer where no proxy is trusted.
        let client = middleware.relay.client_of(&request);
        let cors = middleware.cors.as_ref().map(|policy| (policy, policy.read(&request)));
        let ends_connection = request_head::exceeds_usual_query(&request);
        let mut response = match middleware.rejection(&request) {
            Some(rejection) => rejection,
            None => {
                set_host_from_authority(&mut request);
                next.run(request).await
            }
        };
        middleware.relay.refusals.record(RefusingListener::Public, client, &response);
        if let Some((policy, asked)) = cors {
            policy.complete(asked, &mut response);
        }
        // `Connection: upgrade` belongs to the 101.
        if ends_connection && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        set_nosniff(&mut response);
        response
    }

    fn rejection(&self, request: &Request) -> Option<Response> {
        if let Some(refusal) = request_head::refusal(request) {
            return Some(refusal);
        }
        if let Some(Err(problem)) =
            self.guard.as_ref().map(|guard| guard.verify(request.uri(), request.headers()))
        {
            return Some(problem.into_response());
        }
        // A connection beyond the limit is served one request, because only an answer can say that
        // the relay is full; the accept loop closes connections that are further beyond.
        let is_over_limit = request
            .extensions()
            .get::<Connection>()
            .is_some_and(|connection| connection.is_over_limit);
        is_over_limit.then(|| self.shed(request))
    }

    fn shed(&self, request: &Request) -> Response {
        self.relay.metrics.shed(ShedReason::MaxConnections).inc();
        // By the path alone: no route has matched yet. A browser's `EventSource` gives up for good
        // on a status other than 200, so `sse::shed` answers it with an empty stream.
        let answer = match request.uri().path().starts_with("/stream/") {
            true => sse::shed(ShedReason::MaxConnections, request.headers()),
            false => Err(ShedReason::MaxConnections.into()),
        };
        let mut response = answer.into_response();
        // Ends the connection with this answer, so that its reserve is free for the next. Over
        // HTTP/2 hyper drops the field; such a connection ends by `net`'s own deadlines.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        response
    }
}

/// Copies the authority of an HTTP/2 request into `Host` (RFC 9113, section 8.3.1), so that later
/// code looks at one of them only.
fn set_host_from_authority(request: &mut Request) {
    let authority = request
        .uri()
        .authority()
        .and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    if let Some(authority) = authority {
        request.headers_mut().insert(HOST, authority);
    }
}

/// Forbids browsers to guess another content type than the answer states: a payload must not be
/// taken for a page or a script.
fn set_nosniff(response: &mut Response) {
    response.headers_mut().insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
}

/// Sets the same header on answers that do not pass [`PublicMiddleware`].
pub(in crate::http) async fn with_nosniff(mut response: Response) -> Response {
    set_nosniff(&mut response);
    response
}
