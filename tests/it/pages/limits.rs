//! Pages: which clients may read them, and what clients that do not read them may cost.

use std::time::{Duration, Instant};

use crate::common::{
    PRODUCT,
    connector::Connector,
    events::{event, event_of},
    http::{self, Wire},
    page::{PAGES, Page, publish},
    relay::{KEYS, Relay, Setup},
    wait,
};

#[test]
fn pages_require_the_same_keys_as_streams() {
    let setup = Setup::new()
        .upstream("prod_abc", "http://127.0.0.1:1/", "")
        .upstream("prod_xyz", "http://127.0.0.1:1/", "")
        .auth(KEYS);
    let relay = setup.start();
    let as_agent = |path: &str| relay.get(path, &[("Authorization", "Bearer key-of-agent-a")]);
    assert_eq!(as_agent(PAGES).status(), 200);
    as_agent("/events/prod_xyz").problem(403);
    as_agent("/events/prod_nothing").problem(403);
    relay.get("/events/prod_nothing", &[("Authorization", "Bearer key-of-all")]).problem(404);
    relay.get(PAGES, &[("Authorization", "Bearer key-of-publisher")]).problem(403);
    let refused = relay.get(&format!("{PAGES}?limit=x"), &[]).problem(401);
    assert_eq!(refused.field("www-authenticate"), Some("Bearer"));
    relay.get(&format!("{PAGES}?access_token=key-of-agent-a"), &[]).problem(401);
    let elsewhere =
        relay.get(PAGES, &[("Authorization", "Bearer key-of-agent-a"), ("Accept", "text/html")]);
    assert_eq!(elsewhere.status(), 200, "JSON is all there is");
    for method in ["PATCH", "PUT", "DELETE", "OPTIONS"] {
        let refused =
            http::ask(relay.public, method, PAGES, &[("Content-Length", "0")]).problem(405);
        assert_eq!(refused.field("allow"), Some("GET, HEAD, POST"), "{method}");
    }
    assert_eq!(http::ask(relay.public, "HEAD", PAGES, &[]).status(), 401);
    let with_key = [("Authorization", "Bearer key-of-agent-a")];
    assert_eq!(http::ask(relay.public, "HEAD", PAGES, &with_key).status(), 200);
}

#[test]
fn a_page_takes_no_permit_and_its_events_are_counted() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).server("max_subscribers = 1").start();
    let mut link = connector.stream();
    let mut subscriber = relay.subscribe();
    (0..7).for_each(|n| link.event(event(n)));
    assert!(subscriber.numbers(7).into_iter().eq(0..7));
    Page::get(&relay, "?limit=5");
    Page::get(&relay, "");
    let (product, page) = (("product_id", PRODUCT), ("transport", "page"));
    relay.wait_for_metric("autoplay_relay_delivered_events_total", &[product, page], 12.0);
    assert_eq!(relay.metrics().value("autoplay_relay_subscribers", &[product, page]), None);
    relay.wait_for_subscribers(1.0);
    subscriber.expect_nothing(Duration::from_millis(20));
}

#[test]
fn a_client_that_does_not_read_its_page_is_cut_off_and_the_next_gets_a_page() {
    let connector = Connector::new();
    let lines = format!("write_timeout = '1s'\nhead_timeout = '1s'\n{BEHIND_PROXY}");
    let relay = Setup::behind(&connector).server(&lines).start();
    let mut link = connector.stream();
    publish(&relay, &mut link, (0..200).map(|n| event_of(&"x".repeat(8000), n)));
    let mut stalled = stalled(&relay, 16);
    stalled.iter_mut().for_each(|wire| assert_eq!(wire.head().status(), 200));
    let page = Page::get(&relay, "?limit=1000");
    assert!(page.numbers().into_iter().eq(0..page.events.len()) && page.events.len() > 100);
    let rests: Vec<_> = stalled.iter_mut().map(|wire| wire.rest().len()).collect();
    assert!(rests.iter().any(|bytes| *bytes < 500_000), "no client was cut off: {rests:?}");
}

#[test]
fn two_hundred_unread_pages_use_the_memory_of_sixteen() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).server(BEHIND_PROXY).start();
    let mut link = connector.stream();
    publish(&relay, &mut link, (0..200).map(|n| event_of(&"x".repeat(8000), n)));
    let resident = || relay.metrics().value("process_resident_memory_bytes", &[]).unwrap();
    let before = resident();
    let mut served = stalled(&relay, 16);
    served.iter_mut().for_each(|wire| assert_eq!(wire.head().status(), 200));
    let waiting = stalled(&relay, 184);
    let refused = relay.get(PAGES, &[]).problem(503);
    assert!(refused.field("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
    let grown = resident() - before;
    assert!(grown < 64e6, "{grown} bytes for 200 clients");
    drop((served, waiting));
    assert_eq!(
        Page::get(&relay, "?limit=1").events.len(),
        1,
        "a permit is free once its client has closed"
    );
}

#[test]
fn an_address_that_does_not_read_its_pages_leaves_pages_for_the_others() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).server(BEHIND_PROXY).start();
    let mut link = connector.stream();
    publish(&relay, &mut link, (0..200).map(|n| event_of(&"x".repeat(8000), n)));
    let mut served: Vec<_> = (0..4).map(|_| stalled_at(&relay, 1)).collect();
    served.iter_mut().for_each(|wire| assert_eq!(wire.head().status(), 200));
    let waiting: Vec<_> = (0..16).map(|_| stalled_at(&relay, 1)).collect();
    relay.get(PAGES, &[("X-Forwarded-For", "192.0.2.1")]).problem(503); // its share is used
    let asked = Instant::now();
    assert_eq!(
        Page::read(&relay.get(PAGES, &[("X-Forwarded-For", "192.0.2.2")])).events.len(),
        100
    );
    wait::assert_within(Duration::ZERO, asked); // a page has 30 s
    drop((served, waiting));
}

/// Opens connections of many addresses that request a large page and do not read it.
fn stalled(relay: &Relay, count: usize) -> Vec<Wire> {
    (0..count).map(|n| stalled_at(relay, n)).collect()
}

/// Opens such a connection for one address.
fn stalled_at(relay: &Relay, last: usize) -> Wire {
    let mut wire = Wire::connect(relay.public);
    let address = format!("192.0.2.{last}");
    wire.send(http::request(
        relay.public,
        "GET",
        &format!("{PAGES}?limit=1000"),
        &[("X-Forwarded-For", &address)],
    ));
    wire
}

/// Lets a proxy name the addresses of clients.
const BEHIND_PROXY: &str = "trusted_proxies = ['127.0.0.1/32']";

#[test]
fn pages_are_refused_while_the_relay_drains() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).server("drain_window = '1h'").start();
    let _subscribers: Vec<_> = (0..3).map(|_| relay.subscribe()).collect();
    relay.wait_for_subscribers(3.0);
    relay.process.signal("TERM");
    wait::until("readiness ends", || relay.ask_admin("/readyz").status() == 503);
    for fields in [&[][..], &[("Sec-Fetch-Mode", "cors")]] {
        let refused = relay.get(PAGES, fields).problem(503);
        assert!(refused.field("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
    }
    relay.wait_for_metric("autoplay_relay_shed_total", &[("reason", "draining")], 2.0);
}
