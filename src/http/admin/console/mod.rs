//! The console: the page at `GET /` of the admin listener, from which an operator watches the
//! relay.
//!
//! In: requests for the page and its files, which are part of the program. Out: the files, under a
//! content security policy that lets a browser run, show and load nothing but the relay itself. The
//! files hold no secrets and need no key; the API calls that the page makes do.
//!
//! May use: no other module.

use std::sync::Arc;

use axum::{Router, response::IntoResponse, routing::get};
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, REFERRER_POLICY,
};

use super::AdminState;

/// The routes of the page and its files.
pub(in crate::http) fn routes() -> Router<Arc<AdminState>> {
    CONSOLE_FILES.into_iter().fold(Router::new(), |router, (path, kind, text)| {
        router.route(path, get(move || async move { (headers(kind), text).into_response() }))
    })
}

fn headers(kind: &'static str) -> [(HeaderName, &'static str); 5] {
    [
        (CONTENT_TYPE, kind),
        (CONTENT_SECURITY_POLICY, CONSOLE_CSP),
        (REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        // A page of one version and scripts of another would be a riddle.
        (CACHE_CONTROL, "no-store"),
    ]
}

/// Payloads are written by strangers: whatever they hold, nothing in the page may run or load but
/// its own files.
const CONSOLE_CSP: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

const CONSOLE_FILES: [(&str, &str, &str); 13] = [
    ("/", "text/html; charset=utf-8", include_str!("index.html")),
    ("/console/console.css", "text/css; charset=utf-8", include_str!("console.css")),
    ("/console/api.js", JAVASCRIPT, include_str!("api.js")),
    ("/console/charts.js", JAVASCRIPT, include_str!("charts.js")),
    ("/console/console.js", JAVASCRIPT, include_str!("console.js")),
    ("/console/metrics.js", JAVASCRIPT, include_str!("metrics.js")),
    ("/console/page.js", JAVASCRIPT, include_str!("page.js")),
    ("/console/rates.js", JAVASCRIPT, include_str!("rates.js")),
    ("/console/rejected.js", JAVASCRIPT, include_str!("rejected.js")),
    ("/console/status.js", JAVASCRIPT, include_str!("status.js")),
    ("/console/stream.js", JAVASCRIPT, include_str!("stream.js")),
    ("/console/tail.js", JAVASCRIPT, include_str!("tail.js")),
    ("/console/webhooks.js", JAVASCRIPT, include_str!("webhooks.js")),
];
