mod receiver;
mod secure;
mod table;

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rustls::ClientConfig;
use tokio::{io::AsyncReadExt, net::TcpListener};

use self::receiver::{Receiver, Then};
use super::*;
use crate::{
    config::{AllowAnonymous, Config, Environment, Network},
    outbound::{client, egress_guard::Resolver},
    webhook_delivery::Outcome,
};

/// A webhook to `url`, with further keys.
fn webhook(url: &str, keys: &str) -> Webhook {
    let upstream = "[[upstreams]]\nproduct_id = 'p'\nurl = 'http://connector/p'\ntoken = 't'\n";
    let text = format!("{upstream}[[webhooks]]\nid = 'crm'\nproduct_id = 'p'\nsecret = 'hush'\nurl = '{url}'\n{keys}");
    let config = Config::parse(&text, "relay.toml", &Environment::default(), AllowAnonymous::OnLoopback);
    config.expect("the test's configuration is valid").webhooks.remove(0)
}

fn tls() -> ClientConfig {
    client::tls(None).unwrap()
}

fn guard(allow: &[&str]) -> Arc<Guard> {
    let networks: Vec<Network> = allow.iter().map(|text| Network::parse(text).unwrap()).collect();
    Arc::new(Guard::new(&networks))
}

fn sender(url: &str, keys: &str) -> Sender {
    Sender::new(&webhook(url, keys), None, guard(&["127.0.0.0/8"]), &tls())
}

async fn post(sender: &Sender) -> (Attempt, Verdict) {
    let sent = sender.send("7-1", Bytes::from_static(BODY)).await;
    let error = sent.0.error.as_deref().unwrap_or_default();
    assert!(!error.contains("hush") && !error.contains("/events"), "{error}");
    assert_eq!(error.is_empty(), sent.0.outcome == Outcome::Accepted, "{error}");
    sent
}

/// How one attempt goes with a receiver that answers this.
async fn answered(answer: impl Into<Bytes>, then: Then, keys: &str) -> (Attempt, Verdict) {
    let receiver = Receiver::new(answer, then).await;
    post(&sender(&receiver.url(), keys)).await
}

const BODY: &[u8] = b"{ \"type\":\"actions\", \"emoji\":\"\xf0\x9f\xa6\x80\" }\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const AGAIN: Verdict = Verdict::Again { after: None };
/// Short enough to wait for, long enough for a loaded machine to come to what is tested.
const IMPATIENT: &str = "timeout = '300ms'";

#[tokio::test]
async fn every_status_has_its_verdict() {
    let table = [
        (200, Outcome::Accepted, Verdict::Accepted),
        (204, Outcome::Accepted, Verdict::Accepted),
        (299, Outcome::Accepted, Verdict::Accepted),
        (301, Outcome::Failed, AGAIN),
        (304, Outcome::Failed, AGAIN),
        (400, Outcome::Refused, Verdict::Refused),
        (401, Outcome::Refused, Verdict::Refused),
        (404, Outcome::Refused, Verdict::Refused),
        (408, Outcome::Refused, AGAIN),
        (410, Outcome::Refused, Verdict::Gone),
        (425, Outcome::Refused, AGAIN),
        (429, Outcome::Refused, AGAIN),
        (499, Outcome::Refused, Verdict::Refused),
        (500, Outcome::Failed, AGAIN),
        (503, Outcome::Failed, AGAIN),
        (599, Outcome::Failed, AGAIN),
        (999, Outcome::Failed, AGAIN),
    ];
    for (status, outcome, verdict) in table {
        let answer = format!("HTTP/1.1 {status} \"hush\"\r\nConnection: close\r\n\r\n");
        let (attempt, found) = answered(answer, Then::Close, "").await;
        assert_eq!((attempt.status, attempt.outcome, found), (Some(status), outcome, verdict), "{status}");
        assert!(attempt.error.is_none_or(|error| error.contains(&status.to_string())));
    }
}

#[tokio::test]
async fn a_request_is_signed_and_carries_the_payload_byte_for_byte() {
    let receiver = Receiver::new(OK, Then::GoOn).await;
    let (attempt, _) = post(&sender(&receiver.url(), "")).await;
    let request = receiver.requests().remove(0);
    assert_eq!(request.body, BODY);
    assert!(request.head.starts_with("POST /events?token=hush HTTP/1.1\r\n"), "{}", request.head);
    let timestamp = request.header("webhook-timestamp").unwrap();
    assert_eq!(timestamp, (attempt.at / 1000).to_string());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(now - timestamp.parse::<u64>().unwrap() < 60);
    let signed = Signer::new(&Secret::inline("hush".to_owned()), None).headers("7-1", attempt.at / 1000, BODY).unwrap();
    for (name, value) in &signed {
        assert_eq!(request.header(name.as_str()), value.to_str().ok(), "{name}");
    }
    assert_eq!(request.header("host"), Some(receiver.address.to_string().as_str()));
    assert_eq!(request.header("accept-encoding"), None);
}

