//! What `benches/micro` measures: steps on the way of an event, each alone.
//!
//! In: a stream of the upstream with one event of each session. Out: closures that do a [`Batch`] of one step and take its time. What
//! must be made ready for it, put back or looked over is outside that time, and a step that has not done its work panics. No part of
//! the relay: compiled with the feature `micro` only.
//!
//! May use: `envelope`, `event`, `fanout`, `log`, `metrics`, `sse`.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "it reads what it has written itself")]

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
    event::{Draft, Entry, Event, Only, ProductId, Scope, Start},
    fanout::{Arrived, Fanout, Followers, Item, Listener, Subscription},
    log::{Bounds, Log, Numbering},
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
    through_decoder(stream, events, |frame, _| {
        black_box(frame);
    })
}

/// Decode, all of it: bytes become frames, and these drafts for the log.
pub fn decode_and_classify(stream: &[u8], events: usize) -> impl FnMut() -> Batch {
    let product = ProductId::new(PRODUCT).unwrap();
    through_decoder(stream, events, move |frame, received| {
        let draft = envelope::classify(frame, &product, received);
        assert!(matches!(black_box(draft), Ok(Envelope::Event(_))));
    })
}

fn through_decoder(stream: &[u8], events: usize, mut take: impl FnMut(Frame, Instant)) -> impl FnMut() -> Batch {
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
    let (mut events, log) = (Events::of(stream), log());
    while log.facts().events < KEPT {
        append(&log, &mut events);
    }
    move || {
        let (batch, _) = append(&log, &mut events);
        assert_eq!(log.facts().events, KEPT);
        batch
    }
}

/// Append to a log in memory that has room.
pub fn append_to_growing(stream: &[u8]) -> impl FnMut() -> Batch {
    let (mut events, mut growing) = (Events::of(stream), log());
    move || {
        if growing.facts().events == KEPT {
            (events.seen, growing) = (0, log());
        }
        let before = growing.facts().events;
        let (batch, _) = append(&growing, &mut events);
        assert_eq!(growing.facts().events, before + BATCH);
        batch
    }
}

/// Appends the next events, and returns them as the fan-out finds them in the log: what it has not seen would not be evicted.
fn append(log: &Log, events: &mut Events) -> (Batch, Vec<Entry>) {
    let drafts: Vec<_> = events.next_numbers().map(|number| events.draft(number)).collect();
    let batch = Batch::of(BATCH, || {
        for draft in drafts {
            black_box(log.append(draft));
        }
    });
    events.taken += BATCH;
    let tail = pin!(log.tail(events.seen, BATCH));
    let Poll::Ready((_, entries)) = tail.poll(&mut Context::from_waker(Waker::noop())) else {
        unreachable!("something has been appended")
    };
    events.seen = log.newest();
    (batch, entries)
}

/// Index, by marks: an event is shown to the one of as many listeners as there are events in the stream that it concerns, who wakes.
pub fn show_to_listeners(stream: &[u8]) -> impl FnMut() -> Batch {
    let mut stage = Stage::new(stream);
    move || stage.listen().0
}

/// Hand-over, from the log: one that has been woken takes its event, as bytes to be written, and finds that there is no more.
pub fn take_from_log(stream: &[u8]) -> impl FnMut() -> Batch {
    let mut stage = Stage::new(stream);
    move || stage.listen().1
}

/// Index, on a lane: an event is shown, left for the lane and taken there, and the one follower found that it concerns.
pub fn show_to_followers(stream: &[u8]) -> impl FnMut() -> Batch {
    let mut stage = Stage::new(stream);
    let mut followers = Followers::new(&stage.fanout, 0, Waker::from(Arc::clone(&stage.bell)));
    for (number, subscriber) in stage.subscribers.iter_mut().enumerate() {
        followers.join(number, subscriber);
    }
    let mut arrivals = Vec::new();
    move || {
        let (entries, concerned) = stage.come();
        let mut found = Vec::with_capacity(BATCH);
        let before = stage.bell.0.load(SeqCst);
        let batch = Batch::of(BATCH, || {
            for entry in &entries {
                stage.show(entry);
                arrivals.clear();
                assert_eq!(followers.take(&mut arrivals), Arrived::Events);
                let news = arrivals.iter().map(|event| (event.session(), event.kind()));
                followers.concerned(news, |_, number| found.push(number));
            }
        });
        assert_eq!(found, concerned);
        assert_eq!(stage.bell.0.load(SeqCst), before + BATCH);
        batch
    }
}

