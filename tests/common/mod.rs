//! Support for the black-box tests: the real binary, a scripted connector in front of it, raw
//! clients behind it.
//!
//! ```text
//! Connector ──► Relay (a process) ──┬─► Subscriber, Answer
//!                                   └─► Receiver
//! ```
//!
//! Sockets are plain and blocking, and every wait has a deadline.
#![allow(dead_code, reason = "each test binary uses its own part of this")]
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test states its expectations by panicking, and its helpers do as well"
)]

pub(crate) mod bridge;
pub(crate) mod canaries;
pub(crate) mod connector;
pub(crate) mod events;
pub(crate) mod frames;
pub(crate) mod http;
pub(crate) mod http2;
pub(crate) mod metrics;
pub(crate) mod page;
pub(crate) mod process;
pub(crate) mod receiver;
pub(crate) mod relay;
pub(crate) mod store;
pub(crate) mod subscriber;
pub(crate) mod tls;
pub(crate) mod token;
pub(crate) mod wait;
pub(crate) mod webhooks;
pub(crate) mod websocket;

/// The product of most tests.
pub(crate) const PRODUCT: &str = "prod_abc";

/// Path of the event stream of [`PRODUCT`].
pub(crate) const STREAM: &str = "/stream/prod_abc";

/// Path of the WebSocket of [`PRODUCT`].
pub(crate) const SOCKET: &str = "/ws/prod_abc";
