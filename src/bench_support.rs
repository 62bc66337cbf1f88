//! What `benches/micro` measures: steps on the way of an event, each alone.
//!
//! In: a stream of the upstream with one event of each session. Out: closures that do a [`Batch`]
//! of one step and take its time. What must be made ready for it, put back or looked over is
//! outside that time, and a step that has not done its work panics. No part of the relay: compiled
//! with the feature `micro` only.
//!
//! May use: `envelope`, `event`, `fanout`, `log`, `metrics`, `sse`.
#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "it reads what it has written itself"
)]

use std::{
    hint::black_box,
    io::IoSlice,
    pin::pin,
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::{self, Duration},
};

use bytes::Bytes;
use tokio::time::Instant;

use crate::{
    envelope::{self, Envelope},
    event::{Draft, Entry, Event, Only, ProductId, Scope, StartPosition},
    fanout::{Fanout, QueueContents, ShardIndex, SubscriberSignal, Subscription, SubscriptionItem},
    log::{Log, MemoryBounds, Numbering},
    metrics::Metrics,
    sse::{Decoded, Decoder, Frame},
};

/// The product of all events.
pub const PRODUCT: &str = "bench";

/// How often something was done, and how long that took.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    /// How often.
    pub count: usize,
    /// All of it.
    pub took: Duration,
}

impl Batch {
    fn of(count: usize, work: impl FnOnce()) -> Self {
        let began = time::Instant::now();
        work();
        Self { count, took: began.elapsed() }
    }
}

/// Decode: bytes of a socket become frames.
pub fn decode(stream: &[u8], events: usize) -> impl FnMut() -> Batch {
    run_decoder(stream, events, |frame, _| {
        black_box(frame);
    })
}

/// Decode, all of it: bytes become frames, and these drafts for the log.
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

/// Append to a log in memory that has no room left: each event that comes has one evicted.
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

/// Append to a log in memory that has room.
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

/// Appends the next events, and returns them as the fan-out finds them in the log: what it has not
/// seen would not be evicted.
fn append(log: &Log, events: &mut BenchEvents) -> (Batch, Vec<Entry>) {
    let drafts: Vec<_> = events.next_numbers().map(|number| events.draft(number)).collect();
    let batch = Batch::of(BATCH_SIZE, || {
        for draft in drafts {
            black_box(log.append(draft));
        }
    });
    events.taken += BATCH_SIZE;
    let tail = pin!(log.tail(events.tail_position, BATCH_SIZE));
    let Poll::Ready((_, entries)) = tail.poll(&mut Context::from_waker(Waker::noop())) else {
        unreachable!("something has been appended")
    };
    events.tail_position = log.newest_position();
    (batch, entries)
}

/// Index, by marks: an event is shown to the one of as many listeners as there are events in the
/// stream that it concerns, who wakes.
pub fn notify_subscribers(stream: &[u8]) -> impl FnMut() -> Batch {
    let mut bench = FanoutBench::new(stream);
    move || bench.notify_and_take().0
}

/// Hand-over, from the log: one that has been woken takes its event, as bytes to be written, and
/// finds that there is no more.
pub fn take_from_log(stream: &[u8]) -> impl FnMut() -> Batch {
    let mut bench = FanoutBench::new(stream);
    move || bench.notify_and_take().1
}

/// Index, on a lane: an event is shown, left for the lane and taken there, and the one follower
/// found that it concerns.
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
                let news = arrivals.iter().map(|event| (event.session(), event.kind()));
                shard_index.for_each_interested(news, |_, number| found.push(number));
            }
        });
        assert_eq!(found, concerned);
        assert_eq!(bench.wakes.0.load(SeqCst), before + BATCH_SIZE);
        batch
    }
}

