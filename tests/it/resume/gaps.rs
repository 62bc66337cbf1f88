//! Gaps for outages of the upstream.

use crate::common::{
    PRODUCT,
    connector::Connector,
    events::{event, event_like, number},
    relay::{Relay, Setup},
    subscriber::Subscriber,
    wait,
};

#[test]
fn a_gap_passes_every_filter() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).log("memory_events = 16").start();
    let mut link = connector.stream();
    let mut all = relay.subscribe();
    let mut ids = Vec::new();
    for n in 0..40 {
        link.event(event(n));
        ids.push(all.event().id.unwrap());
    }
    let path = "/stream/prod_abc?type=summary";
    let mut resumed = Subscriber::open(relay.public, path, &[("Last-Event-ID", &ids[0])]);
    assert_eq!(
        resumed.gap().json()["reason"],
        "evicted",
        "an evicted event may have been a summary"
    );
    let mut live = relay.subscribe_to("/stream/prod_abc?session_id=nobody&type=nothing");
    link.reset();
    let mut link = connector.stream();
    assert_eq!(live.gap().json()["reason"], "upstream_reconnect");
    assert_eq!(resumed.gap().json()["reason"], "upstream_reconnect");
    link.event(event_like("summary", "s", 1));
    assert_eq!(resumed.numbers(1), [1]);
}

#[test]
fn an_outage_is_one_gap_for_connected_and_resuming_subscribers_only() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut connected = relay.subscribe();
    let mut other = relay.subscribe();
    link.event(event(0));
    let before = connected.event();
    other.event();
    link.end();
    connector.accept().refuse("500 Internal Server Error", "");
    connector.accept().reset();
    let mut link = connector.stream();
    let gap = connected.gap();
    let notice = gap.json();
    assert_eq!(
        (notice["reason"].as_str(), notice["product_id"].as_str()),
        (Some("upstream_reconnect"), Some(PRODUCT))
    );
    assert_eq!(notice["after"], before.id());
    assert_eq!(other.gap().id, gap.id);
    let mut newcomer = relay.subscribe();
    link.event(event(1));
    let after = connected.event();
    assert_eq!((number(&after.data), other.numbers(1)), (1, vec![1]));
    assert_eq!(newcomer.event(), after, "a later subscriber misses no event");

    let mut across = relay.resume(before.id());
    let seen = across.gap();
    assert_eq!(seen.id, gap.id);
    assert_eq!(seen.json()["before"], after.id(), "by now the next id is known");
    assert_eq!(across.event(), after);
    let mut behind = relay.resume(gap.id());
    assert_eq!(behind.event(), after, "the id of the gap repeats neither it nor an event");
    let mut from_start = relay.resume("0");
    assert_eq!(from_start.event(), before);
    assert_eq!(from_start.gap().id, gap.id, "old gaps inside still show");
    assert_eq!(from_start.event(), after);
    assert_eq!(gaps(&relay, "upstream_reconnect"), 1.0);
}

#[test]
fn the_first_connect_is_no_gap_after_any_number_of_attempts() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut subscriber = relay.subscribe();
    connector.accept().reset();
    connector.accept().refuse("503 Service Unavailable", "");
    let mut link = connector.stream();
    link.event(event(0));
    assert_eq!(subscriber.numbers(1), [0]);
    assert_eq!(gaps(&relay, "upstream_reconnect"), 0.0);
}

#[test]
fn two_outages_are_two_gaps() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let link = connector.stream();
    let mut subscriber = relay.subscribe();
    relay.wait_for_upstream("connected");
    link.end();
    let link = connector.stream();
    let first = subscriber.gap();
    assert_eq!(first.json()["after"], serde_json::Value::Null, "the log was empty");
    link.end();
    let mut link = connector.stream();
    let second = subscriber.gap();
    assert_eq!(second.json()["after"], first.id());
    link.event(event(0));
    assert_eq!(subscriber.numbers(1), [0]);
    assert_eq!(gaps(&relay, "upstream_reconnect"), 2.0);
}

#[test]
fn a_gap_announced_by_the_upstream_is_a_gap_and_no_payload() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut subscriber = relay.subscribe();
    link.event(event(0));
    let before = subscriber.event();
    link.send("event: gap\ndata: {\"type\":\"gap\",\"product_id\":\"prod_abc\"}\n\n");
    link.event(event(1));
    assert_eq!(subscriber.gap().json()["after"], before.id());
    assert_eq!(subscriber.numbers(1), [1]);
    let labels = [("product_id", PRODUCT), ("type", "other")];
    assert_eq!(relay.metrics().value("autoplay_relay_upstream_events_total", &labels), Some(0.0));
}

/// Returns how many gaps of a reason have been counted.
fn gaps(relay: &Relay, reason: &str) -> f64 {
    let labels = [("product_id", PRODUCT), ("reason", reason)];
    wait::value("the counter exists", || {
        relay.metrics().value("autoplay_relay_gaps_total", &labels)
    })
}
