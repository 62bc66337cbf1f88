//! The connection to the connector: requests, retries, time-outs.

use std::{
    io::ErrorKind,
    net::TcpListener,
    time::{Duration, Instant, SystemTime},
};

use crate::common::{
    PRODUCT, STREAM,
    connector::Connector,
    events::event,
    http,
    relay::{Relay, Setup, TOKEN},
    wait,
};

#[test]
fn the_upstream_request_is_that_of_an_sdk_client() {
    let connector = Connector::new();
    let _relay = Relay::behind(&connector);
    let request = connector.accept().request;
    assert_eq!(request.first_line, "GET /stream/prod_abc HTTP/1.1");
    assert_eq!(request.field("authorization"), Some(format!("Bearer {TOKEN}").as_str()));
    assert_eq!(request.field("accept"), Some("text/event-stream"));
    assert_eq!(request.field("host"), Some(connector.address.to_string().as_str()));
    assert!(request.field("user-agent").is_some_and(|agent| agent.starts_with("autoplay-relay/")));
    assert_eq!(request.field("last-event-id"), None, "a connector cannot resume");
}

#[test]
fn a_request_without_a_token_has_no_authorization_and_keeps_the_query_of_the_url() {
    let connector = Connector::new();
    let url = format!("{}?x=1&y=%20", connector.url(PRODUCT));
    let _relay = Setup::new().upstream(PRODUCT, &url, "").start();
    let request = connector.accept().request;
    assert_eq!(request.path(), "/stream/prod_abc?x=1&y=%20");
    assert_eq!(request.field("authorization"), None);
}

#[test]
fn proxies_from_the_environment_are_ignored() {
    let connector = Connector::new();
    let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
    proxy.set_nonblocking(true).unwrap();
    let url = format!("http://{}", proxy.local_addr().unwrap());
    let names =
        ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
    let _relay = Setup::behind(&connector).start_with(&names.map(|name| (name, url.as_str())));
    assert_eq!(connector.accept().request.first_line, "GET /stream/prod_abc HTTP/1.1");
    assert_eq!(
        proxy.accept().unwrap_err().kind(),
        ErrorKind::WouldBlock,
        "no connection to the proxy"
    );
}

#[test]
fn a_stream_that_ends_or_breaks_is_reopened() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut subscriber = relay.subscribe();
    let mut link = connector.stream();
    link.event(event(0));
    assert_eq!(subscriber.numbers(1), [0]);
    link.end();
    let mut link = connector.stream();
    subscriber.gap();
    link.event(event(1));
    assert_eq!(subscriber.numbers(1), [1]);
    link.reset();
    let mut link = connector.stream();
    subscriber.gap();
    link.event(event(2));
    assert_eq!(subscriber.numbers(1), [2]);
    link.half_close();
    let mut last = connector.stream();
    subscriber.gap();
    last.event(event(3));
    assert_eq!(subscriber.numbers(1), [3]);
    relay.wait_for_metric("autoplay_relay_upstream_connects_total", &outcome("connected"), 4.0);
}

#[test]
fn a_chunked_stream_is_read_to_its_last_chunk() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut subscriber = relay.subscribe();
    let mut link = connector.accept();
    link.send(
        "HTTP/1.1 200 OK\r\nContent-Type: Text/Event-Stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n",
    );
    let payload = event(0);
    let frame = format!("data: {payload}\n\n");
    let (begin, end) = frame.split_at(20);
    link.send(format!("{:x}\r\n{begin}\r\n", begin.len()));
    link.send(format!("{:X};x=y\r\n{end}\r\n", end.len()));
    assert_eq!(subscriber.event().data, payload.as_bytes());
    link.send("0\r\n\r\n");
    let _next = connector.stream();
    subscriber.gap();
    wait::until("the relay closes the ended stream", || !link.is_open());
}

#[test]
fn early_hints_and_http_1_0_are_accepted() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut subscriber = relay.subscribe();
    let mut link = connector.accept();
    link.send("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n");
    link.send("HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n");
    link.event(event(1));
    assert_eq!(subscriber.numbers(1), [1]);
}

