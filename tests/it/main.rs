//! Black-box tests: the real binary between a scripted connector and recording clients, in one
//! process of tests.
//!
//! Each folder has one subject. Tests that need a process of their own are in other binaries:
//! `kill` for tests that depend on single milliseconds, `descriptors` for tests with thousands of
//! connections, `architecture` and `docs` for tests that read the repository.
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

mod access;
mod admin;
mod chain;
mod cli;
mod delivery;
mod hostile;
mod http2;
mod idle;
mod pages;
mod products;
mod reload;
mod requests;
mod resume;
mod shutdown;
mod store;
mod tls;
mod upstream;
mod users;
mod webhooks;
mod websocket;
