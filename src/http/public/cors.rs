//! CORS answers: which pages may read the relay's responses (Fetch standard, CORS protocol).
//!
//! In: requests, before they are routed, and their answers. Out: the headers by which a browser
//! decides. No layer of a library: it would answer preflights of unknown paths, and with one list
//! of methods for all routes.
//!
//! May use: `config`.

use axum::{
    body::Body,
    extract::Request,
    response::{IntoResponse, Response},
};
use hyper::{
    Method, StatusCode,
    header::{
        ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS,
        ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS,
        ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD,
        ALLOW, HeaderValue, ORIGIN, VARY,
    },
};

use crate::config::Origin;

/// Pages that may read the relay's answers.
///
/// Credentials are allowed only with a cookie configured, and only for listed origins. No answer is
/// marked for all origins, with which the Fetch standard forbids credentials.
#[derive(Debug)]
pub(in crate::http) struct CorsPolicy {
    origins: Vec<HeaderValue>,
    accepts_cookie: bool,
}

/// Parts of a request that its CORS headers depend on.
#[derive(Debug)]
pub(in crate::http) struct CorsRequest {
    /// The page's origin, if it is listed.
    origin: Option<HeaderValue>,
    /// Headers that the page asks to send, in a preflight.
    preflight: Option<HeaderValue>,
}

impl CorsPolicy {
    /// Returns the policy for these origins; `None` without any, when no answer differs.
    pub(in crate::http) fn new(origins: &[Origin], accepts_cookie: bool) -> Option<Self> {
        let origins: Vec<HeaderValue> =
            origins.iter().filter_map(|origin| origin.as_str().parse().ok()).collect();
        (!origins.is_empty()).then_some(Self { origins, accepts_cookie })
    }

    /// Reads a request, before its route consumes it.
    pub(in crate::http) fn read(&self, request: &Request) -> CorsRequest {
        let headers = request.headers();
        let origin = headers.get(ORIGIN).filter(|origin| self.origins.contains(origin)).cloned();
        let is_preflight = request.method() == Method::OPTIONS
            && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        let requested = || {
            let mut requested = headers.get_all(ACCESS_CONTROL_REQUEST_HEADERS).iter();
            let list = requested.next().filter(|list| matches_echo_rules(list.as_bytes()));
            // Several field lines are one list (RFC 9110, section 5.3), which no browser sends.
            let list = list.filter(|_| requested.next().is_none()).cloned();
            list.unwrap_or(HeaderValue::from_static(USUAL_HEADERS))
        };
        CorsRequest { origin, preflight: is_preflight.then(requested) }
    }

    /// Completes the answer to a request, and turns the 405 that every route has for OPTIONS into
    /// the answer to a preflight.
    pub(in crate::http) fn complete(&self, request: CorsRequest, response: &mut Response) {
        if let (Some(_), Some(requested)) = (&request.origin, request.preflight) {
            let methods = response.headers().get(ALLOW).cloned();
            if let (StatusCode::METHOD_NOT_ALLOWED, Some(methods)) = (response.status(), methods) {
                *response = preflight_answer(methods, requested);
            }
        }
        let headers = response.headers_mut();
        // On every answer: a cache must not give one page's answer to another.
        headers.append(VARY, HeaderValue::from_static("origin"));
        let Some(origin) = request.origin else { return };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if self.accepts_cookie {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED_HEADERS));
    }
}

fn preflight_answer(methods: HeaderValue, requested: HeaderValue) -> Response {
    let vary = "access-control-request-method, access-control-request-headers";
    let headers = [
        (ACCESS_CONTROL_ALLOW_METHODS, methods),
        (ACCESS_CONTROL_ALLOW_HEADERS, requested),
        (ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(PREFLIGHT_MAX_AGE_SECONDS)),
        (VARY, HeaderValue::from_static(vary)),
    ];
    (StatusCode::NO_CONTENT, headers, Body::empty()).into_response()
}

