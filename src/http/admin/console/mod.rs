//! The console: the page at `GET /` of the admin listener, from which an operator watches the
//! relay.
//!
//! In: requests for the page and its files, which are part of the program. Out: the files, under a
//! content security policy that lets a browser run, show and load nothing but the relay itself. The
//! files hold no secrets and need no key; the API calls that the page makes do.
//!
//! May use: no other module.

use std::sync::Arc;

use axum::{Router, response::IntoResponse};
use hyper::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, REFERRER_POLICY,
};

use super::state::AdminState;
use crate::http::methods::RouteMethods;

/// Returns the routes of the page and its files.
pub(in crate::http) fn routes() -> Router<Arc<AdminState>> {
    RouteMethods::router(CONSOLE_FILES.map(|(path, kind, text)| {
        let file = move || async move { (headers(kind), text).into_response() };
        (path, RouteMethods::new().get(file))
    }))
}

fn headers(kind: &'static str) -> [(HeaderName, &'static str); 5] {
    [
        (CONTENT_TYPE, kind),
        (CONTENT_SECURITY_POLICY, CONSOLE_CSP),
        (REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        // After an upgrade a cached page must not run with scripts of another version.
        (CACHE_CONTROL, "no-store"),
    ]
}

/// Payloads are written by strangers: the page may run and load its own files only, not
/// code in a payload. `frame-ancestors 'none'` keeps other sites from framing it (clickjacking);
/// `data:` is for the empty icon.
const CONSOLE_CSP: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    connect-src 'self'; img-src 'self' data:; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";

/// Path, content type and text of each file. Plain files: no build step, nothing from elsewhere.
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
