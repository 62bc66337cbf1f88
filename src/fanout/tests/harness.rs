//! A fan-out, its subscribers and one shard, run by hand.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
};

use bytes::Bytes;
use tokio::time::Instant;

use crate::{
    event::{Draft, Event, Gap, Kind, Only, ProductId, Scope, SessionId, StartPosition},
    fanout::{
        DISPATCH_BATCH_ENTRIES, Fanout, QueueContents, ShardIndex, Subscription, SubscriptionItem,
    },
    log::{Log, MemoryBounds, Numbering},
    metrics::Metrics,
};

/// A fan-out whose task the test runs by hand.
pub(in crate::fanout) struct FanoutHarness {
    pub(in crate::fanout) fanout: Arc<Fanout>,
    pub(super) position: u64,
}

impl FanoutHarness {
    pub(in crate::fanout) fn new(ring_events: usize) -> Self {
        let product = ProductId::new("p").unwrap();
        let metrics = Metrics::new().unwrap().log(&product);
        let log = Log::new(product, MemoryBounds { events: ring_events, bytes: u64::MAX }, metrics);
        log.set_numbering(Numbering::Own);
        Self { fanout: Arc::new(Fanout::new(Arc::new(log), 1)), position: 0 }
    }

    pub(in crate::fanout) fn append(&self, session: &str, kind: &str) {
        let payload = Bytes::from(format!("{session} {kind}"));
        let session = (!session.is_empty()).then(|| SessionId::new(session).unwrap());
        let draft = Draft {
            kind: Kind::new(kind),
            session,
            forwarded_at: None,
            payload,
            received: Instant::now(),
        };
        self.fanout.log().append(draft);
    }

    /// Does what the fan-out's task does for one batch.
    pub(super) fn dispatch(&mut self) {
        let tail = self.fanout.log().tail(self.position, DISPATCH_BATCH_ENTRIES);
        let mut tail = std::pin::pin!(tail);
        let mut context = Context::from_waker(Waker::noop());
        if let Poll::Ready((first, entries)) = tail.as_mut().poll(&mut context) {
            self.position = self.fanout.dispatch(self.position, first, &entries);
        }
    }

    pub(in crate::fanout) fn dispatch_all(&mut self) {
        loop {
            let before = self.position;
            self.dispatch();
            if self.position == before {
                return;
            }
        }
    }

    pub(in crate::fanout) fn subscribe(&self, scope: Scope, start: &StartPosition) -> FanoutReader {
        let wake_counter = Arc::new(FanoutWakeCounter::default());
        let subscription = self.fanout.subscribe(Arc::default(), scope, start);
        FanoutReader {
            subscription,
            wake_counter,
            seen: Vec::new(),
            is_on_shard: false,
            is_following: false,
        }
    }
}

/// Counts wake-ups.
#[derive(Default)]
struct FanoutWakeCounter(AtomicUsize);

impl Wake for FanoutWakeCounter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// A subscriber, and what it has received: positions of events, and gap notices.
pub(in crate::fanout) struct FanoutReader {
    pub(in crate::fanout) subscription: Subscription,
    wake_counter: Arc<FanoutWakeCounter>,
    pub(super) seen: Vec<Result<u64, Gap>>,
    pub(super) is_on_shard: bool,
    pub(super) is_following: bool,
}

impl FanoutReader {
    pub(super) fn resync_from(&mut self, position: u64) {
        self.is_following = false;
        self.subscription.resync_from(position);
    }

    /// Takes at most `max_items` items.
    pub(super) fn read(&mut self, max_items: usize) {
        let waker = Waker::from(Arc::clone(&self.wake_counter));
        let mut context = Context::from_waker(&waker);
        for _ in 0..max_items {
            match self.subscription.poll_next(&mut context) {
                Poll::Ready(SubscriptionItem::Event { event, .. }) => {
                    self.seen.push(Ok(event.position()));
                }
                Poll::Ready(SubscriptionItem::Gap(gap)) => self.seen.push(Err(gap)),
                Poll::Pending => return,
            }
        }
    }

    pub(super) fn events(&self) -> Vec<u64> {
        self.seen.iter().filter_map(|item| item.as_ref().ok().copied()).collect()
    }

    pub(super) fn gaps(&self) -> Vec<&Gap> {
        self.seen.iter().filter_map(|item| item.as_ref().err()).collect()
    }

    pub(super) fn wakes(&self) -> usize {
        self.wake_counter.0.load(SeqCst)
    }
}

pub(in crate::fanout) fn scope(sessions: &[&str], kinds: &[&str]) -> Scope {
    let sessions: BTreeSet<_> =
        sessions.iter().map(|session| SessionId::new(session).unwrap()).collect();
    let kinds: BTreeSet<_> = kinds.iter().map(|kind| Kind::new(kind)).collect();
    Scope {
        sessions: if sessions.is_empty() { Only::Everything } else { Only::These(sessions) },
        kinds: if kinds.is_empty() { Only::Everything } else { Only::These(kinds) },
    }
}

/// Expected items of a reader, by its start position and its scope.
pub(super) struct Expectation {
    pub(super) reader: FanoutReader,
    pub(super) scope: Scope,
    pub(super) after: u64,
}

/// A shard's task, as far as the fan-out is concerned.
pub(super) struct FanoutShardHarness {
    pub(super) shard_index: ShardIndex,
    queued: Vec<Arc<Event>>,
}

impl FanoutShardHarness {
    pub(super) fn new(fanout: &Arc<Fanout>) -> Self {
        Self { shard_index: ShardIndex::new(fanout, 0, Waker::noop().clone()), queued: Vec::new() }
    }

    pub(super) fn join(&mut self, number: usize, reader: &mut FanoutReader) {
        if !reader.is_on_shard {
            reader.is_on_shard = true;
            self.shard_index.add(number, &mut reader.subscription);
        }
    }

    pub(super) fn read(&self, reader: &mut FanoutReader, max_items: usize) {
        if let Some(position) = self.shard_index.position().filter(|_| reader.is_on_shard) {
            reader.subscription.advance_to(position);
        }
        reader.read(max_items);
        reader.is_following = reader.is_on_shard && reader.subscription.is_caught_up();
    }

    /// Delivers the queued events to the readers that follow; readers in `stuck` cannot take
    /// anything now.
    pub(super) fn deliver_queued(&mut self, readers: &mut [Expectation], stuck: &[usize]) {
        self.queued.clear();
        match self.shard_index.take_queued(&mut self.queued) {
            QueueContents::Events => {}
            QueueContents::Marks(_) => unreachable!("so much is not appended"),
            QueueContents::Overflowed(position) => {
                return self
                    .shard_index
                    .for_each(|number| readers[number].reader.resync_from(position));
            }
        }
        let mut first = vec![None; readers.len()];
        let keys = self.queued.iter().map(|event| (event.session(), event.kind()));
        self.shard_index.for_each_interested(keys, |at, number| {
            first[number].get_or_insert(at);
        });
        for (number, first) in first.into_iter().enumerate() {
            let (Some(first), reader) = (first, &mut readers[number].reader) else { continue };
            if !reader.is_following || stuck.contains(&number) {
                reader.resync_from(self.queued[first].position());
                continue;
            }
            let given =
                self.queued[first..].iter().filter(|event| reader.subscription.accept(event));
            reader.seen.extend(given.map(|event| Ok(event.position())));
        }
    }
}