/// Returns whether a list of header names may be sent back: names (RFC 9110, section 5.6.2), commas
/// and white space, and no more than a page can need.
fn matches_echo_rules(list: &[u8]) -> bool {
    let is_allowed =
        |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~, \t".contains(byte);
    !list.trim_ascii().is_empty() && list.len() <= MAX_ECHOED_BYTES && list.iter().all(is_allowed)
}

/// Headers that a page may send although its preflight lists none.
const USUAL_HEADERS: &str = "authorization, cache-control, content-type, last-event-id";

/// Headers that pages may read, beside those that they may read anyway: the wait after a refusal,
/// the scheme of a 401, and the mark of a relay.
const EXPOSED_HEADERS: &str = "retry-after, www-authenticate, autoplay-relay";

/// Chromium's maximum (two hours) for keeping the answer to a preflight; a larger value has no
/// effect there.
const PREFLIGHT_MAX_AGE_SECONDS: &str = "7200";

/// Room for a hundred names of gateways and tracers.
const MAX_ECHOED_BYTES: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::problem::Problem;

    fn preflight(origin: &str, requested: Option<&str>, answer: Problem) -> Response {
        let origins = [Origin::parse("https://app.test").unwrap()];
        let policy = CorsPolicy::new(&origins, false).unwrap();
        let mut request = Request::builder()
            .method(Method::OPTIONS)
            .header(ORIGIN, origin)
            .header(ACCESS_CONTROL_REQUEST_METHOD, "GET");
        if let Some(requested) = requested {
            request = request.header(ACCESS_CONTROL_REQUEST_HEADERS, requested);
        }
        let asked = policy.read(&request.body(Body::empty()).unwrap());
        let mut response = answer.into_response();
        policy.complete(asked, &mut response);
        response
    }

    fn allowed_headers(requested: Option<&str>) -> String {
        let answer = Problem::method_not_allowed("GET, HEAD");
        let response = preflight("https://app.test", requested, answer);
        assert_eq!(response.status(), StatusCode::NO_CONTENT);
        assert_eq!(response.headers()[ACCESS_CONTROL_ALLOW_METHODS], "GET, HEAD");
        let vary: Vec<_> = response.headers().get_all(VARY).iter().collect();
        let vary = vary.iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>().join(", ");
        assert!(vary.contains("origin") && vary.contains("access-control-request-headers"));
        response.headers()[ACCESS_CONTROL_ALLOW_HEADERS].to_str().unwrap().to_owned()
    }

    #[test]
    fn the_headers_that_a_page_asks_for_are_allowed_within_a_bound() {
        let asked = "authorization,traceparent,sentry-trace,x-gateway-key";
        assert_eq!(allowed_headers(Some(asked)), asked);
        let longest = "x".repeat(MAX_ECHOED_BYTES);
        assert_eq!(allowed_headers(Some(&longest)), longest);
        for requested in [None, Some(""), Some("a;b"), Some("a: b"), Some(&*(longest + "x"))] {
            assert_eq!(allowed_headers(requested), USUAL_HEADERS, "{requested:?}");
        }
    }

    #[test]
    fn a_preflight_is_answered_for_a_listed_origin_and_a_known_path_alone() {
        let refusal = || Problem::method_not_allowed("GET");
        let foreign = preflight("https://evil.test", Some("x"), refusal());
        assert_eq!(foreign.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert!(!foreign.headers().contains_key(ACCESS_CONTROL_ALLOW_ORIGIN));
        assert!(!foreign.headers().contains_key(ACCESS_CONTROL_ALLOW_HEADERS));
        assert_eq!(foreign.headers()[VARY], "origin");
        let nowhere = preflight("https://app.test", Some("x"), Problem::not_found("no such route"));
        assert_eq!(nowhere.status(), StatusCode::NOT_FOUND);
        assert_eq!(nowhere.headers()[ACCESS_CONTROL_ALLOW_ORIGIN], "https://app.test");
        assert!(!nowhere.headers().contains_key(ACCESS_CONTROL_ALLOW_METHODS));
    }
}
