//! Tests with thousands of connections, for which the test process needs thousands of descriptors,
//! and of dozens of processes, each the first of a PID namespace.
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test states its expectations by panicking, and its helpers do as well"
)]

#[path = "../common/mod.rs"]
// each binary compiles its own copy; Cargo would take a file beside this one for a binary
mod common;

mod drain;
mod idle;
mod limits;
mod probes;
mod process_one;
