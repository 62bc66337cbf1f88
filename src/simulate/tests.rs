//! Requests to the stand-in connector, and its responses and frames, without a socket.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tower::Service;

use super::*;

const HEARTBEAT: &str = "event: heartbeat\ndata:\n\n";

#[tokio::test]
async fn only_get_on_a_registered_stream_with_the_token_is_answered_by_a_stream() {
    let router =
        Simulator::new(SimulationOptions { token: Some("s3cret".into()), ..options() }).router();
    let cases = [
        (Method::GET, "/stream/prod_abc", "Bearer s3cret", StatusCode::OK),
        (Method::GET, "/stream/prod_abc", "bearer s3cret", StatusCode::OK),
        (Method::GET, "/stream/prod%5Fabc?x=y", "Bearer s3cret", StatusCode::OK),
        (Method::GET, "/stream/prod_abc", "", StatusCode::UNAUTHORIZED),
        (Method::GET, "/stream/prod_abc", "Bearer ", StatusCode::UNAUTHORIZED),
        (Method::GET, "/stream/prod_abc", "Bearer s3cre", StatusCode::UNAUTHORIZED),
        (Method::GET, "/stream/prod_abc", "Bearer s3cret2", StatusCode::UNAUTHORIZED),
        (Method::GET, "/stream/prod_abc", "Basic s3cret", StatusCode::UNAUTHORIZED),
        (Method::GET, "/stream/unknown", "", StatusCode::UNAUTHORIZED),
        (Method::GET, "/stream/unknown", "Bearer s3cret", StatusCode::NOT_FOUND),
        (Method::GET, "/stream/%ff", "Bearer s3cret", StatusCode::NOT_FOUND),
        (Method::GET, "/stream/", "Bearer s3cret", StatusCode::NOT_FOUND),
        (Method::GET, "/", "Bearer s3cret", StatusCode::NOT_FOUND),
        (Method::POST, "/elsewhere", "", StatusCode::NOT_FOUND),
        (Method::POST, "/stream/prod_abc", "Bearer s3cret", StatusCode::METHOD_NOT_ALLOWED),
        (Method::HEAD, "/stream/prod_abc", "Bearer s3cret", StatusCode::METHOD_NOT_ALLOWED),
    ];
    for (method, path, authorization, status) in cases {
        let response = send_request(&router, method.clone(), path, authorization).await;
        assert_eq!(response.status(), status, "{method} {path} {authorization:?}");
        let headers = response.headers().clone();
        if status == StatusCode::OK {
            assert_eq!(headers["content-type"], "text/event-stream");
        } else if method != Method::HEAD {
            check_problem(
                &headers,
                status,
                &response.into_body().collect().await.unwrap().to_bytes(),
            );
        }
        assert_eq!(headers.contains_key("www-authenticate"), status == StatusCode::UNAUTHORIZED);
        assert_eq!(
            headers.get("allow").is_some_and(|it| it == "GET"),
            status == StatusCode::METHOD_NOT_ALLOWED
        );
    }
}

