//! The log of one product: numbers what comes, keeps the newest, shows it to whoever asks.
//!
//! In: drafts and gaps, in the upstream's order. Out: entries by place, as often as anybody reads. Appending never waits.
//! The durable store will stand behind [`Log::read_after`], for readers that have fallen off the ring.
//!
//! May use: `event`, `metrics`.

mod ring;

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::sync::Notify;

use crate::{
    event::{Draft, Entry, EventId, Gap, GapReason, ProductId, Scope, Start},
    metrics::LogMetrics,
};

use ring::Ring;
pub(crate) use ring::{Limits, Reading};

/// The newest entries of one product, and the one place that numbers them.
#[derive(Debug)]
pub(crate) struct Log {
    product: ProductId,
    epoch: u64,
    ring: Mutex<Ring>,
    appended: Notify,
    metrics: LogMetrics,
}

impl Log {
    /// An empty log that keeps what fits within `bounds`.
    pub(crate) fn new(product: ProductId, bounds: Bounds, metrics: LogMetrics) -> Self {
        Self { product, epoch: new_epoch(), ring: Mutex::new(Ring::new(bounds)), appended: Notify::new(), metrics }
    }

    /// Whose log it is.
    pub(crate) fn product(&self) -> &ProductId {
        &self.product
    }

    /// Writes an event behind everything so far. Never waits for a disk or a reader.
    pub(crate) fn append(&self, draft: Draft) -> EventId {
        self.push(|ring, id| ring.push_event(id, draft))
    }

    /// Writes down that events may be missing here.
    pub(crate) fn append_gap(&self, reason: GapReason) -> EventId {
        self.metrics.gap(reason);
        self.push(|ring, id| {
            let after = (ring.newest() > 0).then(|| self.id(ring.newest()).to_string().into());
            ring.push_gap(Gap { product: self.product.clone(), reason, id, after, before: None });
        })
    }

    fn push(&self, write: impl FnOnce(&mut Ring, EventId)) -> EventId {
        let mut ring = self.ring();
        let id = self.id(ring.newest() + 1);
        write(&mut ring, id);
        self.metrics.kept(ring.len(), ring.bytes());
        drop(ring);
        self.appended.notify_one();
        id
    }

    /// Waits until there is something behind `sequence`, and returns the entries there, at most `most` of them, with the
    /// sequence of the first: greater than `sequence + 1` when entries were evicted before anybody could look.
    ///
    /// For the one reader that follows the log, the fan-out: it alone is woken.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
    pub(crate) async fn tail(&self, sequence: u64, most: usize) -> (u64, Vec<Entry>) {
        loop {
            let (first, entries) = {
                let mut ring = self.ring();
                ring.shown(sequence);
                self.metrics.kept(ring.len(), ring.bytes());
                ring.behind(sequence, most)
            };
            if !entries.is_empty() {
                return (first, entries);
            }
            self.appended.notified().await;
        }
    }

    /// Gives a reader at `sequence` what it sees next: entries that `scope` admits, in order and within `limits`, behind
    /// those in `handover`.
    pub(crate) fn read_after(
        &self,
        sequence: u64,
        scope: &Scope,
        limits: Limits,
        handover: &mut VecDeque<Entry>,
    ) -> Reading {
        self.ring().read_after(sequence, scope, limits, handover)
    }

    /// Where a reader who asks for `start` stands; none when it asks for what comes from now on.
    pub(crate) fn place(&self, start: &Start) -> Option<Place> {
        let ring = self.ring();
        match start {
            Start::Now => None,
            Start::Oldest => Some(Place::BeforeKept(ring.evicted_through())),
            Start::After(id) if id.epoch == self.epoch && id.sequence <= ring.newest() => {
                Some(Place::Behind(id.sequence))
            }
            Start::After(id) => Some(Place::Unknown(self.unknown(&ring, Some(*id)))),
            Start::Malformed => Some(Place::Unknown(self.unknown(&ring, None))),
        }
    }

    /// The notice for someone who came with an id that is not of this log: it stands before the oldest entry kept.
    fn unknown(&self, ring: &Ring, after: Option<EventId>) -> Gap {
        let first = ring.evicted_through() + 1;
        Gap {
            before: (first <= ring.newest()).then(|| self.id(first)),
            ..self.notice(GapReason::UnknownId, after, ring.evicted_through())
        }
    }

    /// The notice for a reader, at `sequence` if it has any id, whose next entries up to `missed_through` are gone.
    pub(crate) fn evicted(&self, sequence: Option<u64>, missed_through: u64) -> Gap {
        let after = sequence.map(|sequence| self.id(sequence));
        let before = Some(self.id(missed_through + 1)); // the newest entry is never evicted
        Gap { before, ..self.notice(GapReason::Evicted, after, missed_through) }
    }

    fn notice(&self, reason: GapReason, after: Option<EventId>, through: u64) -> Gap {
        self.metrics.gap(reason);
        let after = after.map(|id| id.to_string().into());
        Gap { product: self.product.clone(), reason, id: self.id(through), after, before: None }
    }

    /// A gap of this log as it is announced now: with the id after it, if there is one by now.
    pub(crate) fn announce(&self, gap: &Gap) -> Gap {
        let next = gap.id.sequence + 1;
        Gap { before: (next <= self.ring().newest()).then(|| self.id(next)), ..gap.clone() }
    }

    /// The id of the entry at `sequence`; at 0, of the place before everything.
    pub(crate) fn id(&self, sequence: u64) -> EventId {
        EventId { epoch: self.epoch, sequence }
    }

    /// Sequence of the newest entry, 0 before the first.
    pub(crate) fn newest(&self) -> u64 {
        self.ring().newest()
    }

    /// What it holds at this moment.
    pub(crate) fn facts(&self) -> Facts {
        let ring = self.ring();
        let oldest = (ring.len() > 0).then(|| self.id(ring.evicted_through() + 1));
        let newest = (ring.newest() > 0).then(|| self.id(ring.newest()));
        Facts { events: ring.len(), bytes: ring.bytes(), oldest, newest }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        // The ring is whole after every statement of its own: a panic elsewhere does not spoil it.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How much a log keeps in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Entries, at the most.
    pub(crate) events: usize,
    /// Bytes, at the most; one entry is kept whatever its size.
    pub(crate) bytes: u64,
}

/// Where a reader begins.
#[derive(Debug)]
pub(crate) enum Place {
    /// It has seen everything up to this sequence.
    Behind(u64),
    /// It wants whatever is kept, which at this moment begins behind this sequence.
    BeforeKept(u64),
    /// Its id is not one of this log: first this notice, then whatever is kept behind the notice's id.
    Unknown(Gap),
}

/// What a log holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    /// Entries kept.
    pub(crate) events: usize,
    /// Bytes kept.
    pub(crate) bytes: u64,
    /// The oldest id kept.
    pub(crate) oldest: Option<EventId>,
    /// The newest id ever given.
    pub(crate) newest: Option<EventId>,
}

/// Unix milliseconds: later than that of any log before it on this machine, as long as the clock is not set back.
fn new_epoch() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}
