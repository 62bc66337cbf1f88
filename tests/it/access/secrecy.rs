//! Secrets, sessions and payloads are absent from every output.

use crate::common::{
    PRODUCT, SOCKET, STREAM,
    connector::Connector,
    events::{event_like, event_of},
    http,
    page::PAGES,
    process::Process,
    relay::{KEYS, Relay, Setup, TOKEN},
    subscriber::Subscriber,
    token::{SECRET, bearer as bearer_of, jwt, now, token},
    websocket::Socket,
};
use http_body_util::Empty;
use hyper::{Request, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;

#[test]
fn secrets_sessions_and_payloads_are_absent_from_log_metrics_and_checked_configuration() {
    const ADMIN: &str = "the-admin-key-of-this-test";
    let connector = Connector::new();
    let setup = Setup::behind(&connector).auth(&format!("admin_key = '{ADMIN}'\n{KEYS}")).upstream(
        "prod_xyz",
        "http://127.0.0.1:1/stream/prod_xyz",
        "token = 'second-upstream-token'",
    );
    let mut relay = setup.start();
    let mut link = connector.stream();
    let authorization = bearer("key-of-agent-a");
    let path = format!("{STREAM}?session_id=session-nobody-may-see");
    let mut subscriber =
        Subscriber::open(relay.public, &path, &[("Authorization", &authorization)]);
    link.event(event_of("session-nobody-may-see", 1));
    assert_eq!(subscriber.numbers(1), [1]);
    link.event("{\"type\":\"a\",\"text\":\"payload-nobody-may-see\"");
    link.event("{\"type\":\"a\",\"text\":\"payload-nobody-may-see\"}");
    relay.get(&format!("{STREAM}?access_token=guess-nobody-may-see"), &[]).problem(401);
    relay.get(STREAM, &[("Authorization", "Bearer guess-nobody-may-see")]).problem(401);
    http::get(relay.admin, "/api/v1/status", &[("X-Admin-Key", "guess-nobody-may-see")])
        .problem(401);
    let status = http::get(relay.admin, "/api/v1/status", &[("X-Admin-Key", ADMIN)]).text();
    link.reset();
    connector.accept().refuse("401 Unauthorized", "WWW-Authenticate: Bearer\r\n");
    let metrics = http::get(relay.admin, "/metrics", &[]).text();
    let (_directory, file) = setup.write();
    let checked = Process::run(&["check", "--config", file.to_str().unwrap()], &[]);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    relay.process.signal("TERM");
    assert_eq!(relay.process.exit_code(), Some(0));
    let log = relay.process.stderr.whole();
    assert!(log.contains("upstream connected"));
    let outputs = [
        ("log", &log),
        ("metrics", &metrics),
        ("check", &checked.stdout),
        ("check's log", &checked.stderr),
        ("status", &status),
    ];
    let secrets = [
        TOKEN,
        "second-upstream-token",
        "key-of-agent-a",
        "key-of-all",
        "key-of-publisher",
        ADMIN,
        "may-see",
    ];
    for (name, output) in outputs {
        for secret in secrets {
            assert!(!output.contains(secret), "{secret} in {name}:\n{output}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_absent_from_the_log_at_trace_level() {
    let connector = Connector::new();
    let setup = Setup::behind(&connector)
        .auth(&format!("admin_key = 'the-admin-key-of-this-test'\n{KEYS}"));
    let mut relay = setup.start_with(&[("RUST_LOG", "trace")]);
    let mut link = connector.stream();
    let authorization = bearer("key-of-agent-a");
    let mut over_http1 =
        Subscriber::open(relay.public, STREAM, &[("Authorization", &authorization)]);
    let socket = tokio::net::TcpStream::connect(relay.public).await.unwrap();
    let (mut client, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await.unwrap();
    tokio::spawn(connection);
    let url = format!("http://{}{STREAM}", relay.public);
    let request = Request::get(url).header("authorization", bearer("key-of-all"));
    let response =
        client.send_request(request.body(Empty::<bytes::Bytes>::new()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    http::get(relay.admin, "/api/v1/status", &[("X-Admin-Key", "the-admin-key-of-this-test")]);
    link.event(event_of("s", 1));
    assert_eq!(over_http1.numbers(1), [1]);
    relay.process.signal("TERM");
    assert_eq!(relay.process.exit_code(), Some(0));
    let log = relay.process.stderr.whole();
    assert!(log.contains("DEBUG") || log.contains("TRACE"), "{log}");
    for secret in [TOKEN, "key-of-agent-a", "key-of-all", "the-admin-key-of-this-test"] {
        let line = log.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret}");
    }
}

#[test]
fn tokens_are_absent_from_every_output_wherever_they_were_sent() {
    let connector = Connector::new();
    let lines = jwt("allow_query_token = true\ncookie_name = 'relay'");
    let mut relay = Setup::behind(&connector).auth(&lines).start_with(&[("RUST_LOG", "trace")]);
    let mut link = connector.stream();
    // Each part has its own token. The last two are refused, because logs tend to report refused
    // credentials.
    let session = json!({"session_id": "session-nobody-may-see"});
    let tokens: Vec<_> = (0..9)
        .map(|n| token(&json!({"exp": now() + 100.0 + f64::from(n), "sub": n.to_string()})))
        .collect();
    let limited = token(&session);
    let cookie = |token: &str| format!("relay={token}");
    let query = |path: &str, token: &str| format!("{path}?access_token={token}");
    let mut readers = [
        Subscriber::open(relay.public, STREAM, &[("Authorization", &bearer(&tokens[0]))]),
        Subscriber::open(relay.public, &query(STREAM, &tokens[1]), &[]),
        Subscriber::open(relay.public, STREAM, &[("Cookie", &cookie(&tokens[2]))]),
        Subscriber::open(relay.public, &query(STREAM, &limited), &[]),
    ];
    let mut sockets = [
        Socket::open(relay.public, &query(SOCKET, &tokens[3]), &[]),
        Socket::open(relay.public, SOCKET, &[("Cookie", &cookie(&tokens[4]))]),
    ];
    link.event(event_of("session-nobody-may-see", 1));
    readers.iter_mut().for_each(|reader| assert_eq!(reader.numbers(1), [1]));
    sockets.iter_mut().for_each(|socket| assert_eq!(socket.numbers(1), [1]));
    assert_eq!(relay.get(&query(PAGES, &tokens[5]), &[]).status(), 200);
    relay.get(&format!("{}&session_id=other", query(PAGES, &limited)), &[]).problem(403);
    relay.get(&query("/stream/prod_nothing", &tokens[6]), &[]).problem(403);
    let (in_query, in_cookie) = (format!("{}x", tokens[7]), format!("{}x", tokens[8]));
    relay.get(&query(STREAM, &in_query), &[]).problem(401);
    relay.get(STREAM, &[("Cookie", &cookie(&in_cookie))]).problem(401);
    let seen: Vec<_> = ["/metrics", "/api/v1/status", "/api/v1/subscribers"]
        .map(|path| relay.ask_admin(path).text())
        .into();
    let arguments = relay.process.arguments();
    relay.process.signal("TERM");
    assert_eq!(relay.process.exit_code(), Some(0));
    let log = relay.process.stderr.whole();
    assert!(log.contains("TRACE") && seen[2].contains("token"), "the outputs are not empty");
    // The head is the same in all tokens and is no secret.
    let parts = tokens.iter().chain([&limited]).flat_map(|token| token.split('.').skip(1));
    for secret in parts.chain([SECRET, "nobody-may-see"]) {
        for written in seen.iter().chain([&log, &arguments]) {
            let line = written.lines().find(|line| line.contains(secret));
            assert_eq!(line, None, "{secret}");
        }
    }
}

#[test]
fn client_input_creates_no_metric_series() {
    let connector = Connector::new();
    let lines = format!("{}\n{KEYS}", jwt("allow_query_token = true"));
    let relay = Setup::behind(&connector)
        .auth(&lines)
        .server("cors_allowed_origins = ['https://app.test']")
        .start();
    let mut link = connector.stream();
    let mut series_after = |relay: &Relay, from: usize, to: usize| {
        for n in from..to {
            let all = bearer_of(
                &json!({"sub": n.to_string(), "session_id": format!("s{n}"), "type": format!("type-{n}"),
                                        "permissions": ["subscribe", "publish"]}),
            );
            let path = format!("{STREAM}?session_id=s{n}&type=type-{n}&last_event_id=0&x{n}={n}");
            let mut reader = Subscriber::open(
                relay.public,
                &path,
                &[("Authorization", &all), ("Origin", &origin(n))],
            );
            let mut socket = Socket::open(relay.public, SOCKET, &[("Authorization", &all)]);
            link.event(event_like(&format!("type-{n}"), &format!("s{n}"), n));
            assert_eq!((reader.numbers(1), socket.numbers(1)), (vec![n], vec![n]));
            let body = event_like(&format!("type-{n}"), &format!("s{n}"), n);
            let path = format!("/events/{PRODUCT}");
            assert_eq!(
                http::ask_with(relay.public, "POST", &path, &[("Authorization", &all)], &body)
                    .status(),
                202,
            );
            let all =
                [("Authorization", "Bearer key-of-all"), ("User-Agent", &format!("agent/{n}"))];
            relay.get(&format!("/stream/product-{n}"), &all).problem(404);
            relay.get(&format!("/route-{n}"), &all).problem(404);
            relay.get(STREAM, &[("Authorization", &format!("Bearer guess-{n}"))]).problem(401);
        }
        // Disconnects are counted a moment after they happen.
        crate::common::wait::until("all subscribers are disconnected", || {
            let status = relay.metrics();
            let of =
                |transport| status.value("autoplay_relay_subscribers", &[("transport", transport)]);
            (of("sse"), of("ws")) == (Some(0.0), Some(0.0))
        });
        let metrics = relay.ask_admin("/metrics").text();
        let series = metrics.lines().filter(|line| !line.starts_with('#'));
        series.filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned())).collect::<Vec<_>>()
    };
    let few = series_after(&relay, 0, 2);
    assert_eq!(series_after(&relay, 2, 40), few);
}

fn origin(n: usize) -> String {
    if n.is_multiple_of(2) {
        "https://app.test".to_owned()
    } else {
        format!("https://page-{n}.test")
    }
}

fn bearer(key: &str) -> String {
    format!("Bearer {key}")
}
