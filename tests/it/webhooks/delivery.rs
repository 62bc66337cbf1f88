//! Deliveries to well-behaved receivers: requests byte by byte, filters, and the deliveries that
//! the admin API lists.

use std::time::Duration;

use crate::common::{
    PRODUCT,
    connector::Connector,
    events::{event, event_like, event_of},
    http,
    page::{Storage, publish},
    process::Process,
    receiver::{Answer, Receiver, Request},
    relay::Setup,
    wait,
    webhooks::{LOOPBACK, SECRET, WHSEC, assert_signed, outcomes, signature, table, url},
};
use serde_json::{Value, json};

/// Payloads as the connector sends them.
const FIXTURES: [&str; 6] = [
    include_str!("../../data/actions.json"),
    include_str!("../../data/actions_anonymous.json"),
    include_str!("../../data/actions_minimal.json"),
    include_str!("../../data/summary.json"),
    include_str!("../../data/unknown_type.json"),
    include_str!("../../data/usertour_trigger.json"),
];

#[test]
fn every_payload_is_delivered_byte_for_byte_and_signed_by_the_contract() {
    for storage in Storage::ALL {
        let (connector, receiver) = (Connector::new(), Receiver::accepting());
        let (setup, _directory) = storage.setup(&connector);
        let standard = table("standard", &receiver, &format!("secret = '{}'", WHSEC.0));
        let relay = setup.more(&(table("plain", &receiver, "") + &standard + LOOPBACK)).start();
        let mut link = connector.stream();
        let payloads = FIXTURES.map(|fixture| fixture.trim().to_owned());
        let frames = publish(&relay, &mut link, payloads.clone());
        let requests = receiver.wait_for(2 * FIXTURES.len());
        for (id, secret, key) in
            [("plain", SECRET, SECRET.as_bytes()), ("standard", WHSEC.0, WHSEC.1)]
        {
            let path = format!("/hooks/{id}");
            for (payload, frame) in payloads.iter().zip(&frames) {
                let of_event = |request: &&_| is(request, &path, frame.id());
                let request = requests
                    .iter()
                    .map(AsRef::as_ref)
                    .find(of_event)
                    .expect("both webhooks get every event");
                assert_eq!(request.head.first_line, format!("POST {path} HTTP/1.1"));
                assert_eq!(String::from_utf8_lossy(&request.body), *payload, "{storage:?}");
                assert_eq!(request.field("content-type"), "application/json");
                assert_eq!(request.field("host"), receiver.address.to_string());
                let agent = concat!("autoplay-relay/", env!("CARGO_PKG_VERSION"));
                assert_eq!(request.field("user-agent"), agent);
                assert_eq!(
                    request.head.field("accept-encoding"),
                    None,
                    "an answer is not decompressed"
                );
                let timestamp: u64 = request.field("webhook-timestamp").parse().unwrap();
                assert!(request.unix_seconds.abs_diff(timestamp) <= 2, "{timestamp}");
                assert_signed(request, secret, key);
            }
            relay.wait_until_settled(id);
            assert_eq!(relay.attempts(id, "accepted"), FIXTURES.len() as f64);
        }
        assert_eq!(receiver.count(), 2 * FIXTURES.len(), "{storage:?}: no request is repeated");
        assert!(receiver.connections() < 2 * FIXTURES.len(), "connections are reused");
    }
}

fn is(request: &Request, path: &str, id: &str) -> bool {
    request.head.path() == path && request.id() == id
}

#[test]
fn a_webhook_s_own_headers_are_sent_and_never_shown() {
    let (connector, receiver) = (Connector::new(), Receiver::accepting());
    let headers = "headers = { X-Gateway-Key = { env = 'GATEWAY_KEY' }, X-Tenant = 'tenant a' }";
    let relay = Setup::behind(&connector)
        .more(&(table("hook", &receiver, headers) + LOOPBACK))
        .start_with(&[("GATEWAY_KEY", "key-of-gateway"), ("RUST_LOG", "trace")]);
    let mut link = connector.stream();
    publish(&relay, &mut link, [event(1)]);
    let request = &receiver.wait_for(1)[0];
    assert_eq!(request.field("x-gateway-key"), "key-of-gateway");
    assert_eq!(request.field("x-tenant"), "tenant a");
    assert_signed(request, SECRET, SECRET.as_bytes());
    let shown = relay.ask_admin("/api/v1/webhooks/hook").json();
    let masked = json!({"X-Gateway-Key": "********", "X-Tenant": "********"});
    assert_eq!(shown["headers"], masked);
    relay.wait_until_settled("hook");
    let metrics = relay.ask_admin("/metrics").text();
    assert!(!metrics.contains("key-of-gateway"));
}

