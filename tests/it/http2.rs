//! HTTP/2 with prior knowledge: many independent streams on one connection.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use crate::common::{
    PRODUCT, SOCKET, STREAM,
    connector::Connector,
    events::{event, event_of},
    http,
    page::{PAGES, Page},
    relay::{Relay, Setup},
    subscriber::Frame,
    token::{bearer, jwt, now},
    wait,
};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, Response,
    body::Incoming,
    client::conn::http2::{Builder, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http2_stream_is_the_same_as_an_http1_stream() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut link = connector.stream();
    let mut over_http1 = relay.subscribe();
    let mut client = connect(relay.public).await;
    let response = subscribe(&mut client, relay.public).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(response.headers()["cache-control"], "no-store, no-transform");
    assert_eq!(response.headers()["autoplay-relay"], "resume");
    assert!(response.headers().get("connection").is_none());
    let mut body = Body::of(response);
    assert!(body.through(b"\n").await.starts_with(b"retry: "));
    link.event(event(1));
    assert_eq!(body.through(b"\n\n").await, over_http1.block());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_and_shedding_are_answered_over_http2() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).server("max_subscribers = 1").start();
    let mut client = connect(relay.public).await;
    let connected = subscribe(&mut client, relay.public).await;
    assert_eq!(connected.status(), 200);
    assert_eq!(subscribe(&mut client, relay.public).await.status(), 503);
    let request = get(&format!("http://{}/stream/nothing", relay.public));
    assert_eq!(
        timeout(TIMEOUT, client.send_request(request)).await.unwrap().unwrap().status(),
        404
    );
    let request = get(&format!("http://evil.test{STREAM}"));
    assert_eq!(
        timeout(TIMEOUT, client.send_request(request)).await.unwrap().unwrap().status(),
        403
    );
    let request = get(&format!("http://{}{SOCKET}", relay.public));
    let response = timeout(TIMEOUT, client.send_request(request)).await.unwrap().unwrap();
    assert_eq!(response.status(), 426);
    for of_http1 in ["upgrade", "connection"] {
        assert!(response.headers().get(of_http1).is_none(), "{of_http1}");
    }
    let problem =
        timeout(TIMEOUT, response.into_body().collect()).await.unwrap().unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&problem).contains("HTTP/1.1"), "{problem:?}");
    let mut browser = get(&format!("http://{}{STREAM}", relay.public));
    browser.headers_mut().insert("sec-fetch-mode", "cors".parse().unwrap());
    let response = timeout(TIMEOUT, client.send_request(browser)).await.unwrap().unwrap();
    assert_eq!(response.status(), 200);
    let whole = timeout(TIMEOUT, response.into_body().collect()).await.unwrap().unwrap().to_bytes();
    assert!(whole.starts_with(b"retry: "));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_stream_is_reset_while_other_streams_of_its_connection_continue() {
    const EVENTS: usize = 200;
    let connector = Connector::new();
    let relay = Setup::behind(&connector)
        .server("write_timeout = '1s'\nheartbeat_interval = '10s'")
        .start();
    let mut link = connector.stream();
    let mut client = connect(relay.public).await;
    let mut stalled = subscribe(&mut client, relay.public).await.into_body();
    let mut neighbour = Body::of(subscribe(&mut client, relay.public).await);
    neighbour.through(b"\n").await;
    let session = "x".repeat(8000);
    for n in 0..EVENTS {
        link.event(event_of(&session, n));
        assert_eq!(neighbour.number().await, n);
    }
    let labels = [("transport", "sse"), ("reason", "stalled")];
    relay.wait_for_metric("autoplay_relay_subscriber_disconnects_total", &labels, 1.0);
    relay.wait_for_subscribers(1.0);
    let mut received = 0;
    let reset = loop {
        match timeout(TIMEOUT, stalled.frame()).await.expect("the stalled stream has an end") {
            Some(Ok(frame)) => received += frame.into_data().map_or(0, |data| data.len()),
            Some(Err(error)) => break error,
            None => panic!("a proper end would hide the missing part"),
        }
    };
    assert!(received <= 200_000, "{received} bytes went to a window of {STREAM_WINDOW}");
    assert!(!reset.is_timeout(), "{reset}");
    link.event(event_of("after", EVENTS));
    assert_eq!(neighbour.number().await, EVENTS);
    let again = subscribe(&mut client, relay.public).await;
    assert_eq!(again.status(), 200, "the connection is unaffected");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_that_are_not_read_are_reset_and_others_are_sent() {
    const EVENTS: usize = 100;
    let connector = Connector::new();
    let lines = "write_timeout = '1s'\ntrusted_proxies = ['127.0.0.1/32']";
    let relay = Setup::behind(&connector).server(lines).start();
    let mut link = connector.stream();
    let session = "x".repeat(8000);
    (0..EVENTS).for_each(|n| link.event(event_of(&session, n)));
    let labels = [("product_id", PRODUCT), ("tier", "memory")];
    relay.wait_for_metric("autoplay_relay_log_events", &labels, EVENTS as f64);
    let mut client = connect(relay.public).await;
    let mut stalled = Vec::new();
    for n in 0..16 {
        let mut request = get(&format!("http://{}{PAGES}", relay.public));
        request.headers_mut().insert("x-forwarded-for", format!("192.0.2.{n}").parse().unwrap());
        stalled.push(timeout(TIMEOUT, client.send_request(request)).await.unwrap().unwrap());
    }
    assert!(stalled.iter().all(|response| response.status() == 200));
    assert_eq!(
        Page::get(&relay, "").events.len(),
        EVENTS,
        "once one of the stalled pages has been reset"
    );
    let cut_off = timeout(TIMEOUT, stalled.remove(0).into_body().collect()).await.unwrap();
    assert!(cut_off.is_err(), "a proper end would hide the missing part");
    let request = get(&format!("http://{}{PAGES}", relay.public));
    let whole = timeout(TIMEOUT, client.send_request(request)).await.unwrap().unwrap();
    let length: usize = whole.headers()["content-length"].to_str().unwrap().parse().unwrap();
    let whole = timeout(TIMEOUT, whole.into_body().collect()).await.unwrap().unwrap().to_bytes();
    assert_eq!(whole.len(), length, "the connection is unaffected");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_stalls_during_replay_is_reset_without_new_events() {
    const EVENTS: usize = 100;
    let connector = Connector::new();
    let relay = Setup::behind(&connector).server("write_timeout = '1s'").start();
    let mut link = connector.stream();
    let session = "x".repeat(8000);
    (0..EVENTS).for_each(|n| link.event(event_of(&session, n)));
    let labels = [("product_id", PRODUCT), ("tier", "memory")];
    relay.wait_for_metric("autoplay_relay_log_events", &labels, EVENTS as f64);
    let mut client = connect(relay.public).await;
    let request = get(&format!("http://{}{STREAM}?last_event_id=0", relay.public));
    let stalled = timeout(TIMEOUT, client.send_request(request)).await.unwrap().unwrap();
    assert_eq!(stalled.status(), 200);
    let labels = [("transport", "sse"), ("reason", "stalled")];
    relay.wait_for_metric("autoplay_relay_subscriber_disconnects_total", &labels, 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_reads_nothing_is_reset_on_token_expiry_and_by_an_operator() {
    let connector = Connector::new();
    let relay =
        Setup::behind(&connector).auth(&format!("allow_anonymous = true\n{}", jwt(""))).start();
    let mut link = connector.stream();
    let mut client = connect(relay.public).await;
    let mut request = get(&format!("http://{}{STREAM}", relay.public));
    let authorization = bearer(&serde_json::json!({"exp": now() + 3.0})).parse().unwrap();
    request.headers_mut().insert("authorization", authorization);
    let expiring =
        timeout(TIMEOUT, client.send_request(request)).await.unwrap().unwrap().into_body();
    let kicked = subscribe(&mut client, relay.public).await.into_body();
    let mut neighbour = Body::of(subscribe(&mut client, relay.public).await);
    neighbour.through(b"\n").await;
    let session = "x".repeat(8000);
    for n in 0..100 {
        link.event(event_of(&session, n));
        assert_eq!(neighbour.number().await, n);
    }
    let id = relay.ask_admin("/api/v1/subscribers").json()["subscribers"][1]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let kicked_at = Instant::now();
    assert_eq!(
        http::ask(relay.admin, "DELETE", &format!("/api/v1/subscribers/{id}"), &[]).status(),
        204
    );
    let gone = |reason| [("transport", "sse"), ("reason", reason)];
    relay.wait_for_metric("autoplay_relay_subscriber_disconnects_total", &gone("kicked"), 1.0);
    wait::assert_within(Duration::from_secs(1), kicked_at);
    relay.wait_for_metric("autoplay_relay_subscriber_disconnects_total", &gone("expired"), 1.0);
    for broken_off in [expiring, kicked] {
        assert!(timeout(TIMEOUT, broken_off.collect()).await.unwrap().is_err());
    }
    link.event(event_of("after", 100));
    assert_eq!(neighbour.number().await, 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http2_client_whose_socket_reads_nothing_is_disconnected() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).server("write_timeout = '1s'").start();
    let mut link = connector.stream();
    let socket = TcpStream::connect(relay.public).await.unwrap();
    let is_paused = Arc::new(AtomicBool::new(false));
    let socket = PausableSocket { socket, is_paused: Arc::clone(&is_paused) };
    let mut builder = Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(1 << 30).initial_connection_window_size(1 << 30);
    let (mut client, connection) = builder.handshake(TokioIo::new(socket)).await.unwrap();
    tokio::spawn(connection);
    let response = subscribe(&mut client, relay.public).await;
    assert_eq!(response.status(), 200);
    is_paused.store(true, Ordering::SeqCst);
    let session = "x".repeat(8000);
    (0..2000).for_each(|n| link.event(event_of(&session, n)));
    let labels = [("transport", "sse"), ("reason", "stalled")];
    relay.wait_for_metric("autoplay_relay_subscriber_disconnects_total", &labels, 1.0);
    relay.wait_for_subscribers(0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_http2_stream_is_not_reset_as_stalled() {
    let connector = Connector::new();
    let relay =
        Setup::behind(&connector).server("write_timeout = '300ms'\nhead_timeout = '300ms'").start();
    let mut link = connector.stream();
    let mut client = connect(relay.public).await;
    let mut body = Body::of(subscribe(&mut client, relay.public).await);
    let mut over_http1 = relay.subscribe();
    body.through(b"\n").await;
    for n in 0..3 {
        over_http1.expect_nothing(Duration::from_millis(700));
        link.event(event(n));
        assert_eq!((body.number().await, over_http1.numbers(1)), (n, vec![n]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_without_streams_is_closed_after_the_head_timeout() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).server("head_timeout = '600ms'").start();
    let mut link = connector.stream();
    let socket = TcpStream::connect(relay.public).await.unwrap();
    let (mut client, connection) =
        Builder::new(TokioExecutor::new()).handshake(TokioIo::new(socket)).await.unwrap();
    let mut driver = tokio::spawn(connection);
    let mut body = Body::of(subscribe(&mut client, relay.public).await);
    body.through(b"\n").await;
    // The connection stays as long as it has a stream.
    assert!(timeout(Duration::from_secs(2), &mut driver).await.is_err());
    link.event(event(1));
    assert_eq!(body.number().await, 1);
    let begin = Instant::now();
    drop(body);
    let ended = timeout(TIMEOUT, driver).await.expect("the connection ends").unwrap();
    ended.expect("a proper end by GOAWAY");
    assert!(
        (Duration::from_millis(400)..Duration::from_secs(5)).contains(&begin.elapsed()),
        "{:?}",
        begin.elapsed()
    );
    drop(client); // held until here: the relay has closed the connection
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_answers_no_ping_is_closed_after_the_head_timeout() {
    let connector = Connector::new();
    let relay = Setup::behind(&connector).server("head_timeout = '600ms'").start();
    let _link = connector.stream(); // no other socket of the relay opens or closes from here on
    let without_it = relay.process.open_sockets();
    let is_paused = Arc::new(AtomicBool::new(false));
    let socket = TcpStream::connect(relay.public).await.unwrap();
    let socket = PausableSocket { socket, is_paused: Arc::clone(&is_paused) };
    let (mut client, connection) =
        Builder::new(TokioExecutor::new()).handshake(TokioIo::new(socket)).await.unwrap();
    let _driver = tokio::spawn(connection);
    let request = get(&format!("http://{}/nothing", relay.public));
    assert_eq!(
        timeout(TIMEOUT, client.send_request(request)).await.unwrap().unwrap().status(),
        404
    );
    is_paused.store(true, Ordering::SeqCst);
    // The connection was accepted before, for a request was answered.
    wait::until("the socket is closed", || relay.process.open_sockets() <= without_it);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_beyond_the_limit_gets_431_and_the_connection_stays() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut client = connect(relay.public).await;
    let mut request = get(&format!("http://{}{STREAM}", relay.public));
    for n in 0..5 {
        let name = hyper::header::HeaderName::try_from(format!("x-{n}")).unwrap();
        request.headers_mut().insert(name, "x".repeat(4000).parse().unwrap());
    }
    assert_eq!(
        timeout(TIMEOUT, client.send_request(request)).await.unwrap().unwrap().status(),
        431
    );
    assert_eq!(subscribe(&mut client, relay.public).await.status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_of_60_kib_is_served_and_a_longer_one_is_414() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut client = connect(relay.public).await;
    let of = |bytes: usize| {
        let query = "x".repeat(bytes - PAGES.len() - 3);
        get(&format!("http://{}{PAGES}?_={query}", relay.public))
    };
    let fits = timeout(TIMEOUT, client.send_request(of(60 * 1024))).await.unwrap().unwrap();
    assert_eq!(fits.status(), 200);
    let refused = timeout(TIMEOUT, client.send_request(of(60 * 1024 + 1))).await.unwrap().unwrap();
    assert_eq!(refused.status(), 414);
    let problem = refused.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&problem).contains("subscribe"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_http2_two_hosts_that_differ_are_400() {
    let connector = Connector::new();
    let relay = Relay::behind(&connector);
    let mut client = connect(relay.public).await;
    for (host, status) in [("evil.test", 400), (&*relay.public.to_string(), 200)] {
        let mut request = get(&format!("http://{}{PAGES}", relay.public));
        request.headers_mut().insert(hyper::header::HOST, host.parse().unwrap());
        let answer = timeout(TIMEOUT, client.send_request(request)).await.unwrap().unwrap();
        assert_eq!(answer.status(), status, "{host}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_gives_http2_streams_a_proper_end() {
    let connector = Connector::new();
    let mut relay = Relay::behind(&connector);
    let mut client = connect(relay.public).await;
    let response = subscribe(&mut client, relay.public).await;
    relay.wait_for_subscribers(1.0);
    relay.process.signal("TERM");
    let whole = timeout(TIMEOUT, response.into_body().collect()).await.unwrap().unwrap().to_bytes();
    let whole = String::from_utf8(whole.to_vec()).unwrap();
    assert_eq!(whole.matches("retry: ").count(), 2, "{whole:?}");
    assert_eq!(relay.process.exit_code(), Some(0));
}

async fn connect(to: SocketAddr) -> SendRequest<Empty<Bytes>> {
    let socket = TcpStream::connect(to).await.unwrap();
    let mut builder = Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(STREAM_WINDOW).initial_connection_window_size(1 << 24);
    let (client, connection) = builder.handshake(TokioIo::new(socket)).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn subscribe(client: &mut SendRequest<Empty<Bytes>>, to: SocketAddr) -> Response<Incoming> {
    timeout(TIMEOUT, client.send_request(get(&format!("http://{to}{STREAM}"))))
        .await
        .unwrap()
        .unwrap()
}

fn get(url: &str) -> Request<Empty<Bytes>> {
    Request::get(url).body(Empty::new()).unwrap()
}

/// A socket that stops reading once `is_paused` is set.
struct PausableSocket {
    socket: TcpStream,
    is_paused: Arc<AtomicBool>,
}

impl AsyncRead for PausableSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_paused.load(Ordering::SeqCst) {
            return Poll::Pending;
        }
        Pin::new(&mut self.socket).poll_read(context, into)
    }
}

impl AsyncWrite for PausableSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

/// A body that is read piece by piece, so that flow control opens the window again.
struct Body {
    incoming: Incoming,
    buffer: Vec<u8>,
}

impl Body {
    fn of(response: Response<Incoming>) -> Self {
        Self { incoming: response.into_body(), buffer: Vec::new() }
    }

    /// Waits for the bytes up to and including `mark`.
    async fn through(&mut self, mark: &[u8]) -> Vec<u8> {
        loop {
            if let Some(at) = self.buffer.windows(mark.len()).position(|window| window == mark) {
                return self.buffer.drain(..at + mark.len()).collect();
            }
            let frame = timeout(TIMEOUT, self.incoming.frame())
                .await
                .expect("more comes")
                .unwrap()
                .unwrap();
            self.buffer.extend_from_slice(&frame.into_data().unwrap());
        }
    }

    /// Reads the next event and returns its number.
    async fn number(&mut self) -> usize {
        let block = self.through(b"\n\n").await;
        crate::common::events::number(&Frame::parse(&block).data)
    }
}

const STREAM_WINDOW: u32 = 65_535;

const TIMEOUT: Duration = crate::common::wait::TIMEOUT;
