//! Bytes of what an idle subscriber on a shard is made of, without the allocator's and the tables'
//! own, and without tokio's registration of the socket.

use std::sync::Arc;

use super::SseConnection;
use crate::{
    admission::AdmittedSubscriber,
    shard::{SLOT_BYTES, SUBSCRIBER_WAKER_BYTES},
    wake_state::WakeState,
};

/// The parts of an idle subscriber, each with its bytes and their bound. Ten thousand subscribers
/// hold each byte ten thousand times, so a part must not grow by accident. When a part becomes
/// smaller, its new size becomes the bound.
const PARTS: [(&str, usize, usize); 6] = [
    ("connection, boxed", size_of::<SseConnection>(), 328),
    ("slot of the shard", SLOT_BYTES, 128),
    ("waker of the shard", ARC_BYTES + SUBSCRIBER_WAKER_BYTES, 48),
    ("signal and alarm", ARC_BYTES + size_of::<WakeState>(), 56),
    ("admission", ARC_BYTES + size_of::<AdmittedSubscriber>(), 112),
    ("entry of the list of the admitted", size_of::<(u64, Arc<AdmittedSubscriber>)>(), 16),
];

/// Bytes of the two counts in an `Arc`'s allocation.
const ARC_BYTES: usize = 2 * size_of::<usize>();

#[test]
fn no_part_of_an_idle_subscriber_grows_unnoticed() {
    let list: String =
        PARTS.map(|(part, bytes, max)| format!("{bytes:5} of {max:3}: {part}\n")).concat();
    let sum: usize = PARTS.iter().map(|(_, bytes, _)| bytes).sum();
    assert!(
        PARTS.iter().all(|(_, bytes, max)| bytes <= max),
        "a part of an idle subscriber has grown; {sum} bytes in all:\n{list}"
    );
}
