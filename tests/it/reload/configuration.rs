//! Configuration changes at run time: how they are noticed, their effect, and which subscribers are
//! disconnected.

use std::{
    fs,
    os::unix::fs::symlink,
    time::{Duration, Instant},
};

use crate::common::{
    PRODUCT, SOCKET, STREAM,
    connector::{Connector, Link},
    events::event,
    http,
    process::Process,
    relay::{Relay, Setup},
    subscriber::Subscriber,
    token::{SECRET, bearer, jwt},
    wait,
    websocket::{self, Socket},
};
use serde_json::json;

const SUCCESS: &str = "autoplay_relay_config_reload_success";

/// Returns a key for [`PRODUCT`].
fn key(name: &str, key: &str, more: &str) -> String {
    format!(
        "[[auth.keys]]\nname = '{name}'\nkey = '{key}'\nproducts = ['{PRODUCT}']\npermissions = ['subscribe']\n{more}\n"
    )
}

fn open(relay: &Relay, authorization: &str) -> Subscriber {
    Subscriber::open(relay.public, STREAM, &[("Authorization", authorization)])
}

fn socket(relay: &Relay, authorization: &str) -> Socket {
    Socket::open(relay.public, SOCKET, &[("Authorization", authorization)])
}

/// Starts a relay with this `[auth]`, and accepts its upstream connection.
fn behind(connector: &Connector, auth: &str) -> (Relay, Link) {
    let relay = Setup::behind(connector).auth(auth).start();
    let link = connector.stream();
    relay.wait_for_upstream("connected");
    (relay, link)
}

fn disconnects(relay: &Relay, transport: &str, reason: &str) -> f64 {
    let labels = [("transport", transport), ("reason", reason)];
    relay
        .metrics()
        .value("autoplay_relay_subscriber_disconnects_total", &labels)
        .unwrap_or_default()
}

/// Checks that streams with the credential `revoked` end within a second of the reload to `after`,
/// and that those with `kept` continue.
fn ends_streams(before: &str, revoked: &str, kept: &str, after: &str) {
    let connector = Connector::new();
    let (relay, mut link) = behind(&connector, before);
    let (mut stream, mut ws) = (open(&relay, revoked), socket(&relay, revoked));
    let (mut neighbour, mut other) = (open(&relay, kept), socket(&relay, kept));
    link.event(event(1));
    assert_eq!((stream.numbers(1), ws.numbers(1)), (vec![1], vec![1]));
    Setup::behind(&connector).auth(after).reload(&relay);
    let reloaded = Instant::now();
    assert_eq!(ws.close_code(), 1008);
    stream.rest();
    wait::assert_within(Duration::from_secs(1), reloaded);
    link.event(event(2));
    assert_eq!((neighbour.numbers(2), other.numbers(2)), (vec![1, 2], vec![1, 2]));
    assert_eq!(
        (disconnects(&relay, "sse", "revoked"), disconnects(&relay, "ws", "revoked")),
        (1.0, 1.0)
    );
    assert_eq!(relay.get(STREAM, &[("Authorization", revoked)]).status(), 401);
    open(&relay, kept);
    connector.expect_no_connection(Duration::from_millis(100));
}

#[test]
fn streams_of_a_removed_key_end_within_a_second_and_others_continue() {
    let (a, b) = (key("a", "key-of-a", ""), key("b", "key-of-b", ""));
    ends_streams(&format!("{a}{b}"), "Bearer key-of-a", "Bearer key-of-b", &b);
}

#[test]
fn streams_of_a_key_with_a_new_secret_end() {
    let (a, b) = (key("a", "key-of-a", ""), key("b", "key-of-b", ""));
    ends_streams(
        &format!("{a}{b}"),
        "Bearer key-of-a",
        "Bearer key-of-b",
        &format!("{}{b}", key("a", "new", "")),
    );
}

#[test]
fn token_streams_end_with_their_secret_and_stay_while_it_is_the_previous_one() {
    let (b, token) = (key("b", "key-of-b", ""), bearer(&json!({})));
    let rotated = format!("{b}[auth.jwt]\nsecret = 'another-secret-of-32-bytes-or-more'\n");
    ends_streams(&format!("{b}{}", jwt("")), &token, "Bearer key-of-b", &rotated);

    let connector = Connector::new();
    let (relay, mut link) = behind(&connector, &jwt(""));
    let mut stream = open(&relay, &token);
    let previous = format!("{}previous_secret = '{SECRET}'\n", rotated.replace(&b, ""));
    Setup::behind(&connector).auth(&previous).reload(&relay);
    link.event(event(1));
    assert_eq!(stream.numbers(1), [1]);
}

