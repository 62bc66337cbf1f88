//! Upstreams that change at run time: never two connections for one product, and no avoidable gap.

use std::time::{Duration, Instant};

use crate::common::{
    PRODUCT, SOCKET, STREAM,
    connector::Connector,
    events::{event, number},
    http,
    page::Page,
    receiver::Receiver,
    relay::{Relay, Setup},
    subscriber::Subscriber,
    wait,
    webhooks::LOOPBACK,
};
use serde_json::{Value, json};

const OTHER: &str = "prod_other";

fn with_token(connector: &Connector, token: &str) -> Setup {
    Setup::new().upstream(PRODUCT, &connector.url(PRODUCT), &format!("token = '{token}'"))
}

#[test]
fn a_new_token_is_used_at_the_next_connect_and_the_open_stream_is_kept() {
    let connector = Connector::new();
    let relay = with_token(&connector, "one").start();
    let mut link = connector.stream();
    assert_eq!(link.request.field("authorization"), Some("Bearer one"));
    let mut stream = relay.subscribe();
    with_token(&connector, "two").reload(&relay);
    connector.expect_no_connection(Duration::from_millis(300));
    link.event(event(1));
    assert_eq!(stream.numbers(1), [1]);
    assert_eq!(relay.all_gaps(), 0.0);
    link.end();
    let mut link = connector.stream();
    assert_eq!(link.request.field("authorization"), Some("Bearer two"));
    link.event(event(2));
    assert_eq!(stream.gap().reason(), "upstream_reconnect");
    assert_eq!(stream.numbers(1), [2]);
}

#[test]
fn a_refused_upstream_is_retried_at_once_with_a_new_token() {
    let connector = Connector::new();
    let relay = with_token(&connector, "one").start();
    connector.accept().refuse("401 Unauthorized", "");
    relay.wait_for_upstream("refused");
    with_token(&connector, "two").reload(&relay);
    assert_eq!(connector.stream().request.field("authorization"), Some("Bearer two"));
}

#[test]
fn a_new_url_timeout_or_size_closes_the_old_connection_first_and_is_a_gap() {
    let (connector, second) = (Connector::new(), Connector::new());
    let setup =
        |at: &Connector, lines: &str| Setup::new().upstream(PRODUCT, &at.url(PRODUCT), lines);
    let relay = setup(&connector, "").start();
    let mut link = connector.stream();
    let mut stream = relay.subscribe();
    link.event(event(0));
    assert_eq!(stream.numbers(1), [0]);
    for (n, lines) in
        ["heartbeat_timeout = '70s'", "max_event_bytes = '2MiB'"].into_iter().enumerate()
    {
        setup(&connector, lines).reload(&relay);
        let mut next = connector.stream(); // fails if the former connection is open
        assert_eq!(stream.gap().reason(), "upstream_reconnect");
        next.event(event(n + 1));
        assert_eq!(stream.numbers(1), [n + 1]);
        link = next;
    }
    setup(&second, "").reload(&relay);
    let mut moved = second.stream();
    assert!(!link.is_open(), "the old one is closed before the new one is opened");
    assert_eq!(stream.gap().reason(), "upstream_reconnect");
    moved.event(event(3));
    assert_eq!(stream.numbers(1), [3]);
}

#[test]
fn an_unchanged_upstream_keeps_its_connection() {
    let connector = Connector::new();
    let relay = with_token(&connector, "one").start();
    let link = connector.stream();
    for n in 1..=3 {
        with_token(&connector, "one").server(&format!("max_subscribers = {n}")).reload(&relay);
    }
    connector.expect_no_connection(Duration::from_millis(300));
    assert!(link.is_open());
}

fn two_products(connector: &Connector, log: &str) -> Setup {
    one_product(connector, log).upstream(OTHER, &connector.url(OTHER), "")
}

fn one_product(connector: &Connector, log: &str) -> Setup {
    Setup::new().upstream(PRODUCT, &connector.url(PRODUCT), "").log(log).more(LOOPBACK)
}

fn of_other(n: usize) -> String {
    event(n).replace(PRODUCT, OTHER)
}

