//! When the next attempt comes after each kind of failure, and when new settings are seen.

use std::{
    pin::pin,
    task::{Context, Waker},
};

use hyper::StatusCode;

use super::*;
use crate::{
    config::{AllowAnonymous, Config, Environment},
    metrics::Metrics,
    outbound::client::EventStreamClient,
};

fn settings() -> UpstreamSettings {
    let text = "[[upstreams]]\nproduct_id = 'p'\nurl = 'http://127.0.0.1:1/stream/p'";
    let config =
        Config::parse(text, "test", &Environment::default(), AllowAnonymous::OnLoopback).unwrap();
    UpstreamSettings {
        upstream: config.upstreams[0].clone(),
        client: EventStreamClient::new(None).unwrap(),
    }
}

fn upstream() -> Upstream {
    let settings = settings();
    let metrics = Metrics::new().unwrap().upstream(&settings.upstream.product_id);
    let (_, settings_updates) = watch::channel(settings);
    Upstream::new(
        settings_updates,
        false,
        Arc::new(UpstreamStatus::new()),
        metrics,
        fastrand::Rng::with_seed(1),
    )
}

fn status_error(status: u16, retry_after: Option<u64>) -> OpenError {
    let status = StatusCode::from_u16(status).unwrap();
    OpenError::Status { status, retry_after: retry_after.map(Duration::from_secs) }
}

/// Returns the time until the next attempt.
fn delay_until_next_attempt(upstream: &Upstream) -> Duration {
    match &upstream.connection {
        UpstreamConnection::Waiting { until } => until.duration_since(Instant::now()),
        UpstreamConnection::Streaming { .. } => panic!("connected"),
    }
}

#[tokio::test(start_paused = true)]
async fn permanent_failures_are_retried_at_most_once_a_minute() {
    for status in [400, 401, 403, 404] {
        let mut upstream = upstream();
        for _ in 0..50 {
            upstream.schedule_retry(&status_error(status, None));
            assert!((60.0..=66.0).contains(&delay_until_next_attempt(&upstream).as_secs_f64()));
        }
        assert_eq!(upstream.status.snapshot().state, UpstreamState::Refused);
        assert_eq!(
            (upstream.metrics.connects_refused.get(), upstream.metrics.connects_failed.get()),
            (50, 0)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn transient_failures_are_retried_within_half_a_minute() {
    for error in [
        status_error(500, None),
        status_error(429, None),
        status_error(204, None),
        OpenError::Timeout,
    ] {
        let mut upstream = upstream();
        let waits = (0..50).map(|_| {
            upstream.schedule_retry(&error);
            delay_until_next_attempt(&upstream)
        });
        let waits: Vec<_> = waits.collect();
        assert!(waits[0] <= INITIAL_RECONNECT_BACKOFF, "{error}: {:?}", waits[0]);
        assert!(waits.iter().all(|wait| *wait <= MAX_RECONNECT_BACKOFF));
        assert!(waits.iter().any(|wait| *wait > MAX_RECONNECT_BACKOFF / 2));
        assert_eq!(upstream.status.snapshot().state, UpstreamState::BackingOff);
    }
}

#[test]
fn a_query_filters_when_it_names_types_or_sessions() {
    assert!(
        ["type=actions", "a=1&session_id=s", "%74ype=actions"].into_iter().all(asks_for_subset)
    );
    assert!(!["", "types=a", "token=type", "last_event_id=0"].into_iter().any(asks_for_subset));
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_honoured_within_reason() {
    let mut upstream = upstream();
    upstream.schedule_retry(&status_error(503, Some(45)));
    assert_eq!(delay_until_next_attempt(&upstream), Duration::from_secs(45));
    upstream.schedule_retry(&status_error(429, Some(86_400)));
    assert_eq!(delay_until_next_attempt(&upstream), Duration::from_secs(300));
}

#[tokio::test(start_paused = true)]
async fn only_a_stream_that_lasted_makes_the_waits_short_again() {
    let mut upstream = upstream();
    for _ in 0..20 {
        upstream.reconnect_delay(Duration::from_secs(29));
    }
    let delays: Vec<_> =
        (0..50).map(|_| upstream.reconnect_delay(Duration::from_secs(29))).collect();
    assert!(delays.iter().any(|wait| *wait > MAX_RECONNECT_BACKOFF / 2));
    assert!(upstream.reconnect_delay(Duration::from_secs(30)) <= INITIAL_RECONNECT_BACKOFF);
}

#[tokio::test(start_paused = true)]
async fn the_connectors_own_wish_is_the_shortest_wait() {
    let mut upstream = upstream();
    upstream.server_retry_delay = Duration::from_secs(7);
    assert!(upstream.reconnect_delay(Duration::from_secs(60)) >= Duration::from_secs(7));
}

/// Returns whether a wait for new settings would end at once.
fn ends_at_once(updates: &mut SettingsUpdates) -> bool {
    pin!(updates.changed()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

#[tokio::test]
async fn settings_are_new_until_they_are_accepted() {
    let (sender, receiver) = watch::channel(settings());
    let mut updates = SettingsUpdates::new(receiver);
    assert!(!updates.are_new() && !ends_at_once(&mut updates));
    for _ in 0..2 {
        let mut newer = settings();
        newer.upstream.heartbeat_timeout = Duration::from_secs(7);
        sender.send(newer).unwrap();
        assert!(updates.are_new() && ends_at_once(&mut updates));
        assert_eq!(updates.accept().heartbeat_timeout, Duration::from_secs(7));
        assert!(!updates.are_new() && !ends_at_once(&mut updates));
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_settings_that_began_before_a_change_ends_with_it() {
    let (sender, receiver) = watch::channel(settings());
    let mut updates = SettingsUpdates::new(receiver);
    assert!(!ends_at_once(&mut updates), "this wait is given up, and keeps its place");
    let waited = tokio::time::timeout(Duration::from_secs(5), updates.changed());
    let (waited, sent) = tokio::join!(waited, async { sender.send(settings()) });
    sent.unwrap();
    waited.unwrap();
    drop(sender);
    updates.accept();
    assert!(!updates.are_new() && !ends_at_once(&mut updates), "no sender, no change");
}
