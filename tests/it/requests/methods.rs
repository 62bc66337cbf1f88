//! Methods: one list per route, for HEAD, OPTIONS, 405 and preflights.

use crate::common::{
    PRODUCT, SOCKET, STREAM,
    http::{self, Answer},
    page::PAGES,
    relay::{Relay, Setup},
};

#[test]
fn head_is_answered_where_get_is_without_a_subscription() {
    let relay = listed();
    for (path, kind) in [(STREAM, "text/event-stream"), (PAGES, "application/json")] {
        let head = http::ask(relay.public, "HEAD", path, &[]);
        assert_eq!((head.status(), head.field("content-type")), (200, Some(kind)), "{path}");
        assert_eq!(head.field("content-length"), None, "what GET would have is not known");
        let refused = http::ask(relay.public, "HEAD", &format!("{path}?types=x"), &[]);
        assert_eq!(refused.status(), 400, "{path}");
    }
    let head = http::ask(relay.public, "HEAD", STREAM, &[]);
    assert_eq!(head.field("autoplay-relay"), Some("resume"));
    assert_eq!(relay.status()["subscribers"], serde_json::json!({}));
    let labels = [("product_id", PRODUCT), ("transport", "sse")];
    assert_eq!(relay.metrics().value("autoplay_relay_subscribers", &labels).unwrap_or(0.0), 0.0);
}

#[test]
fn head_is_answered_on_the_admin_side_too_and_not_for_a_socket() {
    let relay = listed();
    for path in ["/api/v1/stream/prod_abc", "/api/v1/subscribers", "/healthz", "/metrics", "/"] {
        assert_eq!(http::ask(relay.admin, "HEAD", path, &[]).status(), 200, "{path}");
    }
    let socket = http::ask(relay.public, "HEAD", SOCKET, &[]);
    assert_eq!((socket.status(), socket.field("allow")), (405, Some("GET")));
    assert_eq!(http::ask(relay.public, "HEAD", "/stream/prod_xyz", &[]).status(), 404);
}

#[test]
fn each_route_allows_what_it_answers() {
    let relay = listed();
    for (to, path, allowed) in [
        (relay.public, STREAM, "GET, HEAD"),
        (relay.public, SOCKET, "GET"),
        (relay.public, PAGES, "GET, HEAD, POST"),
        (relay.admin, "/api/v1/stream/prod_abc", "GET, HEAD"),
        (relay.admin, "/api/v1/events/prod_abc", "DELETE"),
        (relay.admin, "/api/v1/webhooks/x", "GET, HEAD, PUT, DELETE"),
        (relay.admin, "/products", "POST"),
        (relay.admin, "/readyz", "GET, HEAD"),
    ] {
        let refused = http::ask(to, "PATCH", path, &[("Content-Length", "0")]).problem(405);
        assert_eq!(refused.field("allow"), Some(allowed), "{path}");
    }
}

#[test]
fn a_preflight_allows_the_methods_of_its_route_and_an_unknown_path_is_404() {
    let relay = listed();
    for (path, methods) in [(STREAM, "GET, HEAD"), (PAGES, "GET, HEAD, POST"), (SOCKET, "GET")] {
        let answer = preflight(&relay, path, "https://app.test", "authorization");
        assert_eq!(answer.status(), 204, "{path}");
        assert_eq!(answer.field("access-control-allow-methods"), Some(methods), "{path}");
    }
    for path in ["/nothing", "/stream", "/stream/prod_abc/more"] {
        let answer = preflight(&relay, path, "https://app.test", "authorization").problem(404);
        assert_eq!(answer.field("access-control-allow-methods"), None, "{path}");
        http::ask(relay.public, "OPTIONS", path, &[]).problem(404);
    }
}

#[test]
fn a_listed_page_may_send_the_headers_of_its_tracer_and_its_gateway() {
    let relay = listed();
    let asked = "authorization,traceparent,sentry-trace,x-gateway-key";
    for path in [STREAM, PAGES] {
        let answer = preflight(&relay, path, "https://app.test", asked);
        assert_eq!(answer.field("access-control-allow-headers"), Some(asked), "{path}");
        assert_eq!(answer.field("access-control-allow-origin"), Some("https://app.test"));
        let fields = answer.head.fields.iter().filter(|field| field.0 == "vary");
        let vary = fields.map(|field| field.1.clone()).collect::<Vec<_>>().join(", ");
        assert!(vary.contains("access-control-request-headers") && vary.contains("origin"));
    }
}

#[test]
fn an_overlong_list_of_headers_is_not_echoed() {
    let relay = listed();
    let many = "x-a,".repeat(2000);
    let answer = preflight(&relay, STREAM, "https://app.test", &many);
    let allowed = answer.field("access-control-allow-headers").unwrap();
    assert!(allowed.contains("authorization") && allowed.len() < 200, "{allowed}");
}

#[test]
fn a_page_that_is_not_listed_is_allowed_nothing() {
    let relay = listed();
    let answer = preflight(&relay, STREAM, "https://evil.test", "traceparent");
    for name in ["origin", "methods", "headers"] {
        assert_eq!(answer.field(&format!("access-control-allow-{name}")), None, "{answer:?}");
    }
}

fn preflight(relay: &Relay, path: &str, origin: &str, headers: &str) -> Answer {
    let fields = [
        ("Origin", origin),
        ("Access-Control-Request-Method", "GET"),
        ("Access-Control-Request-Headers", headers),
    ];
    http::ask(relay.public, "OPTIONS", path, &fields)
}

fn listed() -> Relay {
    let server = "cors_allowed_origins = ['https://app.test']";
    Setup::new().upstream(PRODUCT, "http://127.0.0.1:1/stream/prod_abc", "").server(server).start()
}
