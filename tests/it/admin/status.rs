//! Health, readiness, metrics, status.

use std::time::Duration;

use crate::common::{
    PRODUCT, STREAM,
    connector::Connector,
    events::event,
    http,
    page::{Storage, publish},
    relay::{Relay, Setup},
};
use serde_json::{Value, json};

#[test]
fn a_relay_is_ready_before_its_upstream_connects_unless_that_is_required() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    assert_eq!(relay.ask_admin("/healthz").status(), 200);
    assert_eq!(relay.ask_admin("/readyz").status(), 200);
    let demanding = relay.ask_admin("/readyz?require=upstream");
    assert_eq!(demanding.status(), 503);
    assert_eq!(demanding.json()["upstreams"][PRODUCT], "connecting");
    let link = connector.stream();
    relay.wait_for_upstream("connected");
    let ready = relay.ask_admin("/readyz?require=upstream");
    assert_eq!((ready.status(), &ready.json()["upstreams"][PRODUCT]), (200, &"connected".into()));
    link.end();
    drop(connector);
    relay.wait_for_upstream("backing_off");
    assert_eq!(relay.ask_admin("/readyz?require=upstream").status(), 503);
    assert_eq!(relay.ask_admin("/readyz").status(), 200);
}

#[test]
fn a_readiness_check_that_requires_upstreams_requires_all_of_them() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector)
        .upstream("prod_xyz", "http://127.0.0.1:1/stream/prod_xyz", "")
        .start();
    let _link = connector.stream();
    relay.wait_for_upstream("connected");
    let ready = relay.ask_admin("/readyz?require=upstream");
    assert_eq!(ready.status(), 503);
    assert_eq!(ready.json()["upstreams"].as_object().unwrap().len(), 2);
}

#[test]
fn the_status_shows_what_memory_and_disk_hold() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    publish(&relay, &mut link, (0..20).map(event));
    let status = relay.status();
    assert_eq!((&status["store"], &status["log"][PRODUCT]["disk"]), (&Value::Null, &Value::Null));
    assert_eq!(status["log"][PRODUCT]["events"], 20);
    assert_eq!(relay.ask_admin("/readyz").json()["degraded"], false);

    let connector = Connector::new();
    let (setup, _directory) = Storage::Disk.setup(&connector);
    let relay = setup.start();
    let mut link = connector.stream();
    let frames = publish(&relay, &mut link, (0..20).map(event));
    for (tier, events) in [("disk", 20.0), ("memory", 16.0)] {
        relay.wait_for_metric(
            "autoplay_relay_log_events",
            &[("product_id", PRODUCT), ("tier", tier)],
            events,
        );
    }
    let status = relay.status();
    assert_eq!(status["store"], json!({ "degraded": false, "recovering": false }));
    let log = &status["log"][PRODUCT];
    let bytes =
        frames.iter().map(|frame| frame.data.len() + "s1".len() + "actions".len()).sum::<usize>();
    assert_eq!(log["disk"], json!({ "events": 20, "bytes": bytes }));
    assert_eq!((&log["events"], log["oldest"].as_str()), (&16.into(), Some(frames[0].id())));
    assert_eq!(relay.ask_admin("/readyz").json()["degraded"], false);
}

