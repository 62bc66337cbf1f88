//! Access by keys, anonymous access, allowed hosts and origins, and the admin key.

use crate::common::{
    PRODUCT, STREAM, http,
    page::PAGES,
    relay::{KEYS, Relay, Setup},
    subscriber::Subscriber,
};

#[test]
fn a_key_grants_its_products_only() {
    let relay = with_keys("");
    let agent = bearer("key-of-agent-a");
    open(&relay, STREAM, &agent);
    relay.get("/stream/prod_xyz", &fields(&agent)).problem(403);
    let all = bearer("key-of-all");
    open(&relay, STREAM, &all);
    open(&relay, "/stream/prod_xyz", &all);
    relay.get("/stream/prod_nothing", &fields(&all)).problem(404);
    relay.get("/stream/prod_nothing", &fields(&agent)).problem(403);
}

#[test]
fn a_key_without_subscribe_permission_gets_403() {
    let relay = with_keys("");
    relay.get(STREAM, &[("Authorization", "Bearer key-of-publisher")]).problem(403);
}

#[test]
fn a_key_publishes_at_its_rate_over_all_products_and_invalid_bodies_count() {
    let key = |name: &str, rate: usize| {
        format!(
            "[[auth.keys]]\nname = '{name}'\nkey = 'key-of-{name}'\nproducts = ['*']\n\
             permissions = ['publish']\nmax_publishes_per_second = {rate}\n"
        )
    };
    let keys = key("slow", 1) + &key("slow-too", 1) + &key("quick", 1000);
    let products = ["a", "b"].map(|id| format!("[[products]]\nproduct_id = '{id}'\n")).concat();
    let relay = Setup::new().auth(&keys).more(&products).start();
    let publish = |name: &str, product: &str, body: &str| {
        let key = bearer(&format!("key-of-{name}"));
        http::ask_with(relay.public, "POST", &format!("/events/{product}"), &fields(&key), body)
    };
    let note = r#"{"type":"note"}"#;
    assert_eq!(publish("slow", "a", note).status(), 202);
    // One is refilled in a second, which may pass meanwhile; a dozen may not.
    let refused = (0..12).map(|_| publish("slow", "b", note)).find(|it| it.status() != 202);
    let refused = refused.expect("one of a dozen is refused").problem(429);
    assert_eq!(refused.field("retry-after"), Some("1"));
    for _ in 0..12 {
        publish("slow", "nowhere", note).problem(404);
    }
    // An invalid body counts like a valid one.
    let statuses: Vec<_> = (0..12).map(|_| publish("slow-too", "a", "{}").status()).collect();
    assert_eq!(statuses[0], 400);
    assert!(statuses.contains(&429), "{statuses:?}");
    for _ in 0..24 {
        assert_eq!(publish("quick", "a", note).status(), 202, "another key has its own rate");
    }
}

#[test]
fn a_missing_or_invalid_credential_gets_401_with_a_challenge() {
    let relay = with_keys("");
    let bad = [
        "Bearer wrong",
        "Bearer ",
        "Bearer",
        "Basic a2V5LW9mLWFnZW50LWE=",
        "key-of-agent-a",
        "Bearer key-of-agent-a x",
        "Bearer key-of-agent",
    ];
    for authorization in bad {
        let answer = relay.get(STREAM, &[("Authorization", authorization)]).problem(401);
        assert!(
            answer.field("www-authenticate").is_some_and(|way| way.starts_with("Bearer")),
            "{authorization}"
        );
    }
    let answer = relay.get(STREAM, &[]).problem(401);
    assert_eq!(answer.field("www-authenticate"), Some("Bearer"));
    relay.get("/stream/prod_nothing", &[]).problem(401);
    open(&relay, STREAM, &bearer("key-of-agent-a").replace("Bearer", "bearer"));
}

#[test]
fn an_invalid_token_gets_401_even_where_anonymous_is_allowed() {
    let relay = with_keys("allow_anonymous = true");
    relay.subscribe();
    relay.get(STREAM, &[("Authorization", "Bearer wrong")]).problem(401);
    open(&relay, STREAM, &bearer("key-of-agent-a"));
    relay.get("/stream/prod_nothing", &[]).problem(404);
}

