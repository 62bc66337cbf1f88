//! Sample receiver of webhooks: verifies both signatures, prints deliveries, and fails regularly on
//! one of its routes.
//!
//! In: deliveries. Out: lines to read, few enough to follow: single lines for the first deliveries,
//! then a summary at intervals.
//!
//! | route | answers |
//! |---|---|
//! | `POST /good` | 200 |
//! | `POST /flaky` | 503 in the first [`OUTAGE_DURATION`] of each [`OUTAGE_PERIOD`], else 200 |
//!
//! Both routes answer 401 to a delivery that is not signed as the contract demands. The receiver
//! verifies the signatures with code of its own, not with that of the relay: it is an example of
//! the code that a receiver needs.
//!
//! May use: `http`, `printable`.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::{constant_time::verify_slices_are_equal, hmac};
use axum::{Router, body::Bytes, extract::State, routing::post};
use hyper::{HeaderMap, StatusCode};
use parking_lot::{Mutex, MutexGuard};
use serde::Deserialize;
use tokio::time::{Instant, interval_at};
use tokio_util::sync::CancellationToken;

use crate::{http::problem::Problem, printable::printable_line};

/// Sample receiver. Serve [`SampleReceiver::router`] while [`SampleReceiver::run`] prints
/// summaries.
pub(crate) struct SampleReceiver {
    secret: String,
    started: Instant,
    print: PrintLine,
    stats: [Mutex<RouteStats>; 2],
}

/// Function that prints a line for the user, and handles a failure to do so.
pub(crate) type PrintLine = Box<dyn Fn(&str) + Send + Sync>;

/// Fields of a delivery that are printed; the actions of users are not.
#[derive(Deserialize)]
struct ReceivedEvent {
    #[serde(rename = "type")]
    kind: String,
    product_id: String,
    session_id: Option<String>,
}

/// Counters of one route.
#[derive(Debug, Default)]
struct RouteStats {
    /// Number of lines printed for single deliveries.
    printed: usize,
    /// Accepted deliveries by type since the last summary.
    accepted: BTreeMap<String, usize>,
    /// Answers of 503 since the last summary.
    failed: usize,
    was_failing: bool,
}

/// The two routes.
#[derive(Clone, Copy)]
enum ReceiverRoute {
    Good,
    Flaky,
}

impl SampleReceiver {
    /// Creates a receiver that shares `secret` with the relay. Its first outage begins now.
    pub(crate) fn new(secret: &str, print: PrintLine) -> Arc<Self> {
        Arc::new(Self {
            secret: secret.to_owned(),
            started: Instant::now(),
            print,
            stats: Default::default(),
        })
    }

    /// Returns the routes to serve.
    pub(crate) fn router(self: &Arc<Self>) -> Router {
        Router::new()
            .route("/good", post(good))
            .route("/flaky", post(flaky))
            .method_not_allowed_fallback(|| async { Problem::method_not_allowed("POST") })
            .fallback(|| async { Problem::not_found("the paths here are /good and /flaky") })
            .with_state(Arc::clone(self))
    }

    /// Prints summaries until stopped.
    pub(crate) async fn run(&self, stop: CancellationToken) {
        let mut ticks = interval_at(Instant::now() + SUMMARY_INTERVAL, SUMMARY_INTERVAL);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            for route in [ReceiverRoute::Good, ReceiverRoute::Flaky] {
                let line = self.lock_stats(route).take_summary(route);
                if let Some(line) = line {
                    (self.print)(&line);
                }
            }
        }
    }

    fn receive(&self, route: ReceiverRoute, headers: &HeaderMap, body: &[u8]) -> StatusCode {
        if let Err(problem) = self.verify_signatures(headers, body) {
            (self.print)(&format!("{} refused a delivery: {problem}", route.path()));
            return StatusCode::UNAUTHORIZED;
        }
        let Ok(payload) = serde_json::from_slice::<ReceivedEvent>(body) else {
            return StatusCode::BAD_REQUEST;
        };
        let in_outage = matches!(route, ReceiverRoute::Flaky) && outage_at(self.started.elapsed());
        let lines = self.lock_stats(route).record(route, &payload, in_outage);
        lines.iter().for_each(|line| (self.print)(line));
        if in_outage { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }
    }

    /// Verifies the signatures in the headers against the body, by the rules of the connector's SDK
    /// and of Standard Webhooks.
    fn verify_signatures(&self, headers: &HeaderMap, body: &[u8]) -> Result<(), &'static str> {
        let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.secret.as_bytes());
        let hex = header("x-connector-signature").and_then(|value| value.strip_prefix("sha256="));
        if !hex
            .is_some_and(|hex| constant_time_eq(hex, &hex_encode(hmac::sign(&key, body).as_ref())))
        {
            return Err("X-Connector-Signature does not match");
        }
        let (Some(id), Some(timestamp)) = (header("webhook-id"), header("webhook-timestamp"))
        else {
            return Err("webhook-id or webhook-timestamp is missing");
        };
        // A request with an old timestamp may be a replay of an intercepted one.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if !timestamp
            .parse::<u64>()
            .is_ok_and(|then| then.abs_diff(now) <= TIMESTAMP_TOLERANCE.as_secs())
        {
            return Err("webhook-timestamp is too far from the current time");
        }
        let mut signed = hmac::Context::with_key(&key);
        [id, ".", timestamp, "."].iter().for_each(|part| signed.update(part.as_bytes()));
        signed.update(body);
        let expected = format!("v1,{}", base64_encode(signed.sign().as_ref()));
        let mut offered = header("webhook-signature").unwrap_or_default().split(' ');
        offered
            .any(|signature| constant_time_eq(signature, &expected))
            .then_some(())
            .ok_or("webhook-signature does not match")
    }

    fn lock_stats(&self, route: ReceiverRoute) -> MutexGuard<'_, RouteStats> {
        let [good, flaky] = &self.stats;
        let stats = match route {
            ReceiverRoute::Good => good,
            ReceiverRoute::Flaky => flaky,
        };
        stats.lock()
    }
}