#[test]
fn every_metric_family_of_the_interface_has_its_type_and_labels() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut subscriber = relay.subscribe();
    link.event(event(1));
    assert_eq!(subscriber.numbers(1), [1]);
    drop(relay.subscribe());
    let left = [("transport", "sse"), ("reason", "client")];
    relay.wait_for_metric("autoplay_relay_subscriber_disconnects_total", &left, 1.0);
    let metrics = relay.metrics();
    let families: [(&str, &str, &[&str]); 19] = [
        ("build_info", "gauge", &["version"]),
        ("upstream_connected", "gauge", &["product_id"]),
        ("upstream_connects_total", "counter", &["outcome", "product_id"]),
        ("upstream_last_event_timestamp_seconds", "gauge", &["product_id"]),
        ("upstream_last_heartbeat_timestamp_seconds", "gauge", &["product_id"]),
        ("upstream_events_total", "counter", &["product_id", "type"]),
        ("upstream_rejected_total", "counter", &["product_id", "reason"]),
        ("upstream_lag_seconds", "histogram", &["product_id"]),
        ("subscribers", "gauge", &["product_id", "transport"]),
        ("subscriber_disconnects_total", "counter", &["reason", "transport"]),
        ("delivered_events_total", "counter", &["product_id", "transport"]),
        ("delivery_lag_seconds", "histogram", &["transport"]),
        ("gaps_total", "counter", &["product_id", "reason"]),
        ("log_events", "gauge", &["product_id", "tier"]),
        ("log_bytes", "gauge", &["product_id", "tier"]),
        ("log_degraded", "gauge", &[]),
        ("log_commit_seconds", "histogram", &[]),
        ("shed_total", "counter", &["reason"]),
        ("refused_total", "counter", &["listener", "reason"]),
    ];
    for (name, kind, labels) in families {
        let name = format!("autoplay_relay_{name}");
        assert_eq!(metrics.kind(&name), Some(kind), "{name}");
        let sample = if kind == "histogram" { format!("{name}_count") } else { name };
        assert_eq!(metrics.label_names(&sample).as_deref(), Some(labels), "{sample}");
    }
    assert_eq!(metrics.kind("process_cpu_seconds_total"), Some("counter"));
    assert!(metrics.value("process_resident_memory_bytes", &[]).is_some_and(|bytes| bytes > 1e6));
}

#[test]
fn counters_without_events_are_exported_as_0() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let metrics = relay.metrics();
    for transport in ["sse", "ws"] {
        for reason in [
            "client", "stalled", "drain", "expired", "revoked", "rotated", "kicked", "error",
            "removed",
        ] {
            let labels = [("transport", transport), ("reason", reason)];
            assert_eq!(
                metrics.value("autoplay_relay_subscriber_disconnects_total", &labels),
                Some(0.0),
                "{labels:?}"
            );
        }
    }
    for reason in
        ["max_subscribers", "per_ip", "per_key", "connect_rate", "draining", "no_file_descriptor"]
    {
        assert_eq!(
            metrics.value("autoplay_relay_shed_total", &[("reason", reason)]),
            Some(0.0),
            "{reason}"
        );
    }
    for listener in ["public", "admin"] {
        for reason in ["no_credential", "bad_credential", "not_allowed"] {
            let labels = [("listener", listener), ("reason", reason)];
            assert_eq!(metrics.value("autoplay_relay_refused_total", &labels), Some(0.0));
        }
    }
}

#[test]
fn the_counters_count_what_happened() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut subscriber = relay.subscribe();
    (0..5).for_each(|n| link.event(event(n)));
    assert!(subscriber.numbers(5).into_iter().eq(0..5));
    let mut replayed = relay.resume("0");
    assert!(replayed.numbers(5).into_iter().eq(0..5));
    link.heartbeat();
    let product = [("product_id", PRODUCT)];
    let sse = [("product_id", PRODUCT), ("transport", "sse")];
    relay.wait_for_metric("autoplay_relay_delivered_events_total", &sse, 10.0);
    relay.wait_for_metric(
        "autoplay_relay_delivery_lag_seconds_count",
        &[("transport", "sse")],
        5.0,
    );
    relay.wait_for_subscribers(2.0);
    let metrics = relay.metrics();
    let memory = [("product_id", PRODUCT), ("tier", "memory")];
    assert_eq!(metrics.value("autoplay_relay_log_events", &memory), Some(5.0));
    assert!(
        metrics.value("autoplay_relay_log_bytes", &memory).is_some_and(|bytes| bytes > 5.0 * 70.0)
    );
    assert_eq!(metrics.value("autoplay_relay_log_degraded", &[]), Some(0.0));
    let actions = [("product_id", PRODUCT), ("type", "actions")];
    assert_eq!(metrics.value("autoplay_relay_upstream_events_total", &actions), Some(5.0));
    let recent = |name| metrics.value(name, &product).is_some_and(|seconds| seconds > 1.7e9);
    assert!(recent("autoplay_relay_upstream_last_event_timestamp_seconds"));
    let build = [("version", env!("CARGO_PKG_VERSION"))];
    assert_eq!(metrics.value("autoplay_relay_build_info", &build), Some(1.0));
}