/// Hand-over, on a lane: one that follows is given an event that has arrived, as bytes to be written.
pub fn give_to_followers(stream: &[u8]) -> impl FnMut() -> Batch {
    let mut stage = Stage::new(stream);
    let all = |_| stage.fanout.subscribe(Arc::default(), Scope::EVERYTHING, &Start::Now);
    stage.subscribers = (0..stage.events.payloads.len()).map(all).collect();
    move || {
        let event = event(&stage.come().0[0]);
        let mut given = 0;
        let batch = Batch::of(stage.subscribers.len(), || {
            for subscriber in &mut stage.subscribers {
                given += usize::from(subscriber.take(&event));
                black_box(IoSlice::new(event.chunk()));
            }
        });
        assert_eq!(given, stage.subscribers.len());
        batch
    }
}

/// Wake, by a mark: from the mark to the waker.
pub fn wake_listener() -> impl FnMut() -> Batch {
    let (bell, waker) = Bell::new();
    let listeners: [Listener; BATCH] = std::array::from_fn(|_| Listener::default());
    move || {
        let before = bell.0.load(SeqCst);
        listeners.iter().for_each(|listener| listener.await_mark(&waker));
        let batch = Batch::of(BATCH, || listeners.iter().for_each(|listener| black_box(listener).mark(1)));
        assert_eq!(bell.0.load(SeqCst), before + BATCH);
        batch
    }
}

/// Wake, of a lane: an event is left for it, and its waker called.
pub fn wake_lane(stream: &[u8]) -> impl FnMut() -> Batch {
    let (bell, waker) = Bell::new();
    let mut stage = Stage::new(stream);
    let fanout = Arc::new(Fanout::new(Arc::new(log()), BATCH));
    let lanes: [_; BATCH] = std::array::from_fn(|lane| Followers::new(&fanout, lane, waker.clone()));
    let event = event(&stage.come().0[0]);
    move || {
        let before = bell.0.load(SeqCst);
        let batch = Batch::of(BATCH, || (0..BATCH).for_each(|lane| fanout.leave_and_call(lane, black_box(&event))));
        assert_eq!(bell.0.load(SeqCst), before + BATCH);
        lanes.iter().for_each(|lane| drop(lane.take(&mut Vec::new())));
        batch
    }
}

/// Wake, across threads: a mark, a thread that is unparked by it, and the same way back.
pub fn wake_thread_and_back() -> impl FnMut() -> Batch {
    let [there, here]: [Listener; 2] = std::array::from_fn(|_| Listener::default());
    let waker = || Waker::from(Arc::new(Unpark(thread::current())));
    let wait = |listener: &Listener| {
        while listener.shown().is_none() {
            thread::park();
        }
    };
    move || {
        let own = waker();
        here.await_mark(&own);
        let is_ready = Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                let own = waker();
                there.await_mark(&own);
                is_ready.wait();
                for _ in 0..BATCH {
                    wait(&there);
                    there.await_mark(&own);
                    here.mark(1);
                }
            });
            is_ready.wait();
            Batch::of(BATCH, || {
                for _ in 0..BATCH {
                    there.mark(1);
                    wait(&here);
                    here.await_mark(&own);
                }
            })
        })
    }
}

/// A fan-out with a subscriber to each session, and the events that come.
struct Stage {
    events: Events,
    fanout: Arc<Fanout>,
    subscribers: Vec<Subscription>,
    shown: u64,
    bell: Arc<Bell>,
    waker: Waker,
}

