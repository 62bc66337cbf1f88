//! Benchmark of single steps of an event's way: decode, append, index, wake and delivery, each
//! alone and on one thread.
//!
//! ```text
//! cargo bench --features micro --bench micro
//! ```
//!
//! Events are those of `benches/fanout`, 1 KiB each, of 1 000 sessions unless a row says otherwise.
//! `src/bench_support.rs` has the steps and documents what belongs to each. A step runs in batches
//! of some sixty for a second; the table has the median and the minimum of the batches, per step.
//! The difference between both is other work of the machine; compare medians of runs on a quiet
//! machine.
//!
//! Not included: the write into a socket, nearly all of which is the kernel's, and which scenario A
//! of `benches/fanout` includes; and the effects between steps, above all on the caches, which each
//! step finds as it has left them. So the sum of the steps is less than the cost of an event.
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
    println!("| what | ns, median | ns, minimum |\n|---|---:|---:|");
    measure("decode: bytes to frames", bench_support::decode(&few, 1_000));
    measure("decode: bytes to frames to drafts", bench_support::decode_and_classify(&few, 1_000));
    measure("append: to a full log, one evicted", bench_support::append_to_full(&few));
    measure("append: to a log that grows", bench_support::append_to_growing(&few));
    let subscriptions = [
        measure(
            "index: one subscription of 1 000 is marked and woken",
            bench_support::notify_subscribers(&few),
        ),
        measure("index: the same, one of 10 000", bench_support::notify_subscribers(&many)),
    ];
    let shard_subscribers = [
        measure(
            "index: pushed to a shard, which finds one of its 1 000 subscribers",
            bench_support::notify_shard_subscribers(&few),
        ),
        measure("index: the same, one of 10 000", bench_support::notify_shard_subscribers(&many)),
    ];
    measure("wake: from a mark to its waker", bench_support::wake_subscriber());
    measure("wake: from a push to a shard to its waker", bench_support::wake_shard(&few));
    measure("wake: from a mark to another thread and back", bench_support::wake_thread_and_back());
    measure(
        "delivery: a woken subscription takes its frame from the log",
        bench_support::take_from_log(&few),
    );
    measure(
        "delivery: a shard subscriber gets a frame",
        bench_support::deliver_to_shard_subscribers(&few),
    );
    let growth = |[few, many]: [f64; 2]| many / few;
    let (subscriptions, shard_subscribers) = (growth(subscriptions), growth(shard_subscribers));
    println!(
        "\nGrowth of the index from 1 000 to 10 000: {subscriptions:.2} times by marks, {shard_subscribers:.2} times on a shard."
    );
}

/// Returns one event of each session, as the upstream sends them.
fn stream(sessions: usize) -> Vec<u8> {
    let (mut template, mut frame, mut stream) = (payload::Template::new(), Vec::new(), Vec::new());
    for (session, sequence) in (0..sessions).zip(1..) {
        template.write(sequence, session, &mut frame);
        stream.extend_from_slice(&frame);
    }
    stream
}

/// Prints the cost of one step, and returns the median.
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
    while began.elapsed() < MEASURED {
        each.push(one());
    }
    each.sort_unstable_by(f64::total_cmp);
    let (minimum, median) = (
        each.first().copied().unwrap_or_default(),
        each.get(each.len() / 2).copied().unwrap_or_default(),
    );
    println!("| {what} | {median:.1} | {minimum:.1} |");
    median
}

/// Duration of the measurement of each step.
const MEASURED: Duration = Duration::from_secs(1);

/// Batches before the measurement.
const WARM_UP: usize = 20;
