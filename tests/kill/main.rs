//! `kill -9` under load, and what the next life of the relay has kept. Alone, so that 50 ms are not
//! spent on other tests.
#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test states its expectations by panicking, and its helpers do as well"
)]

#[path = "../common/mod.rs"]
// each binary compiles its own copy; Cargo would take a file beside this one for a binary
mod common;

mod deliveries;
mod events;
