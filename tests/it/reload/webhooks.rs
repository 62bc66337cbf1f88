//! Webhooks of the file that are added, changed and removed at run time.

use std::ops::Range;

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
fn a_webhook_whose_users_change_gets_later_events_of_the_new_users_only() {
    let (connector, receiver) = (Connector::new(), Receiver::accepting());
    let setup = |lines: &str| {
        Setup::behind(&connector).more(&format!("{}{LOOPBACK}", table("crm", &receiver, lines)))
    };
    let relay = setup("user_ids = ['ada']").start();
    let mut of_api = json!({"id": "made", "product_id": PRODUCT, "url": url(&receiver, "made"),
        "secret": SECRET, "user_ids": ["ada"]});
    assert_eq!(relay.call("POST", "/api/v1/webhooks", &of_api).status(), 201);
    let mut link = connector.stream();
    let mut witness = relay.subscribe();
    let mut show = |numbers: Range<usize>| {
        for number in numbers {
            let user = ["ada", "bob"][number % 2];
            link.event(format!(
                r#"{{"type":"actions","session_id":"s","user_id":"{user}","count":{number}}}"#
            ));
            witness.event();
        }
    };
    // Deliveries that the other webhook's count covers may still be under way.
    let delivered = |count: usize| {
        receiver.wait_for_accepted(2 * count);
        ["crm", "made"].map(|id| {
            relay.wait_until_settled(id);
            let mut accepted = receiver.accepted();
            accepted.retain(|request| request.head.path() == format!("/hooks/{id}"));
            accepted.iter().map(|request| request.number()).collect::<Vec<_>>()
        })
    };
    let mut change = |users: &[&str]| {
        setup(&format!("user_ids = {users:?}")).reload(&relay);
        of_api["user_ids"] = json!(users);
        assert_eq!(relay.call("PUT", "/api/v1/webhooks/made", &of_api).status(), 200);
        for id in ["crm", "made"] {
            assert_eq!(relay.webhook(id)["user_ids"], json!(users), "{id}");
        }
    };
    show(0..4);
    assert_eq!(delivered(2), [[0, 2], [0, 2]]);
    change(&["bob"]);
    show(4..8);
    assert_eq!(delivered(4), [[0, 2, 5, 7], [0, 2, 5, 7]]);
    change(&[]);
    show(8..10);
    assert_eq!(delivered(6), [[0, 2, 5, 7, 8, 9], [0, 2, 5, 7, 8, 9]]);
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
