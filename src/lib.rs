//! One upstream connection per Autoplay product, re-broadcast to many subscribers.
//!
//! An event is written once, in the form it will be sent, at the moment it gets its id; after that it is only pointed at.
//!
//! ```text
//!  upstream ─► sse ─► envelope ─► ingest ─► log ═► fanout ─┬─► http: sse, ws, pages
//!  connect,    bytes   kind,       the     number,  who    └─► webhook: outbox, sender
//!  reconnect   to      product,    loop    keep     listens,
//!              frames  session                      wakes
//!
//!  around: config · auth · client · net · wheel · backoff · causes · throttle · status · lanes · delivery · rejected · metrics · reload · shutdown · app · cli
//! ```
//!
//! `ARCHITECTURE.md` walks through the rooms. The library exists for the binary beside it: [`main`] is all of its interface.

mod app;
mod auth;
#[cfg(feature = "micro")]
#[doc(hidden)]
pub mod bench_support;
mod cli;
mod config;
mod envelope;
mod error_chain;
mod event;
mod fanout;
mod feed;
mod http;
mod ingest;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod laws;
mod log;
mod log_limit;
mod metrics;
mod net;
pub(crate) mod outbound;
mod rejected;
pub(crate) mod shard;
mod shutdown;
mod simulate;
mod sse;
pub(crate) mod store;
mod timer_wheel;
mod upstream;
mod webhook;
mod webhook_delivery;

pub use crate::cli::main;
