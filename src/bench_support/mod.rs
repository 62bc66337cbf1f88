//! Single steps of an event's way through the relay, for `benches/micro`.
//!
//! In: a stream of the upstream with one event for each session. Out: closures that do a [`Batch`]
//! of one step and return its time. The time excludes the preparation of a step and the check of
//! its result, and a step that has not done its work panics. Not a part of the relay: compiled with
//! the feature `micro` only.
//!
//! May use: `envelope`, `event`, `fanout`, `log`, `metrics`, `sse`.
#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "the bench reads only bytes that it has written itself"
)]

mod fixture;

use std::{
    hint::black_box,
    io::IoSlice,
    sync::{Arc, Barrier, atomic::Ordering::SeqCst},
    task::Waker,
    thread,
};

use bytes::Bytes;
use tokio::time::Instant;

use self::fixture::{
    BATCH_SIZE, BenchEvents, BenchWakeCounter, FULL_LOG_EVENTS, FanoutBench, MAX_EVENT_BYTES,
    Unpark, append, event, log,
};
use crate::{
    envelope::{self, Envelope},
    event::{ProductId, Scope, StartPosition},
    fanout::{Fanout, QueueContents, SubscriberSignal},
    shard::ShardIndex,
    sse::{Decoded, Decoder, Frame},
    subscription::Subscription,
};

pub use self::fixture::{Batch, PRODUCT};

/// Returns the step "decode": bytes of a socket become frames.
pub fn decode(stream: &[u8], events: usize) -> impl FnMut() -> Batch {
    run_decoder(stream, events, |frame, _| {
        black_box(frame);
    })
}

/// Returns the step "decode and classify": bytes become frames, and frames become drafts for the
/// log.
pub fn decode_and_classify(stream: &[u8], events: usize) -> impl FnMut() -> Batch {
    let product = ProductId::new(PRODUCT).unwrap();
    run_decoder(stream, events, move |frame, received| {
        let draft = envelope::classify(frame, &product, received);
        assert!(matches!(black_box(draft), Ok(Envelope::Event(_))));
    })
}

fn run_decoder(
    stream: &[u8],
    events: usize,
    mut take: impl FnMut(Frame, Instant),
) -> impl FnMut() -> Batch {
    let stream = Bytes::copy_from_slice(stream);
    let mut decoder = Decoder::new(MAX_EVENT_BYTES);
    move || {
        let mut decoded = 0;
        let batch = Batch::of(events, || {
            for from in (0..stream.len()).step_by(READ_BYTES) {
                decoder.feed(black_box(stream.slice(from..stream.len().min(from + READ_BYTES))));
                let received = Instant::now();
                while let Some(Decoded::Frame(frame)) = decoder.next() {
                    decoded += 1;
                    take(frame, received);
                }
            }
        });
        assert_eq!(decoded, events);
        batch
    }
}

/// Returns the step "append" to a full log in memory: each event evicts another one.
pub fn append_to_full(stream: &[u8]) -> impl FnMut() -> Batch {
    let (mut events, log) = (BenchEvents::of(stream), log());
    while log.stats().events < FULL_LOG_EVENTS {
        append(&log, &mut events);
    }
    move || {
        let (batch, _) = append(&log, &mut events);
        assert_eq!(log.stats().events, FULL_LOG_EVENTS);
        batch
    }
}

/// Returns the step "append" to a log in memory that is not full.
pub fn append_to_growing(stream: &[u8]) -> impl FnMut() -> Batch {
    let (mut events, mut growing) = (BenchEvents::of(stream), log());
    move || {
        if growing.stats().events == FULL_LOG_EVENTS {
            (events.tail_position, growing) = (0, log());
        }
        let before = growing.stats().events;
        let (batch, _) = append(&growing, &mut events);
        assert_eq!(growing.stats().events, before + BATCH_SIZE);
        batch
    }
}

/// Returns the step "index" by pending positions: an event is dispatched to the only subscription
/// that it concerns, and wakes it. There are as many subscriptions as events in the stream.
pub fn notify_subscribers(stream: &[u8]) -> impl FnMut() -> Batch {
    let mut bench = FanoutBench::new(stream);
    move || bench.notify_and_take().0
}

/// Returns the step "hand-over" from the log: a woken subscriber takes its event as bytes to be
/// written, and finds that there are no more.
pub fn take_from_log(stream: &[u8]) -> impl FnMut() -> Batch {
    let mut bench = FanoutBench::new(stream);
    move || bench.notify_and_take().1
}

