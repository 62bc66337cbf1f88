//! Webhooks of a relay under test: configuration, admin API, signatures.

use aws_lc_rs::hmac;
use serde_json::Value;

use super::{
    PRODUCT,
    http::{self, Answer},
    receiver::{Receiver, Request},
    relay::Relay,
    wait,
};

/// Configuration that lets webhooks reach the receivers of tests.
pub(crate) const LOOPBACK: &str = "\n[egress]\nallow_networks = ['127.0.0.0/8']\n";

/// Secret of most webhooks.
pub(crate) const SECRET: &str = "secret-of-the-test";

/// A secret in the form of Standard Webhooks, and the key that it encodes.
pub(crate) const WHSEC: (&str, &[u8]) =
    ("whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3", b"0123456789abcdef01234567");

/// Returns a `[[webhooks]]` table for this receiver. `lines` override the defaults, which retry
/// soon and often.
pub(crate) fn table(id: &str, receiver: &Receiver, lines: &str) -> String {
    let defaults = [
        ("product_id", format!("'{PRODUCT}'")),
        ("url", format!("'{}'", url(receiver, id))),
        ("secret", format!("'{SECRET}'")),
        ("types", "[]".to_owned()),
        ("timeout", "'10s'".to_owned()),
        ("max_retries", "100".to_owned()),
        ("initial_backoff", "'20ms'".to_owned()),
        ("max_backoff", "'100ms'".to_owned()),
    ];
    let is_given =
        |key: &str| lines.lines().any(|line| line.trim_start().starts_with(&format!("{key} =")));
    let kept = defaults.into_iter().filter(|(key, _)| !is_given(key));
    let kept: String = kept.map(|(key, value)| format!("{key} = {value}\n")).collect();
    format!("\n[[webhooks]]\nid = '{id}'\n{kept}{lines}\n")
}

/// Returns a URL of this receiver with a path of the webhook's own.
pub(crate) fn url(receiver: &Receiver, id: &str) -> String {
    format!("http://{}/hooks/{id}", receiver.address)
}

impl Relay {
    /// Calls the admin API.
    pub(crate) fn call(&self, method: &str, path: &str, body: &Value) -> Answer {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        http::ask_with(self.admin, method, path, &[("Content-Type", "application/json")], &body)
    }

    /// Returns a webhook as the admin API shows it.
    pub(crate) fn webhook(&self, id: &str) -> Value {
        let answer = self.ask_admin(&format!("/api/v1/webhooks/{id}"));
        assert_eq!(answer.status(), 200, "{answer:?}");
        answer.json()
    }

    /// Waits until a webhook is in this state.
    pub(crate) fn wait_for_webhook(&self, id: &str, state: &str) {
        wait::until(&format!("{id} is {state}"), || self.webhook(id)["state"] == state);
    }

    /// Waits until no delivery of a webhook is pending.
    pub(crate) fn wait_until_settled(&self, id: &str) {
        self.wait_for_pending(id, 0);
    }

    /// Waits until a webhook has this many pending deliveries.
    pub(crate) fn wait_for_pending(&self, id: &str, count: u64) {
        wait::until(&format!("{id} has {count} pending"), || self.webhook(id)["pending"] == count);
    }

    /// Waits until a webhook has this many dead letters.
    pub(crate) fn wait_for_dead(&self, id: &str, count: u64) {
        wait::until(&format!("{id} has {count} dead letters"), || {
            self.webhook(id)["dead"] == count
        });
    }

    /// Returns all deliveries of one state from all pages, newest first.
    pub(crate) fn deliveries(&self, id: &str, state: &str) -> Vec<Value> {
        let mut all: Vec<Value> = Vec::new();
        let mut after = String::new();
        loop {
            let answer =
                self.ask_admin(&format!("/api/v1/webhooks/{id}/deliveries?state={state}{after}"));
            assert_eq!(answer.status(), 200, "{answer:?}");
            let page = answer.json();
            let deliveries = page["deliveries"].as_array().unwrap();
            assert!(deliveries.iter().all(|delivery| delivery["state"] == state), "{page}");
            all.extend(deliveries.iter().cloned());
            match &page["next"] {
                Value::Null => return all,
                Value::String(next) => after = format!("&after={next}"),
                next => after = format!("&after={next}"),
            }
        }
    }

    /// Waits until there are `count` deliveries of one state, and returns them, newest first.
    pub(crate) fn wait_for_deliveries(&self, id: &str, state: &str, count: usize) -> Vec<Value> {
        wait::value(&format!("{id} has {count} {state}"), || {
            Some(self.deliveries(id, state)).filter(|deliveries| deliveries.len() == count)
        })
    }

    /// Sends a webhook a command without a body.
    pub(crate) fn command_webhook(&self, id: &str, verb: &str) -> Answer {
        self.call("POST", &format!("/api/v1/webhooks/{id}/{verb}"), &Value::Null)
    }

    /// Requeues dead letters, and returns how many.
    pub(crate) fn redeliver(&self, id: &str, which: &Value) -> u64 {
        let answer = self.call("POST", &format!("/api/v1/webhooks/{id}/redeliver"), which);
        assert_eq!(answer.status(), 202, "{answer:?}");
        answer.json()["requeued"].as_u64().unwrap()
    }

    /// Returns how many attempts of a webhook had this outcome.
    pub(crate) fn attempts(&self, id: &str, outcome: &str) -> f64 {
        let labels = [("webhook", id), ("outcome", outcome)];
        self.metrics().value("autoplay_relay_webhook_attempts_total", &labels).unwrap_or(0.0)
    }
}

/// Returns the outcomes of a delivery's attempts, oldest first.
pub(crate) fn outcomes(delivery: &Value) -> Vec<String> {
    let attempts = delivery["attempts"].as_array().unwrap().iter();
    attempts.map(|attempt| attempt["outcome"].as_str().unwrap().to_owned()).collect()
}

/// Checks the signatures that receivers of the connector and of Standard Webhooks check. The latter
/// are made with `key`.
pub(crate) fn assert_signed(request: &Request, secret: &str, key: &[u8]) {
    let hex: String =
        mac(secret.as_bytes(), &request.body).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(request.field("x-connector-signature"), format!("sha256={hex}"));
    assert_eq!(request.field("authorization"), format!("Bearer {secret}"));
    let signatures: Vec<&str> = request.field("webhook-signature").split(' ').collect();
    assert_eq!(signatures, [signature(request, key)]);
}

/// Returns the signature of Standard Webhooks for this key.
pub(crate) fn signature(request: &Request, key: &[u8]) -> String {
    let mut signed =
        format!("{}.{}.", request.id(), request.field("webhook-timestamp")).into_bytes();
    signed.extend_from_slice(&request.body);
    format!("v1,{}", base64(&mac(key, &signed)))
}

fn mac(key: &[u8], message: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), message).as_ref().to_vec()
}

/// Encodes Base64 (RFC 4648, section 4). Written out, so that the relay is not checked with its own
/// library.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte))
            << (8 * (3 - group.len()));
        for index in 0..4 {
            let digit = ALPHABET[(bits >> (18 - 6 * index)) as usize & 63] as char;
            text.push(if index <= group.len() { digit } else { '=' });
        }
    }
    text
}
