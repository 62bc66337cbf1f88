//! Sample event for a test delivery: one batch of actions as the connector would send it, with a
//! session id that marks it as a test.
//!
//! May use: `event`.

use bytes::Bytes;

use super::Now;
use crate::event::ProductId;

/// Returns an event id that no log gives (`test-…`), and a payload.
pub(super) fn event(product: &ProductId) -> (String, Bytes) {
    let unix_ms = Now::read().unix_ms;
    let seconds = unix_ms as f64 / 1000.0;
    let session = "autoplay-relay-test";
    let payload = serde_json::json!({
        "type": "actions",
        "product_id": product.as_str(),
        "session_id": session,
        "user_id": null,
        "email": null,
        "count": 1,
        "forwarded_at": seconds,
        "actions": [{
            "index": 0,
            "type": "pageview",
            "title": "Test event",
            "description": "An operator has asked autoplay-relay to send this sample",
            "timestamp_start": seconds,
            "timestamp_end": seconds,
            "raw_url": "https://example.com/",
            "canonical_url": "https://example.com/",
            "session_id": session,
        }],
    });
    (format!("test-{unix_ms}"), Bytes::from(payload.to_string()))
}
