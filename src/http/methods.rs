//! Methods of routes: one table, from which `Allow`, 405, HEAD and preflight answers come.
//!
//! In: paths, with handlers by method. Out: a router whose routes answer every other method with
//! 405 and `Allow` (RFC 9110, section 15.5.6). `public::cors` derives the answer to a preflight
//! from this 405, so a preflight allows the methods of the route, and an unknown path stays 404.
//!
//! May use: no other module.

use std::{convert::Infallible, sync::Arc};

use axum::{Router, body::Body, handler::Handler, routing::MethodRouter};
use bytes::Bytes;

use super::problem::Problem;

/// Handlers of one route, and the methods that they answer.
pub(in crate::http) struct RouteMethods<S> {
    handlers: MethodRouter<S>,
    allowed: Vec<&'static str>,
}

impl<S: Clone + Send + Sync + 'static> RouteMethods<S> {
    /// Builds a router from its table of routes.
    pub(in crate::http) fn router<const N: usize>(table: [(&str, Self); N]) -> Router<S> {
        table
            .into_iter()
            .fold(Router::new(), |router, (path, one)| router.route(path, one.into_route()))
    }

    /// Creates a route without methods.
    pub(in crate::http) fn new() -> Self {
        Self { handlers: MethodRouter::new(), allowed: Vec::new() }
    }

    /// Answers GET, and HEAD by the same handler; axum drops the body then. A handler that would
    /// begin work for its body looks at the method.
    pub(in crate::http) fn get<H: Handler<T, S>, T: 'static>(mut self, handler: H) -> Self {
        self.allowed.extend(["GET", "HEAD"]);
        Self { handlers: self.handlers.get(handler), ..self }
    }

    /// Answers GET alone: a WebSocket has no head without a connection.
    pub(in crate::http) fn get_without_head<H: Handler<T, S>, T: 'static>(
        mut self,
        handler: H,
    ) -> Self {
        self.allowed.push("GET");
        Self { handlers: self.handlers.get(handler), ..self }
    }

    /// Answers POST.
    pub(in crate::http) fn post<H: Handler<T, S>, T: 'static>(mut self, handler: H) -> Self {
        self.allowed.push("POST");
        Self { handlers: self.handlers.post(handler), ..self }
    }

    /// Answers PUT.
    pub(in crate::http) fn put<H: Handler<T, S>, T: 'static>(mut self, handler: H) -> Self {
        self.allowed.push("PUT");
        Self { handlers: self.handlers.put(handler), ..self }
    }

    /// Answers DELETE.
    pub(in crate::http) fn delete<H: Handler<T, S>, T: 'static>(mut self, handler: H) -> Self {
        self.allowed.push("DELETE");
        Self { handlers: self.handlers.delete(handler), ..self }
    }

    /// Returns the route for axum.
    fn into_route(self) -> MethodRouter<S, Infallible> {
        let has_head = self.allowed.contains(&"HEAD");
        let is_read = self.allowed.contains(&"GET");
        let allowed: Arc<str> = self.allowed.join(", ").into();
        let refuse = move || {
            let problem = Problem::method_not_allowed(&allowed);
            async move { problem }
        };
        // Without a handler for HEAD axum runs the one for GET.
        let handlers = match is_read && !has_head {
            true => self.handlers.head(refuse.clone()),
            false => self.handlers,
        };
        handlers.fallback(refuse)
    }
}

/// Returns the body of an answer to HEAD whose GET has a body of unknown length: an empty body
/// would announce `Content-Length: 0`.
pub(in crate::http) fn body_for_head() -> Body {
    Body::new(LengthlessBody)
}

/// An empty body that does not say how long it is.
struct LengthlessBody;

impl http_body::Body for LengthlessBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        std::task::Poll::Ready(None)
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, extract::Request};
    use hyper::header::ALLOW;
    use tower::ServiceExt;

    use super::*;

    async fn ask(method: &str, path: &str) -> (u16, Option<String>) {
        let answer = || async { "text" };
        let router: Router = RouteMethods::router([
            ("/read", RouteMethods::new().get(answer).post(answer)),
            ("/socket", RouteMethods::new().get_without_head(answer)),
            ("/change", RouteMethods::new().put(answer).delete(answer)),
        ]);
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        let response = router.oneshot(request).await.unwrap();
        let allow = response.headers().get(ALLOW).map(|allow| allow.to_str().unwrap().to_owned());
        (response.status().as_u16(), allow)
    }

    #[tokio::test]
    async fn every_method_but_the_listed_ones_is_405_with_the_list() {
        for (path, listed) in
            [("/read", "GET, HEAD, POST"), ("/socket", "GET"), ("/change", "PUT, DELETE")]
        {
            for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"] {
                let expected = match listed.split(", ").any(|known| known == method) {
                    true => (200, None),
                    false => (405, Some(listed.to_owned())),
                };
                assert_eq!(ask(method, path).await, expected, "{method} {path}");
            }
        }
        assert_eq!(ask("OPTIONS", "/nothing").await, (404, None));
    }
}