impl Stage {
    fn new(stream: &[u8]) -> Self {
        let events = Events::of(stream);
        let fanout = Arc::new(Fanout::new(Arc::new(log()), 1));
        let (bell, waker) = Bell::new();
        let subscribe = |number| {
            let sessions = Only::These(events.draft(number).session.into_iter().collect());
            let scope = Scope { sessions, kinds: Only::Everything };
            let mut subscriber = fanout.subscribe(Arc::default(), scope, &Start::Now);
            assert!(subscriber.poll_next(&mut Context::from_waker(&waker)).is_pending());
            subscriber
        };
        let subscribers = (0..events.payloads.len()).map(subscribe).collect();
        Self { events, fanout, subscribers, shown: 0, bell, waker }
    }

    /// What comes next, and the numbers of those whom it concerns.
    fn come(&mut self) -> (Vec<Entry>, Vec<usize>) {
        let concerned = self.events.next_numbers().collect();
        (append(self.fanout.log(), &mut self.events).1, concerned)
    }

    fn show(&mut self, entry: &Entry) {
        self.shown = self.fanout.show_next(self.shown, entry);
    }

    /// Shows events to those who listen by marks, and has these take them.
    fn listen(&mut self) -> (Batch, Batch) {
        let (entries, concerned) = self.come();
        let before = self.bell.0.load(SeqCst);
        let shown = Batch::of(BATCH, || entries.iter().for_each(|entry| self.show(entry)));
        assert_eq!(self.bell.0.load(SeqCst), before + BATCH);
        let mut context = Context::from_waker(&self.waker);
        let mut taken = 0;
        let given = Batch::of(BATCH, || {
            for number in concerned {
                while let Poll::Ready(Item::Event { event, .. }) = self.subscribers[number].poll_next(&mut context) {
                    black_box(IoSlice::new(&event.wire()));
                    taken += 1;
                }
            }
        });
        assert_eq!(taken, BATCH);
        (shown, given)
    }
}

/// Events without end: those of a stream, out of order and again and again.
struct Events {
    product: ProductId,
    payloads: Vec<Bytes>,
    taken: usize,
    /// The place in the log up to which the fan-out has found them.
    seen: u64,
}

impl Events {
    fn of(stream: &[u8]) -> Self {
        let mut decoder = Decoder::new(MAX_EVENT_BYTES);
        decoder.feed(Bytes::copy_from_slice(stream));
        let frames = std::iter::from_fn(|| decoder.next());
        let payload = |decoded| match decoded {
            Decoded::Frame(frame) => Some(frame.data),
            _ => None,
        };
        let payloads = frames.filter_map(payload).collect();
        Self { product: ProductId::new(PRODUCT).unwrap(), payloads, taken: 0, seen: 0 }
    }

    /// Fresh from the envelope, so that what it consists of is as near as it is then.
    fn draft(&self, number: usize) -> Draft {
        envelope::draft(self.payloads[number].clone(), &self.product, Instant::now()).unwrap()
    }

    /// Those that come next.
    fn next_numbers(&self) -> impl Iterator<Item = usize> {
        (self.taken..self.taken + BATCH).map(|taken| taken * STRIDE % self.payloads.len())
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
    let log = Log::new(product, Bounds { events: KEPT, bytes: u64::MAX }, metrics);
    log.numbered_by(Numbering::Own);
    log
}

/// Counts wake-ups.
#[derive(Default)]
struct Bell(AtomicUsize);

impl Bell {
    fn new() -> (Arc<Self>, Waker) {
        let bell = Arc::new(Self::default());
        (Arc::clone(&bell), Waker::from(bell))
    }
}

impl Wake for Bell {
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

/// In a batch: so many that taking the time is none of it, so few that what they touch has not left the cache.
const BATCH: usize = 64;

/// Between two events in the stream that come one after the other; shares no factor with the numbers of sessions.
const STRIDE: usize = 7919;

/// What comes from a socket at a time.
const READ_BYTES: usize = 16 * 1024;

const MAX_EVENT_BYTES: usize = 1 << 20;

/// Entries in a log that is full: some that fit into the 64 MiB it has where the configuration says nothing.
const KEPT: usize = 768 * BATCH;