#[test]
fn token_streams_for_another_audience_end() {
    let (one, both) = (bearer(&json!({"aud": "one"})), bearer(&json!({"aud": ["one", "two"]})));
    ends_streams(&jwt("audience = 'one'"), &one, &both, &jwt("audience = 'two'"));
}

#[test]
fn a_key_that_loses_product_or_permission_loses_its_streams_and_a_renamed_one_keeps_them() {
    for lost in [
        "products = ['prod_other']\npermissions = ['subscribe']",
        "products = ['*']\npermissions = ['publish']",
    ] {
        let connector = Connector::new();
        let (relay, mut link) = behind(
            &connector,
            &format!("{}{}", key("a", "key-of-a", ""), key("b", "key-of-b", "")),
        );
        let (mut loses, mut keeps) =
            (open(&relay, "Bearer key-of-a"), open(&relay, "Bearer key-of-b"));
        let lost = format!("[[auth.keys]]\nname = 'a'\nkey = 'key-of-a'\n{lost}\n");
        Setup::behind(&connector)
            .auth(&format!("{lost}{}", key("new-name", "key-of-b", "")))
            .reload(&relay);
        loses.rest();
        link.event(event(1));
        assert_eq!(keeps.numbers(1), [1]);
    }
}

#[test]
fn anonymous_streams_end_when_a_credential_is_required() {
    let connector = Connector::new();
    let (relay, mut link) = behind(&connector, "allow_anonymous = true");
    let mut stream = relay.subscribe();
    Setup::behind(&connector).auth(&key("a", "key-of-a", "")).reload(&relay);
    stream.rest();
    assert_eq!(relay.get(STREAM, &[]).status(), 401);
    let mut with_key = open(&relay, "Bearer key-of-a");
    link.event(event(1));
    assert_eq!(with_key.numbers(1), [1]);
}

#[test]
fn a_new_admin_key_applies_at_once_and_ends_operator_streams() {
    let connector = Connector::new();
    let admin = |key: &str| format!("allow_anonymous = true\nadmin_key = '{key}'");
    let relay = Setup::behind(&connector).auth(&admin("one")).start();
    let path = format!("/api/v1/stream/{PRODUCT}");
    let mut operator = Subscriber::open(relay.admin, &path, &[("X-Admin-Key", "one")]);
    Setup::behind(&connector).auth(&admin("two")).reload(&relay);
    operator.rest();
    let status = |key| http::get(relay.admin, "/api/v1/status", &[("X-Admin-Key", key)]).status();
    assert_eq!((status("one"), status("two")), (401, 200));
}