#[tokio::test]
async fn attempts_share_a_connection_and_send_the_same_bytes() {
    let receiver = Receiver::new(OK, Then::GoOn).await;
    let sender = sender(&receiver.url(), "");
    for _ in 0..3 {
        assert_eq!(post(&sender).await.1, Verdict::Accepted);
    }
    assert_eq!(receiver.connections(), 1);
    assert!(receiver.requests().iter().all(|request| request.body == BODY));
}

#[tokio::test]
async fn connections_close_with_their_sender() {
    let receiver = Receiver::new(OK, Then::GoOn).await;
    let sender = sender(&receiver.url(), "");
    post(&sender).await;
    drop(sender);
    receiver.all_closed().await;
}

#[tokio::test]
async fn a_request_that_is_still_being_written_ends_with_its_sender() {
    // More than what the two sockets hold, and nobody reads.
    let payload = Bytes::from(vec![b'x'; 16 << 20]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let sender = sender(&format!("http://{}", listener.local_addr().unwrap()), "timeout = '1s'");
    let (sent, accepted) = tokio::join!(sender.send("7-1", payload.clone()), listener.accept());
    assert_eq!(sent.0.outcome, Outcome::Timeout);
    drop(sender);
    let (mut left, mut stream) = (Vec::new(), accepted.unwrap().0);
    let _ = stream.read_to_end(&mut left).await;
    assert!(left.len() < payload.len());
}

#[tokio::test]
async fn a_former_secret_signs_too() {
    let receiver = Receiver::new(OK, Then::GoOn).await;
    let former = Secret::inline("former".to_owned());
    let webhook = webhook(&receiver.url(), "");
    post(&Sender::new(&webhook, Some(&former), guard(&["127.0.0.1"]), &tls())).await;
    let request = receiver.requests().remove(0);
    assert_eq!(request.header("webhook-signature").unwrap().split(' ').count(), 2);
}

#[tokio::test]
async fn a_receiver_that_hangs_costs_the_timeout_and_a_connection() {
    let receiver = Receiver::new("", Then::Hang).await;
    let sender = sender(&receiver.url(), IMPATIENT);
    let (attempt, verdict) = post(&sender).await;
    assert_eq!((attempt.outcome, attempt.status, verdict), (Outcome::Timeout, None, AGAIN));
    assert!((300..3000).contains(&attempt.duration_ms), "{}", attempt.duration_ms);
    assert_eq!(attempt.error.as_deref(), Some("no complete answer within 0.3 s"));
    receiver.all_closed().await;
}

#[tokio::test]
async fn a_connection_lost_before_the_answer_is_tried_again() {
    for (answer, then) in [("", Then::Reset), ("", Then::Close), ("HTTP/1.1 200 O", Then::Close)] {
        let (attempt, verdict) = answered(answer, then, "").await;
        assert_eq!((attempt.outcome, attempt.status, verdict), (Outcome::Connect, None, AGAIN), "{answer} {then:?}");
    }
}

#[tokio::test]
async fn a_success_counts_only_with_its_whole_body() {
    const CUT: &str = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nok";
    for (then, outcome) in
        [(Then::Close, Outcome::Connect), (Then::Reset, Outcome::Connect), (Then::Hang, Outcome::Timeout)]
    {
        let (attempt, verdict) = answered(CUT, then, IMPATIENT).await;
        assert_eq!((attempt.outcome, attempt.status, verdict), (outcome, Some(200), AGAIN), "{then:?}");
    }
}

#[tokio::test]
async fn a_failure_is_one_by_its_head() {
    for then in [Then::Close, Then::Hang] {
        let answer = "HTTP/1.1 410 Gone\r\nContent-Length: 10\r\n\r\nok";
        let (attempt, verdict) = answered(answer, then, IMPATIENT).await;
        assert_eq!((attempt.outcome, verdict), (Outcome::Refused, Verdict::Gone), "{then:?}");
    }
}

#[tokio::test]
async fn of_an_endless_body_the_beginning_is_enough() {
    let receiver = Receiver::new("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", Then::Endless).await;
    let sender = sender(&receiver.url(), "timeout = '60s'");
    let (attempt, verdict) = post(&sender).await;
    assert_eq!((attempt.outcome, verdict), (Outcome::Accepted, Verdict::Accepted));
    assert!(attempt.duration_ms < 20_000, "{}", attempt.duration_ms);
    receiver.all_closed().await;
}

#[tokio::test]
async fn of_an_endless_head_no_more_is_read_than_any_head_needs() {
    let answer = format!("HTTP/1.1 200 OK\r\nX-Long: {}", "x".repeat(1 << 20));
    let (attempt, _) = answered(answer, Then::Hang, "timeout = '60s'").await;
    assert_eq!((attempt.outcome, attempt.status), (Outcome::Connect, None));
    assert_eq!(attempt.error.as_deref(), Some("the answer is not HTTP"));
}

#[tokio::test]
async fn nothing_is_decompressed() {
    // A reader that tried would fail: these bytes are no gzip.
    let answer = "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x00";
    assert_eq!(answered(answer, Then::GoOn, "").await.1, Verdict::Accepted);
}

#[tokio::test]
async fn redirects_are_not_followed_and_the_error_says_so() {
    let elsewhere = Receiver::new(OK, Then::GoOn).await;
    for status in [301, 302, 303, 307, 308] {
        let answer = format!("HTTP/1.1 {status} X\r\nLocation: {}\r\nContent-Length: 0\r\n\r\n", elsewhere.url());
        let (attempt, verdict) = answered(answer, Then::GoOn, "").await;
        assert_eq!((attempt.outcome, verdict), (Outcome::Failed, AGAIN));
        assert!(attempt.error.unwrap().contains("redirects are not followed"));
    }
    assert_eq!(elsewhere.connections(), 0);
}

#[tokio::test]
async fn retry_after_is_honoured_in_both_forms_and_capped() {
    let wait = async |value: &str| {
        let answer = format!("HTTP/1.1 429 Too Many\r\nRetry-After: {value}\r\nContent-Length: 0\r\n\r\n");
        match answered(answer, Then::GoOn, "").await.1 {
            Verdict::Again { after } => after,
            verdict => panic!("{verdict:?}"),
        }
    };
    assert_eq!(wait("7").await, Some(Duration::from_secs(7)));
    assert_eq!(wait("86400").await, Some(Duration::from_secs(3600)));
    let soon = wait(&httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(600))).await.unwrap();
    assert!((500..=600).contains(&soon.as_secs()), "{soon:?}");
    let far = wait(&httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(86_400))).await;
    assert_eq!(far, Some(Duration::from_secs(3600)));
    assert_eq!(wait("soon").await, None);
}