impl RouteStats {
    /// Counts a delivery with valid signatures, and returns lines to print at once.
    fn record(
        &mut self,
        route: ReceiverRoute,
        payload: &ReceivedEvent,
        in_outage: bool,
    ) -> Vec<String> {
        let mut lines = Vec::new();
        let path = route.path();
        if in_outage != self.was_failing {
            self.was_failing = in_outage;
            let seconds = OUTAGE_DURATION.as_secs();
            lines.push(match in_outage {
                true => {
                    format!("{path} answers 503 for up to {seconds} s: its deliveries wait")
                }
                false => {
                    format!("{path} answers again: the waiting deliveries arrive now, in order within each session")
                }
            });
        }
        if in_outage {
            self.failed += 1;
            return lines;
        }
        *self.accepted.entry(payload.kind.clone()).or_default() += 1;
        if self.printed < MAX_SINGLE_LINES {
            self.printed += 1;
            let ReceivedEvent { kind, product_id, session_id } = payload;
            let session = session_id.as_deref().unwrap_or("none");
            let line = format!(
                "{path} got {kind} of {product_id}, session {session}; both signatures match"
            );
            lines.push(printable_line(&line).into_owned());
        }
        lines
    }

    /// Returns a summary of the deliveries since the last one, if there were any, and begins a new
    /// one.
    fn take_summary(&mut self, route: ReceiverRoute) -> Option<String> {
        let (accepted, failed) =
            (std::mem::take(&mut self.accepted), std::mem::take(&mut self.failed));
        let total: usize = accepted.values().sum();
        if total + failed == 0 {
            return None;
        }
        let mut line =
            format!("{} in {} s: {total} accepted", route.path(), SUMMARY_INTERVAL.as_secs());
        let kinds: Vec<_> =
            accepted.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        if !kinds.is_empty() {
            line += &format!(" ({})", kinds.join(", "));
        }
        if failed > 0 {
            line += &format!(", {failed} answered 503");
        }
        Some(printable_line(&line).into_owned())
    }
}

impl ReceiverRoute {
    fn path(self) -> &'static str {
        match self {
            Self::Good => "/good",
            Self::Flaky => "/flaky",
        }
    }
}

async fn good(
    State(receiver): State<Arc<SampleReceiver>>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    receiver.receive(ReceiverRoute::Good, &headers, &body)
}

async fn flaky(
    State(receiver): State<Arc<SampleReceiver>>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    receiver.receive(ReceiverRoute::Flaky, &headers, &body)
}

/// Returns whether the flaky route fails at this time after its start.
fn outage_at(elapsed: Duration) -> bool {
    elapsed.as_secs() % OUTAGE_PERIOD.as_secs() < OUTAGE_DURATION.as_secs()
}

/// Compares in constant time, so that the time does not tell where the texts differ.
fn constant_time_eq(offered: &str, expected: &str) -> bool {
    verify_slices_are_equal(offered.as_bytes(), expected.as_bytes()).is_ok()
}

fn hex_encode(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
        text
    })
}

/// Encodes bytes as base64 with padding (RFC 4648, section 4).
fn base64_encode(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let letter =
        |bits: u32| LETTERS.get((bits & 63) as usize).map_or('=', |letter| char::from(*letter));
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0_u32, |bits, byte| (bits << 8) | u32::from(*byte))
            << (8 * (3 - group.len()));
        let shifts = [18, 12, 6, 0].into_iter().enumerate();
        text.extend(
            shifts.map(|(nth, shift)| if nth <= group.len() { letter(bits >> shift) } else { '=' }),
        );
    }
    text
}

