//! Code shared by the benches: the upstream, the events, the targets, the measurements.
//!
//! Imports point one way: nothing here uses a module of a bench.
#![allow(dead_code, reason = "each bench uses its own part")]
#![allow(
    clippy::indexing_slicing,
    reason = "a bench reads what it has written itself; a wrong index is a bug to see at once"
)]

pub(crate) mod histogram;
pub(crate) mod metrics;
pub(crate) mod payload;
pub(crate) mod process;
pub(crate) mod publisher;
pub(crate) mod target;
pub(crate) mod tls;
pub(crate) mod upstream;

/// Any error ends the run with its message.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
