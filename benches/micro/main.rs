//! What single steps on the way of an event cost: decode, append, index, wake and hand-over, each
//! alone and on one thread.
//!
//! ```text
//! cargo bench --features micro --bench micro
//! ```
//!
//! Events are those of `benches/fanout`, 1 KiB each, of 1 000 sessions where nothing else is said.
//! `src/bench_support.rs` has the steps and says what belongs to each. A step is done in batches of
//! some sixty for a second; the table has the median of the batches and the least of them, for one.
//! What the least and the median have between them is what the machine did beside; compare medians
//! of runs on a quiet one.
//!
//! What is left out: the write into a socket. Nearly all of it is the kernel's, and scenario A of
//! `benches/fanout` measures it whole. And what lies between the steps, above all the caches: here
//! each step finds them as it has left them. So the sum of the steps is less than what an event
//! costs.
//!
//! Runs only under `cargo bench`; as a test it does nothing.

#[path = "../support/mod.rs"] // each bench compiles its own copy
mod support;

use std::time::{Duration, Instant};

use autoplay_relay::bench_support::{self, Batch};
use support::payload;

fn main() {
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    assert_eq!(payload::PRODUCT, bench_support::PRODUCT);
    let (few, many) = (stream(1_000), stream(10_000));
    println!("| what | ns, median | ns, least |\n|---|---:|---:|");
    measure("decode: bytes to frames", bench_support::decode(&few, 1_000));
    measure("decode: bytes to frames to drafts", bench_support::decode_and_classify(&few, 1_000));
    measure("append: to a full log, one evicted", bench_support::append_to_full(&few));
    measure("append: to a log that grows", bench_support::append_to_growing(&few));
    let listeners = [
        measure(
            "index: shown to one of 1 000 by a mark, which wakes it",
            bench_support::notify_subscribers(&few),
        ),
        measure("index: the same, one of 10 000", bench_support::notify_subscribers(&many)),
    ];
    let followers = [
        measure(
            "index: shown to a lane, and one of its 1 000 found",
            bench_support::notify_shard_subscribers(&few),
        ),
        measure("index: the same, one of 10 000", bench_support::notify_shard_subscribers(&many)),
    ];
    measure("wake: a mark, to its waker", bench_support::wake_subscriber());
    measure("wake: an event left for a lane, to its waker", bench_support::wake_shard(&few));
    measure("wake: a mark, to another thread and back", bench_support::wake_thread_and_back());
    measure(
        "hand-over: one who was woken takes its frame from the log",
        bench_support::take_from_log(&few),
    );
    measure(
        "hand-over: a follower is given a frame",
        bench_support::deliver_to_shard_subscribers(&few),
    );
    let growth = |[few, many]: [f64; 2]| many / few;
    let (listeners, followers) = (growth(listeners), growth(followers));
    println!(
        "\nGrowth of the index from 1 000 to 10 000: {listeners:.2} times by marks, {followers:.2} times on a lane."
    );
}

/// One event of each session, as the upstream sends them.
fn stream(sessions: usize) -> Vec<u8> {
    let (mut template, mut frame, mut stream) = (payload::Template::new(), Vec::new(), Vec::new());
    for (session, sequence) in (0..sessions).zip(1..) {
        template.write(sequence, session, &mut frame);
        stream.extend_from_slice(&frame);
    }
    stream
}

/// Prints what one costs, and returns the median.
fn measure(what: &str, mut batch: impl FnMut() -> Batch) -> f64 {
    let mut one = || {
        let Batch { count, took } = batch();
        took.as_secs_f64() * 1e9 / count as f64
    };
    for _ in 0..WARM_UP {
        one();
    }
    let began = Instant::now();
    let mut each = Vec::new();
    while began.elapsed() < LONG {
        each.push(one());
    }
    each.sort_unstable_by(f64::total_cmp);
    let (least, median) = (
        each.first().copied().unwrap_or_default(),
        each.get(each.len() / 2).copied().unwrap_or_default(),
    );
    println!("| {what} | {median:.1} | {least:.1} |");
    median
}

/// How long each step is done.
const LONG: Duration = Duration::from_secs(1);

/// Batches before that.
const WARM_UP: usize = 20;
