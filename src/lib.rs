//! One upstream connection per Autoplay product, re-broadcast to many subscribers.
//!
//! An event is encoded once, in the form it will be sent, when it gets its id. From then on every
//! reader holds a reference to those bytes.
//!
//! ```text
//!       once per product                                   ║  once per subscriber
//! upstream ─► sse ─► envelope ─► ingest ─► log ─► fanout ══╬═► shard ─► subscriber ─► socket
//! connect,    bytes  type,       the loop  ids,   index,   ║   threads  deadlines     SSE, WebSocket
//! reconnect   to     product,              ring   queues   ║
//!             frames session                store       ╚══╬═► subscription ─► HTTP/2, pages,
//!                                                          ║                  webhooks
//! ```
//!
//! Around it are `config`, `auth`, `net` (sockets), `outbound` (connections that the relay
//! opens), `http/admin`, `metrics`, `app` (assembly and life cycle) and `cli`.
//!
//! `ARCHITECTURE.md` follows one event through the files. The library exists for the binary beside
//! it: [`main`] is all of its interface.

mod admission;
mod app;
mod auth;
#[cfg(feature = "micro")]
#[doc(hidden)]
pub mod bench_support;
mod cli;
mod client_address;
mod config;
mod envelope;
mod error_chain;
mod event;
mod fanout;
mod feed;
mod http;
mod ingest;
mod join_woken;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod laws;
mod log;
mod log_limit;
mod metrics;
mod near_name;
mod net;
mod outbound;
mod printable;
mod rejected;
mod scope_index;
mod shard;
mod shutdown;
mod simulate;
mod sse;
mod store;
mod subscriber;
mod subscription;
mod timer_wheel;
mod upstream;
mod wake_state;
mod wall_clock;
mod webhook;
mod webhook_delivery;
mod ws_frame;

pub use cli::main;
