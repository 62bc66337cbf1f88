//! The admin API of webhooks: its requests, responses and errors, and that registrations are
//! durable.

use std::{
    collections::BTreeSet,
    io::Write,
    net::{SocketAddr, TcpListener},
    thread,
};

use crate::common::{
    PRODUCT,
    connector::{Connector, Link},
    events::event,
    http::{self, Answer, Wire},
    relay::{Relay, Setup},
    wait,
};
use serde_json::{Value, json};

const WEBHOOKS: &str = "/api/v1/webhooks";

#[test]
fn a_webhook_is_created_shown_changed_and_deleted() {
    let (relay, _link) = relay();
    let created = send(&relay, "POST", WEBHOOKS, &webhook("http://127.0.0.1:1/events"));
    assert_eq!(created.status(), 201, "{}", created.text());
    assert_eq!(created.field("location"), Some("/api/v1/webhooks/crm"));
    let expected = json!({ "id": "crm", "product_id": PRODUCT, "url": "http://127.0.0.1:1/events", "types": ["actions"],
        "session_ids": [], "user_ids": [], "headers": {}, "timeout": "10s", "max_retries": 8, "initial_backoff": "2s", "max_backoff": "5m",
        "max_in_flight": 16, "secret": "********", "source": "api", "state": "active", "until": null, "problem": null,
        "pending": 0, "oldest_pending_at": null, "dead": 0 });
    assert_eq!(created.json(), expected);
    assert_eq!(get(&relay, &of("")).json(), expected);
    assert_eq!(get(&relay, WEBHOOKS).json(), json!({ "webhooks": [expected] }));

    let mut sent_back = expected.clone();
    sent_back["timeout"] = "90s".into();
    let changed = send(&relay, "PUT", &of(""), &sent_back);
    let mut expected = expected;
    expected["timeout"] = "90s".into();
    assert_eq!((changed.status(), changed.json()), (200, expected.clone()));
    assert_eq!(get(&relay, &of("")).json(), expected);
    let least = json!({ "url": "http://127.0.0.1:1/other" });
    let replaced = send(&relay, "PUT", &of(""), &least).json();
    assert_eq!(
        (&replaced["timeout"], &replaced["types"]),
        (&json!("10s"), &json!(["actions"])),
        "missing fields have their defaults"
    );

    let deleted = send(&relay, "DELETE", &of(""), &Value::Null);
    assert_eq!((deleted.status(), deleted.text().as_str()), (204, ""));
    assert_eq!(get(&relay, WEBHOOKS).json(), json!({ "webhooks": [] }));
    get(&relay, &of("")).problem(404);
}

#[test]
fn an_unknown_id_is_not_found_and_a_taken_id_is_a_conflict() {
    let (relay, _link) = relay();
    get(&relay, &of("")).problem(404);
    send(&relay, "PUT", &of(""), &webhook("http://h/")).problem(404);
    send(&relay, "DELETE", &of(""), &Value::Null).problem(404);
    for command in ["/enable", "/disable", "/test"] {
        send(&relay, "POST", &of(command), &Value::Null).problem(404);
    }
    get(&relay, &of("/deliveries?state=dead")).problem(404);
    send(&relay, "POST", &of("/redeliver"), &json!({ "state": "dead" })).problem(404);
    get(&relay, "/api/v1/webhooks/%FF").problem(404);
    assert_eq!(send(&relay, "POST", WEBHOOKS, &webhook("http://h/")).status(), 201);
    send(&relay, "POST", WEBHOOKS, &webhook("http://h/")).problem(409);
}

#[test]
fn webhooks_together_name_a_bounded_number_of_sessions_and_users() {
    let (relay, _link) = relay();
    let names = |count: usize| (0..count).map(|n| format!("n{n}")).collect::<Vec<_>>();
    // A third of the names, rounded up, are users.
    let naming = |id: &str, count: usize| {
        let (users, mut webhook) = (count.div_ceil(3), webhook("http://127.0.0.1:1/"));
        webhook["id"] = id.into();
        webhook["session_ids"] = json!(names(count - users));
        webhook["user_ids"] = json!(names(users));
        webhook
    };
    for n in 0..65 {
        let created = send(&relay, "POST", WEBHOOKS, &naming(&format!("hook{n}"), 1000));
        assert_eq!(created.status(), 201, "{n}");
    }
    send(&relay, "POST", WEBHOOKS, &naming("last", 537)).problem(409);
    assert_eq!(send(&relay, "POST", WEBHOOKS, &naming("last", 536)).status(), 201);
    send(&relay, "PUT", "/api/v1/webhooks/last", &naming("last", 537)).problem(409);
    assert_eq!(send(&relay, "PUT", "/api/v1/webhooks/hook7", &naming("hook7", 999)).status(), 200);
    assert_eq!(send(&relay, "PUT", "/api/v1/webhooks/last", &naming("last", 537)).status(), 200);
    assert_eq!(send(&relay, "POST", WEBHOOKS, &naming("all", 0)).status(), 201);
}

