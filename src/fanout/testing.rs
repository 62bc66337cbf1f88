//! A fan-out that tests run by hand, and looks at its registry.
//!
//! May use: `event`, `log`, `metrics`.

use std::{
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use tokio::time::Instant;

use super::{BucketFilter, DISPATCH_BATCH_ENTRIES, Fanout};
use crate::{
    event::{Draft, Event, Kind, ProductId, SessionId, UserId},
    log::{Log, MemoryBounds, Numbering},
    metrics::Metrics,
};

impl Fanout {
    /// Does what the fan-out's task does for one batch, and returns the new position.
    pub(crate) fn dispatch_batch(&self, position: u64) -> u64 {
        let tail = pin!(self.log().tail(position, DISPATCH_BATCH_ENTRIES));
        match tail.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready((first, entries)) => self.dispatch(position, first, &entries),
            Poll::Pending => position,
        }
    }

    /// Returns how many signals an event is shown to.
    pub(crate) fn count_visits(&self, event: &Event) -> usize {
        let mut visits = 0;
        let registry = self.registry();
        registry.subscribers.for_each_match(event.scope_key(), BucketFilter::ALL, |_, _| {
            visits += 1;
        });
        visits
    }

    /// Returns whether the index holds a signal, or an empty bucket.
    pub(crate) fn has_signals(&self) -> bool {
        !self.registry().subscribers.is_empty()
    }

    /// Returns whether a bit of a shard is set.
    pub(crate) fn has_shards(&self) -> bool {
        !self.registry().shard_bitmap.is_empty()
    }
}

/// A fan-out whose task the test runs by hand.
pub(crate) struct FanoutHarness {
    pub(crate) fanout: Arc<Fanout>,
    pub(crate) position: u64,
}

impl FanoutHarness {
    pub(crate) fn new(ring_events: usize) -> Self {
        let product = ProductId::new("p").unwrap();
        let metrics = Metrics::new().unwrap().log(&product);
        let log = Log::new(product, MemoryBounds { events: ring_events, bytes: u64::MAX }, metrics);
        log.set_numbering(Numbering::Own);
        Self { fanout: Arc::new(Fanout::new(Arc::new(log), 1)), position: 0 }
    }

    /// Appends an event. What stands behind a slash in `session` is its user.
    pub(crate) fn append(&self, session: &str, kind: &str) {
        let payload = Bytes::from(format!("{session} {kind}"));
        let (session, user) = session.split_once('/').unwrap_or((session, ""));
        let session = (!session.is_empty()).then(|| SessionId::new(session).unwrap());
        let user = (!user.is_empty()).then(|| UserId::new(user).unwrap());
        let draft = Draft {
            kind: Kind::new(kind),
            session,
            user,
            forwarded_at: None,
            payload,
            received: Instant::now(),
        };
        self.fanout.log().append(draft);
    }

    /// Does what the fan-out's task does for one batch.
    pub(crate) fn dispatch(&mut self) {
        self.position = self.fanout.dispatch_batch(self.position);
    }

    pub(crate) fn dispatch_all(&mut self) {
        loop {
            let before = self.position;
            self.dispatch();
            if self.position == before {
                return;
            }
        }
    }
}