/// Returns the step "index" on a shard: an event is dispatched, pushed to the shard queue and taken
/// there, and the only subscriber that it concerns is found.
pub fn notify_shard_subscribers(stream: &[u8]) -> impl FnMut() -> Batch {
    let mut bench = FanoutBench::new(stream);
    let mut shard_index = ShardIndex::new(&bench.fanout, 0, Waker::from(Arc::clone(&bench.wakes)));
    for (number, subscriber) in bench.subscribers.iter_mut().enumerate() {
        shard_index.add(number, subscriber);
    }
    let mut arrivals = Vec::new();
    move || {
        let (entries, concerned) = bench.append_next();
        let mut found = Vec::with_capacity(BATCH_SIZE);
        let before = bench.wakes.0.load(SeqCst);
        let batch = Batch::of(BATCH_SIZE, || {
            for entry in &entries {
                bench.notify(entry);
                arrivals.clear();
                assert_eq!(shard_index.take_queued(&mut arrivals), QueueContents::Events);
                let news = arrivals.iter().map(|event| event.scope_key());
                shard_index.for_each_interested(news, |_, key| found.push(key));
            }
        });
        assert_eq!(found, concerned);
        assert_eq!(bench.wakes.0.load(SeqCst), before + BATCH_SIZE);
        batch
    }
}

/// Returns the step "hand-over" on a shard: a caught-up subscriber gets a queued event as bytes to
/// be written.
pub fn deliver_to_shard_subscribers(stream: &[u8]) -> impl FnMut() -> Batch {
    let mut bench = FanoutBench::new(stream);
    let all = |_| {
        Subscription::start(
            &bench.fanout,
            SubscriberSignal::default(),
            Scope::EVERYTHING,
            &StartPosition::Now,
        )
    };
    bench.subscribers = (0..bench.events.payloads.len()).map(all).collect();
    move || {
        let event = event(&bench.append_next().0[0]);
        let mut given = 0;
        let batch = Batch::of(bench.subscribers.len(), || {
            for subscriber in &mut bench.subscribers {
                given += usize::from(subscriber.accept(&event));
                black_box(IoSlice::new(event.http1_chunk()));
            }
        });
        assert_eq!(given, bench.subscribers.len());
        batch
    }
}

/// Returns the step "wake" of one subscriber: from the pending position to the waker.
pub fn wake_subscriber() -> impl FnMut() -> Batch {
    let (wakes, waker) = BenchWakeCounter::new();
    let listeners: [SubscriberSignal; BATCH_SIZE] =
        std::array::from_fn(|_| SubscriberSignal::default());
    move || {
        let before = wakes.0.load(SeqCst);
        listeners.iter().for_each(|listener| listener.take_pending_and_register(&waker));
        let batch = Batch::of(BATCH_SIZE, || {
            listeners.iter().for_each(|listener| black_box(listener).mark_pending(1));
        });
        assert_eq!(wakes.0.load(SeqCst), before + BATCH_SIZE);
        batch
    }
}

/// Returns the step "wake" of a shard: an event is pushed to its queue, and its waker is called.
pub fn wake_shard(stream: &[u8]) -> impl FnMut() -> Batch {
    let (wakes, waker) = BenchWakeCounter::new();
    let mut bench = FanoutBench::new(stream);
    let fanout = Arc::new(Fanout::new(Arc::new(log()), BATCH_SIZE));
    let shards: [_; BATCH_SIZE] =
        std::array::from_fn(|shard| ShardIndex::new(&fanout, shard, waker.clone()));
    let event = event(&bench.append_next().0[0]);
    move || {
        let before = wakes.0.load(SeqCst);
        let batch = Batch::of(BATCH_SIZE, || {
            (0..BATCH_SIZE).for_each(|shard| fanout.push_and_wake(shard, black_box(&event)));
        });
        assert_eq!(wakes.0.load(SeqCst), before + BATCH_SIZE);
        shards.iter().for_each(|shard| drop(shard.take_queued(&mut Vec::new())));
        batch
    }
}

/// Returns the step "wake" across threads: a pending position, a thread that is unparked by it, and
/// the same way back.
pub fn wake_thread_and_back() -> impl FnMut() -> Batch {
    let [there, here]: [SubscriberSignal; 2] = std::array::from_fn(|_| SubscriberSignal::default());
    let waker = || Waker::from(Arc::new(Unpark(thread::current())));
    let wait = |listener: &SubscriberSignal| {
        while listener.pending_position().is_none() {
            thread::park();
        }
    };
    move || {
        let own = waker();
        here.take_pending_and_register(&own);
        let is_ready = Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                let own = waker();
                there.take_pending_and_register(&own);
                is_ready.wait();
                for _ in 0..BATCH_SIZE {
                    wait(&there);
                    there.take_pending_and_register(&own);
                    here.mark_pending(1);
                }
            });
            is_ready.wait();
            Batch::of(BATCH_SIZE, || {
                for _ in 0..BATCH_SIZE {
                    there.mark_pending(1);
                    wait(&here);
                    here.take_pending_and_register(&own);
                }
            })
        })
    }
}

/// Number of bytes that a socket returns at a time.
const READ_BYTES: usize = 16 * 1024;