#[test]
fn a_webhook_of_users_gets_their_events_of_every_session() {
    let (connector, receiver) = (Connector::new(), Receiver::accepting());
    let tables = table("of-ada", &receiver, "user_ids = ['ada']")
        + &table("both", &receiver, "user_ids = ['ada', 'bob']\nsession_ids = ['a']");
    let relay = Setup::behind(&connector).more(&(tables + LOOPBACK)).start();
    let mut link = connector.stream();
    let user = |n: usize| [r#""ada""#, r#""bob""#, "null"][n % 3];
    let session = |n: usize| ["a", "b"][n % 2];
    publish(
        &relay,
        &mut link,
        (0..12).map(|n| {
            let (session, user) = (session(n), user(n));
            format!(r#"{{"type":"actions","session_id":"{session}","user_id":{user},"count":{n}}}"#)
        }),
    );
    for (id, expected) in [("of-ada", [0, 3, 6, 9].as_slice()), ("both", &[0, 4, 6, 10])] {
        relay.wait_until_settled(id);
        let path = format!("/hooks/{id}");
        let of_hook = receiver.requests().into_iter().filter(|request| request.head.path() == path);
        let mut numbers: Vec<_> = of_hook.map(|request| request.number()).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, expected, "{id}");
    }
}

#[test]
fn a_webhook_gets_its_types_and_sessions_and_neither_gap_nor_heartbeat() {
    let (connector, receiver) = (Connector::new(), Receiver::accepting());
    let tables = table("all", &receiver, "")
        + &table("summaries", &receiver, "types = ['summary']")
        + &table("of-a", &receiver, "session_ids = ['a']")
        + &table("both", &receiver, "types = ['actions', 'x']\nsession_ids = ['a', 'b']")
        + &table("nobody", &receiver, "session_ids = ['nobody']");
    let relay = Setup::behind(&connector).more(&(tables + LOOPBACK)).start();
    let mut link = connector.stream();
    let kind = |n: usize| ["actions", "summary", "x"][n % 3];
    let session = |n: usize| ["a", "b", "c", "d"][n % 4];
    let events =
        |numbers: std::ops::Range<usize>| numbers.map(move |n| event_like(kind(n), session(n), n));
    publish(&relay, &mut link, events(0..24));
    link.heartbeat();
    link.end();
    let mut link = relay.reconnect(&connector);
    publish(&relay, &mut link, events(24..48));
    type Admits = fn(&str, &str) -> bool;
    let hooks: [(&str, Admits); 5] = [
        ("all", |_, _| true),
        ("summaries", |kind, _| kind == "summary"),
        ("of-a", |_, session| session == "a"),
        ("both", |kind, session| kind != "summary" && (session == "a" || session == "b")),
        ("nobody", |_, _| false),
    ];
    let expected =
        |admits: Admits| (0..48).filter(|n| admits(kind(*n), session(*n))).collect::<Vec<_>>();
    receiver.wait_for(hooks.iter().map(|(_, admits)| expected(*admits).len()).sum());
    for (id, admits) in hooks {
        relay.wait_until_settled(id);
        let path = format!("/hooks/{id}");
        let of_hook = receiver.requests().into_iter().filter(|request| request.head.path() == path);
        let mut numbers: Vec<_> = of_hook.map(|request| request.number()).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, expected(admits), "{id}");
    }
}

