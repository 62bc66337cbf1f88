//! The targets: each a process of its own, which gets its events from the bench and reports its
//! address.
//!
//! One file for each: how it is configured and started, and how it gets events. A target that does
//! not read an upstream has its events published.

pub(crate) mod centrifugo;
pub(crate) mod kind;
mod nchan;
mod pushpin;
mod relay;
mod relay_files;
pub(crate) mod running;
mod spawn;
pub(crate) mod start;
