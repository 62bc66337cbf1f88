//! Bytes of what an idle subscriber on a shard is made of, without the allocator's and the tables'
//! own, and without tokio's registration of the socket.

use std::sync::Arc;

use super::SseConnection;
use crate::{
    admission::AdmittedSubscriber, fanout::SubscriberSignal, shard::SteppedScheduler,
    timer_wheel::Alarm,
};

/// The parts of an idle subscriber, each with its bytes and their bound. Ten thousand subscribers
/// hold each byte ten thousand times, so a part must not grow by accident. When a part becomes
/// smaller, its new size becomes the bound.
const PARTS: [(&str, usize, usize); 7] = [
    ("connection, boxed", size_of::<SseConnection>(), 424),
    ("slot of the shard", SteppedScheduler::SLOT_BYTES, 56),
    ("waker of the shard", ARC_BYTES + SteppedScheduler::WAKER_BYTES, 40),
    ("signal of the fan-out", ARC_BYTES + size_of::<SubscriberSignal>(), 48),
    ("entry of the timer wheel", ARC_BYTES + Alarm::ENTRY_BYTES, 56),
    ("admission", ARC_BYTES + size_of::<AdmittedSubscriber>(), 168),
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
