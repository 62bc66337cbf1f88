//! Responses, commands and pending deliveries while the relay shuts down.

use std::{thread, time::Duration};

use crate::common::{
    PRODUCT,
    connector::Connector,
    events::{event, event_of},
    page::publish,
    receiver::{Answer, Receiver},
    relay::Relay,
    store::DataDir,
    wait,
    webhooks::{LOOPBACK, table, url},
};
use serde_json::{Value, json};

fn request_shutdown(relay: &Relay) {
    relay.process.signal("TERM");
    relay.process.log_line("leaving; a second signal ends the process at once");
}

#[test]
fn a_webhook_deleted_during_shutdown_stays_deleted() {
    let (connector, data, receiver) =
        (Connector::new(), DataDir::new(), Receiver::new(|_| Answer::Held));
    let setup = data.setup(&connector, "").more(LOOPBACK);
    let mut relay = setup.start();
    let mut link = connector.stream();
    let hook = json!({ "id": "hook", "product_id": PRODUCT, "url": url(&receiver, "hook"), "secret": "s", "types": [] });
    assert_eq!(relay.call("POST", "/api/v1/webhooks", &hook).status(), 201);
    publish(&relay, &mut link, [event(0)]);
    receiver.wait_for(1);
    request_shutdown(&relay);
    assert_eq!(relay.call("DELETE", "/api/v1/webhooks/hook", &Value::Null).status(), 204);
    assert_eq!(relay.process.exit_code(), Some(0));
    drop((relay, link));
    let relay = setup.start();
    assert_eq!(relay.ask_admin("/api/v1/webhooks/hook").status(), 404);
}

#[test]
fn a_410_during_shutdown_is_persisted() {
    let (connector, data, receiver) =
        (Connector::new(), DataDir::new(), Receiver::new(|_| Answer::HeldThen(410)));
    let setup = data.setup(&connector, "").more(&(table("hook", &receiver, "") + LOOPBACK));
    let mut relay = setup.start();
    let mut link = connector.stream();
    publish(&relay, &mut link, [event(0)]);
    receiver.wait_for(1);
    request_shutdown(&relay);
    receiver.release();
    assert_eq!(relay.process.exit_code(), Some(0));
    drop((relay, link));
    let relay = setup.start();
    // Pending and dead deliveries are counted in the store a moment after the relay serves.
    wait::until("the delivery is dead", || relay.webhook("hook")["dead"] == 1);
    assert_eq!(relay.webhook("hook")["state"], "disabled");
}

#[test]
fn deliveries_that_wait_during_shutdown_use_no_processor_time() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let receiver =
        Receiver::new(|it| if it.session() == "hangs" { Answer::Hang } else { Answer::Held });
    let relay = data.setup(&connector, "").more(&(table("hook", &receiver, "") + LOOPBACK)).start();
    let mut link = connector.stream();
    publish(
        &relay,
        &mut link,
        [event_of("hangs", 0), event_of("answers", 1), event_of("answers", 2)],
    );
    receiver.wait_for(2);
    request_shutdown(&relay);
    receiver.release();
    thread::sleep(Duration::from_millis(200)); // until the work of the shutdown itself is over
    let before = relay.process.processor_time();
    thread::sleep(Duration::from_secs(1)); // the measured time
    let used = relay.process.processor_time() - before;
    assert!(used < Duration::from_millis(300), "{used:?} in a second");
    assert_eq!(receiver.count(), 2, "no new attempt begins");
}
