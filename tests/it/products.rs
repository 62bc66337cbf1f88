//! Products without an upstream: they live by publishing.

use serde_json::json;

use crate::common::{
    PRODUCT,
    connector::Connector,
    events::event,
    http,
    page::{PAGES, Page},
    process::Process,
    receiver::Receiver,
    relay::{Relay, Setup},
    wait,
    webhooks::{LOOPBACK, table},
};

/// Every client may publish.
const OPEN: &str = "allow_anonymous = true\nanonymous_permissions = ['subscribe', 'publish']";

/// A metric that every upstream has from its start on.
const CONNECTED: &str = "autoplay_relay_upstream_connected";

fn table_of(product: &str) -> String {
    format!("[[products]]\nproduct_id = '{product}'\n")
}

fn without_upstream() -> Setup {
    Setup::new().auth(OPEN).more(&table_of(PRODUCT))
}

/// Publishes an event, and returns its id.
fn publish(relay: &Relay, number: usize) -> String {
    let answer = http::ask_with(relay.public, "POST", PAGES, &[], &event(number));
    assert_eq!(answer.status(), 202, "{}", answer.text());
    answer.json()["id"].as_str().unwrap().to_owned()
}

#[test]
fn a_product_without_an_upstream_serves_what_is_published() {
    let receiver = Receiver::accepting();
    let connector = Connector::new();
    let relay = without_upstream()
        .upstream("prod_other", &connector.url("prod_other"), "")
        .more(&(table("hook", &receiver, "types = []") + LOOPBACK))
        .start();
    let mut stream = relay.subscribe();
    let first = publish(&relay, 1);
    let frame = stream.item();
    assert_eq!((frame.id(), &*frame.data), (first.as_str(), event(1).as_bytes()));
    publish(&relay, 2);
    assert_eq!(stream.numbers(1), [2]);
    assert_eq!(relay.resume(&first).numbers(1), [2]);
    assert_eq!(Page::get(&relay, "").numbers(), [1, 2]);
    relay.wait_until_settled("hook");
    assert_eq!(receiver.count(), 2);
    let metrics = relay.metrics();
    assert_eq!(metrics.value(CONNECTED, &[("product_id", PRODUCT)]), None);
    assert!(metrics.value(CONNECTED, &[("product_id", "prod_other")]).is_some());
    let status = relay.status();
    let upstreams: Vec<_> =
        status["upstreams"].as_array().unwrap().iter().map(|it| &it["product_id"]).collect();
    assert_eq!(upstreams, ["prod_other"]);
    assert_eq!(status["log"][PRODUCT]["events"], 2);
    // The other product's upstream has not answered.
    assert_eq!(relay.ask_admin("/readyz").status(), 200);
    assert_eq!(relay.ask_admin("/readyz?require=upstream").status(), 503);
    let _link = connector.stream();
    wait::until("its upstream is all that readiness waits for", || {
        relay.ask_admin("/readyz?require=upstream").status() == 200
    });
    let ready = relay.ask_admin("/readyz?require=upstream").json();
    assert_eq!(ready["upstreams"], json!({"prod_other": "connected"}));
}

#[test]
fn a_start_writes_no_gap() {
    let directory = tempfile::tempdir().unwrap();
    let setup = without_upstream().log(&format!("data_dir = '{}'", directory.path().display()));
    let relay = setup.start();
    let first = publish(&relay, 1);
    relay.stop();
    let relay = setup.start();
    publish(&relay, 2);
    let page = Page::get(&relay, &format!("?last_event_id={first}"));
    assert_eq!((page.numbers(), page.reason()), (vec![2], None));
    let page = Page::get(&relay, "");
    assert_eq!((page.numbers(), page.reason()), (vec![1, 2], None));
    assert_eq!(relay.all_gaps(), 0.0);
}

#[test]
fn a_reload_adds_and_removes_products_without_an_upstream() {
    let relay = without_upstream().start();
    let path = "/events/prod_new";
    relay.get(path, &[]).problem(404);
    let both = without_upstream().more(&table_of("prod_new"));
    both.reload(&relay);
    let answer = http::ask_with(relay.public, "POST", path, &[], r#"{"type":"note"}"#);
    assert_eq!(answer.status(), 202);
    let mut kept = relay.subscribe();
    without_upstream().reload(&relay);
    relay.get(path, &[]).problem(404);
    publish(&relay, 7);
    assert_eq!(kept.numbers(1), [7], "the other product's subscriber stays");
}

#[test]
fn a_product_gains_and_loses_its_upstream_and_keeps_log_and_subscribers() {
    let connector = Connector::new();
    let relay = without_upstream().start();
    let mut stream = relay.subscribe();
    publish(&relay, 1);
    let behind = Setup::behind(&connector).auth(OPEN);
    behind.reload(&relay);
    let mut link = connector.stream();
    relay.wait_for_upstream("connected");
    link.event(event(2));
    assert_eq!(stream.numbers(2), [1, 2], "no gap: it never had an upstream");
    publish(&relay, 3);
    without_upstream().reload(&relay);
    wait::until("the relay leaves the connector", || !link.is_open());
    publish(&relay, 4);
    assert_eq!(stream.numbers(2), [3, 4]);
    assert_eq!(relay.metrics().value(CONNECTED, &[("product_id", PRODUCT)]), None);
    assert_eq!(Page::get(&relay, "").numbers(), [1, 2, 3, 4]);
    behind.reload(&relay);
    let _link = connector.stream();
    assert_eq!(stream.item().reason(), "upstream_reconnect", "what came meanwhile is lost");
}

#[test]
fn one_id_in_both_tables_is_an_error_that_names_both_lines() {
    let connector = Connector::new();
    let setup = Setup::behind(&connector).more(&table_of(PRODUCT));
    let (_directory, file) = setup.write();
    let file = file.to_str().unwrap();
    let done = Process::run(&["check", "--config", file], &[]);
    assert_eq!(done.code, Some(2), "{done:?}");
    let line_of = |table: &str| {
        let at = setup.text().lines().position(|line| line == table).unwrap();
        at + 2 // counted from 1; the id is in the next line
    };
    let expected = format!(
        "{file}:{}: products[0].product_id: is the same as upstreams[0].product_id in line {}",
        line_of("[[products]]"),
        line_of("[[upstreams]]")
    );
    assert!(done.stderr.contains(&expected), "{}", done.stderr);
}
