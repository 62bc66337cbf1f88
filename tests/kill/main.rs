//! SIGKILL under load, and the events and deliveries after the restart. In a binary of its own, so
//! that other tests do not take up the 50 ms.
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

/// Waits until no other test of this binary runs, and makes the others wait.
fn exclusive() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}