#[test]
fn temporary_errors_are_retried() {
    for status in [
        "500 Internal Server Error",
        "502 Bad Gateway",
        "429 Too Many Requests",
        "418 Teapot",
        "204 No Content",
    ] {
        let connector = Connector::new();
        let relay = Relay::behind(&connector);
        connector.accept().refuse(status, "");
        let _link = connector.stream();
        relay.wait_for_upstream("connected");
        let metrics = relay.metrics();
        let connects =
            |kind| metrics.value("autoplay_relay_upstream_connects_total", &outcome(kind));
        assert_eq!((connects("failed"), connects("connected")), (Some(1.0), Some(1.0)), "{status}");
        assert_eq!(
            metrics.value("autoplay_relay_upstream_connected", &[("product_id", PRODUCT)]),
            Some(1.0)
        );
    }
}

#[test]
fn retry_after_is_honoured() {
    for status in ["503 Service Unavailable", "429 Too Many Requests"] {
        let connector = Connector::new();
        let relay = Relay::behind(&connector);
        let link = connector.accept();
        let refused = Instant::now();
        link.refuse(status, "Retry-After: 2\r\n");
        relay.wait_for_upstream("backing_off");
        let _link = connector.stream();
        let waited = refused.elapsed();
        assert!(waited >= Duration::from_secs(2), "{status}: {waited:?}");
    }
}

#[test]
fn retry_after_may_be_a_date() {
    let connector = Connector::new();
    let _relay = Relay::behind(&connector);
    let link = connector.accept();
    let until = SystemTime::now() + Duration::from_secs(3);
    link.refuse(
        "503 Service Unavailable",
        &format!("Retry-After: {}\r\n", httpdate::fmt_http_date(until)),
    );
    let _link = connector.stream();
    // HTTP dates have whole seconds.
    assert!(SystemTime::now() >= until - Duration::from_millis(1100));
}

#[test]
fn a_stream_that_ends_repeatedly_is_not_reopened_in_a_tight_loop() {
    let connector = Connector::new();
    let _relay = Relay::behind(&connector);
    let begin = Instant::now();
    let mut connects = 0;
    while begin.elapsed() < Duration::from_secs(3) {
        connector.stream().end();
        connects += 1;
        assert!(connects < 20, "{connects} connects in {:?}", begin.elapsed());
    }
}

#[test]
fn a_permanent_error_is_refused_and_not_retried_soon() {
    let statuses = ["400 Bad Request", "401 Unauthorized", "403 Forbidden", "404 Not Found"];
    let connectors = statuses.map(|_| Connector::new());
    let relays: Vec<_> = connectors.iter().map(Relay::behind).collect();
    for (connector, status) in connectors.iter().zip(statuses) {
        connector.accept().refuse(status, "");
    }
    for relay in &relays {
        relay.wait_for_upstream("refused");
        let ready = relay.ask_admin("/readyz");
        assert_eq!((ready.status(), &ready.json()["upstreams"][PRODUCT]), (200, &"refused".into()));
        assert_eq!(relay.ask_admin("/readyz?require=upstream").status(), 503);
        let metrics = relay.metrics();
        assert_eq!(
            metrics.value("autoplay_relay_upstream_connects_total", &outcome("refused")),
            Some(1.0)
        );
        assert_eq!(
            metrics.value("autoplay_relay_upstream_connected", &[("product_id", PRODUCT)]),
            Some(0.0)
        );
        relay.subscribe();
    }
    // After other failures, the first backoff is half a second at most.
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        connectors
            .iter()
            .for_each(|connector| connector.expect_no_connection(Duration::from_millis(20)));
    }
}

#[test]
fn a_response_that_is_no_event_stream_is_not_used() {
    let heads = [
        "Content-Type: application/json\r\n",
        "Content-Type: text/event-streams\r\n",
        "",
        "Content-Type: text/event-stream\r\nContent-Encoding: gzip\r\n",
    ];
    for head in heads {
        let connector = Connector::new();
        let relay = Relay::behind(&connector);
        let mut subscriber = relay.subscribe();
        let mut link = connector.accept();
        link.send(format!("HTTP/1.1 200 OK\r\n{head}Connection: close\r\n\r\n"));
        wait::until("the relay closes the connection", || !link.is_open());
        let mut link = connector.stream();
        link.event(event(1));
        assert_eq!(subscriber.numbers(1), [1], "no gap: there was no stream before");
        relay.wait_for_metric("autoplay_relay_upstream_connects_total", &outcome("failed"), 1.0);
    }
}

#[test]
fn a_silent_stream_is_closed_after_the_heartbeat_timeout() {
    let connector = Connector::new();
    let relay = Setup::behind_with(&connector, "heartbeat_timeout = '700ms'").start();
    let mut subscriber = relay.subscribe();
    let link = connector.stream();
    let begin = Instant::now();
    let _next = connector.stream();
    assert!(begin.elapsed() >= Duration::from_millis(600), "{:?}", begin.elapsed());
    assert!(!link.is_open());
    subscriber.gap();
}