#[test]
fn an_invalid_webhook_is_reported_field_by_field() {
    let (relay, _link) = relay();
    let body = json!({ "id": "a b", "url": "ftp://hush/", "secret": "hush hush", "types": ["actions", ""],
        "timeout": 5, "max_in_flight": 0, "secret_env": "PATH" });
    let expected =
        ["id", "max_in_flight", "product_id", "secret", "secret_env", "timeout", "types[1]", "url"]
            .map(str::to_owned);
    let problem = send(&relay, "POST", WEBHOOKS, &body).problem(422);
    assert_eq!(fields(&problem), expected.into());
    assert!(!problem.text().contains("hush"), "{}", problem.text());
    for body in ["nothing", "[]", "{\"id\":"] {
        let problem = http::ask_with(relay.admin, "POST", WEBHOOKS, &[], body).problem(422);
        assert_eq!(fields(&problem), [String::new()].into(), "{body}");
    }
    let mut elsewhere = webhook("http://h/");
    elsewhere["product_id"] = "prod_unknown".into();
    let problem = send(&relay, "POST", WEBHOOKS, &elsewhere).problem(422);
    assert_eq!(fields(&problem), ["product_id".to_owned()].into());
    assert!(problem.text().contains("[[upstreams]]"), "{}", problem.text());

    send(&relay, "POST", WEBHOOKS, &webhook("http://h/"));
    for (field, value) in [("id", "other"), ("product_id", "other"), ("url", "hush")] {
        let mut body = webhook("http://h/");
        body[field] = value.into();
        let problem = send(&relay, "PUT", &of(""), &body).problem(422);
        assert_eq!(fields(&problem), [field.to_owned()].into());
    }
    assert_eq!(get(&relay, &of("")).json()["url"], "http://h/", "the webhook is unchanged");
}

#[test]
fn a_body_has_a_limit_and_a_route_names_its_methods() {
    let (relay, _link) = relay();
    let long = " ".repeat(65 * 1024);
    for path in [WEBHOOKS, "/products"] {
        http::ask_with(relay.admin, "POST", path, &[], &long).problem(413);
    }
    for (path, method, allowed) in [
        (WEBHOOKS, "DELETE", "GET, HEAD, POST"),
        (&of(""), "POST", "GET, HEAD, PUT, DELETE"),
        (&of("/enable"), "GET", "POST"),
        (&of("/deliveries"), "DELETE", "GET, HEAD"),
        ("/products", "GET", "POST"),
        ("/api/v1/rejected", "DELETE", "GET, HEAD"),
    ] {
        let problem = http::ask(relay.admin, method, path, &[("Content-Length", "0")]).problem(405);
        assert_eq!(problem.field("allow"), Some(allowed), "{method} {path}");
    }
}

#[test]
fn every_route_requires_the_admin_key() {
    let connector = Connector::new();
    let relay =
        setup(&connector).auth("allow_anonymous = true\nadmin_key = 'key-of-the-operator'").start();
    for path in [WEBHOOKS, &of(""), &of("/deliveries?state=dead"), "/api/v1/rejected"] {
        get(&relay, path).problem(401);
        let key = [("X-Admin-Key", "key-of-the-operator")];
        assert!([200, 404].contains(&http::get(relay.admin, path, &key).status()), "{path}");
    }
    for path in [WEBHOOKS, &of("/enable"), &of("/test"), &of("/redeliver"), "/products"] {
        send(&relay, "POST", path, &webhook("http://h/")).problem(401);
    }
    let bearer = [("Authorization", "Bearer key-of-the-operator")];
    let body = webhook("http://h/").to_string();
    assert_eq!(http::ask_with(relay.admin, "POST", WEBHOOKS, &bearer, &body).status(), 201);
}

