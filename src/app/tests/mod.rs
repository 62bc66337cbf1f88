//! What the probes say when parts of the relay stand still or are not whole yet.

mod sockets;

use std::time::Duration;

use axum::{
    Router,
    body::{self, Body},
};
use hyper::{Request, StatusCode, header::HOST};
use tokio::task::JoinHandle;
use tower::Service;

use super::*;
use crate::config::{AllowAnonymous, Environment};

/// A relay that listens nowhere, and its admin side.
struct Stage {
    config: Config,
    relay: Arc<Relay>,
    doors: Doors,
    router: Router,
}

impl Stage {
    fn new() -> Self {
        Self::with("")
    }

    /// One of a product, with these settings.
    fn with(settings: &str) -> Self {
        let text = format!("{settings}[[upstreams]]\nproduct_id = 'p'\nurl = 'http://127.0.0.1:1/stream/p'");
        let config = Config::parse(&text, "test", &Environment::default(), AllowAnonymous::OnLoopback).unwrap();
        let metrics = Arc::new(Metrics::new().unwrap());
        let (logs, mut store) = assemble::logs(&config, &metrics).unwrap();
        let relay = Arc::new(assemble::relay(&config, logs, &store, 1, &metrics));
        let webhooks = Arc::new(assemble::webhooks(&config, &relay, &mut store).unwrap());
        let admin = Arc::new(assemble::admin(&config, &relay, &webhooks, Vec::new(), Arc::default()));
        let doors = Doors::new(&config, &relay, &admin);
        Self { router: crate::http::admin::router(admin, routes::guard(&config)), config, relay, doors }
    }

    fn turn_wheel(&self, stop: &CancellationToken) -> JoinHandle<()> {
        let (wheel, stop) = (Arc::clone(&self.relay.wheel), stop.clone());
        tokio::spawn(async move { wheel.run(stop).await })
    }

    fn run_lane(&self, stop: &CancellationToken) -> JoinHandle<()> {
        let (relay, stop) = (Arc::clone(&self.relay), stop.clone());
        tokio::spawn(async move { relay.shards.run([&Handle::current()].into_iter(), &relay.wheel, stop).await })
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
async fn health_turns_bad_when_the_main_loop_has_stood_still_for_half_a_minute() {
    let mut stage = Stage::new();
    let stop = CancellationToken::new();
    let (wheel, lane) = (stage.turn_wheel(&stop), stage.run_lane(&stop));
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(stage.get("/healthz").await.0, StatusCode::OK);
    stop.cancel();
    wheel.await.unwrap();
    lane.await.unwrap();
    tokio::time::advance(Duration::from_secs(29)).await;
    assert_eq!(stage.get("/healthz").await.0, StatusCode::OK);
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(stage.get("/healthz").await.0, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test(start_paused = true)]
async fn health_turns_bad_when_a_lane_has_stood_still_for_half_a_minute_though_the_main_loop_turns() {
    let mut stage = Stage::new();
    let (stop, stop_lane) = (CancellationToken::new(), CancellationToken::new());
    let (wheel, lane) = (stage.turn_wheel(&stop), stage.run_lane(&stop_lane));
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(stage.get("/healthz").await.0, StatusCode::OK);
    stop_lane.cancel();
    lane.await.unwrap();
    tokio::time::sleep(Duration::from_secs(28)).await;
    assert_eq!(stage.get("/healthz").await.0, StatusCode::OK);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(stage.get("/healthz").await.0, StatusCode::SERVICE_UNAVAILABLE);
    stop.cancel();
    wheel.await.unwrap();
}

#[tokio::test]
async fn a_relay_is_not_ready_while_a_log_is_recovering() {
    let mut stage = Stage::new();
    let log = Arc::clone(&stage.relay.products.iter().next().unwrap().log);
    let ready = r#"{"degraded":false,"status":"ready","upstreams":{}}"#.to_owned();
    assert_eq!(stage.get("/readyz").await, (StatusCode::OK, ready.clone()));
    log.recovers();
    let recovering = r#"{"degraded":false,"status":"recovering","upstreams":{}}"#.to_owned();
    assert_eq!(stage.get("/readyz").await, (StatusCode::SERVICE_UNAVAILABLE, recovering));
    log.has_recovered();
    assert_eq!(stage.get("/readyz").await, (StatusCode::OK, ready));
}
