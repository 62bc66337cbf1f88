//! What an idle subscriber over plaintext HTTP/1.1 is made of.
//!
//! May use: `admission`, `shard`, `wake_state`.

use std::sync::Arc;

use super::SseConnection;
use crate::{
    admission::AdmittedSubscriber,
    shard::{SLOT_BYTES, SUBSCRIBER_WAKER_BYTES},
    wake_state::WakeState,
};

/// Not in the sum: 272 bytes of tokio's registration of the socket, free entries of the tables, and
/// what the allocator loses around all of it.
#[test]
fn an_idle_subscriber_is_made_of_at_most_833_bytes() {
    let parts = [
        ("stream and socket", chunk(size_of::<SseConnection>())),
        ("admission", chunk(arc(size_of::<AdmittedSubscriber>()))),
        ("signal and alarm", chunk(arc(size_of::<WakeState>()))),
        ("waker", chunk(arc(SUBSCRIBER_WAKER_BYTES))),
        ("slot on the shard", SLOT_BYTES),
        ("entry of the shard's index", size_of::<usize>()),
        ("entry of the list", 1 + size_of::<(u64, Arc<AdmittedSubscriber>)>()),
        ("entry of the wheel", size_of::<Arc<WakeState>>()),
    ];
    let sum: usize = parts.iter().map(|(_, bytes)| bytes).sum();
    assert!(sum <= 833, "{sum}: {parts:?}");
}

/// Returns the size of a value behind an [`Arc`], with its two counts.
fn arc(size: usize) -> usize {
    size + 2 * size_of::<usize>()
}

/// Returns what glibc takes for an allocation of `size` bytes.
fn chunk(size: usize) -> usize {
    (size + 8).next_multiple_of(16).max(32)
}