#[test]
fn a_web_page_cannot_register_a_webhook_on_its_visitors_loopback() {
    let (relay, _link) = relay();
    let body = webhook("http://h/").to_string();
    for (path, fields) in [
        (WEBHOOKS, [("Origin", "https://evil.example"), ("Content-Type", "text/plain")]),
        (WEBHOOKS, [("Origin", "null"), ("Content-Type", "application/json")]),
        ("/products", [("Host", "evil.example"), ("Content-Type", "application/json")]),
    ] {
        http::ask_with(relay.admin, "POST", path, &fields, &body).problem(403);
    }
    assert_eq!(get(&relay, WEBHOOKS).json()["webhooks"], json!([]));
}

#[test]
fn a_webhook_of_the_file_is_shown_and_can_be_disabled_but_not_changed() {
    let connector = Connector::new();
    let declared = format!(
        "[[webhooks]]\nid = 'crm'\nproduct_id = '{PRODUCT}'\nurl = 'http://127.0.0.1:1/'\nsecret = 'secret-of-the-file'\n"
    );
    let relay = setup(&connector).more(&declared).start();
    let _link = connector.stream();
    let shown = get(&relay, &of("")).json();
    assert_eq!((&shown["source"], &shown["secret"]), (&json!("file"), &json!("********")));
    for (method, path) in [("PUT", of("")), ("DELETE", of("")), ("POST", WEBHOOKS.to_owned())] {
        let problem = send(&relay, method, &path, &webhook("http://h/")).problem(409);
        assert_eq!(
            method == "POST",
            !problem.text().contains("configuration file"),
            "{}",
            problem.text()
        );
    }
    assert_eq!(send(&relay, "POST", &of("/disable"), &Value::Null).json()["state"], "disabled");
    assert_eq!(send(&relay, "POST", &of("/enable"), &Value::Null).json()["state"], "active");
}

#[test]
fn an_operator_disables_a_webhook_and_the_status_says_so() {
    let (relay, _link) = relay();
    send(&relay, "POST", WEBHOOKS, &webhook("http://127.0.0.1:1/"));
    let disabled = send(&relay, "POST", &of("/disable"), &Value::Null);
    assert_eq!((disabled.status(), &disabled.json()["state"]), (200, &json!("disabled")));
    let listed = relay.status()["webhooks"][0].clone();
    assert_eq!((&listed["id"], &listed["product_id"]), (&json!("crm"), &json!(PRODUCT)));
    assert_eq!(
        (&listed["state"], listed["problem"].is_string()),
        (&json!("disabled"), true),
        "{listed}"
    );
    for field in ["until", "pending", "dead", "oldest_pending_at"] {
        assert!(listed.get(field).is_some(), "{field} of {listed}");
    }
    let enabled = send(&relay, "POST", &of("/enable"), &Value::Null);
    assert_eq!((enabled.status(), &enabled.json()["state"]), (200, &json!("active")));
}

#[test]
fn a_secret_is_absent_from_every_response_and_the_log() {
    let (relay, mut link) = relay();
    let answers = [
        send(&relay, "POST", WEBHOOKS, &webhook("http://127.0.0.1:1/")),
        send(&relay, "PUT", &of(""), &webhook("http://127.0.0.1:2/")),
        send(&relay, "POST", WEBHOOKS, &webhook("http://127.0.0.1:1/")),
        send(&relay, "POST", &of("/test"), &Value::Null),
        get(&relay, WEBHOOKS),
        get(&relay, &of("")),
        relay.ask_admin("/api/v1/status"),
        relay.ask_admin("/metrics"),
    ];
    relay.publish(&mut link, 0..3);
    for answer in answers {
        assert!(!answer.text().contains("sesame"), "{}", answer.text());
    }
    assert!(!relay.process.stderr.so_far().join("\n").contains("sesame"));
}