/// Time for which the flaky route fails at the beginning of each period.
const OUTAGE_DURATION: Duration = Duration::from_secs(20);
/// Period of the flaky route: between two outages there is time to see that deliveries work again.
const OUTAGE_PERIOD: Duration = Duration::from_secs(90);
/// Number of deliveries that are printed singly, enough to show what a delivery looks like.
const MAX_SINGLE_LINES: usize = 3;
/// Interval of summaries, slow enough that the greeting of the demo stays on the screen for a
/// while.
const SUMMARY_INTERVAL: Duration = Duration::from_secs(10);
/// Tolerance that the libraries of Standard Webhooks have.
const TIMESTAMP_TOLERANCE: Duration = Duration::from_secs(5 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &[u8] = br#"{"type":"actions","product_id":"p","session_id":"s"}"#;

    fn receiver() -> Arc<SampleReceiver> {
        SampleReceiver::new("hush", Box::new(|_| ()))
    }

    /// Returns the headers that the relay sends. The connector signature was made with `openssl
    /// dgst -hmac hush`.
    fn signed(timestamp: u64) -> HeaderMap {
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"hush");
        let text = [format!("1-1.{timestamp}.").as_bytes(), BODY].concat();
        let signature = format!("v1,AAAA v1,{}", base64_encode(hmac::sign(&key, &text).as_ref()));
        let fields = [
            ("x-connector-signature", format!("sha256={CONNECTOR_SIGNATURE}")),
            ("webhook-id", "1-1".to_owned()),
            ("webhook-timestamp", timestamp.to_string()),
            ("webhook-signature", signature),
        ];
        fields
            .into_iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect()
    }

    const CONNECTOR_SIGNATURE: &str =
        "42e9b69ce83dda70baa1bb996e0b0741aac54ba773cabb5aaf65cda798439150";

    fn now() -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
    }

    #[tokio::test]
    async fn only_a_delivery_signed_by_both_rules_is_accepted() {
        let receiver = receiver();
        assert_eq!(receiver.verify_signatures(&signed(now()), BODY), Ok(()));
        assert!(receiver.verify_signatures(&signed(now()), b"{}").is_err());
        assert!(receiver.verify_signatures(&signed(now() - 301), BODY).is_err(), "too old");
        for name in
            ["x-connector-signature", "webhook-id", "webhook-timestamp", "webhook-signature"]
        {
            let mut headers = signed(now());
            headers.insert(name, "v1,AAAA".parse().unwrap());
            assert!(receiver.verify_signatures(&headers, BODY).is_err(), "{name} is wrong");
            headers.remove(name);
            assert_eq!(
                receiver.receive(ReceiverRoute::Good, &headers, BODY),
                401,
                "{name} is missing"
            );
        }
    }

    #[test]
    fn base64_is_that_of_the_rfc() {
        let vectors =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
        for (plain, encoded) in vectors {
            assert_eq!(base64_encode(plain.as_bytes()), encoded);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_flaky_route_fails_at_the_beginning_of_each_period_and_the_good_one_never() {
        let receiver = receiver();
        let mut failing = Vec::new();
        for second in 0..2 * OUTAGE_PERIOD.as_secs() {
            assert_eq!(receiver.receive(ReceiverRoute::Good, &signed(now()), BODY), 200);
            if receiver.receive(ReceiverRoute::Flaky, &signed(now()), BODY) == 503 {
                failing.push(second);
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let (outage, round) = (OUTAGE_DURATION.as_secs(), OUTAGE_PERIOD.as_secs());
        assert_eq!(failing, (0..outage).chain(round..round + outage).collect::<Vec<_>>());
    }

    #[test]
    fn control_characters_of_a_delivery_are_printed_escaped() {
        let mut stats = RouteStats::default();
        let body = r#"{"type":"a\u001b[2J","product_id":"p\u202e","session_id":"s\u009b\n"}"#;
        let payload: ReceivedEvent = serde_json::from_str(body).unwrap();
        let mut lines = stats.record(ReceiverRoute::Good, &payload, false);
        lines.extend(stats.take_summary(ReceiverRoute::Good));
        assert!(lines.iter().all(|line| line.is_ascii() && !line.contains(char::is_control)));
        assert!(
            lines.concat().contains(r"a\u001b[2J of p\u202e, session s\u009b\u000a;"),
            "{lines:?}"
        );
    }

    #[test]
    fn the_first_deliveries_are_printed_one_by_one_and_later_ones_as_summaries() {
        let mut stats = RouteStats::default();
        let payload: ReceivedEvent = serde_json::from_slice(BODY).unwrap();
        let printed: usize =
            (0..10).map(|_| stats.record(ReceiverRoute::Good, &payload, false).len()).sum();
        assert_eq!(printed, MAX_SINGLE_LINES);
        assert_eq!(
            stats.take_summary(ReceiverRoute::Good).as_deref(),
            Some("/good in 10 s: 10 accepted (10 actions)")
        );
        assert_eq!(stats.take_summary(ReceiverRoute::Good), None);
        assert_eq!(stats.record(ReceiverRoute::Flaky, &payload, true).len(), 1, "that it fails");
        assert_eq!(stats.record(ReceiverRoute::Flaky, &payload, true).len(), 0);
        assert_eq!(stats.record(ReceiverRoute::Flaky, &payload, false).len(), 1, "that it is back");
        let summary = stats.take_summary(ReceiverRoute::Flaky);
        assert_eq!(
            summary.as_deref(),
            Some("/flaky in 10 s: 1 accepted (1 actions), 2 answered 503")
        );
    }
}
