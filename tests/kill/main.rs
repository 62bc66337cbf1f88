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

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Waits until no other test of this binary runs, and keeps others waiting.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}