#[test]
fn a_stalled_stream_of_a_revoked_key_ends() {
    let connector = Connector::new();
    let (relay, mut link) =
        behind(&connector, &format!("{}{}", key("a", "key-of-a", ""), key("b", "key-of-b", "")));
    let _stalled = (open(&relay, "Bearer key-of-a"), socket(&relay, "Bearer key-of-a"));
    let large = format!(r#"{{"type":"actions","text":"{}"}}"#, "x".repeat(20_000));
    (0..1000).for_each(|_| link.event(&large));
    relay.wait_for_events(1000);
    Setup::behind(&connector).auth(&key("b", "key-of-b", "")).reload(&relay);
    let reloaded = Instant::now();
    for transport in ["sse", "ws"] {
        wait::until("the streams are disconnected", || {
            disconnects(&relay, transport, "revoked") == 1.0
        });
    }
    wait::assert_within(Duration::from_secs(1), reloaded); // write_timeout is 30 s
}

#[test]
fn new_limits_apply_to_new_subscribers_and_disconnect_none() {
    let connector = Connector::new();
    let setup = |lines: &str| Setup::behind(&connector).server(lines);
    let relay = setup("").start();
    let mut link = connector.stream();
    let mut connected = [relay.subscribe(), relay.subscribe()];
    for (limit, status) in [
        ("max_subscribers = 2", 503),
        ("max_subscribers_per_ip = 2", 429),
        ("max_subscribers_per_key = 1", 429),
    ] {
        setup(limit).reload(&relay);
        assert_eq!(relay.get(STREAM, &[]).status(), status, "{limit}");
        let max = if limit == "max_subscribers = 2" { 2.0 } else { 100_000.0 };
        assert_eq!(
            relay.metrics().value("autoplay_relay_max_subscribers", &[]),
            Some(max),
            "{limit}"
        );
    }
    setup("max_subscribers_per_ip = 3").reload(&relay);
    let third = relay.subscribe();
    assert_eq!(relay.get(STREAM, &[]).status(), 429);
    drop(third);
    relay.wait_for_subscribers(2.0);
    link.event(event(1));
    connected.iter_mut().for_each(|stream| assert_eq!(stream.numbers(1), [1]));
    setup("max_publish_bytes = '1KiB'").reload(&relay);
}

#[test]
fn streams_before_and_after_a_change_of_their_product_all_get_every_event() {
    let connector = Connector::new();
    let setup = |lines: &str| Setup::behind(&connector).server(lines);
    let relay = setup("").start();
    let mut link = connector.stream();
    let mut streams: Vec<_> = (0..4).map(|_| relay.subscribe()).collect();
    for n in 0..3 {
        setup(&format!("max_publish_bytes = '{}KiB'", n + 2)).reload(&relay);
        streams.extend((0..4).map(|_| relay.subscribe()));
        link.event(event(n));
        streams.iter_mut().for_each(|stream| assert_eq!(stream.numbers(1), [n]));
        drop(streams.drain(..2)); // the two oldest disconnect
    }
}

#[test]
fn new_origins_apply_to_open_connections() {
    let connector = Connector::new();
    let setup = |origins: &str| {
        Setup::behind(&connector).server(&format!("cors_allowed_origins = [{origins}]"))
    };
    let relay = setup("").start();
    let (origin, path) = ([("Origin", "https://app.example.com")], format!("/events/{PRODUCT}"));
    let mut wire = http::Wire::connect(relay.public);
    let mut ask = || {
        wire.send(format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nOrigin: https://app.example.com\r\n\r\n"
        ));
        let head = wire.head();
        wire.body(head.field("content-length").unwrap().parse().unwrap());
        (head.status(), head.field("access-control-allow-origin").map(str::to_owned))
    };
    assert_eq!(ask(), (403, None));
    setup("'https://app.example.com'").reload(&relay);
    assert_eq!(ask(), (200, Some("https://app.example.com".to_owned())));
    let upgrade = [origin.as_slice(), &websocket::UPGRADE].concat();
    assert_eq!(http::status(relay.public, SOCKET, &upgrade), 101);
    setup("").reload(&relay);
    assert_eq!(ask(), (403, None));
}

#[test]
fn an_invalid_file_is_refused_whole_and_the_old_one_stays_in_force() {
    let connector = Connector::new();
    let (relay, mut link) =
        behind(&connector, &format!("{}{}", key("a", "key-of-a", ""), key("b", "key-of-b", "")));
    let mut stream = open(&relay, "Bearer key-of-a");
    assert_eq!(relay.metrics().value(SUCCESS, &[]), Some(1.0));
    let bad = Setup::behind(&connector)
        .auth(&key("b", "key-of-b", ""))
        .server("max_subscribers = 'many'");
    bad.reload(&relay);
    assert_eq!(relay.metrics().value(SUCCESS, &[]), Some(0.0));
    let refused = relay.reload_outcomes().pop().unwrap();
    assert_eq!(refused["level"], "ERROR");
    let problem = refused["problem"].as_str().unwrap();
    assert!(problem.contains("server.max_subscribers: must be a whole number"), "{problem}");
    link.event(event(1));
    assert_eq!(stream.numbers(1), [1]);
    open(&relay, "Bearer key-of-a");
    Setup::behind(&connector).auth(&key("b", "key-of-b", "")).reload(&relay);
    assert_eq!(relay.metrics().value(SUCCESS, &[]), Some(1.0));
    stream.rest();
}

#[test]
fn the_old_file_restored_after_an_invalid_one_is_a_success() {
    let connector = Connector::new();
    let (relay, _link) = behind(&connector, "allow_anonymous = true");
    let good = fs::read(relay.file()).unwrap();
    fs::write(relay.file(), "no configuration").unwrap();
    relay.wait_for_metric(SUCCESS, &[], 0.0);
    fs::remove_file(relay.file()).unwrap();
    fs::write(relay.file(), good).unwrap();
    relay.wait_for_metric(SUCCESS, &[], 1.0);
}

