//! `GET /ws/{product_id}`: the stream over WebSocket, with a filter that can be changed.

use super::{wait_for_disconnects, wait_for_sockets};
use crate::common::{
    PRODUCT, SOCKET,
    connector::Connector,
    events::{event, event_of},
    relay::{Relay, Setup},
    websocket::{self, Socket},
};
use serde_json::{Value, json};

#[test]
fn an_event_is_a_message_with_the_upstreams_bytes() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut socket = relay.socket(SOCKET);
    let mut witness = relay.subscribe();
    let payload = format!(r#"{{ "type":"actions",  "product_id":"{PRODUCT}", "x":"é\u00e9\"" }}"#);
    link.event(&payload);
    let id = witness.event().id.unwrap();
    assert_eq!(socket.text(), format!(r#"{{"id":"{id}","event":"message","data":{payload}}}"#));
    let labels = [("product_id", PRODUCT), ("transport", "ws")];
    relay.wait_for_metric("autoplay_relay_delivered_events_total", &labels, 1.0);
    relay.wait_for_metric("autoplay_relay_delivery_lag_seconds_count", &[("transport", "ws")], 1.0);
    wait_for_sockets(&relay, 1.0);
    drop(socket);
    wait_for_sockets(&relay, 0.0);
    wait_for_disconnects(&relay, "client", 1.0);
}

#[test]
fn large_and_many_messages_arrive_whole_and_in_order() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut socket = relay.socket(SOCKET);
    for (n, length) in [0, 10, 100, 20_000, 70_000, 900_000].into_iter().enumerate() {
        link.event(event_of(&"x".repeat(length + 1), n));
        let message = socket.event();
        assert_eq!(
            (websocket::number(&message), message["data"]["session_id"].as_str().unwrap().len()),
            (n, length + 1)
        );
    }
    (0..2000).for_each(|n| link.event(event(n)));
    assert!(socket.numbers(2000).into_iter().eq(0..2000));
}

#[test]
fn an_id_of_one_transport_resumes_the_other() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let frames = relay.publish(&mut link, 0..6);
    let mut socket = Socket::open(relay.public, SOCKET, &[("Last-Event-ID", frames[1].id())]);
    let messages: Vec<_> = (0..4).map(|_| socket.event()).collect();
    assert!(messages.iter().map(websocket::number).eq(2..6));
    for (message, frame) in messages.iter().zip(&frames[2..]) {
        assert_eq!(message["id"], frame.id());
    }
    let mut stream = relay.resume(messages[1]["id"].as_str().unwrap());
    assert_eq!(stream.numbers(2), [4, 5]);
    let mut all = relay.socket(&format!("{SOCKET}?last_event_id=0&session_id=s1"));
    assert!(all.numbers(6).into_iter().eq(0..6));
    link.event(event(6));
    assert_eq!((all.numbers(1), socket.numbers(1), stream.numbers(1)), (vec![6], vec![6], vec![6]));
}

#[test]
fn gaps_arrive_in_order_and_an_unknown_id_is_announced() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut socket = relay.socket(&format!("{SOCKET}?session_id=s1"));
    link.event(event(0));
    let id = socket.event()["id"].clone();
    drop(link);
    let mut link = relay.reconnect(&connector);
    link.event(event(1));
    let gap = socket.item();
    assert_eq!(
        (&gap["event"], &gap["data"]["reason"]),
        (&json!("gap"), &json!("upstream_reconnect"))
    );
    assert_eq!((&gap["data"]["type"], &gap["data"]["after"]), (&json!("gap"), &id));
    assert!(gap["id"].is_string());
    let next = socket.event();
    assert_eq!(websocket::number(&next), 1);
    let mut resumed =
        relay.socket(&format!("{SOCKET}?last_event_id={}", gap["id"].as_str().unwrap()));
    assert_eq!(resumed.numbers(1), [1]);
    let mut stranger = relay.socket(&format!("{SOCKET}?last_event_id=nonsense"));
    let gap = stranger.item();
    assert_eq!(
        (&gap["data"]["reason"], &gap["data"]["after"]),
        (&json!("unknown_id"), &Value::Null)
    );
    assert_eq!(stranger.numbers(1), [0]);
}

#[test]
fn a_heartbeat_advances_the_id_past_hidden_events() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).server("heartbeat_interval = '500ms'").start();
    let mut link = connector.stream();
    let mut socket = relay.socket(&format!("{SOCKET}?session_id=nobody"));
    assert_eq!(socket.text(), r#"{"event":"heartbeat"}"#);
    let frames = relay.publish(&mut link, 0..3);
    let heartbeat = loop {
        let message = socket.message();
        assert_eq!(message["event"], "heartbeat");
        if message["id"] == frames[2].id() {
            break message;
        }
    };
    assert_eq!(heartbeat.as_object().unwrap().len(), 2);
    assert_eq!(socket.text(), r#"{"event":"heartbeat"}"#, "the id is sent once");
}
