//! Clients that are refused again and again, as `autoplay-sdk` is with a wrong key: counted, and
//! logged once a minute.

use crate::common::{
    STREAM,
    http::{self, Answer},
    relay::{KEYS, Relay},
    token::jwt,
    wait,
};

use super::setup;

fn relay() -> Relay {
    setup("", "trusted_proxies = ['127.0.0.1']")
        .auth(&format!("admin_key = 'the-admin-key'\n{}\n{KEYS}", jwt("")))
        .start()
}

fn refused(relay: &Relay, listener: &str, reason: &str) -> f64 {
    let labels = [("listener", listener), ("reason", reason)];
    relay.metrics().value("autoplay_relay_refused_total", &labels).unwrap()
}

/// Waits for `count` warnings about refused requests: address, reason and count of each.
fn warnings(relay: &Relay, count: usize) -> Vec<(String, String, u64)> {
    wait::value("the warnings are logged", || {
        Some(warnings_so_far(relay)).filter(|warnings| warnings.len() >= count)
    })
}

fn warnings_so_far(relay: &Relay) -> Vec<(String, String, u64)> {
    let lines = relay.process.stderr.so_far().into_iter();
    let lines = lines.filter_map(|line| serde_json::from_str::<serde_json::Value>(&line).ok());
    let lines = lines.filter(|line| line["level"] == "WARN" && line["refused"].is_u64());
    lines
        .map(|line| {
            let text = |field: &str| line[field].as_str().unwrap().to_owned();
            (text("address"), text("reason"), line["refused"].as_u64().unwrap())
        })
        .collect()
}

fn ask(relay: &Relay, key: &str, from: &str) -> Answer {
    let key = format!("Bearer {key}");
    relay.get(STREAM, &[("Authorization", &key), ("X-Forwarded-For", from)])
}

#[test]
fn a_wrong_key_once_a_second_is_counted_and_is_one_line() {
    let relay = relay();
    for _ in 0..20 {
        ask(&relay, "wrong", "192.0.2.1").problem(401);
    }
    assert_eq!(refused(&relay, "public", "bad_credential"), 20.0);
    let expected = ("192.0.2.1".to_owned(), "bad_credential".to_owned(), 1);
    assert_eq!(warnings(&relay, 1), [expected], "once a minute, whatever comes");
    ask(&relay, "wrong", "[::ffff:192.0.2.2]:80").problem(401);
    let addresses: Vec<_> = warnings(&relay, 2).into_iter().map(|(address, ..)| address).collect();
    assert_eq!(addresses, ["192.0.2.1", "192.0.2.2"], "each address has its own");
}

#[test]
fn each_reason_is_counted_on_each_listener() {
    let relay = relay();
    relay.get(STREAM, &[]).problem(401);
    relay.get("/ws/prod_abc", &[]).problem(401);
    relay.get(STREAM, &[("Authorization", "Basic eA==")]).problem(401);
    // An authentic key, for something else; and a product that is not served.
    ask(&relay, "key-of-publisher", "192.0.2.1").problem(403);
    let all = [("Authorization", "Bearer key-of-all")];
    relay.get("/stream/prod_none", &all).problem(404);
    let public = ["no_credential", "bad_credential", "not_allowed"]
        .map(|reason| refused(&relay, "public", reason));
    assert_eq!(public, [2.0, 1.0, 2.0]);

    let admin = |fields: &[(&str, &str)]| http::get(relay.admin, "/api/v1/status", fields);
    admin(&[]).problem(401);
    admin(&[("X-Admin-Key", "wrong")]).problem(401);
    admin(&[("Authorization", "Basic eA==")]).problem(401);
    let of_admin = ["no_credential", "bad_credential", "not_allowed"]
        .map(|reason| refused(&relay, "admin", reason));
    assert_eq!(of_admin, [1.0, 2.0, 0.0]);
}

#[test]
fn served_and_malformed_requests_are_not_counted_as_refusals() {
    let relay = relay();
    let all = [("Authorization", "Bearer key-of-all")];
    assert_eq!(relay.get("/events/prod_abc", &all).status(), 200);
    relay.get("/events/prod_abc?limit=x", &all).problem(400);
    relay.get("/nowhere", &all).problem(404);
    http::ask(relay.public, "PUT", STREAM, &all).problem(405);
    let metrics = relay.metrics();
    let of_all = ["public", "admin"].into_iter().flat_map(|listener| {
        ["no_credential", "bad_credential", "not_allowed"].map(|reason| {
            let labels = [("listener", listener), ("reason", reason)];
            metrics.value("autoplay_relay_refused_total", &labels).unwrap()
        })
    });
    assert_eq!(of_all.sum::<f64>(), 0.0);
    assert!(warnings(&relay, 0).is_empty());
}

#[test]
fn a_warning_shows_no_part_of_a_credential() {
    let relay = relay();
    ask(&relay, "a-secret-that-is-nearly-right", "192.0.2.1").problem(401);
    warnings(&relay, 1);
    let log = relay.process.stderr.so_far().join("\n");
    assert!(log.contains("192.0.2.1") && !log.contains("nearly-right"), "{log}");
}
