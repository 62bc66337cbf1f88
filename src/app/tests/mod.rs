//! Answers of the probes when parts of the relay are stalled or not recovered yet.

mod sockets;

use std::time::Duration;

use axum::{
    Router,
    body::{self, Body},
};
use hyper::{Request, StatusCode, header::HOST};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::Service;

use super::*;
use crate::{
    config::{AllowAnonymous, Environment},
    log::{Log, Numbering},
};

/// Relay without listeners, and its admin side.
struct AdminHarness {
    config: Config,
    relay: Arc<Relay>,
    routes: ListenerRoutes,
    router: Router,
}

impl AdminHarness {
    fn new() -> Self {
        Self::with("")
    }

    /// Builds the relay of one product, with these settings.
    fn with(settings: &str) -> Self {
        let upstream = |id| {
            format!("[[upstreams]]\nproduct_id = '{id}'\nurl = 'http://127.0.0.1:1/stream/{id}'\n")
        };
        let text = format!("{settings}{}{}", upstream("p"), upstream("q"));
        let config =
            Config::parse(&text, "test", &Environment::default(), AllowAnonymous::OnLoopback)
                .unwrap();
        let metrics = Arc::new(Metrics::new().unwrap());
        let (logs, mut store) = assemble::open_logs(&config, &metrics).unwrap();
        let relay = Arc::new(assemble::relay(&config, logs, &store, 1, &metrics));
        let webhooks = Arc::new(assemble::start_webhooks(&config, &relay, &mut store).unwrap());
        let admin =
            Arc::new(assemble::admin(&config, &relay, &webhooks, Vec::new(), Arc::default()));
        let routes = ListenerRoutes::new(&config, &relay, &admin);
        Self {
            router: crate::http::admin::router(admin, routes::host_guard(&config)),
            config,
            relay,
            routes,
        }
    }

    fn log(&self, product: &str) -> Arc<Log> {
        let mut products = self.relay.products.iter();
        let product = products.find(|known| known.feed.id.as_str() == product).unwrap();
        Arc::clone(&product.feed.log)
    }

    fn turn_wheel(&self, stop: &CancellationToken) -> JoinHandle<()> {
        let (wheel, stop) = (Arc::clone(&self.relay.wheel), stop.clone());
        tokio::spawn(async move { wheel.run(stop).await })
    }

    fn run_pulse(&self, stop: &CancellationToken) -> JoinHandle<()> {
        let (relay, stop) = (Arc::clone(&self.relay), stop.clone());
        tokio::spawn(async move { relay.pulse.run(&relay.wheel, stop).await })
    }

    fn run_shard(&self, stop: &CancellationToken) -> JoinHandle<()> {
        let (relay, stop) = (Arc::clone(&self.relay), stop.clone());
        tokio::spawn(async move {
            relay.shards.run([&Handle::current()].into_iter(), &relay.wheel, stop).await;
        })
    }

    async fn get(&mut self, path: &str) -> (StatusCode, String) {
        let request = Request::get(path).header(HOST, "localhost").body(Body::empty()).unwrap();
        let response = self.router.call(request).await.unwrap();
        let status = response.status();
        let body = body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }
}

#[tokio::test(start_paused = true)]
async fn health_turns_bad_when_the_wheel_has_stood_still_for_half_a_minute() {
    let mut harness = AdminHarness::new();
    let stop = CancellationToken::new();
    let (wheel, shard) = (harness.turn_wheel(&stop), harness.run_shard(&stop));
    let pulse = harness.run_pulse(&stop);
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(harness.get("/healthz").await.0, StatusCode::OK);
    stop.cancel();
    wheel.await.unwrap();
    shard.await.unwrap();
    pulse.await.unwrap();
    tokio::time::advance(Duration::from_secs(29)).await;
    assert_eq!(harness.get("/healthz").await.0, StatusCode::OK);
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(harness.get("/healthz").await.0, StatusCode::SERVICE_UNAVAILABLE);
}

