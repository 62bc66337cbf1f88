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

/// Answers preflights, without a credential, and marks what pages of these origins may read.
/// Nothing is for all origins, so that credentials never are. `Vary` stands on every answer: a
/// cache must not give one page's answer to another.
pub(in crate::http) fn layer(origins: &[Origin], accepts_cookie: bool) -> CorsLayer {
    let origins: Vec<HeaderValue> =
        origins.iter().filter_map(|origin| origin.as_str().parse().ok()).collect();
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
        .expose_headers([RETRY_AFTER, WWW_AUTHENTICATE, HeaderName::from_static("autoplay-relay")])
        .max_age(PREFLIGHT_MAX_AGE)
}

/// What browsers keep a preflight's answer for at the most.
const PREFLIGHT_MAX_AGE: Duration = Duration::from_secs(2 * 60 * 60);