#[test]
fn an_anonymous_client_without_subscribe_permission_gets_401() {
    let relay = with_keys("allow_anonymous = true\nanonymous_permissions = ['publish']");
    let answer = relay.get(STREAM, &[]).problem(401);
    assert_eq!(answer.field("www-authenticate"), Some("Bearer"));
    open(&relay, STREAM, &bearer("key-of-agent-a"));
}

#[test]
fn a_key_in_the_query_is_refused() {
    for auth in ["", "allow_anonymous = true"] {
        let relay = with_keys(auth);
        relay.get(&format!("{STREAM}?access_token=key-of-agent-a"), &[]).problem(401);
    }
}

#[test]
fn a_relay_without_credentials_answers_allowed_hosts_only() {
    let relay = anonymous("allowed_hosts = ['relay.test', 'with-port.test:8443']");
    let port = relay.public.port();
    let good = [
        format!("localhost:{port}"),
        "LOCALHOST".to_owned(),
        "127.0.0.1".to_owned(),
        "[::1]:80".to_owned(),
        "192.0.2.7:1".to_owned(),
        "relay.test".to_owned(),
        "Relay.Test:99".to_owned(),
        "with-port.test:8443".to_owned(),
    ];
    for host in &good {
        open_with(&relay, &[("Host", host)]);
    }
    let foreign = [
        "evil.test",
        "localhost.evil.test",
        "127.0.0.1.evil.test",
        "relay.test.evil",
        "with-port.test:1",
    ];
    for host in foreign {
        relay.get(STREAM, &[("Host", host)]).problem(403);
        relay.get("/nothing", &[("Host", host)]).problem(403);
    }
    relay.get(STREAM, &[("Host", "")]).problem(400);
}

#[test]
fn a_relay_without_credentials_answers_allowed_origins_only() {
    let relay =
        anonymous("cors_allowed_origins = ['https://app.test']\nallowed_hosts = ['relay.test']");
    for origin in
        ["https://app.test", "http://localhost:3000", "http://127.0.0.1:9", "https://relay.test"]
    {
        open_with(&relay, &[("Origin", origin)]);
    }
    for origin in [
        "https://evil.test",
        "null",
        "https://app.test.evil.test",
        "http://app.test",
        "https://app.test:444",
    ] {
        relay.get(STREAM, &[("Origin", origin)]).problem(403);
    }
}

#[test]
fn a_relay_without_credentials_refuses_cross_site_requests_without_an_origin() {
    let relay = anonymous("cors_allowed_origins = ['https://app.test']");
    for site in ["cross-site", "same-site"] {
        for mode in ["no-cors", "cors", "websocket", ""] {
            let fields = [("Sec-Fetch-Site", site), ("Sec-Fetch-Mode", mode)];
            relay.get(STREAM, &fields).problem(403);
            relay.get("/events/prod_abc", &fields).problem(403);
            http::ask(relay.public, "POST", "/events/prod_abc", &fields).problem(403);
            http::get(relay.admin, "/api/v1/status", &fields).problem(403);
            http::ask(relay.admin, "DELETE", "/api/v1/subscribers/1", &fields).problem(403);
        }
        relay.get(STREAM, &[("Sec-Fetch-Site", site)]).problem(403);
        let link = [("Sec-Fetch-Site", site), ("Sec-Fetch-Mode", "navigate")];
        assert_eq!(http::get(relay.admin, "/api/v1/status", &link).status(), 200);
        open_with(&relay, &link);
        open_with(
            &relay,
            &[("Sec-Fetch-Site", site), ("Sec-Fetch-Mode", "cors"), ("Origin", "https://app.test")],
        );
    }
    for site in ["same-origin", "none"] {
        open_with(&relay, &[("Sec-Fetch-Site", site), ("Sec-Fetch-Mode", "cors")]);
    }
}

