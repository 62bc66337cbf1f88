//! The list of rejected frames.

use crate::common::{
    PRODUCT,
    connector::{Connector, Link},
    events::event,
    http,
    relay::{Relay, Setup},
};
use serde_json::{Value, json};

#[test]
fn rejected_frames_are_listed_newest_first_with_an_excerpt() {
    let (relay, mut link) = relay();
    assert_eq!(relay.ask_admin("/api/v1/rejected").json(), json!({ "rejected": [] }));
    let long = format!("[\"{}\"]", "ä".repeat(400));
    for payload in
        ["{", "{\"product_id\":\"prod_abc\"}", "{\"type\":\"a\",\"product_id\":\"other\"}", &long]
    {
        link.event(payload);
    }
    link.event(format!("{{\"type\":\"a\",\"x\":\"{}\"}}", "x".repeat(2000)));
    let rejected = rejected(&relay, &mut link);
    let listed: Vec<_> = rejected
        .iter()
        .map(|frame| (frame["reason"].as_str().unwrap(), frame["bytes"].as_u64()))
        .collect();
    let expected = [
        ("too_large", None),
        ("not_an_object", Some(804)),
        ("wrong_product", Some(33)),
        ("no_type", Some(25)),
        ("invalid_json", Some(1)),
    ];
    assert_eq!(listed, expected);
    assert_eq!((&rejected[0]["excerpt"], &rejected[4]["excerpt"]), (&Value::Null, &json!("{")));
    let excerpt = rejected[1]["excerpt"].as_str().unwrap();
    assert!(long.starts_with(excerpt) && excerpt.len() == 512, "{excerpt}");
    for frame in &rejected {
        assert_eq!(frame["product_id"], PRODUCT);
        assert!(
            frame["at"].as_str().is_some_and(|at| at.starts_with("20") && at.ends_with('Z')),
            "{frame}"
        );
    }
}

#[test]
fn the_latest_hundred_rejected_frames_are_kept() {
    let (relay, mut link) = relay();
    (0..150).for_each(|n| link.event(format!("bad-{n}")));
    let rejected = rejected(&relay, &mut link);
    let excerpts = rejected.iter().map(|frame| frame["excerpt"].as_str().unwrap().to_owned());
    assert!(excerpts.eq((50..150).rev().map(|n| format!("bad-{n}"))));
}

#[test]
fn an_erasure_removes_excerpts() {
    let (relay, mut link) = relay();
    link.event("{\"session_id\":\"mine\"}");
    assert_eq!(rejected(&relay, &mut link).len(), 1);
    let path = format!("/api/v1/events/{PRODUCT}?session_id=mine");
    assert_eq!(http::ask(relay.admin, "DELETE", &path, &[]).status(), 200);
    let answer = relay.ask_admin("/api/v1/rejected");
    assert!(!answer.text().contains("mine"), "{}", answer.text());
    let frame = &answer.json()["rejected"][0];
    assert_eq!(
        (&frame["reason"], &frame["bytes"], &frame["excerpt"]),
        (&json!("no_type"), &json!(21), &Value::Null)
    );
}

fn relay() -> (Relay, Link) {
    let connector = Connector::new();
    let relay = Setup::behind_with(&connector, "max_event_bytes = '1KiB'").start();
    let link = connector.stream();
    (relay, link)
}

/// Returns the list, once all frames sent so far have been processed.
fn rejected(relay: &Relay, link: &mut Link) -> Vec<Value> {
    relay.publish(link, 0..1);
    assert!(!relay.ask_admin("/api/v1/rejected").text().contains(&event(0)));
    relay.ask_admin("/api/v1/rejected").json()["rejected"].as_array().unwrap().clone()
}