#[test]
fn every_attempt_has_the_same_body_and_id_and_its_own_time_and_signature() {
    let (connector, receiver) = (Connector::new(), Receiver::answering(500));
    let relay = Setup::behind(&connector).more(&(table("hook", &receiver, "") + LOOPBACK)).start();
    let mut link = connector.stream();
    let frames = publish(&relay, &mut link, [FIXTURES[0].trim().to_owned()]);
    let timestamp = |request: &Request| request.field("webhook-timestamp").parse::<u64>().unwrap();
    wait::until("an attempt in another second", || {
        let requests = receiver.requests();
        requests.len() > 2 && timestamp(requests.last().unwrap()) > timestamp(&requests[0])
    });
    receiver.set_script(|_| Answer::Status(204));
    relay.wait_until_settled("hook");
    let requests = receiver.requests();
    for request in &requests {
        assert_eq!(
            (request.id(), request.body.as_slice()),
            (frames[0].id(), frames[0].data.as_slice())
        );
        assert_signed(request, SECRET, SECRET.as_bytes());
    }
    assert!(requests.is_sorted_by_key(|request| timestamp(request)));
    let delivery = relay.wait_for_deliveries("hook", "delivered", 1).remove(0);
    let mut expected = vec!["failed"; requests.len() - 1];
    expected.push("accepted");
    assert_eq!(outcomes(&delivery), expected);
}

#[test]
fn deliveries_are_listed_with_their_attempts() {
    for storage in Storage::ALL {
        let (connector, receiver) = (Connector::new(), Receiver::new(by_session));
        let (setup, _directory) = storage.setup(&connector);
        let lines = "max_retries = 1\nmax_in_flight = 4\ntypes = ['actions']\nsession_ids = ['good', 'bad', 'slow']";
        let relay = setup.more(&(table("hook", &receiver, lines) + LOOPBACK)).start();
        let mut link = connector.stream();
        let payloads =
            [event_of("good", 0), event_of("bad", 1), event_of("slow", 2), event_of("slow", 3)];
        let frames = publish(&relay, &mut link, payloads);
        receiver.wait_for(3);
        let dead = relay.wait_for_deliveries("hook", "dead", 1).remove(0);
        let delivered = relay.wait_for_deliveries("hook", "delivered", 1).remove(0);
        let pending = relay.wait_for_deliveries("hook", "pending", 2);
        for (delivery, n, session) in [
            (&delivered, 0, "good"),
            (&dead, 1, "bad"),
            (&pending[1], 2, "slow"),
            (&pending[0], 3, "slow"),
        ] {
            assert_eq!(delivery["event_id"], frames[n].id(), "newest first");
            assert_eq!(
                (&delivery["type"], &delivery["session_id"]),
                (&"actions".into(), &session.into())
            );
            assert!(delivery["id"].is_string() && is_time(&delivery["created_at"]), "{delivery}");
            assert!(delivery.get("next_attempt_at").is_some(), "{delivery}");
        }
        assert_eq!(
            (outcomes(&dead), outcomes(&delivered)),
            (vec!["refused".to_owned()], vec!["accepted".to_owned()])
        );
        for (delivery, status) in [(&delivered, 200), (&dead, 400)] {
            let attempt = &delivery["attempts"][0];
            assert_eq!(
                (&attempt["status"], &delivery["next_attempt_at"]),
                (&status.into(), &Value::Null)
            );
            assert!(is_time(&attempt["at"]) && attempt["duration_ms"].is_u64(), "{attempt}");
        }
        let view = relay.webhook("hook");
        let expected = json!({
            "id": "hook", "product_id": PRODUCT, "url": url(&receiver, "hook"), "types": ["actions"],
            "session_ids": ["bad", "good", "slow"], "timeout": "10s", "max_retries": 1, "initial_backoff": "20ms",
            "max_backoff": "100ms", "max_in_flight": 4, "secret": "********", "source": "file", "state": "active",
            "pending": 2, "dead": 1
        });
        for (name, value) in expected.as_object().unwrap() {
            assert_eq!(view[name], *value, "{storage:?}: {name} of {view}");
        }
        assert_eq!(
            relay.ask_admin("/api/v1/webhooks").json()["webhooks"].as_array().unwrap().len(),
            1
        );
        let of_hook = [("webhook", "hook")];
        relay.wait_for_metric("autoplay_relay_webhook_pending", &of_hook, 2.0);
        relay.wait_for_metric("autoplay_relay_webhook_dead", &of_hook, 1.0);
        let oldest = relay
            .metrics()
            .value("autoplay_relay_webhook_oldest_pending_timestamp_seconds", &of_hook);
        assert!(oldest.is_some_and(|oldest| oldest > 1.0e9), "{oldest:?}");
    }
}