#[test]
fn every_response_forbids_content_type_sniffing() {
    let lines = "probe_listen = '127.0.0.1:0'\ncors_allowed_origins = ['https://app.test']";
    let relay = anonymous(lines);
    let evil = [("Origin", "https://evil.test")];
    let preflight = [("Origin", "https://app.test"), ("Access-Control-Request-Method", "GET")];
    for (to, method, path, fields) in [
        (relay.public, "GET", "/events/prod_abc", [].as_slice()),
        (relay.public, "GET", "/events/prod_abc", &evil),
        (relay.public, "GET", "/ws/prod_abc", &[]),
        (relay.public, "GET", "/nothing", &[]),
        (relay.public, "PUT", STREAM, &[]),
        (relay.public, "OPTIONS", STREAM, &preflight),
        (relay.admin, "GET", "/api/v1/status", &[]),
        (relay.admin, "GET", "/metrics", &evil),
        (relay.admin, "GET", "/nothing", &[]),
        (relay.probe.unwrap(), "GET", "/metrics", &[]),
        (relay.probe.unwrap(), "GET", "/nothing", &[]),
    ] {
        let answer = http::ask(to, method, path, fields);
        assert_eq!(
            answer.field("x-content-type-options"),
            Some("nosniff"),
            "{method} {path}: {answer:?}"
        );
    }
    let streams =
        [open_with(&relay, &[]), Subscriber::open(relay.admin, "/api/v1/stream/prod_abc", &[])];
    assert!(
        streams.iter().all(|stream| stream.head.field("x-content-type-options") == Some("nosniff"))
    );
}

#[test]
fn an_admin_listener_without_a_key_refuses_web_pages_on_every_route() {
    let relay = anonymous("probe_listen = '127.0.0.1:0'");
    for path in ["/metrics", "/healthz", "/readyz", "/api/v1/status", "/"] {
        http::get(relay.admin, path, &[("Host", "evil.test")]).problem(403);
        http::get(relay.admin, path, &[("Origin", "https://evil.test")]).problem(403);
    }
    let probe = relay.probe.unwrap();
    for path in ["/metrics", "/healthz", "/readyz"] {
        assert_eq!(http::get(relay.admin, path, &[("Host", "localhost")]).status(), 200, "{path}");
        let elsewhere = [("Host", "pod.cluster.test"), ("Origin", "https://evil.test")];
        assert_eq!(
            http::get(probe, path, &elsewhere).status(),
            200,
            "{path} of the probe listener"
        );
    }
}

#[test]
fn host_and_origin_are_not_checked_where_a_credential_is_required() {
    let relay = with_keys("admin_key = 'the-admin-key-of-this-test'");
    let authorization = bearer("key-of-agent-a");
    let elsewhere = [
        ("Host", "relay.example.com"),
        ("Origin", "https://evil.test"),
        ("Authorization", &authorization),
    ];
    open_with(&relay, &elsewhere);
    assert_eq!(http::get(relay.admin, "/metrics", &elsewhere[..2]).status(), 200);
}

#[test]
fn only_pages_of_listed_origins_may_read() {
    let relay =
        with_keys_and("", "cors_allowed_origins = ['https://app.test', 'https://two.test']");
    let authorization = bearer("key-of-agent-a");
    let of = |origin| {
        let subscriber =
            open_with(&relay, &[("Origin", origin), ("Authorization", &authorization)]);
        let head = &subscriber.head;
        assert_eq!(head.field("access-control-allow-credentials"), None);
        (
            head.field("access-control-allow-origin").map(str::to_owned),
            head.field("vary").map(str::to_owned),
        )
    };
    for origin in ["https://app.test", "https://two.test"] {
        let (allowed, vary) = of(origin);
        assert_eq!(allowed.as_deref(), Some(origin));
        assert!(vary.is_some_and(|vary| vary.to_ascii_lowercase().contains("origin")));
    }
    assert_eq!(of("https://evil.test").0, None);
    let denied = relay.get(STREAM, &[("Origin", "https://app.test")]).problem(401);
    assert_eq!(
        denied.field("access-control-allow-origin"),
        Some("https://app.test"),
        "pages may read the reason"
    );
}

