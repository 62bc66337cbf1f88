//! `GET /ws/{product_id}`: the stream over WebSocket, with a filter that can be changed.

mod endings;
mod events;
mod filters;
mod protocol;

use crate::common::{PRODUCT, relay::Relay};

const DISCONNECTS: &str = "autoplay_relay_subscriber_disconnects_total";

fn wait_for_sockets(relay: &Relay, count: f64) {
    relay.wait_for_metric(
        "autoplay_relay_subscribers",
        &[("product_id", PRODUCT), ("transport", "ws")],
        count,
    );
}

fn wait_for_disconnects(relay: &Relay, reason: &str, count: f64) {
    relay.wait_for_metric(DISCONNECTS, &[("transport", "ws"), ("reason", reason)], count);
}