#[test]
fn the_status_describes_the_relay() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut subscriber = relay.subscribe();
    link.heartbeat();
    link.event(format!(r#"{{"type":"summary","forwarded_at":{}}}"#, unix_seconds()));
    let id = subscriber.event().id.unwrap();
    relay.wait_for_subscribers(1.0);
    let status = relay.status();
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert!(status["uptime"].is_string(), "{status}");
    let upstream = &status["upstreams"][0];
    assert_eq!(
        (&upstream["product_id"], &upstream["state"]),
        (&PRODUCT.into(), &"connected".into())
    );
    for field in ["since", "last_event", "last_heartbeat"] {
        let time = upstream[field].as_str().unwrap();
        assert!(
            time.starts_with("20") && time.ends_with('Z'),
            "RFC 3339 in UTC: {field} is {time}"
        );
    }
    let lag = upstream["lag"].as_str().unwrap();
    assert!(lag.ends_with('s'), "a duration as in the configuration: {lag}");
    assert_eq!(status["subscribers"][PRODUCT]["sse"], 1);
    let log = &status["log"][PRODUCT];
    assert_eq!((&log["events"], log["newest"].as_str()), (&1.into(), Some(id.as_str())));
    assert!(status["webhooks"].is_array());
}

#[test]
fn the_probe_listener_has_health_and_metrics_only() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).server("probe_listen = '127.0.0.1:0'").start();
    let probe = relay.probe.unwrap();
    for path in ["/healthz", "/readyz", "/readyz?x=1", "/metrics"] {
        assert_eq!(http::get(probe, path, &[]).status(), 200, "{path}");
    }
    assert!(http::get(probe, "/metrics", &[]).text().contains("autoplay_relay_build_info"));
    for path in
        ["/", "/api/v1/status", "/api/v1/subscribers", "/products", STREAM, "/events/prod_abc"]
    {
        http::get(probe, path, &[]).problem(404);
    }
}

#[test]
fn the_console_needs_no_key_and_its_policy_allows_only_its_own_files() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).auth("admin_key = 'the-admin-key-of-this-test'").start();
    let files = [
        ("/", "text/html"),
        ("/console/console.css", "text/css"),
        ("/console/console.js", "text/javascript"),
    ];
    for (path, kind) in files {
        let answer = relay.ask_admin(path);
        assert_eq!(answer.status(), 200, "{path}");
        assert!(answer.field("content-type").unwrap().starts_with(kind), "{path}");
        let policy = answer.field("content-security-policy").unwrap();
        for rule in [
            "default-src 'none'",
            "script-src 'self'",
            "connect-src 'self'",
            "frame-ancestors 'none'",
        ] {
            assert!(policy.split("; ").any(|part| part == rule), "{path}: {rule} in {policy}");
        }
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(answer.field("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.field("referrer-policy"), Some("no-referrer"));
        assert_eq!(answer.field("cache-control"), Some("no-store"));
        assert_eq!(http::ask(relay.admin, "HEAD", path, &[]).status(), 200, "HEAD {path}");
        http::ask(relay.admin, "POST", path, &[("Content-Length", "0")]).problem(405);
        relay.get(path, &[]).problem(404);
    }
    relay.ask_admin("/console/").problem(404);
    relay.ask_admin("/console/mod.rs").problem(404);
    relay.ask_admin("/api/v1/status").problem(401);
}

#[test]
fn metrics_come_as_prometheus_text() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let answer = relay.ask_admin("/metrics");
    assert!(answer.field("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    http::ask(relay.admin, "POST", "/metrics", &[("Content-Length", "0")]).problem(405);
    relay.ask_admin("/nothing").problem(404);
    relay.ask_admin(STREAM).problem(404);
    relay.get("/metrics", &[]).problem(404);
    relay.get("/healthz", &[]).problem(404);
}

#[test]
fn the_admin_listener_answers_while_the_public_listener_is_full() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).server("max_subscribers = 1").start();
    let mut subscriber = relay.subscribe();
    relay.get(STREAM, &[]).problem(503);
    assert_eq!(relay.ask_admin("/readyz").status(), 200);
    subscriber.expect_nothing(Duration::from_millis(20));
}

fn unix_seconds() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64()
}