#[test]
fn a_preflight_of_a_listed_origin_is_answered_without_a_credential() {
    let relay = with_keys_and("", "cors_allowed_origins = ['https://app.test']");
    let preflight = |origin| {
        let fields = [
            ("Origin", origin),
            ("Access-Control-Request-Method", "GET"),
            ("Access-Control-Request-Headers", "authorization,last-event-id"),
        ];
        http::ask(relay.public, "OPTIONS", STREAM, &fields)
    };
    let answer = preflight("https://app.test");
    assert!(matches!(answer.status(), 200 | 204), "{answer:?}");
    assert_eq!(answer.field("access-control-allow-origin"), Some("https://app.test"));
    let allowed = answer.field("access-control-allow-headers").unwrap().to_ascii_lowercase();
    assert!(allowed.contains("authorization") && allowed.contains("last-event-id"), "{allowed}");
    assert!(answer.field("access-control-allow-methods").unwrap().contains("GET"));
    assert_eq!(preflight("https://evil.test").field("access-control-allow-origin"), None);
}

#[test]
fn the_admin_api_requires_its_key() {
    let relay = with_keys("admin_key = 'the-admin-key-of-this-test'");
    let status = |fields: &[(&str, &str)]| http::get(relay.admin, "/api/v1/status", fields);
    assert_eq!(status(&[("X-Admin-Key", "the-admin-key-of-this-test")]).status(), 200);
    assert_eq!(status(&[("Authorization", "Bearer the-admin-key-of-this-test")]).status(), 200);
    for bad in [
        [].as_slice(),
        &[("X-Admin-Key", "wrong")],
        &[("X-Admin-Key", "")],
        &[("Authorization", "Bearer key-of-agent-a")],
        &[("Authorization", "the-admin-key-of-this-test")],
    ] {
        status(bad).problem(401);
    }
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(relay.ask_admin(path).status(), 200, "{path} needs no key");
    }
    let as_subscriber = [("Authorization", "Bearer the-admin-key-of-this-test")];
    relay.get(STREAM, &as_subscriber).problem(401);
}

#[test]
fn the_public_listener_has_no_admin_route() {
    let relay = with_keys("admin_key = 'the-admin-key-of-this-test'");
    let keys = [
        ("X-Admin-Key", "the-admin-key-of-this-test"),
        ("Authorization", "Bearer the-admin-key-of-this-test"),
    ];
    for path in [
        "/",
        "/healthz",
        "/readyz",
        "/metrics",
        "/products",
        "/api/v1/status",
        "/api/v1/subscribers",
    ]
    .into_iter()
    .chain([
        "/api/v1/webhooks",
        "/api/v1/rejected",
        "/api/v1/stream/prod_abc",
        "/api/v1/events/prod_abc",
    ]) {
        for method in ["GET", "POST", "DELETE"] {
            http::ask(relay.public, method, path, &keys).problem(404);
        }
    }
    relay.get(PAGES, &keys).problem(401);
    http::ask(relay.public, "DELETE", PAGES, &keys).problem(405);
}

fn with_keys(auth: &str) -> Relay {
    with_keys_and(auth, "")
}

fn with_keys_and(auth: &str, server: &str) -> Relay {
    two_products().auth(&format!("{auth}\n{KEYS}")).server(server).start()
}

fn anonymous(server: &str) -> Relay {
    two_products().server(server).start()
}

fn two_products() -> Setup {
    Setup::new().upstream(PRODUCT, "http://127.0.0.1:1/stream/prod_abc", "").upstream(
        "prod_xyz",
        "http://127.0.0.1:1/stream/prod_xyz",
        "",
    )
}

fn bearer(key: &str) -> String {
    format!("Bearer {key}")
}

fn fields(authorization: &str) -> [(&str, &str); 1] {
    [("Authorization", authorization)]
}

fn open(relay: &Relay, path: &str, authorization: &str) -> Subscriber {
    Subscriber::open(relay.public, path, &fields(authorization))
}

fn open_with(relay: &Relay, fields: &[(&str, &str)]) -> Subscriber {
    Subscriber::open(relay.public, STREAM, fields)
}
