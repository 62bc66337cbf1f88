//! CORS answers: which pages may read the relay's responses (Fetch standard, CORS protocol).
//!
//! May use: `config`.

use std::time::Duration;

use hyper::{
    Method,
    header::{
        AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER,
        WWW_AUTHENTICATE,
    },
};
use tower_http::cors::{AllowCredentials, CorsLayer};

use crate::config::Origin;

/// Returns the layer that answers preflights, without a credential, and marks answers that pages of
/// `origins` may read.
///
/// Credentials are allowed only with a cookie configured, and only for listed origins. No answer is
/// marked for all origins, with which the Fetch standard forbids credentials. `Vary: Origin` is on
/// every answer, because a cache must not give one page's answer to another.
pub(in crate::http) fn layer(origins: &[Origin], accepts_cookie: bool) -> CorsLayer {
    let origins: Vec<HeaderValue> =
        origins.iter().filter_map(|origin| origin.as_str().parse().ok()).collect();
    // A predicate instead of `true`: tower-http would otherwise also send
    // `Access-Control-Allow-Credentials` to origins that are not listed.
    let listed = origins.clone();
    let credentials =
        AllowCredentials::predicate(move |origin, _| accepts_cookie && listed.contains(origin));
    CorsLayer::new()
        .allow_origin(origins)
        .allow_credentials(credentials)
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([
            AUTHORIZATION,
            CACHE_CONTROL,
            CONTENT_TYPE,
            HeaderName::from_static("last-event-id"),
        ])
        // Beside the headers that pages may read anyway: the wait after a refusal, the scheme of a
        // 401, and the mark of a relay.
        .expose_headers([RETRY_AFTER, WWW_AUTHENTICATE, HeaderName::from_static("autoplay-relay")])
        .max_age(PREFLIGHT_MAX_AGE)
}

/// As long as Chromium keeps the answer to a preflight at most; a larger value has no effect there.
const PREFLIGHT_MAX_AGE: Duration = Duration::from_secs(2 * 60 * 60);
