//! The sender against scripted receivers: requests, classification of responses, bounds.

mod floods;
mod frames;
mod heads;
mod receiver;
mod secure;
mod table;

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rustls::ClientConfig;
use tokio::{io::AsyncReadExt, net::TcpListener};

use self::receiver::{AfterAnswer, ScriptedReceiver};
use super::*;
use crate::{
    config::{AllowAnonymous, Config, Environment, Network},
    outbound::{egress_guard::Resolver, tls::tls_client_config},
    webhook_delivery::Outcome,
};

/// Returns a webhook to `url`, with further keys.
fn webhook(url: &str, keys: &str) -> WebhookConfig {
    let upstream = "[[upstreams]]\nproduct_id = 'p'\nurl = 'http://connector/p'\ntoken = 't'\n";
    let text = format!(
        "{upstream}[[webhooks]]\nid = 'crm'\nproduct_id = 'p'\nsecret = 'hush'\n\
         url = '{url}'\n{keys}"
    );
    let config =
        Config::parse(&text, "relay.toml", &Environment::default(), AllowAnonymous::OnLoopback);
    config.expect("the test's configuration is valid").webhooks.remove(0)
}

fn tls() -> ClientConfig {
    tls_client_config(None).unwrap()
}

fn guard(allow: &[&str]) -> Arc<EgressGuard> {
    let networks: Vec<Network> = allow.iter().map(|text| Network::parse(text).unwrap()).collect();
    Arc::new(EgressGuard::new(&networks))
}

/// Returns a bound on connections that no test reaches.
fn sender(url: &str, keys: &str) -> WebhookSender {
    WebhookSender::new(&webhook(url, keys), None, guard(&["127.0.0.0/8"]), None, &tls())
}

async fn post(sender: &WebhookSender) -> (Attempt, Disposition) {
    let sent = sender.send("7-1", Bytes::from_static(BODY)).await;
    let error = sent.0.error.as_deref().unwrap_or_default();
    assert!(!error.contains("hush") && !error.contains("/events"), "{error}");
    assert_eq!(error.is_empty(), sent.0.outcome == Outcome::Accepted, "{error}");
    sent
}

/// Makes one attempt against a receiver that writes `answer`.
async fn attempt_against(
    answer: impl Into<Bytes>,
    then: AfterAnswer,
    keys: &str,
) -> (Attempt, Disposition) {
    let receiver = ScriptedReceiver::new(answer, then).await;
    post(&sender(&receiver.url(), keys)).await
}

const BODY: &[u8] = b"{ \"type\":\"actions\", \"emoji\":\"\xf0\x9f\xa6\x80\" }\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const PLAIN_RETRY: Disposition = Disposition::Retry { after: None };
/// Short enough for a test to wait, long enough for a loaded machine to reach the tested step.
const SHORT_TIMEOUT: &str = "timeout = '300ms'";

#[tokio::test]
async fn every_status_has_its_verdict() {
    let table = [
        (200, Outcome::Accepted, Disposition::Accepted),
        (204, Outcome::Accepted, Disposition::Accepted),
        (299, Outcome::Accepted, Disposition::Accepted),
        (301, Outcome::Failed, PLAIN_RETRY),
        (304, Outcome::Failed, PLAIN_RETRY),
        (400, Outcome::Refused, Disposition::Refused),
        (401, Outcome::Refused, Disposition::Refused),
        (404, Outcome::Refused, Disposition::Refused),
        (408, Outcome::Refused, PLAIN_RETRY),
        (410, Outcome::Refused, Disposition::Gone),
        (425, Outcome::Refused, PLAIN_RETRY),
        (429, Outcome::Refused, PLAIN_RETRY),
        (499, Outcome::Refused, Disposition::Refused),
        (500, Outcome::Failed, PLAIN_RETRY),
        (503, Outcome::Failed, PLAIN_RETRY),
        (599, Outcome::Failed, PLAIN_RETRY),
        (999, Outcome::Failed, PLAIN_RETRY),
    ];
    for (status, outcome, disposition) in table {
        let answer = format!("HTTP/1.1 {status} \"hush\"\r\nConnection: close\r\n\r\n");
        let (attempt, found) = attempt_against(answer, AfterAnswer::Close, "").await;
        assert_eq!(
            (attempt.status, attempt.outcome, found),
            (Some(status), outcome, disposition),
            "{status}"
        );
        assert!(attempt.error.is_none_or(|error| error.contains(&status.to_string())));
    }
}

