//! Secrets, sessions and payloads stay out of everything that is written down.
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test states its expectations by panicking, and its helpers do as well"
)]

mod common;

use common::{
    STREAM,
    connector::Connector,
    events::event_of,
    http,
    process::Process,
    relay::{KEYS, Setup, TOKEN},
    subscriber::Subscriber,
};
use http_body_util::Empty;
use hyper::{Request, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};

#[test]
fn no_secret_no_session_and_no_payload_is_written_to_the_log_the_metrics_or_the_checked_configuration() {
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
    let mut subscriber = Subscriber::open(relay.public, &path, &[("Authorization", &authorization)]);
    link.event(event_of("session-nobody-may-see", 1));
    assert_eq!(subscriber.numbers(1), [1]);
    link.event("{\"type\":\"a\",\"text\":\"payload-nobody-may-see\"");
    link.event("{\"type\":\"a\",\"text\":\"payload-nobody-may-see\"}");
    relay.get(&format!("{STREAM}?access_token=guess-nobody-may-see"), &[]).problem(401);
    relay.get(STREAM, &[("Authorization", "Bearer guess-nobody-may-see")]).problem(401);
    http::get(relay.admin, "/api/v1/status", &[("X-Admin-Key", "guess-nobody-may-see")]).problem(401);
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
    let secrets =
        [TOKEN, "second-upstream-token", "key-of-agent-a", "key-of-all", "key-of-publisher", ADMIN, "may-see"];
    for (name, output) in outputs {
        for secret in secrets {
            assert!(!output.contains(secret), "{secret} in {name}:\n{output}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_is_written_to_the_log_however_much_it_tells() {
    let connector = Connector::new();
    let setup = Setup::behind(&connector).auth(&format!("admin_key = 'the-admin-key-of-this-test'\n{KEYS}"));
    let mut relay = setup.start_with(&[("RUST_LOG", "trace")]);
    let mut link = connector.stream();
    let authorization = bearer("key-of-agent-a");
    let mut over_http1 = Subscriber::open(relay.public, STREAM, &[("Authorization", &authorization)]);
    let socket = tokio::net::TcpStream::connect(relay.public).await.unwrap();
    let (mut client, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(socket)).await.unwrap();
    tokio::spawn(connection);
    let url = format!("http://{}{STREAM}", relay.public);
    let request = Request::get(url).header("authorization", bearer("key-of-all"));
    let response = client.send_request(request.body(Empty::<bytes::Bytes>::new()).unwrap()).await.unwrap();
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

fn bearer(key: &str) -> String {
    format!("Bearer {key}")
}
