//! Fixtures of the bench: events, logs, fan-outs and subscribers.
//!
//! May use: `envelope`, `event`, `fanout`, `log`, `metrics`, `sse`.

use std::{
    hint::black_box,
    io::IoSlice,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
    thread::Thread,
    time::{self, Duration},
};

use bytes::Bytes;
use tokio::time::Instant;

use crate::{
    envelope,
    event::{Draft, Entry, Event, Only, ProductId, Scope, StartPosition},
    fanout::{Fanout, SubscriberSignal},
    log::{Log, MemoryBounds, Numbering},
    metrics::Metrics,
    sse::{Decoded, Decoder},
    subscription::{Subscription, SubscriptionItem},
};

/// Number of repetitions of a step, and the time that they took together.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    /// Number of repetitions.
    pub count: usize,
    /// Time of all repetitions.
    pub took: Duration,
}

impl Batch {
    pub(super) fn of(count: usize, work: impl FnOnce()) -> Self {
        let began = time::Instant::now();
        work();
        Self { count, took: began.elapsed() }
    }
}

/// Fan-out with a subscriber for each session, and the events for them.
pub(super) struct FanoutBench {
    pub(super) events: BenchEvents,
    pub(super) fanout: Arc<Fanout>,
    pub(super) subscribers: Vec<Subscription>,
    pub(super) notified_position: u64,
    pub(super) wakes: Arc<BenchWakeCounter>,
    pub(super) waker: Waker,
}

impl FanoutBench {
    pub(super) fn new(stream: &[u8]) -> Self {
        let events = BenchEvents::of(stream);
        let fanout = Arc::new(Fanout::new(Arc::new(log()), 1));
        let (wakes, waker) = BenchWakeCounter::new();
        let subscribe = |number| {
            let sessions = Only::These(events.draft(number).session.into_iter().collect());
            let scope = Scope { sessions, ..Scope::EVERYTHING };
            let mut subscriber = Subscription::start(
                &fanout,
                SubscriberSignal::default(),
                scope,
                &StartPosition::Now,
            );
            assert!(subscriber.poll_next(&mut Context::from_waker(&waker)).is_pending());
            subscriber
        };
        let subscribers = (0..events.payloads.len()).map(subscribe).collect();
        Self { events, fanout, subscribers, notified_position: 0, wakes, waker }
    }

    /// Appends the next events, and returns them with the numbers of the subscribers that they
    /// concern.
    pub(super) fn append_next(&mut self) -> (Vec<Entry>, Vec<usize>) {
        let concerned = self.events.next_numbers().collect();
        (append(self.fanout.log(), &mut self.events).1, concerned)
    }

    pub(super) fn notify(&mut self, entry: &Entry) {
        self.notified_position = self.fanout.dispatch_next(self.notified_position, entry);
    }

    /// Dispatches events to subscribers that are woken one by one and take them.
    pub(super) fn notify_and_take(&mut self) -> (Batch, Batch) {
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
                    black_box(IoSlice::new(&event.sse_frame()));
                    taken += 1;
                }
            }
        });
        assert_eq!(taken, BATCH_SIZE);
        (shown, given)
    }
}

/// Appends the next events, and returns them as the fan-out reads them from the log.
///
/// They are read because the log does not evict entries that the fan-out has not seen.
pub(super) fn append(log: &Log, events: &mut BenchEvents) -> (Batch, Vec<Entry>) {
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

/// Endless events: those of a stream, out of order and repeatedly.
pub(super) struct BenchEvents {
    pub(super) product: ProductId,
    pub(super) payloads: Vec<Bytes>,
    pub(super) taken: usize,
    /// Position up to which the fan-out has read the log.
    pub(super) tail_position: u64,
}

impl BenchEvents {
    pub(super) fn of(stream: &[u8]) -> Self {
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

    /// Parses an event again, so that its parts are as close in memory as in the relay.
    pub(super) fn draft(&self, number: usize) -> Draft {
        envelope::parse_draft(self.payloads[number].clone(), &self.product, Instant::now()).unwrap()
    }

    /// Returns the numbers of the next events.
    pub(super) fn next_numbers(&self) -> impl Iterator<Item = usize> {
        (self.taken..self.taken + BATCH_SIZE).map(|taken| taken * STRIDE % self.payloads.len())
    }
}

pub(super) fn event(entry: &Entry) -> Arc<Event> {
    match entry {
        Entry::Event(event) => Arc::clone(event),
        other => unreachable!("the log has events only: {other:?}"),
    }
}

pub(super) fn log() -> Log {
    let product = ProductId::new(PRODUCT).unwrap();
    let metrics = Metrics::new().unwrap().log(&product);
    let log = Log::new(product, MemoryBounds { events: FULL_LOG_EVENTS, bytes: u64::MAX }, metrics);
    log.set_numbering(Numbering::Own);
    log
}

/// Waker that counts its calls.
#[derive(Default)]
pub(super) struct BenchWakeCounter(pub(super) AtomicUsize);

impl BenchWakeCounter {
    pub(super) fn new() -> (Arc<Self>, Waker) {
        let wakes = Arc::new(Self::default());
        (Arc::clone(&wakes), Waker::from(wakes))
    }
}

impl Wake for BenchWakeCounter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// Waker that unparks a thread.
pub(super) struct Unpark(pub(super) Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Repetitions in a batch: enough that reading the clock does not count, few enough that their
/// memory has not left the cache.
pub(super) const BATCH_SIZE: usize = 64;

/// Distance in the stream between two consecutive events; shares no factor with the numbers of
/// sessions.
pub(super) const STRIDE: usize = 7919;

/// Larger than any event of the bench.
pub(super) const MAX_EVENT_BYTES: usize = 1 << 20;

/// Entries in a full log: about as many as fit into the default `log.memory_bytes` of 64 MiB.
pub(super) const FULL_LOG_EVENTS: usize = 768 * BATCH_SIZE;

/// Product of all events.
pub const PRODUCT: &str = "bench";
