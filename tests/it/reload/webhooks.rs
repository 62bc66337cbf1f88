//! Webhooks of the file that are added, changed and removed at run time.

use crate::common::{
    PRODUCT,
    connector::Connector,
    receiver::{Answer, Receiver},
    relay::Setup,
    wait,
    webhooks::{LOOPBACK, SECRET, signature, table, url},
};
use serde_json::{Value, json};

#[test]
fn an_added_webhook_gets_events_from_then_on_and_a_removed_one_none() {
    let (connector, receiver) = (Connector::new(), Receiver::accepting());
    let setup = |tables: &str| Setup::behind(&connector).more(&format!("{tables}{LOOPBACK}"));
    let relay = setup("").start();
    let mut link = connector.stream();
    relay.publish(&mut link, 0..2);
    setup(&table("crm", &receiver, "")).reload(&relay);
    assert_eq!(relay.webhook("crm")["source"], "file");
    relay.publish(&mut link, 2..4);
    let numbers: Vec<_> =
        receiver.wait_for_accepted(2).iter().map(|request| request.number()).collect();
    assert_eq!(numbers, [2, 3]);

    receiver.set_script(|_| Answer::Status(503));
    relay.publish(&mut link, 4..6);
    relay.wait_for_pending("crm", 2);
    setup("").reload(&relay);
    let is_gone = || relay.call("GET", "/api/v1/webhooks/crm", &Value::Null).status() == 404;
    wait::until("the webhook and its deliveries are removed", is_gone);
    let before = receiver.count();
    receiver.set_script(|_| Answer::Status(200));
    setup(&table("crm", &receiver, "")).reload(&relay);
    relay.publish(&mut link, 6..7);
    receiver.wait_for(before + 1);
    let numbers: Vec<_> = receiver.accepted().iter().map(|request| request.number()).collect();
    assert_eq!(numbers, [2, 3, 6], "former deliveries are forgotten");
}

#[test]
fn a_changed_webhook_keeps_its_position_and_signs_with_its_former_secret_too() {
    let (connector, first, second) =
        (Connector::new(), Receiver::answering(503), Receiver::accepting());
    let setup = |table: &str| Setup::behind(&connector).more(&format!("{table}{LOOPBACK}"));
    let relay = setup(&table("crm", &first, "")).start();
    let mut link = connector.stream();
    relay.publish(&mut link, 0..5);
    relay.wait_for_pending("crm", 5);
    let lines = format!("url = '{}'\nsecret = 'another-secret'", url(&second, "crm"));
    setup(&table("crm", &second, &lines)).reload(&relay);
    let pushed = second.wait_for_accepted(5);
    assert!(pushed.iter().map(|request| request.number()).eq(0..5));
    let signatures =
        ["another-secret", SECRET].map(|secret| signature(&pushed[0], secret.as_bytes()));
    assert_eq!(pushed[0].field("webhook-signature"), signatures.join(" "));
}

#[test]
fn the_file_overrides_the_api_for_the_same_id_only() {
    let (connector, receiver) = (Connector::new(), Receiver::accepting());
    let setup = |tables: &str| Setup::behind(&connector).more(&format!("{tables}{LOOPBACK}"));
    let relay = setup("").start();
    let mut link = connector.stream();
    for id in ["mine", "yours"] {
        let body = json!({"id": id, "product_id": PRODUCT, "url": url(&receiver, id), "secret": SECRET, "types": []});
        assert_eq!(relay.call("POST", "/api/v1/webhooks", &body).status(), 201);
    }
    setup(&table("mine", &receiver, "timeout = '7s'")).reload(&relay);
    assert_eq!(
        (&relay.webhook("mine")["source"], &relay.webhook("mine")["timeout"]),
        (&json!("file"), &json!("7s"))
    );
    assert_eq!(relay.webhook("yours")["source"], "api");
    relay.publish(&mut link, 0..1);
    receiver.wait_for_accepted(2);
}

#[test]
fn the_egress_networks_of_webhooks_follow_the_file() {
    let (connector, receiver) = (Connector::new(), Receiver::accepting());
    let setup = |egress: &str| {
        Setup::behind(&connector).more(&format!("{}{egress}", table("crm", &receiver, "")))
    };
    let relay = setup("").start();
    let mut link = connector.stream();
    let reaches = || relay.command_webhook("crm", "test").json()["status"] == 200;
    assert!(!reaches());
    setup(LOOPBACK).reload(&relay);
    assert!(reaches());
    relay.publish(&mut link, 0..1);
    receiver.wait_for_accepted(2);
    setup("").reload(&relay);
    assert!(!reaches());
}