#[test]
fn a_changed_file_or_swapped_kubernetes_secret_is_noticed_without_a_signal() {
    let connector = Connector::new();
    let secrets = tempfile::tempdir().unwrap();
    let mount = |version: &str, key: &str| {
        let data = secrets.path().join(version);
        fs::create_dir(&data).unwrap();
        fs::write(data.join("key"), key).unwrap();
        symlink(version, secrets.path().join("..data_tmp")).unwrap();
        fs::rename(secrets.path().join("..data_tmp"), secrets.path().join("..data")).unwrap();
    };
    mount("..1", "key-of-a\n");
    symlink("..data/key", secrets.path().join("key")).unwrap();
    let a = key("a", "", "")
        .replace("key = ''", &format!("key_file = '{}'", secrets.path().join("key").display()));
    let (relay, mut link) = behind(&connector, &format!("{a}{}", key("b", "key-of-b", "")));
    let (mut stream, mut neighbour) =
        (open(&relay, "Bearer key-of-a"), open(&relay, "Bearer key-of-b"));
    mount("..2", "other-key-of-a\n");
    stream.rest();
    open(&relay, "Bearer other-key-of-a");
    Setup::behind(&connector).auth(&format!("{a}{}", key("c", "key-of-b", ""))).replace(&relay);
    wait::until("the file is reloaded", || relay.reload_outcomes().len() == 2);
    link.event(event(1));
    assert_eq!(neighbour.numbers(1), [1]);
    fs::remove_file(secrets.path().join("key")).unwrap();
    relay.wait_for_metric(SUCCESS, &[], 0.0);
    symlink("..data/key", secrets.path().join("key")).unwrap();
    relay.wait_for_metric(SUCCESS, &[], 1.0);
    for secret in ["key-of-a", "key-of-b"] {
        assert!(!relay.process.stderr.so_far().join("\n").contains(secret));
    }
}

#[test]
fn keys_that_need_a_restart_are_named_and_the_others_take_effect() {
    let connector = Connector::new();
    let (relay, _link) = behind(&connector, &key("a", "key-of-a", ""));
    let setup = Setup::behind(&connector).auth(&key("b", "key-of-b", ""));
    setup.server("write_timeout = '7s'").log("memory_events = 1000").reload(&relay);
    let line =
        relay.process.log_line("these keys cannot be changed while the relay runs: restart it");
    assert_eq!(line["level"], "WARN");
    assert_eq!(
        line["keys"],
        "server.write_timeout (in force: 30s), log.memory_events (in force: 65536)"
    );
    let outcome = relay.reload_outcomes().pop().unwrap();
    assert_eq!(outcome["changed"], "auth.keys[b] added, auth.keys[a] removed");
    open(&relay, "Bearer key-of-b");
}

#[test]
fn a_change_that_would_open_a_public_listener_until_its_restart_is_refused() {
    let connector = Connector::new();
    let setup = |listen: &str, auth: &str| {
        Setup::behind(&connector).server(&format!("listen = '{listen}:0'")).auth(auth)
    };
    let relay = setup("0.0.0.0", &key("a", "key-of-a", "")).start();
    setup("127.0.0.1", "allow_anonymous = true").reload(&relay);
    let refused = relay.reload_outcomes().pop().unwrap();
    assert!(refused["problem"].as_str().unwrap().contains("auth.allow_anonymous"), "{refused}");
    assert_eq!(http::get(([127, 0, 0, 1], relay.public.port()).into(), STREAM, &[]).status(), 401);
}

#[test]
fn a_relay_configured_by_environment_alone_reports_that_it_has_no_file_to_reload() {
    let connector = Connector::new();
    let environment = [
        ("AUTOPLAY_STREAM_URL", connector.url(PRODUCT)),
        ("AUTOPLAY_RELAY__SERVER__LISTEN", "127.0.0.1:0".to_owned()),
        ("AUTOPLAY_RELAY__SERVER__ADMIN_LISTEN", "127.0.0.1:0".to_owned()),
    ];
    let environment: Vec<_> =
        environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let relay = Relay::of(Process::start(&["--log-format", "json", "serve"], &environment));
    let mut link = connector.stream();
    let mut stream = relay.subscribe();
    relay.process.signal("HUP");
    relay.process.stderr.first("the log has the reason", |line| {
        line.contains("no configuration file to read again").then_some(())
    });
    link.event(event(1));
    assert_eq!(stream.numbers(1), [1]);
}
