//! The connector's registration call, which the relay answers as the connector does.

use crate::common::{
    PRODUCT,
    connector::Connector,
    http::{self, Answer},
    relay::{Relay, Setup},
};
use serde_json::{Value, json};

#[test]
fn push_registers_a_webhook_once_and_again_only_if_forced() {
    let relay = relay("");
    let registered = register(&relay, &push("http://h/one", "sesame"));
    assert_eq!(registered.status(), 201, "{}", registered.text());
    assert_eq!(registered.json()["product_id"], PRODUCT);
    assert!(!registered.text().contains("sesame"));
    let webhook = webhook(&relay);
    assert_eq!((&webhook["product_id"], &webhook["types"]), (&json!(PRODUCT), &json!(["actions"])));
    assert_eq!((&webhook["url"], &webhook["source"]), (&json!("http://h/one"), &json!("api")));
    let mut again = push("http://h/two", "sesame");
    for not_forced in [Value::Null, json!(false)] {
        again["force_reregister"] = not_forced;
        register(&relay, &again).problem(409);
    }
    again["force_reregister"] = json!(true);
    assert_eq!(register(&relay, &again).status(), 201);
    assert_eq!(self::webhook(&relay)["url"], "http://h/two");
}

#[test]
fn the_older_form_registers_the_same_webhook() {
    let relay = relay("");
    // As `post_register_product_cli` of autoplay-sdk 0.13 sends it.
    let body = json!({ "product_id": PRODUCT, "contact_email": "a@b.c", "webhook_secret": "of-the-source",
        "integration_type": "webhook", "integration_config": { "url": "http://h/e", "secret": "sesame" },
        "forward_url": "http://h/e", "forward_secret": "sesame", "force_reregister": false });
    assert_eq!(register(&relay, &body).status(), 201);
    assert_eq!(webhook(&relay)["url"], "http://h/e");
    register(&relay, &body).problem(409);
}

#[test]
fn streaming_registers_once_and_replaces_push_only_if_forced() {
    let relay = relay("");
    let mut stream = json!({ "product_id": PRODUCT, "contact_email": "a@b.c", "webhook_secret": "x",
        "integration_type": "event_stream", "integration_config": { "mode": "sse" } });
    let registered = register(&relay, &stream);
    assert_eq!((registered.status(), registered.json()["mode"].as_str()), (201, Some("sse")));
    register(&relay, &stream).problem(409);
    register(&relay, &push("http://h/", "sesame")).problem(409);
    let mut forced = push("http://h/", "sesame");
    forced["force_reregister"] = json!(true);
    assert_eq!(register(&relay, &forced).status(), 201);
    assert_eq!(webhook(&relay)["url"], "http://h/");
    register(&relay, &stream).problem(409);
    stream["force_reregister"] = json!(true);
    assert_eq!(register(&relay, &stream).status(), 201);
    relay.ask_admin(&format!("/api/v1/webhooks/{PRODUCT}")).problem(404);
}

#[test]
fn an_invalid_registration_is_reported_by_field() {
    let relay = relay("");
    let mut elsewhere = push("http://h/", "x");
    elsewhere["product_id"] = json!("prod_unknown");
    for (body, field) in [
        (elsewhere, "product_id"),
        (push("hush", "x"), "integration_config.url"),
        (push("http://h/", "hush hush"), "integration_config.secret"),
        (json!({ "product_id": PRODUCT, "integration_type": "webhook" }), "forward_url"),
        (json!({ "product_id": PRODUCT }), "integration_type"),
    ] {
        let problem = register(&relay, &body).problem(422);
        assert!(
            problem.json()["errors"]
                .as_array()
                .unwrap()
                .iter()
                .any(|error| error["field"] == field),
            "{body}"
        );
        assert!(!problem.text().contains("hush"), "{}", problem.text());
    }
}

#[test]
fn a_registration_does_not_replace_a_webhook_of_the_file() {
    let relay = relay(&format!(
        "[[webhooks]]\nid = '{PRODUCT}'\nproduct_id = '{PRODUCT}'\nurl = 'http://h/file'\nsecret = 'x'\n"
    ));
    let mut body = push("http://h/", "sesame");
    register(&relay, &body).problem(409);
    body["force_reregister"] = json!(true);
    let problem = register(&relay, &body).problem(409);
    assert!(problem.text().contains("configuration file"), "{}", problem.text());
    assert_eq!(webhook(&relay)["url"], "http://h/file");
}

/// Starts a relay whose upstream never connects.
fn relay(more: &str) -> Relay {
    Setup::behind(&Connector::new()).more(more).start()
}

fn push(url: &str, secret: &str) -> Value {
    json!({ "product_id": PRODUCT, "contact_email": "a@b.c", "webhook_secret": "of-the-source",
        "integration_type": "event_stream", "integration_config": { "mode": "push", "url": url, "secret": secret } })
}

fn register(relay: &Relay, body: &Value) -> Answer {
    http::ask_with(
        relay.admin,
        "POST",
        "/products",
        &[("Content-Type", "application/json")],
        &body.to_string(),
    )
}

/// Returns the webhook that a registration has created.
fn webhook(relay: &Relay) -> Value {
    relay.ask_admin(&format!("/api/v1/webhooks/{PRODUCT}")).json()
}