/// Checks that `/healthz` fails half a minute after `stall` has ended a part of the relay, while
/// the wheel and the other parts go on.
async fn assert_health_fails_after_a_stall(
    stall: impl AsyncFnOnce(JoinHandle<()>, JoinHandle<()>, [CancellationToken; 2]),
) {
    let mut harness = AdminHarness::new();
    let (stop, stop_shard, stop_pulse) =
        (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());
    let wheel = harness.turn_wheel(&stop);
    let (shard, pulse) = (harness.run_shard(&stop_shard), harness.run_pulse(&stop_pulse));
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(harness.get("/healthz").await.0, StatusCode::OK);
    stall(shard, pulse, [stop_shard, stop_pulse]).await;
    tokio::time::sleep(Duration::from_secs(28)).await;
    assert_eq!(harness.get("/healthz").await.0, StatusCode::OK);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(harness.get("/healthz").await.0, StatusCode::SERVICE_UNAVAILABLE);
    stop.cancel();
    wheel.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn health_fails_when_a_shard_stalls_for_half_a_minute_while_the_main_loop_runs() {
    assert_health_fails_after_a_stall(async |shard, _pulse, [stop_shard, _]| {
        stop_shard.cancel();
        shard.await.unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn health_fails_when_the_runtime_polls_nothing_for_half_a_minute_while_the_wheel_turns() {
    assert_health_fails_after_a_stall(async |_shard, pulse, [_, stop_pulse]| {
        stop_pulse.cancel();
        pulse.await.unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_relay_is_not_ready_while_a_log_is_recovering() {
    let mut harness = AdminHarness::new();
    let log = harness.log("p");
    assert_eq!(harness.get("/readyz").await, ready("false"));
    log.begin_recovery();
    let recovering =
        r#"{"degraded":false,"log_degraded":false,"status":"recovering","upstreams":{}}"#
            .to_owned();
    assert_eq!(harness.get("/readyz").await, (StatusCode::SERVICE_UNAVAILABLE, recovering));
    log.finish_replay();
    assert_eq!(harness.get("/readyz").await, ready("false"));
    tokio::time::advance(Duration::from_secs(60)).await;
    assert_eq!(harness.get("/readyz").await, ready("false"));
}

#[tokio::test(start_paused = true)]
async fn a_replay_that_never_ends_delays_readiness_for_30_s_and_is_named_from_then_on() {
    let mut harness = AdminHarness::new();
    let (log, other) = (harness.log("q"), harness.log("p"));
    log.begin_recovery();
    log.set_numbering(Numbering::Upstream);
    tokio::time::advance(Duration::from_millis(29_900)).await;
    assert_eq!(harness.get("/readyz").await.0, StatusCode::SERVICE_UNAVAILABLE);
    tokio::time::advance(Duration::from_millis(100)).await;
    assert_eq!(harness.get("/readyz").await, ready(r#"["q"]"#));
    // Also if the connection is lost meanwhile, and where two products have such an upstream.
    log.mark_upstream_disconnected();
    other.set_numbering(Numbering::Upstream);
    assert_eq!(harness.get("/readyz").await, ready(r#"["p","q"]"#));
    log.finish_replay();
    other.finish_replay();
    assert_eq!(harness.get("/readyz").await, ready("false"));
}

#[tokio::test(start_paused = true)]
async fn a_replay_that_begins_long_after_the_start_does_not_end_readiness() {
    let mut harness = AdminHarness::new();
    tokio::time::advance(Duration::from_secs(600)).await;
    harness.log("p").begin_recovery();
    assert_eq!(harness.get("/readyz").await, ready(r#"["p"]"#));
    harness.relay.is_draining.store(true, Ordering::SeqCst);
    assert_eq!(harness.get("/readyz").await.0, StatusCode::SERVICE_UNAVAILABLE, "as before");
}

/// Returns the answer of a relay that is ready, with this value of `degraded`.
fn ready(degraded: &str) -> (StatusCode, String) {
    (
        StatusCode::OK,
        format!(
            r#"{{"degraded":{degraded},"log_degraded":false,"status":"ready","upstreams":{{}}}}"#
        ),
    )
}
