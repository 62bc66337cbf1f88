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
mod backoff;
mod causes;
mod cli;
mod client;
mod config;
mod delivery;
mod envelope;
mod event;
mod fanout;
mod http;
mod ingest;
mod lanes;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod laws;
mod log;
mod metrics;
#[cfg(feature = "micro")]
#[doc(hidden)]
pub mod micro;
mod net;
mod rejected;
mod reload;
mod shutdown;
mod simulate;
mod sse;
mod status;
mod throttle;
mod upstream;
mod webhook;
mod wheel;

pub use cli::main;