fn by_session(request: &Request) -> Answer {
    match request.session().as_str() {
        "bad" => Answer::Status(400),
        "slow" => Answer::Hang,
        _ => Answer::Status(200),
    }
}

/// Returns true for a time in UTC (RFC 3339).
fn is_time(value: &Value) -> bool {
    value
        .as_str()
        .is_some_and(|time| time.len() >= 20 && time.ends_with('Z') && time.as_bytes()[10] == b'T')
}

#[test]
fn a_secret_is_absent_from_admin_api_metrics_and_log() {
    let (connector, receiver) = (Connector::new(), Receiver::answering(401));
    let mut relay =
        Setup::behind(&connector).more(&(table("hook", &receiver, "") + LOOPBACK)).start();
    let mut link = connector.stream();
    publish(&relay, &mut link, [event(0)]);
    relay.wait_for_dead("hook", 1);
    for path in ["webhooks", "webhooks/hook", "webhooks/hook/deliveries?state=dead", "status"] {
        let answer = relay.ask_admin(&format!("/api/v1/{path}")).text();
        assert!(!answer.contains(SECRET), "{path}: {answer}");
    }
    assert!(!relay.ask_admin("/metrics").text().contains(SECRET));
    relay.process.signal("TERM");
    relay.process.exit_code();
    assert!(!relay.process.stderr.whole().contains(SECRET));
}

#[test]
fn a_new_secret_signs_in_addition_to_the_old_one() {
    let (connector, receiver) = (Connector::new(), Receiver::accepting());
    let relay = Setup::behind(&connector).more(LOOPBACK).start();
    let mut link = connector.stream();
    let definition = |secret: &str| json!({ "id": "hook", "product_id": PRODUCT, "url": url(&receiver, "hook"), "secret": secret });
    let created = relay.call("POST", "/api/v1/webhooks", &definition(SECRET));
    assert_eq!((created.status(), &created.json()["source"]), (201, &"api".into()));
    publish(&relay, &mut link, [event(0)]);
    assert_signed(&receiver.wait_for(1)[0], SECRET, SECRET.as_bytes());
    let changed = relay.call("PUT", "/api/v1/webhooks/hook", &definition(WHSEC.0));
    assert_eq!((changed.status(), &changed.json()["secret"]), (200, &"********".into()));
    publish(&relay, &mut link, [event(1)]);
    let request = &receiver.wait_for(2)[1];
    let mut signatures: Vec<_> =
        request.field("webhook-signature").split(' ').map(str::to_owned).collect();
    let mut expected = vec![signature(request, SECRET.as_bytes()), signature(request, WHSEC.1)];
    signatures.sort_unstable();
    expected.sort_unstable();
    assert_eq!(signatures, expected);
    assert_eq!(
        request.field("authorization"),
        format!("Bearer {}", WHSEC.0),
        "the connector's headers carry one secret"
    );
    let removed = relay.call("DELETE", "/api/v1/webhooks/hook", &Value::Null);
    assert_eq!((removed.status(), relay.ask_admin("/api/v1/webhooks/hook").status()), (204, 404));
    publish(&relay, &mut link, [event(2)]);
    wait::holds("no further request", Duration::from_millis(300), || receiver.count() == 2);
}