#[tokio::test]
async fn without_a_configured_token_every_client_is_admitted() {
    let router = Simulator::new(options()).router();
    for authorization in ["", "Bearer anything"] {
        assert_eq!(
            send_request(&router, Method::GET, "/stream/prod_abc", authorization).await.status(),
            StatusCode::OK
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_data_lines_with_the_payloads_of_its_product() {
    let harness = SimulatorHarness::start(SimulationOptions {
        products: vec!["prod_abc".into(), "prod_xyz".into()],
        ..options()
    });
    let mut streams = [
        ("prod_abc", harness.connect("prod_abc").await),
        ("prod_xyz", harness.connect("prod_xyz").await),
    ];
    for (product, body) in &mut streams {
        for _ in 0..20 {
            let frame = next_frame(body).await.unwrap();
            let line =
                frame.strip_prefix("data: ").and_then(|rest| rest.strip_suffix("\n\n")).unwrap();
            assert!(!line.contains(['\n', '\r']), "{line}");
            assert_eq!(serde_json::from_str::<Value>(line).unwrap()["product_id"], *product);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn heartbeats_come_at_their_interval_beside_other_events() {
    let harness = SimulatorHarness::start(options());
    let mut body = harness.connect("prod_abc").await;
    let connected = Instant::now();
    let mut beats = Vec::new();
    while beats.len() < 3 {
        if next_frame(&mut body).await.unwrap() == HEARTBEAT {
            beats.push(connected.elapsed().as_secs_f64().round());
        }
    }
    assert_eq!(beats, [30.0, 60.0, 90.0]);
}

#[tokio::test(start_paused = true)]
async fn without_traffic_a_stream_is_heartbeats_only() {
    let simulator = Simulator::new(options());
    let mut body =
        send_request(&simulator.router(), Method::GET, "/stream/prod_abc", "").await.into_body();
    assert!(timeout(Duration::from_secs(29), next_frame(&mut body)).await.is_err());
    assert_eq!(next_frame(&mut body).await.unwrap(), HEARTBEAT);
}

#[tokio::test(start_paused = true)]
async fn events_come_at_the_requested_rate_and_evenly() {
    for (rate, seconds) in
        [(0.1, 100.0), (5.0, 20.0), (300.0, 10.0), (1000.0, 2.0), (1500.0, 2.0), (40_000.0, 0.5)]
    {
        let mut pace = EventPacer::new(rate);
        let (start, mut events, mut most_at_once) = (Instant::now(), 0, 0);
        while let Ok(due) =
            timeout(Duration::from_secs_f64(seconds) - start.elapsed(), pace.tick()).await
        {
            events += due;
            most_at_once = due.max(most_at_once);
            if start.elapsed().as_secs_f64() >= seconds {
                break;
            }
        }
        let expected = rate * seconds;
        let first_tick_is_at_zero = (rate / 1000.0).max(1.0);
        assert!(
            (f64::from(events) - expected).abs() <= first_tick_is_at_zero + 1.0,
            "{events} at {rate} a second"
        );
        assert!(
            f64::from(most_at_once) <= first_tick_is_at_zero.ceil(),
            "{most_at_once} at once at {rate} a second"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn missed_ticks_are_caught_up_with() {
    let mut pace = EventPacer::new(100.0);
    pace.tick().await;
    tokio::time::advance(Duration::from_secs(1)).await;
    let mut events = 0;
    while let Ok(due) = timeout(Duration::ZERO, pace.tick()).await {
        events += due;
    }
    assert_eq!(events, 100);
}

#[tokio::test(start_paused = true)]
async fn the_most_extreme_rates_are_handled() {
    for rate in [f64::MIN_POSITIVE, 1e-9, 100_000.0] {
        let mut pace = EventPacer::new(rate);
        assert!(pace.tick().await >= 1);
        let _ = timeout(Duration::from_millis(5), pace.tick()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_loses_nothing_at_a_high_rate() {
    let harness = SimulatorHarness::start(SimulationOptions { rate: 20_000.0, ..options() });
    let mut body = harness.connect("prod_abc").await;
    let mut expected = Population::new(1, "prod_abc", 20, 0);
    for _ in 0..5000 {
        let frame = next_frame(&mut body).await.unwrap();
        let sent: Value = serde_json::from_str(&frame["data: ".len()..]).unwrap();
        let generated: Value = serde_json::from_str(&expected.next_payload(0.0)).unwrap();
        assert_eq!(
            (&sent["type"], &sent["session_id"]),
            (&generated["type"], &generated["session_id"])
        );
    }
}

#[tokio::test(start_paused = true)]
async fn stopping_ends_the_streams_and_refuses_new_ones() {
    let harness = SimulatorHarness::start(options());
    let mut body = harness.connect("prod_abc").await;
    next_frame(&mut body).await.unwrap();
    harness.stop.cancel();
    timeout(Duration::from_secs(5), async { while next_frame(&mut body).await.is_some() {} })
        .await
        .unwrap();
    harness.task.await.unwrap();
    assert_eq!(
        send_request(&harness.router, Method::GET, "/stream/prod_abc", "").await.status(),
        StatusCode::SERVICE_UNAVAILABLE
    );
}

#[tokio::test(start_paused = true)]
async fn without_products_it_runs_until_stopped() {
    let harness = SimulatorHarness::start(SimulationOptions { products: Vec::new(), ..options() });
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!harness.task.is_finished());
    harness.stop.cancel();
    harness.task.await.unwrap();
}

/// A simulator that generates its traffic.
struct SimulatorHarness {
    router: Router,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl SimulatorHarness {
    fn start(options: SimulationOptions) -> SimulatorHarness {
        let simulator = Simulator::new(options);
        let (router, stop) = (simulator.router(), CancellationToken::new());
        let stopped = stop.clone();
        let task = tokio::spawn(async move { simulator.run(stopped).await });
        SimulatorHarness { router, stop, task }
    }

    async fn connect(&self, product: &str) -> Body {
        let response =
            send_request(&self.router, Method::GET, &format!("/stream/{product}"), "").await;
        assert_eq!(response.status(), StatusCode::OK);
        response.into_body()
    }
}

fn options() -> SimulationOptions {
    SimulationOptions {
        products: vec!["prod_abc".into()],
        rate: 5.0,
        sessions: 20,
        payload_bytes: 0,
        token: None,
        heartbeat: Duration::from_secs(30),
        seed: 1,
    }
}

async fn send_request(
    router: &Router,
    method: Method,
    path: &str,
    authorization: &str,
) -> Response {
    let mut request = Request::builder().method(method).uri(path).header("last-event-id", "17");
    if !authorization.is_empty() {
        request = request.header("authorization", authorization);
    }
    router.clone().call(request.body(Body::empty()).unwrap()).await.unwrap()
}

async fn next_frame(body: &mut Body) -> Option<String> {
    let frame: Bytes = body.frame().await?.unwrap().into_data().unwrap();
    Some(String::from_utf8(frame.to_vec()).unwrap())
}

fn check_problem(headers: &HeaderMap, status: StatusCode, body: &[u8]) {
    assert_eq!(headers["content-type"], "application/problem+json");
    let problem: Value = serde_json::from_slice(body).unwrap();
    assert_eq!(
        (&problem["type"], &problem["status"]),
        (&"about:blank".into(), &status.as_u16().into())
    );
    assert!(
        !problem["title"].as_str().unwrap().is_empty()
            && !problem["detail"].as_str().unwrap().is_empty()
    );
}