/// Adds a product, removes it and adds it again, with a webhook registered by the API. Returns the
/// events that the product has at the end.
fn add_remove_and_add_again(log: &str) -> Vec<usize> {
    let (connector, receiver) = (Connector::new(), Receiver::accepting());
    let path = format!("/stream/{OTHER}");
    let relay = one_product(&connector, log).start();
    let mut link = connector.stream();
    let mut neighbour = relay.subscribe();
    assert_eq!(relay.get(&path, &[]).status(), 404);

    two_products(&connector, log).reload(&relay);
    let mut other = connector.stream();
    let (mut stream, mut socket) =
        (relay.subscribe_to(&path), relay.socket(&format!("/ws/{OTHER}")));
    let webhook = json!({"id": "w", "product_id": OTHER, "url": format!("http://{}/", receiver.address), "secret": "s", "types": []});
    assert_eq!(relay.call("POST", "/api/v1/webhooks", &webhook).status(), 201);
    other.event(of_other(1));
    assert_eq!((stream.numbers(1), socket.numbers(1)), (vec![1], vec![1]));
    assert_eq!(receiver.wait_for_accepted(1)[0].number(), 1);
    let body = of_other(2);
    assert_eq!(
        http::ask_with(relay.public, "POST", &format!("/events/{OTHER}"), &[], &body).status(),
        401
    );
    assert_eq!(relay.status()["upstreams"].as_array().unwrap().len(), 2);
    relay.wait_until_settled("w");

    one_product(&connector, log).reload(&relay);
    let removed = Instant::now();
    stream.rest();
    assert_eq!(socket.close_code(), 1008);
    wait::assert_within(Duration::from_secs(1), removed);
    assert!(!other.is_open(), "its upstream is closed");
    assert_eq!(relay.get(&path, &[]).status(), 404);
    let scrape = relay.ask_admin("/metrics").text();
    assert!(!scrape.contains(OTHER), "{scrape}");
    let labels = [("transport", "sse"), ("reason", "removed")];
    assert_eq!(
        relay.metrics().value("autoplay_relay_subscriber_disconnects_total", &labels),
        Some(1.0)
    );
    assert_eq!(relay.status()["upstreams"].as_array().unwrap().len(), 1);
    assert_eq!(relay.call("GET", "/api/v1/webhooks/w", &Value::Null).status(), 404);
    link.event(event(7));
    assert_eq!(neighbour.numbers(1), [7], "other subscribers are unaffected");

    drop(other);
    two_products(&connector, log).reload(&relay);
    let mut other = connector.stream();
    let mut stream = relay.subscribe_to(&path);
    other.event(of_other(3));
    let mut frame = stream.item();
    if frame.event.is_some() {
        assert_eq!(frame.reason(), "upstream_reconnect", "events sent meanwhile are missing");
        frame = stream.item();
    }
    assert_eq!(number(&frame.data), 3);
    assert_eq!(
        relay
            .call("DELETE", &format!("/api/v1/events/{OTHER}?session_id=nobody"), &Value::Null)
            .status(),
        200
    );
    let is_durable = !log.is_empty();
    if is_durable {
        assert_eq!(
            receiver.wait_for_accepted(2)[1].number(),
            3,
            "the webhook has kept its position"
        );
    } else {
        assert_eq!(relay.call("GET", "/api/v1/webhooks/w", &Value::Null).status(), 404);
    }
    numbers(&relay)
}

/// Reads all pages of the other product.
fn numbers(relay: &Relay) -> Vec<usize> {
    let (mut numbers, mut after) = (Vec::new(), "0".to_owned());
    loop {
        let page = Page::read(&relay.get(&format!("/events/{OTHER}?last_event_id={after}"), &[]));
        if page.events.is_empty() && page.next == after {
            return numbers;
        }
        numbers.extend(page.events.iter().map(|frame| number(&frame.data)));
        after = page.next;
    }
}

#[test]
fn a_removed_product_is_404_and_an_added_one_is_served_at_once() {
    assert_eq!(
        add_remove_and_add_again(""),
        [3],
        "without a store, a removed product loses its events"
    );
}

#[test]
fn a_product_that_returns_with_a_store_continues_its_log() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(
        add_remove_and_add_again(&format!("data_dir = '{}'", directory.path().display())),
        [1, 3]
    );
}

#[test]
fn a_product_added_by_a_reload_is_persisted() {
    let (connector, directory) = (Connector::new(), tempfile::tempdir().unwrap());
    let log = format!("data_dir = '{}'", directory.path().display());
    let mut relay = one_product(&connector, &log).start();
    let link = connector.stream();
    two_products(&connector, &log).reload(&relay);
    let mut other = connector.stream();
    let mut stream = relay.subscribe_to(&format!("/stream/{OTHER}"));
    (0..20).for_each(|n| other.event(of_other(n)));
    assert!(stream.numbers(20).into_iter().eq(0..20));
    let labels = [("product_id", OTHER), ("tier", "disk")];
    relay.wait_for_metric("autoplay_relay_log_events", &labels, 20.0);
    relay.process.kill();
    drop((link, other));
    let relay = two_products(&connector, &log).start();
    assert!(numbers(&relay).into_iter().eq(0..20));
}

#[test]
fn the_size_limit_of_publishers_follows_the_upstream() {
    let connector = Connector::new();
    let setup = |bytes: &str| {
        let auth = "allow_anonymous = true\nanonymous_permissions = ['subscribe', 'publish']";
        Setup::behind_with(&connector, &format!("max_event_bytes = '{bytes}'")).auth(auth)
    };
    let relay = setup("1KiB").start();
    let _link = connector.stream();
    let body = format!(r#"{{"type":"own","text":"{}"}}"#, "x".repeat(2000));
    let publish =
        || http::ask_with(relay.public, "POST", &format!("/events/{PRODUCT}"), &[], &body).status();
    assert_eq!(publish(), 413);
    setup("4KiB").reload(&relay);
    assert_eq!(publish(), 202);
    wait::until("the upstream reconnects", || {
        relay.metrics().value("autoplay_relay_upstream_connected", &[]) == Some(0.0)
    });
    let _again = connector.stream();
    Subscriber::open(relay.public, STREAM, &[]);
    relay.socket(SOCKET);
}
