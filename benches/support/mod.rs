//! What the benches share: the upstream they play, what they measure, and how they read it off.
//!
//! Imports point one way, and no module of a bench is known in here.
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

/// Whatever goes wrong ends the run with a sentence.
pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