#[test]
fn a_test_returns_the_response_of_the_receiver() {
    let (relay, _link) = relay();
    send(&relay, "POST", WEBHOOKS, &webhook(&receiver("204 No Content")));
    let tested = send(&relay, "POST", &of("/test"), &Value::Null);
    let answer = tested.json();
    assert_eq!(
        (tested.status(), &answer["outcome"], &answer["status"]),
        (200, &json!("accepted"), &json!(204))
    );
    assert!(answer["duration_ms"].is_u64() && answer.get("error").is_none(), "{answer}");
    send(&relay, "PUT", &of(""), &webhook("http://127.0.0.1:1/"));
    let answer = send(&relay, "POST", &of("/test"), &Value::Null).json();
    assert_eq!((&answer["outcome"], &answer["status"]), (&json!("connect"), &Value::Null));
    assert!(answer["error"].is_string(), "{answer}");
}

#[test]
fn dead_letters_are_listed_by_page_and_redelivered() {
    let (relay, mut link) = relay();
    send(&relay, "POST", WEBHOOKS, &webhook(&receiver("400 Bad Request")));
    let ids: Vec<_> =
        relay.publish(&mut link, 0..7).iter().map(|frame| frame.id().to_owned()).collect();
    wait_for_dead(&relay, 7);
    let newest_first: Vec<_> = ids.iter().rev().cloned().collect();
    for limit in [1, 3, 7, 1000] {
        assert_eq!(all_ids(&relay, "dead", limit), newest_first, "{limit} at a time");
    }
    let letter = get(&relay, &of("/deliveries?state=dead&limit=1")).json()["deliveries"][0].clone();
    let expected = json!({ "id": ids[6], "event_id": ids[6], "type": "actions", "session_id": "s1", "state": "dead",
        "next_attempt_at": null, "reason": "refused", "payload": serde_json::from_str::<Value>(&event(6)).unwrap() });
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(letter[field], *value, "{field} of {letter}");
    }
    let attempt = &letter["attempts"][0];
    assert_eq!((&attempt["outcome"], &attempt["status"]), (&json!("refused"), &json!(400)));
    for time in [&letter["created_at"], &letter["died_at"], &attempt["at"]] {
        assert!(
            time.as_str().is_some_and(|time| time.starts_with("20") && time.ends_with('Z')),
            "{letter}"
        );
    }

    send(&relay, "PUT", &of(""), &webhook(&receiver("200 OK")));
    let two = json!({ "delivery_ids": [ids[1], ids[4], "1-1"] });
    let requeued = send(&relay, "POST", &of("/redeliver"), &two);
    assert_eq!(
        (requeued.status(), requeued.json()),
        (202, json!({ "requeued": 2 })),
        "only dead ones are requeued"
    );
    wait_for_dead(&relay, 5);
    let requeued = send(&relay, "POST", &of("/redeliver"), &json!({ "state": "dead" }));
    assert_eq!((requeued.status(), requeued.json()), (202, json!({ "requeued": 5 })));
    wait::until("all are delivered", || all_ids(&relay, "delivered", 2).len() == 7);
    assert!(all_ids(&relay, "dead", 100).is_empty());
}

#[test]
fn deliveries_of_a_disabled_webhook_are_listed_as_pending() {
    let (relay, mut link) = relay();
    send(&relay, "POST", WEBHOOKS, &webhook("http://127.0.0.1:1/"));
    send(&relay, "POST", &of("/disable"), &Value::Null);
    let ids: Vec<_> =
        relay.publish(&mut link, 0..5).iter().map(|frame| frame.id().to_owned()).collect();
    assert_eq!(
        get(&relay, &of("")).json()["pending"],
        5,
        "whether the webhook has taken them or not"
    );
    wait::until("the webhook has taken all", || all_ids(&relay, "pending", 2).len() == 5);
    assert_eq!(all_ids(&relay, "pending", 2), ids.into_iter().rev().collect::<Vec<_>>());
    assert!(get(&relay, &of("")).json()["oldest_pending_at"].is_string());
}

#[test]
fn an_invalid_query_or_command_is_refused() {
    let (relay, _link) = relay();
    send(&relay, "POST", WEBHOOKS, &webhook("http://h/"));
    for query in [
        "?state=",
        "?state=lost",
        "?state=dead&limit=0",
        "?state=dead&limit=1001",
        "?state=dead&after=x",
    ] {
        let problem = get(&relay, &of(&format!("/deliveries{query}"))).problem(400);
        let names_all =
            ["pending", "delivered", "dead"].iter().all(|state| problem.text().contains(state));
        assert_eq!(names_all, !query.contains("=dead"), "{}", problem.text());
    }
    for (body, field) in [
        (json!({}), ""),
        (json!({ "state": "dead", "delivery_ids": [] }), ""),
        (json!({ "state": "pending" }), "state"),
        (json!({ "delivery_ids": ["x"] }), "delivery_ids[0]"),
    ] {
        let problem = send(&relay, "POST", &of("/redeliver"), &body).problem(422);
        assert_eq!(fields(&problem), [field.to_owned()].into(), "{body}");
    }
}