#[test]
fn heartbeats_comments_and_partial_events_reset_the_heartbeat_timeout() {
    let connector = Connector::new();
    let relay = Setup::behind_with(&connector, "heartbeat_timeout = '1s'").start();
    let mut link = connector.stream();
    let begin = Instant::now();
    let signs = [":\n", "event: heartbeat\ndata:\n\n", ": still here\n", "data: {", " "];
    let mut signs = signs.iter().cycle();
    while begin.elapsed() < Duration::from_secs(3) {
        link.send(signs.next().unwrap());
        connector.expect_no_connection(Duration::from_millis(200));
    }
    assert!(link.is_open());
    relay.wait_for_metric("autoplay_relay_upstream_connects_total", &outcome("connected"), 1.0);
    assert_eq!(
        relay.metrics().value("autoplay_relay_gaps_total", &[("reason", "upstream_reconnect")]),
        Some(0.0)
    );
}

#[test]
fn each_upstream_has_its_own_stream() {
    let connector = Connector::new();
    let relay = Setup::new()
        .upstream("prod_a", &connector.url("prod_a"), "token = 'token-a'")
        .upstream("prod_b", &connector.url("prod_b"), "token = 'token-b'")
        .start();
    let (mut a, mut b) =
        (relay.subscribe_to("/stream/prod_a"), relay.subscribe_to("/stream/prod_b"));
    let (one, two) = (connector.stream(), connector.stream());
    let (mut link_a, mut link_b) =
        if one.request.path().ends_with("a") { (one, two) } else { (two, one) };
    assert_eq!(link_a.request.field("authorization"), Some("Bearer token-a"));
    assert_eq!(link_b.request.field("authorization"), Some("Bearer token-b"));
    link_b.event(r#"{"type":"actions","count":2}"#);
    assert_eq!(b.numbers(1), [2]);
    link_a.event(r#"{"type":"actions","count":1}"#);
    assert_eq!(a.numbers(1), [1]);
    link_b.end();
    let _link_b = connector.stream();
    b.gap();
    link_a.event(r#"{"type":"actions","count":3}"#);
    assert_eq!(a.numbers(1), [3], "the outage of the other product has no effect");
    assert_eq!(
        relay.metrics().value("autoplay_relay_upstream_connected", &[("product_id", "prod_a")]),
        Some(1.0)
    );
}

#[test]
fn a_hundred_subscribers_share_one_upstream_connection() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut subscribers: Vec<_> = (0..100).map(|_| relay.subscribe()).collect();
    link.event(event(0));
    for subscriber in &mut subscribers {
        assert_eq!(subscriber.numbers(1), [0]);
    }
    connector.expect_no_connection(Duration::from_millis(100));
}

#[test]
fn subscribers_are_served_while_the_upstream_is_unavailable() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut early = relay.subscribe();
    let mut link = connector.stream();
    link.event(event(0));
    let id = early.event().id.unwrap();
    drop((link, connector));
    relay.wait_for_upstream("backing_off");
    let answer = http::get(relay.public, "/stream/nothing", &[]);
    assert_eq!(answer.status(), 404);
    let mut late = crate::common::subscriber::Subscriber::open(
        relay.public,
        STREAM,
        &[("Last-Event-ID", "0")],
    );
    assert_eq!(late.event().id.unwrap(), id);
}

fn outcome(outcome: &str) -> [(&'static str, &str); 2] {
    [("product_id", PRODUCT), ("outcome", outcome)]
}

#[test]
fn an_upstream_that_streams_interim_answers_is_a_failed_connection() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let interim = b"HTTP/1.1 100 Continue\r\n\r\n";
    let failed = [("product_id", PRODUCT), ("outcome", "failed")];
    for failures in 1..3 {
        let mut link = connector.accept();
        link.send(interim.repeat(17));
        relay.wait_for_metric("autoplay_relay_upstream_connects_total", &failed, failures.into());
        wait::until("the connection is closed", || !link.is_open());
    }
    // Up to 16 precede the answer.
    let mut link = connector.accept();
    link.send(interim.repeat(16));
    link.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n");
    let mut subscriber = relay.subscribe();
    link.event(event(1));
    assert_eq!(subscriber.numbers(1), [1]);
}
