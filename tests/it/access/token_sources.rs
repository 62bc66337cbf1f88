//! Where a token may come from (header, query, cookie), and which web pages may use it.

use super::{open, relay_without_upstream};
use crate::common::{
    STREAM,
    http::{self},
    page::PAGES,
    token::{bearer, token},
};
use serde_json::json;

#[test]
fn a_token_in_the_query_is_accepted_where_allowed_and_a_key_never() {
    let relay = relay_without_upstream("allow_query_token = true", "");
    let token = token(&json!({}));
    assert_eq!(http::status(relay.public, &format!("{STREAM}?access_token={token}"), &[]), 200);
    let limited = crate::common::token::token(&json!({"session_id": "s1"}));
    relay.get(&format!("{STREAM}?access_token={limited}&session_id=s2"), &[]).problem(403);
    for bad in ["key-of-agent-a", "key-of-all", "", "x.y.z"] {
        relay.get(&format!("{STREAM}?access_token={bad}"), &[]).problem(401);
    }
    relay
        .get(&format!("{STREAM}?access_token={token}"), &[("Authorization", "Bearer wrong")])
        .problem(401);
    let elsewhere = relay_without_upstream("", "");
    elsewhere.get(&format!("{STREAM}?access_token={token}"), &[]).problem(401);
    open(&elsewhere, &format!("{STREAM}?access_token={token}"), "Bearer key-of-agent-a");
}

#[test]
fn a_cookie_is_accepted_from_own_and_listed_origins_only() {
    let relay = relay_without_upstream(
        "cookie_name = '__Secure-relay'",
        "cors_allowed_origins = ['https://app.test', 'https://two.test:81']",
    );
    let cookie = format!("theme=dark; __Secure-relay={}; x=y", token(&json!({})));
    let status = |fields: &[(&str, &str)]| {
        let fields = [fields, &[("Cookie", &cookie), ("Host", "relay.test")]].concat();
        http::status(relay.public, STREAM, &fields)
    };
    for good in [
        [].as_slice(),
        &[("Origin", "https://relay.test")],
        &[("Origin", "https://app.test")],
        &[("Origin", "https://two.test:81"), ("Sec-Fetch-Site", "cross-site")],
        &[("Sec-Fetch-Site", "same-origin")],
        &[("Sec-Fetch-Site", "none")],
    ] {
        assert_eq!(status(good), 200, "{good:?}");
    }
    for bad in [
        [("Origin", "https://evil.test")].as_slice(),
        &[("Origin", "null")],
        &[("Origin", "")],
        &[("Origin", "https://relay.test:8443")],
        &[("Origin", "https://relay.test.evil.test")],
        &[("Origin", "https://two.test")],
        &[("Origin", "https://app.test"), ("Origin", "https://evil.test")],
        &[("Sec-Fetch-Site", "cross-site")],
        &[("Sec-Fetch-Site", "same-site")],
        &[("Sec-Fetch-Site", "")],
    ] {
        assert_eq!(status(bad), 401, "{bad:?}");
    }
}

#[test]
fn a_cookie_carries_no_key_and_does_not_replace_an_invalid_header() {
    let relay = relay_without_upstream("cookie_name = 'relay'\nallow_query_token = true", "");
    let good = format!("relay={}", token(&json!({})));
    let status = |path: &str, fields: &[(&str, &str)]| http::status(relay.public, path, fields);
    assert_eq!(status(STREAM, &[("Cookie", &good)]), 200);
    assert_eq!(status(STREAM, &[("Cookie", "a=b"), ("Cookie", &good)]), 200);
    for cookie in
        ["relay=key-of-all", "relay=x.y.z", "xrelay=key-of-all", &good.replace("relay=", "Relay=")]
    {
        assert_eq!(status(STREAM, &[("Cookie", cookie)]), 401, "{cookie}");
    }
    assert_eq!(status(STREAM, &[("Cookie", &good), ("Authorization", "Bearer wrong")]), 401);
    assert_eq!(
        status(STREAM, &[("Cookie", "relay=x.y.z"), ("Authorization", "Bearer key-of-all")]),
        200
    );
    let in_query = format!("{STREAM}?access_token={}", token(&json!({})));
    assert_eq!(status(&in_query, &[("Cookie", "relay=x.y.z")]), 401);
    assert_eq!(status(&format!("{STREAM}?access_token=x.y.z"), &[("Cookie", &good)]), 200);
    let without = relay_without_upstream("", "");
    assert_eq!(http::status(without.public, STREAM, &[("Cookie", &good)]), 401);
}

#[test]
fn cors_headers_name_exactly_the_listed_origins() {
    let lines = "cors_allowed_origins = ['https://app.test']";
    for (jwt_lines, with_cookie) in [("cookie_name = 'relay'", Some("true")), ("", None)] {
        let relay = relay_without_upstream(jwt_lines, lines);
        let authorization = bearer(&json!({}));
        let ask = |method: &str, path: &str, origin: Option<&str>, authorization: &str| {
            let mut fields =
                vec![("Authorization", authorization), ("Access-Control-Request-Method", "POST")];
            fields.extend(origin.map(|origin| ("Origin", origin)));
            http::ask(relay.public, method, path, &fields)
        };
        for (method, path, authorization) in [
            ("GET", PAGES, authorization.as_str()),
            ("GET", PAGES, "Bearer wrong"),
            ("GET", "/nothing", ""),
            ("DELETE", STREAM, ""),
            ("OPTIONS", STREAM, "Bearer wrong"),
        ] {
            for (origin, is_listed) in [
                (Some("https://app.test"), true),
                (Some("https://evil.test"), false),
                (Some("null"), false),
                (None, false),
            ] {
                let answer = ask(method, path, origin, authorization);
                let what = format!("{method} {path} {origin:?} {with_cookie:?}: {answer:?}");
                assert_eq!(
                    answer.field("access-control-allow-origin"),
                    origin.filter(|_| is_listed),
                    "{what}"
                );
                assert_eq!(
                    answer.field("access-control-allow-credentials"),
                    with_cookie.filter(|_| is_listed),
                    "{what}"
                );
                let vary: Vec<_> = answer
                    .head
                    .fields
                    .iter()
                    .filter(|field| field.0 == "vary")
                    .map(|field| field.1.to_ascii_lowercase())
                    .collect();
                assert!(vary.join(",").split(',').any(|name| name.trim() == "origin"), "{what}");
            }
        }
        let preflight = ask("OPTIONS", "/events/prod_abc", Some("https://app.test"), "");
        assert!(matches!(preflight.status(), 200 | 204));
        let methods = preflight.field("access-control-allow-methods").unwrap();
        assert!(
            methods.contains("GET") && methods.contains("POST") && !methods.contains("DELETE"),
            "{methods}"
        );
        assert_eq!(preflight.field("access-control-max-age"), Some("7200"));
    }
}