#[test]
fn a_registration_survives_a_restart() {
    let connector = Connector::new();
    let directory = tempfile::tempdir().unwrap();
    let setup =
        setup(&connector).log(&format!("data_dir = '{}'", directory.path().join("data").display()));
    let relay = setup.start();
    let _link = connector.stream();
    let mut body = webhook("http://127.0.0.1:1/?key=of-the-receiver");
    body["session_ids"] = json!(["ä\u{7}\"", "b"]);
    body["user_ids"] = json!(["ada", "ö\"\u{7}"]);
    let created = send(&relay, "POST", WEBHOOKS, &body).json();
    relay.stop();
    let relay = setup.start();
    assert_eq!(get(&relay, &of("")).json(), created);
    assert_eq!(send(&relay, "DELETE", &of(""), &Value::Null).status(), 204);
    relay.stop();
    let relay = setup.start();
    assert_eq!(get(&relay, WEBHOOKS).json(), json!({ "webhooks": [] }));
}

/// Starts a relay whose webhooks may reach loopback addresses, and accepts its upstream connection.
fn relay() -> (Relay, Link) {
    let connector = Connector::new();
    let relay = setup(&connector).start();
    let link = connector.stream();
    (relay, link)
}

fn setup(connector: &Connector) -> Setup {
    Setup::behind(connector).more("[egress]\nallow_networks = ['127.0.0.0/8']\n")
}

/// Returns a valid registration.
fn webhook(url: &str) -> Value {
    json!({ "id": "crm", "product_id": PRODUCT, "url": url, "secret": "sesame", "types": ["actions"] })
}

/// Returns the path of the webhook, followed by `rest`.
fn of(rest: &str) -> String {
    format!("{WEBHOOKS}/crm{rest}")
}

fn get(relay: &Relay, path: &str) -> Answer {
    relay.ask_admin(path)
}

/// Sends a request with this body; `null` is no body.
fn send(relay: &Relay, method: &str, path: &str, body: &Value) -> Answer {
    let text = if body.is_null() { String::new() } else { body.to_string() };
    http::ask_with(relay.admin, method, path, &[("Content-Type", "application/json")], &text)
}

/// Returns the fields named by a 422.
fn fields(problem: &Answer) -> BTreeSet<String> {
    let problem = problem.json();
    let errors = problem["errors"].as_array().unwrap().iter();
    errors
        .map(|error| {
            assert!(error["message"].is_string(), "{error}");
            error["field"].as_str().unwrap().to_owned()
        })
        .collect()
}

fn wait_for_dead(relay: &Relay, count: u64) {
    wait::until(&format!("{count} are dead"), || get(relay, &of("")).json()["dead"] == count);
}

/// Returns the ids of all deliveries of a state, read in pages of `limit`.
fn all_ids(relay: &Relay, state: &str, limit: usize) -> Vec<String> {
    let mut ids = Vec::new();
    let mut after = String::new();
    loop {
        let page =
            get(relay, &of(&format!("/deliveries?state={state}&limit={limit}{after}"))).json();
        let deliveries = page["deliveries"].as_array().unwrap();
        assert!(deliveries.len() <= limit);
        ids.extend(deliveries.iter().map(|delivery| delivery["id"].as_str().unwrap().to_owned()));
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => return ids,
        }
    }
}

/// Starts a receiver that answers every request with this status, as long as the test runs. Returns
/// its URL.
fn receiver(status: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    thread::spawn(move || {
        for socket in listener.incoming() {
            let mut wire = Wire::of(socket.unwrap());
            let length =
                wire.head().field("content-length").map_or(0, |length| length.parse().unwrap());
            wire.body(length);
            let answer =
                format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            let _ = wire.socket.write_all(answer.as_bytes());
        }
    });
    format!("http://{address}/events")
}