/// Hand-over, on a lane: one that follows is given an event that has arrived, as bytes to be
/// written.
pub fn deliver_to_shard_subscribers(stream: &[u8]) -> impl FnMut() -> Batch {
    let mut bench = FanoutBench::new(stream);
    let all = |_| bench.fanout.subscribe(Arc::default(), Scope::EVERYTHING, &StartPosition::Now);
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

/// Wake, by a mark: from the mark to the waker.
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

/// Wake, of a lane: an event is left for it, and its waker called.
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

/// Wake, across threads: a mark, a thread that is unparked by it, and the same way back.
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

/// A fan-out with a subscriber to each session, and the events that come.
struct FanoutBench {
    events: BenchEvents,
    fanout: Arc<Fanout>,
    subscribers: Vec<Subscription>,
    notified_position: u64,
    wakes: Arc<BenchWakeCounter>,
    waker: Waker,
}

impl FanoutBench {
    fn new(stream: &[u8]) -> Self {
        let events = BenchEvents::of(stream);
        let fanout = Arc::new(Fanout::new(Arc::new(log()), 1));
        let (wakes, waker) = BenchWakeCounter::new();
        let subscribe = |number| {
            let sessions = Only::These(events.draft(number).session.into_iter().collect());
            let scope = Scope { sessions, kinds: Only::Everything };
            let mut subscriber = fanout.subscribe(Arc::default(), scope, &StartPosition::Now);
            assert!(subscriber.poll_next(&mut Context::from_waker(&waker)).is_pending());
            subscriber
        };
        let subscribers = (0..events.payloads.len()).map(subscribe).collect();
        Self { events, fanout, subscribers, notified_position: 0, wakes, waker }
    }

    /// What comes next, and the numbers of those whom it concerns.
    fn append_next(&mut self) -> (Vec<Entry>, Vec<usize>) {
        let concerned = self.events.next_numbers().collect();
        (append(self.fanout.log(), &mut self.events).1, concerned)
    }

    fn notify(&mut self, entry: &Entry) {
        self.notified_position = self.fanout.dispatch_next(self.notified_position, entry);
    }

    /// Shows events to those who listen by marks, and has these take them.
    fn notify_and_take(&mut self) -> (Batch, Batch) {
        let (entries, concerned) = self.append_next();
        let before = self.wakes.0.load(SeqCst);
        let shown = Batch::of(BATCH_SIZE, || entries.iter().for_each(|entry| self.notify(entry)));
        assert_eq!(self.wakes.0.load(SeqCst), before + BATCH_SIZE);
        let mut context = Context::from_waker(&self.waker);
        let mut taken = 0;
        let given = Batch::of(BATCH_SIZE, || {
            for number in concerned {
                while let Poll::Ready(SubscriptionItem::Event { event, .. }) =
                    self.subscribers[number].poll_next(&mut context)
                {
                    black_box(IoSlice::new(&event.wire()));
                    taken += 1;
                }
            }
        });
        assert_eq!(taken, BATCH_SIZE);
        (shown, given)
    }
}

/// Events without end: those of a stream, out of order and again and again.
struct BenchEvents {
    product: ProductId,
    payloads: Vec<Bytes>,
    taken: usize,
    /// The place in the log up to which the fan-out has found them.
    tail_position: u64,
}

impl BenchEvents {
    fn of(stream: &[u8]) -> Self {
        let mut decoder = Decoder::new(MAX_EVENT_BYTES);
        decoder.feed(Bytes::copy_from_slice(stream));
        let frames = std::iter::from_fn(|| decoder.next());
        let payload = |decoded| match decoded {
            Decoded::Frame(frame) => Some(frame.data),
            _ => None,
        };
        let payloads = frames.filter_map(payload).collect();
        Self { product: ProductId::new(PRODUCT).unwrap(), payloads, taken: 0, tail_position: 0 }
    }

    /// Fresh from the envelope, so that what it consists of is as near as it is then.
    fn draft(&self, number: usize) -> Draft {
        envelope::parse_draft(self.payloads[number].clone(), &self.product, Instant::now()).unwrap()
    }

    /// Those that come next.
    fn next_numbers(&self) -> impl Iterator<Item = usize> {
        (self.taken..self.taken + BATCH_SIZE).map(|taken| taken * STRIDE % self.payloads.len())
    }
}

fn event(entry: &Entry) -> Arc<Event> {
    match entry {
        Entry::Event(event) => Arc::clone(event),
        other => unreachable!("nothing but events comes: {other:?}"),
    }
}

fn log() -> Log {
    let product = ProductId::new(PRODUCT).unwrap();
    let metrics = Metrics::new().unwrap().log(&product);
    let log = Log::new(product, MemoryBounds { events: FULL_LOG_EVENTS, bytes: u64::MAX }, metrics);
    log.set_numbering(Numbering::Own);
    log
}

/// Counts wake-ups.
#[derive(Default)]
struct BenchWakeCounter(AtomicUsize);

impl BenchWakeCounter {
    fn new() -> (Arc<Self>, Waker) {
        let wakes = Arc::new(Self::default());
        (Arc::clone(&wakes), Waker::from(wakes))
    }
}

impl Wake for BenchWakeCounter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// Has a thread go on.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// In a batch: so many that taking the time is none of it, so few that what they touch has not left
/// the cache.
const BATCH_SIZE: usize = 64;

/// Between two events in the stream that come one after the other; shares no factor with the
/// numbers of sessions.
const STRIDE: usize = 7919;

/// What comes from a socket at a time.
const READ_BYTES: usize = 16 * 1024;

const MAX_EVENT_BYTES: usize = 1 << 20;

/// Entries in a log that is full: some that fit into the 64 MiB it has where the configuration says
/// nothing.
const FULL_LOG_EVENTS: usize = 768 * BATCH_SIZE;