#[tokio::test]
async fn a_request_is_signed_and_carries_the_payload_byte_for_byte() {
    let receiver = ScriptedReceiver::new(OK, AfterAnswer::KeepOpen).await;
    let (attempt, _) = post(&sender(&receiver.url(), "")).await;
    let request = receiver.requests().remove(0);
    assert_eq!(request.body, BODY);
    assert!(request.head.starts_with("POST /events?token=hush HTTP/1.1\r\n"), "{}", request.head);
    let timestamp = request.header("webhook-timestamp").unwrap();
    assert_eq!(timestamp, (attempt.at / 1000).to_string());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(now - timestamp.parse::<u64>().unwrap() < 60);
    let signed = Signer::new(&Secret::inline("hush".to_owned()), None)
        .headers("7-1", attempt.at / 1000, BODY)
        .unwrap();
    for (name, value) in &signed {
        assert_eq!(request.header(name.as_str()), value.to_str().ok(), "{name}");
    }
    assert_eq!(request.header("host"), Some(receiver.address.to_string().as_str()));
    assert_eq!(request.header("accept-encoding"), None);
}

#[tokio::test]
async fn attempts_share_a_connection_and_send_the_same_bytes() {
    let receiver = ScriptedReceiver::new(OK, AfterAnswer::KeepOpen).await;
    let sender = sender(&receiver.url(), "");
    for _ in 0..3 {
        assert_eq!(post(&sender).await.1, Disposition::Accepted);
    }
    assert_eq!(receiver.connections(), 1);
    assert!(receiver.requests().iter().all(|request| request.body == BODY));
}

#[tokio::test]
async fn connections_close_with_their_sender() {
    let receiver = ScriptedReceiver::new(OK, AfterAnswer::KeepOpen).await;
    let sender = sender(&receiver.url(), "");
    post(&sender).await;
    drop(sender);
    receiver.all_closed().await;
}

#[tokio::test]
async fn a_request_that_is_still_being_written_ends_with_its_sender() {
    // More than the two sockets' buffers hold, and the receiver reads nothing.
    let payload = Bytes::from(vec![b'x'; 16 << 20]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let sender = sender(&format!("http://{}", listener.local_addr().unwrap()), "timeout = '1s'");
    let (sent, accepted) = tokio::join!(sender.send("7-1", payload.clone()), listener.accept());
    assert_eq!(sent.0.outcome, Outcome::Timeout);
    drop(sender);
    let (mut received, mut stream) = (Vec::new(), accepted.unwrap().0);
    let _ = stream.read_to_end(&mut received).await;
    assert!(received.len() < payload.len());
}

#[tokio::test]
async fn a_former_secret_signs_too() {
    let receiver = ScriptedReceiver::new(OK, AfterAnswer::KeepOpen).await;
    let previous = Secret::inline("former".to_owned());
    let webhook = webhook(&receiver.url(), "");
    post(&WebhookSender::new(&webhook, Some(&previous), guard(&["127.0.0.1"]), None, &tls())).await;
    let request = receiver.requests().remove(0);
    assert_eq!(request.header("webhook-signature").unwrap().split(' ').count(), 2);
}

#[tokio::test]
async fn a_receiver_that_hangs_costs_the_timeout_and_a_connection() {
    let receiver = ScriptedReceiver::new("", AfterAnswer::Hang).await;
    let sender = sender(&receiver.url(), SHORT_TIMEOUT);
    let (attempt, disposition) = post(&sender).await;
    assert_eq!(
        (attempt.outcome, attempt.status, disposition),
        (Outcome::Timeout, None, PLAIN_RETRY)
    );
    assert!((300..3000).contains(&attempt.duration_ms), "{}", attempt.duration_ms);
    assert_eq!(attempt.error.as_deref(), Some("no complete answer within 0.3 s"));
    receiver.all_closed().await;
}

#[tokio::test]
async fn a_connection_lost_before_the_answer_is_tried_again() {
    for (answer, then) in
        [("", AfterAnswer::Reset), ("", AfterAnswer::Close), ("HTTP/1.1 200 O", AfterAnswer::Close)]
    {
        let (attempt, disposition) = attempt_against(answer, then, "").await;
        assert_eq!(
            (attempt.outcome, attempt.status, disposition),
            (Outcome::Connect, None, PLAIN_RETRY),
            "{answer} {then:?}"
        );
    }
}

#[tokio::test]
async fn a_failure_is_one_by_its_head() {
    for then in [AfterAnswer::Close, AfterAnswer::Hang] {
        let answer = "HTTP/1.1 410 Gone\r\nContent-Length: 10\r\n\r\nok";
        let (attempt, disposition) = attempt_against(answer, then, SHORT_TIMEOUT).await;
        assert_eq!(
            (attempt.outcome, disposition),
            (Outcome::Refused, Disposition::Gone),
            "{then:?}"
        );
    }
}

#[tokio::test]
async fn of_an_endless_body_the_beginning_is_enough() {
    let receiver = ScriptedReceiver::new(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        AfterAnswer::Endless,
    )
    .await;
    let sender = sender(&receiver.url(), "timeout = '60s'");
    let (attempt, disposition) = post(&sender).await;
    assert_eq!((attempt.outcome, disposition), (Outcome::Accepted, Disposition::Accepted));
    assert!(attempt.duration_ms < 20_000, "{}", attempt.duration_ms);
    receiver.all_closed().await;
}

#[tokio::test]
async fn of_an_endless_head_no_more_is_read_than_any_head_needs() {
    let answer = format!("HTTP/1.1 200 OK\r\nX-Long: {}", "x".repeat(1 << 20));
    let (attempt, _) = attempt_against(answer, AfterAnswer::Hang, "timeout = '60s'").await;
    assert_eq!((attempt.outcome, attempt.status), (Outcome::Connect, None));
    assert_eq!(attempt.error.as_deref(), Some("the answer is not HTTP"));
}

#[tokio::test]
async fn nothing_is_decompressed() {
    // These bytes are not gzip: a sender that decoded them would fail.
    let answer = "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x00";
    assert_eq!(attempt_against(answer, AfterAnswer::KeepOpen, "").await.1, Disposition::Accepted);
}

#[tokio::test]
async fn redirects_are_not_followed_and_the_error_says_so() {
    let elsewhere = ScriptedReceiver::new(OK, AfterAnswer::KeepOpen).await;
    for status in [301, 302, 303, 307, 308] {
        let answer = format!(
            "HTTP/1.1 {status} X\r\nLocation: {}\r\nContent-Length: 0\r\n\r\n",
            elsewhere.url()
        );
        let (attempt, disposition) = attempt_against(answer, AfterAnswer::KeepOpen, "").await;
        assert_eq!((attempt.outcome, disposition), (Outcome::Failed, PLAIN_RETRY));
        assert!(attempt.error.unwrap().contains("redirects are not followed"));
    }
    assert_eq!(elsewhere.connections(), 0);
}

#[tokio::test]
async fn retry_after_is_honoured_in_both_forms_and_capped() {
    let retry_after = async |value: &str| {
        let answer =
            format!("HTTP/1.1 429 Too Many\r\nRetry-After: {value}\r\nContent-Length: 0\r\n\r\n");
        match attempt_against(answer, AfterAnswer::KeepOpen, "").await.1 {
            Disposition::Retry { after } => after,
            disposition => panic!("{disposition:?}"),
        }
    };
    assert_eq!(retry_after("7").await, Some(Duration::from_secs(7)));
    assert_eq!(retry_after("86400").await, Some(Duration::from_secs(3600)));
    let soon = retry_after(&httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(600)))
        .await
        .unwrap();
    assert!((500..=600).contains(&soon.as_secs()), "{soon:?}");
    let far =
        retry_after(&httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(86_400)))
            .await;
    assert_eq!(far, Some(Duration::from_secs(3600)));
    assert_eq!(retry_after("soon").await, None);
}