#[tokio::test]
async fn what_is_not_http_is_tried_again() {
    let (attempt, verdict) = answered("SSH-2.0-hush\r\n\r\n", Then::Close, "").await;
    assert_eq!((attempt.outcome, attempt.status, verdict), (Outcome::Connect, None, AGAIN));
    assert_eq!(attempt.error.as_deref(), Some("the answer is not HTTP"));
}

#[tokio::test]
async fn where_nobody_listens_the_error_names_the_address() {
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (attempt, verdict) = post(&sender(&format!("http://{address}/events?token=hush"), "")).await;
    assert_eq!((attempt.outcome, verdict), (Outcome::Connect, AGAIN));
    assert!(attempt.error.unwrap().contains(&format!("cannot connect to {address}: Connection refused")));
}

#[tokio::test]
async fn a_name_without_an_address_is_tried_again() {
    let webhook = webhook("http://nobody.test/", "");
    let connector = Connector::new(guard(&[]), webhook.timeout).with_resolver(Resolver::Stub(Arc::new(|_| Vec::new())));
    let (attempt, verdict) = post(&Sender::over(connector, &webhook, None, &tls())).await;
    assert_eq!((attempt.outcome, attempt.status, verdict), (Outcome::Dns, None, AGAIN));
}

#[tokio::test]
async fn what_cannot_be_sent_is_an_attempt_too() {
    let receiver = Receiver::new(OK, Then::GoOn).await;
    let (attempt, verdict) = sender(&receiver.url(), "").send("1\n2", Bytes::new()).await;
    assert_eq!((attempt.outcome, verdict), (Outcome::Failed, AGAIN));
    assert_eq!(receiver.connections(), 0);
}