#[test]
fn a_test_sends_a_signed_sample_and_returns_its_outcome() {
    let (connector, receiver) = (Connector::new(), Receiver::answering(202));
    let relay = Setup::behind(&connector).more(&(table("hook", &receiver, "") + LOOPBACK)).start();
    let answer = relay.command_webhook("hook", "test");
    let result = answer.json();
    assert_eq!(
        (answer.status(), &result["outcome"], &result["status"]),
        (200, &"accepted".into(), &202.into())
    );
    assert!(result["duration_ms"].is_u64(), "{result}");
    let request = &receiver.wait_for(1)[0];
    assert_signed(request, SECRET, SECRET.as_bytes());
    let sample: Value = serde_json::from_slice(&request.body).unwrap();
    assert!(sample["type"].is_string() && sample["product_id"] == PRODUCT, "{sample}");
    receiver.set_script(|_| Answer::Status(503));
    let result = relay.command_webhook("hook", "test").json();
    assert_eq!((&result["outcome"], &result["status"]), (&"failed".into(), &503.into()));
    assert_eq!(
        (receiver.count(), &relay.webhook("hook")["pending"]),
        (2, &0.into()),
        "a sample is not retried"
    );
}

#[test]
fn erased_events_are_neither_delivered_nor_kept_as_dead_letters() {
    for storage in Storage::ALL {
        let (connector, receiver) = (Connector::new(), Receiver::answering(400));
        let (setup, _directory) = storage.setup(&connector);
        let one_by_one = table("hook", &receiver, "max_in_flight = 1");
        let relay = setup.more(&(one_by_one + LOOPBACK)).start();
        let mut link = connector.stream();
        publish(&relay, &mut link, (0..20).map(|n| event_of(["mine", "other"][n % 2], n)));
        relay.wait_for_dead("hook", 20);
        let erased = relay.call(
            "DELETE",
            &format!("/api/v1/events/{PRODUCT}?session_id=mine"),
            &Value::Null,
        );
        assert_eq!(erased.status(), 200);
        relay.wait_for_dead("hook", 10);
        let left = relay.deliveries("hook", "dead");
        assert!(
            left.len() == 10 && left.iter().all(|dead_letter| dead_letter["session_id"] == "other"),
            "{storage:?} {left:?}"
        );
        relay.command_webhook("hook", "enable"); // in case the refusals have opened the circuit
        receiver.set_script(|_| Answer::Status(500));
        publish(&relay, &mut link, (20..22).map(|n| event_of(["mine", "other"][n % 2], n)));
        relay.wait_for_deliveries("hook", "pending", 2);
        relay.call("DELETE", &format!("/api/v1/events/{PRODUCT}?session_id=mine"), &Value::Null);
        relay.wait_for_pending("hook", 1);
        // The attempt that was under way at the erasure is over when the second one after it comes.
        let before = receiver.count();
        wait::until("later attempts", || receiver.count() >= before + 2);
        receiver.set_script(|_| Answer::Status(200));
        relay.wait_until_settled("hook");
        assert_eq!(
            receiver.accepted_by_session(),
            [("other".to_owned(), vec![21])].into(),
            "{storage:?}"
        );
    }
}

#[test]
fn the_demo_delivers_to_its_sample_receiver_with_both_signatures_valid() {
    let environment = [
        ("AUTOPLAY_RELAY__SERVER__LISTEN", "127.0.0.1:0"),
        ("AUTOPLAY_RELAY__SERVER__ADMIN_LISTEN", "127.0.0.1:0"),
    ];
    let mut demo = Process::start(&["--log-format", "json", "demo"], &environment);
    let prints = |what: &str, words: &str| {
        demo.stdout.first(what, |line| line.contains(words).then_some(()));
    };
    prints("a delivery with valid signatures", "/good got ");
    prints("the outage of the other receiver", "/flaky answers 503");
    let curl = demo.stdout.first("the command that lists pending deliveries", |line| {
        let url = line.split("curl 'http://").nth(1)?.split('\'').next()?;
        url.contains("state=pending").then(|| url.to_owned())
    });
    let (admin, path) = curl.split_once('/').unwrap();
    let admin = admin.parse().unwrap();
    wait::until("a failed delivery is pending", || {
        let page = http::get(admin, &format!("/{path}"), &[]).json();
        page["deliveries"]
            .as_array()
            .unwrap()
            .iter()
            .any(|delivery| outcomes(delivery).contains(&"failed".to_owned()))
    });
    demo.signal("INT");
    assert_eq!(demo.exit_code(), Some(0));
    assert!(!demo.stdout.whole().contains("refused a delivery"));
}
