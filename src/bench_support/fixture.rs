//! Events, a log and a fan-out with subscribers, for the steps to be measured on.
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
    fanout::{Fanout, Subscription, SubscriptionItem},
    log::{Log, MemoryBounds, Numbering},
    metrics::Metrics,
    sse::{Decoded, Decoder},
};

/// How often something was done, and how long that took.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    /// How often.
    pub count: usize,
    /// All of it.
    pub took: Duration,
}

impl Batch {
    pub(super) fn of(count: usize, work: impl FnOnce()) -> Self {
        let began = time::Instant::now();
        work();
        Self { count, took: began.elapsed() }
    }
}

/// A fan-out with a subscriber to each session, and the events that come.
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
            let scope = Scope { sessions, kinds: Only::Everything };
            let mut subscriber = fanout.subscribe(Arc::default(), scope, &StartPosition::Now);
            assert!(subscriber.poll_next(&mut Context::from_waker(&waker)).is_pending());
            subscriber
        };
        let subscribers = (0..events.payloads.len()).map(subscribe).collect();
        Self { events, fanout, subscribers, notified_position: 0, wakes, waker }
    }

    /// What comes next, and the numbers of those whom it concerns.
    pub(super) fn append_next(&mut self) -> (Vec<Entry>, Vec<usize>) {
        let concerned = self.events.next_numbers().collect();
        (append(self.fanout.log(), &mut self.events).1, concerned)
    }

    pub(super) fn notify(&mut self, entry: &Entry) {
        self.notified_position = self.fanout.dispatch_next(self.notified_position, entry);
    }

    /// Shows events to those who listen by marks, and has these take them.
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
                    black_box(IoSlice::new(&event.wire()));
                    taken += 1;
                }
            }
        });
        assert_eq!(taken, BATCH_SIZE);
        (shown, given)
    }
}

/// Appends the next events, and returns them as the fan-out finds them in the log: what it has not
/// seen would not be evicted.
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

/// Events without end: those of a stream, out of order and again and again.
pub(super) struct BenchEvents {
    pub(super) product: ProductId,
    pub(super) payloads: Vec<Bytes>,
    pub(super) taken: usize,
    /// The place in the log up to which the fan-out has found them.
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

    /// Fresh from the envelope, so that what it consists of is as near as it is then.
    pub(super) fn draft(&self, number: usize) -> Draft {
        envelope::parse_draft(self.payloads[number].clone(), &self.product, Instant::now()).unwrap()
    }

    /// Those that come next.
    pub(super) fn next_numbers(&self) -> impl Iterator<Item = usize> {
        (self.taken..self.taken + BATCH_SIZE).map(|taken| taken * STRIDE % self.payloads.len())
    }
}

pub(super) fn event(entry: &Entry) -> Arc<Event> {
    match entry {
        Entry::Event(event) => Arc::clone(event),
        other => unreachable!("nothing but events comes: {other:?}"),
    }
}

pub(super) fn log() -> Log {
    let product = ProductId::new(PRODUCT).unwrap();
    let metrics = Metrics::new().unwrap().log(&product);
    let log = Log::new(product, MemoryBounds { events: FULL_LOG_EVENTS, bytes: u64::MAX }, metrics);
    log.set_numbering(Numbering::Own);
    log
}

/// Counts wake-ups.
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

/// Has a thread go on.
pub(super) struct Unpark(pub(super) Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// In a batch: so many that taking the time is none of it, so few that what they touch has not left
/// the cache.
pub(super) const BATCH_SIZE: usize = 64;

/// Between two events in the stream that come one after the other; shares no factor with the
/// numbers of sessions.
pub(super) const STRIDE: usize = 7919;

pub(super) const MAX_EVENT_BYTES: usize = 1 << 20;

/// Entries in a log that is full: some that fit into the 64 MiB it has where the configuration says
/// nothing.
pub(super) const FULL_LOG_EVENTS: usize = 768 * BATCH_SIZE;

/// The product of all events.
pub const PRODUCT: &str = "bench";
