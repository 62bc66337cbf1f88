//! Publishing: published events are delivered like any others, and the response says whether they
//! are durable.

use std::{
    io::Write,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::common::{
    PRODUCT, STREAM,
    connector::Connector,
    events::{event, event_of, number},
    http::{self, Answer, Wire},
    page::{PAGES, Page},
    relay::{KEYS, Relay, Setup},
    store::DataDir,
    subscriber::Subscriber,
    wait,
};

#[test]
fn a_published_event_reaches_subscribers_pages_and_replay_under_the_returned_id() {
    let connector = Connector::new();
    let relay = setup(&connector).start();
    let mut link = connector.stream();
    let mut subscriber = subscribe(&relay, "0");
    link.event(event(1));
    let first = subscriber.event();
    let answer = publish(&relay, &event(2));
    assert_eq!((answer.status(), answer.field("content-type")), (202, Some("application/json")));
    assert_eq!(answer.json(), serde_json::json!({ "id": id(&answer), "durable": false }));
    link.event(event(3));
    let frame = subscriber.event();
    assert_eq!((frame.id(), number(&frame.data)), (&*id(&answer), 2));
    assert_eq!(number(&subscriber.event().data), 3);
    assert_eq!(subscribe(&relay, first.id()).numbers(2), [2, 3]);
    assert_eq!(Page::read(&relay.get(PAGES, &[KEY])).numbers(), [1, 2, 3]);
    let metric = |name: &str| relay.metrics().value(name, &[("product_id", PRODUCT)]);
    assert_eq!(metric("autoplay_relay_published_events_total"), Some(1.0));
    assert_eq!(
        metric("autoplay_relay_upstream_events_total"),
        Some(2.0),
        "of actions, from the upstream"
    );
}

#[test]
fn published_bytes_are_kept_and_a_missing_product_is_added() {
    let connector = Connector::new();
    let relay = setup(&connector).start();
    let mut subscriber = subscribe(&relay, "0");
    for (sent, delivered) in [
        (
            r#"{"type" : "x", "product_id":"prod_abc","n": 1.50e3 }"#,
            r#"{"type" : "x", "product_id":"prod_abc","n": 1.50e3 }"#,
        ),
        (r#"{ "type":"x" }"#, r#"{"product_id":"prod_abc", "type":"x" }"#),
        (r#"{"type":"x","product_id":null}"#, r#"{"type":"x","product_id":"prod_abc"}"#),
        (
            "{\r\n \"type\": \"a  b\",\n \"n\": [1.0, -0]\n}\n",
            r#"{"product_id":"prod_abc","type":"a  b","n":[1.0,-0]}"#,
        ),
    ] {
        assert_eq!(publish(&relay, sent).status(), 202, "{sent}");
        assert_eq!(String::from_utf8(subscriber.event().data).unwrap(), delivered);
    }
}

#[test]
fn an_invalid_event_gets_400_with_the_reason() {
    let connector = Connector::new();
    let relay = setup(&connector).start();
    for (body, reason) in [
        ("{", "invalid_json"),
        ("[]", "not_an_object"),
        ("{}", "no_type"),
        (r#"{"type":7}"#, "no_type"),
        (r#"{"type":"x","product_id":"prod_xyz"}"#, "wrong_product"),
        (r#"{"type":"x","product_id":7}"#, "wrong_product"),
        (r#"{"type":"x","session_id":"a","session_id":"b"}"#, "invalid_json"),
        (r#"{"type":"x","user_id":"a","user_id":"b"}"#, "invalid_json"),
        (r#"{"type":"x","type":"x"}"#, "invalid_json"),
        (r#"{"type":"x","session_id":"a\nb"}"#, "control_character"),
        ("{\"type\":\"x\"\0}", "control_character"),
    ] {
        let problem = publish(&relay, body).problem(400).json();
        assert!(problem["detail"].as_str().unwrap().starts_with(reason), "{body:?}: {problem}");
    }
    let mut wire = begin(&relay, "Content-Length: 14\r\n");
    wire.send(b"{\"type\":\"\xff\xff\"} ");
    assert_eq!(wire.head().status(), 400);
    publish(&relay, "").problem(400);
    assert_eq!(Page::read(&relay.get(PAGES, &[KEY])).events, [], "none of it is in the log");
}

#[test]
fn a_published_session_that_is_no_text_is_400_and_named() {
    let connector = Connector::new();
    let relay = setup(&connector).start();
    let problem = publish(&relay, r#"{"type":"note","session_id":42}"#).problem(400).json();
    assert!(problem["detail"].as_str().unwrap().contains("session_id"), "{problem}");
    assert_eq!(Page::read(&relay.get(PAGES, &[KEY])).events, [], "it is in no log");
}

#[test]
fn every_published_field_that_the_relay_acts_on_is_checked() {
    let connector = Connector::new();
    let relay = setup(&connector).start();
    for (body, field) in [
        (r#"{"type":["note"]}"#, "type"),
        (r#"{"type":"note","product_id":{}}"#, "product_id"),
        (r#"{"type":"note","session_id":["s1"]}"#, "session_id"),
        (r#"{"type":"note","user_id":7}"#, "user_id"),
        (r#"{"type":"note","user_id":false,"session_id":"s1"}"#, "user_id"),
    ] {
        let problem = publish(&relay, body).problem(400).json();
        assert!(problem["detail"].as_str().unwrap().contains(field), "{body}: {problem}");
    }
}

#[test]
fn null_text_and_the_fields_of_others_are_published_and_an_upstreams_event_is_taken() {
    let connector = Connector::new();
    let relay = setup(&connector).start();
    for body in [
        r#"{"type":"note","session_id":null,"user_id":null}"#,
        r#"{"type":"note","session_id":"42","user_id":"7"}"#,
        r#"{"type":"note","count":42,"actions":[{"session_id":42}],"forwarded_at":"soon"}"#,
    ] {
        assert_eq!(publish(&relay, body).status(), 202, "{body}");
    }
    let mut subscriber = subscribe(&relay, "0");
    (0..3).for_each(|_| drop(subscriber.event()));
    connector.stream().event(r#"{"type":"note","session_id":42,"user_id":[7]}"#);
    assert!(String::from_utf8(subscriber.event().data).unwrap().contains("42"));
}

#[test]
fn an_event_that_nests_over_128_levels_gets_400() {
    let connector = Connector::new();
    let relay = setup(&connector).start();
    // The object is the first level.
    for (open, close, allowed) in [("[", "]", 127), ("{\"a\":[", "]}", 63)] {
        let nested = |levels: usize| {
            let (open, close) = (open.repeat(levels), close.repeat(levels));
            format!(r#"{{"type":"x","x":{open}0{close}}}"#)
        };
        assert_eq!(publish(&relay, &nested(allowed)).status(), 202, "{open}");
        for levels in [allowed + 1, 30_000] {
            let problem = publish(&relay, &nested(levels)).problem(400).json();
            let detail = problem["detail"].as_str().unwrap();
            assert!(detail.starts_with("invalid_json"), "{open} {levels}: {detail}");
        }
    }
    let wide = format!(r#"{{"type":"x","x":[{}0],"y":"{}"}}"#, "[],".repeat(500), "[".repeat(500));
    assert_eq!(publish(&relay, &wide).status(), 202, "width and text are no nesting");
    assert_eq!(Page::read(&relay.get(PAGES, &[KEY])).events.len(), 3);
}

#[test]
fn a_client_without_publish_permission_is_refused() {
    let connector = Connector::new();
    let relay = setup(&connector).start();
    let post = |path: &str, fields: &[(&str, &str)]| {
        http::ask_with(relay.public, "POST", path, fields, &event(1))
    };
    post(PAGES, &[]).problem(401);
    post(PAGES, &[("Authorization", "Bearer wrong")]).problem(401);
    post(PAGES, &[("Authorization", "Bearer key-of-agent-a")]).problem(403);
    post(&format!("{PAGES}?access_token=key-of-publisher"), &[]).problem(401);
    post("/events/prod_nothing", &[PUBLISHER]).problem(403);
    post("/events/prod_nothing", &[KEY]).problem(404);
    post("/stream/prod_abc", &[KEY]).problem(405);
    assert_eq!(post(PAGES, &[PUBLISHER]).status(), 202, "publishing needs no subscribe permission");
}

#[test]
fn a_relay_without_credentials_accepts_no_event_from_a_web_page() {
    let connector = Connector::new();
    let anonymous = "allow_anonymous = true\nanonymous_permissions = ['publish']";
    let relay = Setup::behind(&connector).auth(anonymous).start();
    let post =
        |fields: &[(&str, &str)]| http::ask_with(relay.public, "POST", PAGES, fields, &event(1));
    assert_eq!(post(&[]).status(), 202);
    post(&[("Origin", "https://evil.test")]).problem(403);
    post(&[("Host", "evil.test")]).problem(403);
    let relay = Setup::behind(&Connector::new()).start();
    http::ask_with(relay.public, "POST", PAGES, &[], &event(1)).problem(401);
}

#[test]
fn a_body_beyond_the_smaller_limit_gets_413() {
    for (server, upstream) in [("1KiB", "2KiB"), ("2KiB", "1KiB")] {
        let connector = Connector::new();
        let relay = Setup::behind_with(&connector, &format!("max_event_bytes = '{upstream}'"))
            .server(&format!("max_publish_bytes = '{server}'"))
            .auth(KEYS)
            .start();
        let of = |bytes: usize| event_of(&"s".repeat(bytes - event_of("", 1).len()), 1);
        assert_eq!(publish(&relay, &of(1024)).status(), 202);
        publish(&relay, &of(1025)).problem(413);
        // With its product added, the event would exceed the limit of a relay behind this one.
        let unnamed = of(1024 + 20).replace(r#""product_id":"prod_abc","#, "");
        assert!(unnamed.len() <= 1024);
        publish(&relay, &unnamed).problem(413);
    }
}

#[test]
fn a_body_announced_as_too_large_is_refused_before_it_is_sent() {
    let connector = Connector::new();
    let relay = setup(&connector).server("max_publish_bytes = '1KiB'").start();
    assert_eq!(
        begin(&relay, "Content-Length: 99999999999\r\nExpect: 100-continue\r\n").head().status(),
        413
    );
    let mut wire = begin(&relay, "Transfer-Encoding: chunked\r\n");
    wire.send(format!("400\r\n{}\r\n", " ".repeat(1024)));
    wire.send("1\r\n \r\n");
    assert_eq!(wire.head().status(), 413, "before the body has ended");
}

#[test]
fn a_whole_body_is_published_without_a_reader_of_the_response_and_half_a_body_is_not() {
    let connector = Connector::new();
    let relay = setup(&connector).start();
    let mut subscriber = subscribe(&relay, "0");
    let body = event(1);
    let mut wire = begin(&relay, &format!("Content-Length: {}\r\n", body.len()));
    wire.send(&body);
    assert_eq!(subscriber.numbers(1), [1]);
    drop(wire);
    let mut wire = begin(&relay, "Content-Length: 1000\r\n");
    wire.send(&body);
    drop(wire);
    subscriber.expect_nothing(Duration::from_millis(200));
}

#[test]
fn events_of_concurrent_publishers_have_one_order_that_keeps_each_publishers_own() {
    const PUBLISHERS: usize = 20;
    const EACH: usize = 25;
    let connector = Connector::new();
    let relay = setup(&connector).start();
    let subscribers: Vec<_> = (0..4).map(|_| subscribe(&relay, "0")).collect();
    let orders: Vec<Vec<(String, usize)>> = thread::scope(|scope| {
        for publisher in 0..PUBLISHERS {
            let relay = &relay;
            scope.spawn(move || {
                // All requests on one connection, pipelined.
                let mut wire = Wire::connect(relay.public);
                for n in 0..EACH {
                    let body = event_of(&publisher.to_string(), publisher * EACH + n);
                    let length = body.len().to_string();
                    wire.send(
                        http::request(
                            relay.public,
                            "POST",
                            PAGES,
                            &[KEY, ("Content-Length", &length)],
                        ) + &body,
                    );
                }
                for _ in 0..EACH {
                    let head = wire.head();
                    assert_eq!(head.status(), 202);
                    wire.body(head.field("content-length").unwrap().parse().unwrap());
                }
            });
        }
        let read = |mut subscriber: Subscriber| {
            let mut frames = (0..PUBLISHERS * EACH).map(|_| subscriber.event());
            frames.by_ref().map(|frame| (frame.id().to_owned(), number(&frame.data))).collect()
        };
        let readers: Vec<_> =
            subscribers.into_iter().map(|it| scope.spawn(move || read(it))).collect();
        readers.into_iter().map(|reader| reader.join().unwrap()).collect()
    });
    assert!(orders.iter().all(|order| *order == orders[0]), "one order for all");
    for publisher in 0..PUBLISHERS {
        let own = orders[0].iter().map(|(_, n)| *n).filter(|n| n / EACH == publisher);
        assert!(
            own.eq(publisher * EACH..(publisher + 1) * EACH),
            "publisher {publisher} in its own order"
        );
    }
}

#[test]
fn an_event_acknowledged_as_durable_survives_a_kill() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let mut acknowledged: Vec<(String, usize)> = Vec::new();
    for run in 0..3 {
        let mut relay = data.setup(&connector, "").auth(KEYS).start();
        let kept = relay.get(&format!("{PAGES}?limit=1000"), &[KEY]);
        let kept: Vec<_> = Page::read(&kept)
            .events
            .iter()
            .map(|frame| (frame.id().to_owned(), number(&frame.data)))
            .collect();
        assert!(
            acknowledged.iter().all(|it| kept.contains(it)),
            "run {run}: {acknowledged:?} {kept:?}"
        );
        let count = AtomicUsize::new(0);
        let answered: Vec<_> = thread::scope(|scope| {
            let publishers = (0..3).map(|n| {
                let (relay, count) = (&relay, &count);
                scope.spawn(move || {
                    let mut answered = Vec::new();
                    for n in (run * 3 + n) * 20..(run * 3 + n + 1) * 20 {
                        let answer = publish(relay, &event(n));
                        assert_eq!(answer.json()["durable"], true);
                        answered.push((id(&answer), n));
                        count.fetch_add(1, Ordering::SeqCst);
                    }
                    answered
                })
            });
            let publishers: Vec<_> = publishers.collect();
            publishers.into_iter().flat_map(|it| it.join().unwrap()).collect()
        });
        relay.process.kill();
        assert_eq!(answered.len(), count.into_inner());
        acknowledged.extend(answered);
    }
    let relay = data.setup(&connector, "").auth(KEYS).start();
    let kept = Page::read(&relay.get(&format!("{PAGES}?limit=1000"), &[KEY]));
    assert_eq!(kept.events.len(), acknowledged.len());
}

#[test]
fn an_event_is_acknowledged_as_not_durable_while_the_store_fails() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let relay = data.setup(&connector, "").auth(KEYS).start();
    let mut subscriber = subscribe(&relay, "0");
    assert_eq!(publish(&relay, &event(0)).json()["durable"], true);
    relay.process.limit_file_size(Some(0));
    // This response waits until the store has failed.
    assert_eq!(publish(&relay, &event(1)).json()["durable"], false);
    wait::until("the store is degraded", || {
        relay.metrics().value("autoplay_relay_log_degraded", &[]) == Some(1.0)
    });
    let asked = Instant::now();
    assert_eq!(publish(&relay, &event(2)).json()["durable"], false);
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    assert_eq!(subscriber.numbers(3), [0, 1, 2], "live delivery does not wait");
    relay.process.limit_file_size(None);
    wait::until("the store has recovered", || {
        relay.metrics().value("autoplay_relay_log_degraded", &[]) == Some(0.0)
    });
    assert_eq!(publish(&relay, &event(3)).json()["durable"], true);
}

#[test]
fn a_relay_behind_a_relay_names_the_relay_to_publish_at() {
    let (edge, data) = (Connector::new(), DataDir::new());
    let log = format!("data_dir = '{}'", data.path().display());
    let leaf = Setup::behind_relay(edge.address).auth(KEYS).log(&log).start();
    let mut link = edge.accept_leaf();
    link.event_as("7-41", event(1));
    link.heartbeat();
    leaf.wait_for_end_of_replay();
    let refused = |leaf: &Relay| {
        let problem = publish(leaf, &event(2)).problem(403).json();
        let address = format!("http://{}", edge.address);
        assert!(
            problem["detail"].as_str().unwrap().ends_with(&format!("publish at {address}")),
            "{problem}"
        );
    };
    refused(&leaf);
    link.end();
    refused(&leaf);
    leaf.wait_until_persisted(1);
    leaf.stop();
    let leaf = Setup::behind_relay(edge.address).auth(KEYS).log(&log).start();
    refused(&leaf); // the edge has not answered, but the log is that of a leaf
}

#[test]
fn an_edge_accepts_events_before_its_connector_answers() {
    let connector = Connector::new();
    let relay = setup(&connector).start();
    assert_eq!(publish(&relay, &event(1)).status(), 202);
    let _link = connector.stream();
    relay.wait_for_upstream("connected");
    assert_eq!(publish(&relay, &event(2)).status(), 202);
    let page = Page::read(&relay.get(PAGES, &[KEY]));
    assert_eq!((page.numbers(), page.gap), (vec![1, 2], None));
}

#[test]
fn a_publisher_gets_503_while_the_relay_drains() {
    let connector = Connector::new();
    let relay = setup(&connector).server("drain_window = '5s'").start();
    // With several subscribers, the drain takes long enough.
    let _connected: Vec<_> = (0..20).map(|_| subscribe(&relay, "0")).collect();
    relay.process.signal("TERM");
    wait::until("the relay drains", || relay.ask_admin("/readyz").status() == 503);
    let answer = publish(&relay, &event(1)).problem(503);
    assert!(answer.field("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
}

#[test]
fn a_late_body_does_not_block_other_connections_of_its_publisher() {
    let connector = Connector::new();
    let relay = setup(&connector).start();
    let slow: Vec<_> = (0..10).map(|_| begin(&relay, "Content-Length: 100\r\n")).collect();
    assert_eq!(publish(&relay, &event(1)).status(), 202);
    for wire in slow {
        (&wire.socket).write_all(b"{").unwrap();
    }
}

#[test]
fn a_body_announced_and_not_sent_takes_no_memory_quota() {
    let connector = Connector::new();
    let relay = setup(&connector).start();
    // More than the whole memory quota.
    let lines = "Content-Length: 1048576\r\nExpect: 100-continue\r\n";
    let mut silent: Vec<_> = (0..80).map(|_| begin(&relay, lines)).collect();
    silent
        .iter_mut()
        .for_each(|wire| assert_eq!(wire.head().status(), 100, "the relay waits for each body"));
    let asked = Instant::now();
    assert_eq!(publish(&relay, &event(1)).status(), 202);
    wait::assert_within(Duration::ZERO, asked); // a body has 30 s
}

#[test]
fn an_address_with_unfinished_bodies_leaves_the_quota_of_the_others() {
    let connector = Connector::new();
    let relay = setup(&connector).server("trusted_proxies = ['127.0.0.1/32']").start();
    let almost_whole = " ".repeat((1 << 20) - 1);
    let of = |address: &'static str| [KEY, ("X-Forwarded-For", address)];
    let publish = |address| http::ask_with(relay.public, "POST", PAGES, &of(address), &event(1));
    // Each body has a mebibyte but one byte; together they are a quarter of the quota.
    let endless: Vec<_> = (0..16)
        .map(|_| {
            let mut wire =
                begin(&relay, "Content-Length: 1048576\r\nX-Forwarded-For: 192.0.2.1\r\n");
            wire.send(&almost_whole);
            wire
        })
        .collect();
    wait::until("the share of the address is used", || publish("192.0.2.1").status() == 503);
    assert_eq!(publish("192.0.2.2").status(), 202);
    drop(endless);
    wait::until("the share of the address is free again", || publish("192.0.2.1").status() == 202);
}

/// Returns the setup of a relay with keys.
fn setup(connector: &Connector) -> Setup {
    Setup::behind(connector).auth(KEYS)
}

fn publish(relay: &Relay, body: &str) -> Answer {
    http::ask_with(relay.public, "POST", PAGES, &[KEY], body)
}

/// Sends the head of a publish request, with these lines about its body.
fn begin(relay: &Relay, lines: &str) -> Wire {
    let mut wire = Wire::connect(relay.public);
    let head = http::request(relay.public, "POST", PAGES, &[KEY]);
    wire.send(format!("{}{lines}\r\n", head.strip_suffix("\r\n").unwrap()));
    wire
}

fn subscribe(relay: &Relay, from: &str) -> Subscriber {
    Subscriber::open(relay.public, STREAM, &[KEY, ("Last-Event-ID", from)])
}

fn id(answer: &Answer) -> String {
    answer.json()["id"].as_str().unwrap().to_owned()
}

const KEY: (&str, &str) = ("Authorization", "Bearer key-of-all");

const PUBLISHER: (&str, &str) = ("Authorization", "Bearer key-of-publisher");