#[tokio::test]
async fn an_answer_that_is_not_http_is_retried() {
    let (attempt, disposition) =
        attempt_against("SSH-2.0-hush\r\n\r\n", AfterAnswer::Close, "").await;
    assert_eq!(
        (attempt.outcome, attempt.status, disposition),
        (Outcome::Connect, None, PLAIN_RETRY)
    );
    assert_eq!(attempt.error.as_deref(), Some("the answer is not HTTP"));
}

#[tokio::test]
async fn a_refused_connection_is_an_error_that_names_the_address() {
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let (attempt, disposition) =
        post(&sender(&format!("http://{address}/events?token=hush"), "")).await;
    assert_eq!((attempt.outcome, disposition), (Outcome::Connect, PLAIN_RETRY));
    assert!(
        attempt
            .error
            .unwrap()
            .contains(&format!("cannot connect to {address}: Connection refused"))
    );
}

#[tokio::test]
async fn a_name_without_an_address_is_tried_again() {
    let webhook = webhook("http://nobody.test/", "");
    let connector = EgressConnector::new(guard(&[]), webhook.timeout)
        .with_resolver(Resolver::Stub(Arc::new(|_| Vec::new())));
    let (attempt, disposition) =
        post(&WebhookSender::with_connector(connector, &webhook, None, &tls(), 4)).await;
    assert_eq!((attempt.outcome, attempt.status, disposition), (Outcome::Dns, None, PLAIN_RETRY));
}

#[tokio::test]
async fn a_request_that_cannot_be_sent_counts_as_an_attempt() {
    let receiver = ScriptedReceiver::new(OK, AfterAnswer::KeepOpen).await;
    let (attempt, disposition) = sender(&receiver.url(), "").send("1\n2", Bytes::new()).await;
    assert_eq!((attempt.outcome, disposition), (Outcome::Failed, PLAIN_RETRY));
    assert_eq!(receiver.connections(), 0);
}
