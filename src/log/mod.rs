//! The log of one product: numbers entries, keeps the newest in memory, and reads them back.
//!
//! In: drafts and gaps, in the upstream's order. Out: entries by position, as often as a reader
//! asks. Appending never waits for a disk or a reader: where a store is configured, its writer
//! takes entries out of memory in its own time.
//!
//! ```text
//! ingest, publish ─► append ─► ring ─┬─► tail ─► fan-out             woken by `appended`
//!                                    ├─► read_after ─► subscribers   else gap, or request to the store
//!                                    └─► next_unpersisted ─► store's writer ─► mark_persisted
//! ```
//!
//! May use: `event`, `log_limit`, `metrics`, `wall_clock`.

mod append;
pub(crate) mod backing;
mod damaged_rows;
mod durable_range;
mod id_spans;
mod limits;
pub(crate) mod persist;
mod publish;
mod read;
mod recovery;
mod replay_permits;
mod ring;
mod upstream_link;

use std::{
    collections::BTreeSet,
    mem,
    sync::{Arc, atomic::AtomicU64},
};

use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use self::{
    backing::LogBacking,
    damaged_rows::DamagedRows,
    durable_range::DurableRange,
    ring::Ring,
    upstream_link::{UpstreamLink, infer_numbering},
};
use crate::{
    event::{Entry, ErasureScope, EventId, GapReason, ProductId, UserId},
    log_limit::LogRateLimit,
    metrics::LogMetrics,
    wall_clock,
};

pub(crate) use self::damaged_rows::{DamagedEvent, DamagedRow};
pub(crate) use self::durable_range::{Hole, PersistedLog};
#[cfg(any(test, fuzzing))]
pub(crate) use self::id_spans::IdLookup;
pub(crate) use self::id_spans::{EmptyEpoch, IdSpan, IdSpans, MAX_EMPTY_EPOCHS};
pub(crate) use self::limits::{MemoryBounds, ReadLimits};
pub(crate) use self::read::{ReadOutcome, ResolvedStart};
pub(crate) use self::replay_permits::ReplayClient;
pub(crate) use self::upstream_link::Numbering;

/// Entries of one product. Nothing else assigns their positions.
///
/// One mutex guards ring, spans and durable range together, so a reader sees an entry, its id and
/// its durability in the same state. No caller holds it across an await or an I/O call.
#[derive(Debug)]
pub(crate) struct Log {
    product: ProductId,
    /// Epoch of the ids that this log gives itself.
    epoch: u64,
    state: Mutex<LogState>,
    appended: Notify,
    /// Last position that needs no commit any more: all entries up to here are committed or lost.
    persisted: watch::Sender<u64>,
    /// Last position that arrived as history, not as news; `u64::MAX` while a relay behind a relay
    /// is recovering. Outside the mutex: subscribers and shards read it without the lock.
    history_through: AtomicU64,
    created_at: Instant,
    backing: Option<Arc<LogBacking>>,
    metrics: LogMetrics,
}

#[derive(Debug)]
struct LogState {
    ring: Ring,
    ids: IdSpans,
    durable: Option<DurableRange>,
    numbering: Numbering,
    link: UpstreamLink,
    /// Whether the log held entries before this process began.
    has_prior_entries: bool,
    /// Limit on the error line that says the store does not keep up.
    throttle: LogRateLimit,
    /// Rows of the store that were found damaged.
    damaged_rows: DamagedRows,
}

impl Log {
    /// Returns an empty log that keeps entries within `bounds`, in memory alone.
    pub(crate) fn new(product: ProductId, bounds: MemoryBounds, metrics: LogMetrics) -> Self {
        let epoch = epoch_after(0);
        let ids =
            IdSpans::restored([IdSpan { first_position: 0, first_id: EventId::new(epoch, 0) }]);
        let (numbering, link) =
            (Numbering::Undecided, UpstreamLink::Disconnected { since: Instant::now() });
        let state = LogState {
            ring: Ring::new(bounds, 0),
            ids,
            durable: None,
            numbering,
            link,
            has_prior_entries: false,
            throttle: LogRateLimit::default(),
            damaged_rows: DamagedRows::default(),
        };
        Self::with_state(product, epoch, state, None, metrics)
    }

    /// Returns the log that continues where the store's file ends, under the epoch that the store
    /// has reserved.
    ///
    /// `has_lost_entries` says that a damaged file was set aside, so the log has a past even if the
    /// new file is empty.
    pub(crate) fn restored(
        product: ProductId,
        bounds: MemoryBounds,
        persisted: PersistedLog,
        epoch: u64,
        has_lost_entries: bool,
        backing: Arc<LogBacking>,
        metrics: LogMetrics,
    ) -> Self {
        let mut ids = IdSpans::restored(persisted.spans);
        ids.add_empty_epochs(persisted.empty_epochs);
        let numbering = infer_numbering(persisted.newest, ids.id_at(persisted.newest));
        let link = UpstreamLink::Disconnected { since: Instant::now() };
        ids.begin_span(first_span_of_epoch(persisted.newest, epoch));
        let mut durable = DurableRange::new(
            persisted.product_number,
            persisted.evicted_through,
            persisted.newest,
            persisted.holes,
        );
        (durable.events, durable.bytes) = (persisted.events, persisted.bytes);
        metrics.set_store_usage(durable.events, durable.bytes);
        let ring = Ring::new(bounds, persisted.newest);
        let has_prior_entries = has_lost_entries || persisted.newest > 0;
        let state = LogState {
            ring,
            ids,
            durable: Some(durable),
            numbering,
            link,
            has_prior_entries,
            throttle: LogRateLimit::default(),
            damaged_rows: DamagedRows::default(),
        };
        Self::with_state(product, epoch, state, Some(backing), metrics)
    }

    fn with_state(
        product: ProductId,
        epoch: u64,
        state: LogState,
        backing: Option<Arc<LogBacking>>,
        metrics: LogMetrics,
    ) -> Self {
        let persisted = watch::Sender::new(state.persisted_through());
        let state = Mutex::new(state);
        Self {
            product,
            epoch,
            state,
            appended: Notify::new(),
            persisted,
            history_through: AtomicU64::new(0),
            created_at: Instant::now(),
            backing,
            metrics,
        }
    }

    /// Returns the product whose entries these are.
    pub(crate) fn product(&self) -> &ProductId {
        &self.product
    }

    /// Evicts what exceeds the bounds, and records entries that are evicted before they are
    /// committed as a hole.
    fn enforce_bounds(&self, state: &mut LogState) {
        let persisted_through = state.persisted_through();
        let LogState { ring, durable, throttle, .. } = state;
        let evicted_through = ring.evict(persisted_through);
        if durable.as_mut().is_some_and(|durable| durable.record_memory_eviction(evicted_through)) {
            if throttle.allow() {
                tracing::error!(product = %self.product, "the store does not keep up: events leave memory before they are kept");
            }
            self.metrics.record_gap(GapReason::NotKept);
        }
        self.metrics.set_memory_usage(ring.len(), ring.bytes());
        // An eviction of uncommitted entries moves the position on: their publishers must not wait
        // for a commit that never comes.
        if state.persisted_through() > persisted_through {
            self.notify_persisted(state);
        }
    }

    /// Returns a watch on the last position that needs no commit any more: all entries up to it are
    /// committed or lost. `u64::MAX` without a store.
    ///
    /// The value changes once per commit. It decreases when the store's file is lost: entries in
    /// memory are then committed again.
    pub(crate) fn watch_persisted(&self) -> watch::Receiver<u64> {
        self.persisted.subscribe()
    }

    fn notify_persisted(&self, state: &LogState) {
        let persisted_through = state.persisted_through();
        self.persisted.send_if_modified(|current| {
            mem::replace(current, persisted_through) != persisted_through
        });
    }

    /// Waits for an entry behind `position`, and returns the entries there, at most `max_entries`,
    /// with the position of the first. That position is greater than `position + 1` if entries were
    /// evicted before this call.
    ///
    /// Only one task may follow the log, the fan-out: an append wakes one waiter. The call also
    /// tells the ring that the fan-out has dispatched everything up to `position`, so entries up to
    /// there may be evicted.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing: the position is the caller's, and a wake-up that was
    /// consumed only leads to one more look.
    pub(crate) async fn tail(&self, position: u64, max_entries: usize) -> (u64, Vec<Entry>) {
        loop {
            let (first, entries) = {
                let mut state = self.state();
                state.ring.mark_dispatched(position);
                self.enforce_bounds(&mut state);
                state.ring.entries_after(position, max_entries)
            };
            if !entries.is_empty() {
                return (first, entries);
            }
            // `notify_one` leaves a permit if no task waits, so an append since the look above
            // completes this at once.
            self.appended.notified().await;
        }
    }

    /// Returns the id of the entry at `position`; at 0, of the position before all entries. `None`
    /// before the oldest span that is remembered.
    pub(crate) fn id_at(&self, position: u64) -> Option<EventId> {
        self.state().ids.id_at(position)
    }

    /// Returns the position of the newest entry, 0 before the first.
    pub(crate) fn newest_position(&self) -> u64 {
        self.state().ring.newest_position()
    }

    /// Returns the newest id, if there is an entry.
    pub(crate) fn newest_id(&self) -> Option<EventId> {
        let state = self.state();
        let newest = state.ring.newest_position();
        (newest > 0).then(|| state.ids.id_at(newest)).flatten()
    }

    /// Returns whether the log held entries before this process began, so that events since the
    /// last of them are missing.
    pub(crate) fn has_prior_entries(&self) -> bool {
        self.state().has_prior_entries
    }

    /// Removes events from memory: those that `scope` takes by their sessions, and those of `users`
    /// with all of the sessions in which they acted. Adds these sessions, and the positions of all
    /// of them, to `scope`, and returns how many of them the store does not have. The store has
    /// copies of the others and erases them by a command of its own.
    pub(crate) fn erase(&self, scope: &mut ErasureScope, users: &BTreeSet<UserId>) -> u64 {
        let mut state = self.state();
        let mut positions = state.ring.erase(&mut scope.sessions, users);
        self.metrics.set_memory_usage(state.ring.len(), state.ring.bytes());
        let in_store = |position: &&u64| {
            state.durable.as_ref().is_some_and(|durable| durable.contains(**position))
        };
        let in_memory_alone = positions.len() - positions.iter().filter(in_store).count();
        scope.positions.append(&mut positions);
        in_memory_alone as u64
    }

    /// Returns the log's current size and its oldest and newest id.
    pub(crate) fn stats(&self) -> LogStats {
        let state = self.state();
        let (oldest, newest) = (state.evicted_through(), state.ring.newest_position());
        LogStats {
            events: state.ring.len(),
            bytes: state.ring.bytes(),
            stored: state.durable.as_ref().map(|durable| (durable.events, durable.bytes)),
            oldest_id: state.id_after(oldest),
            newest_id: (newest > 0).then(|| state.ids.id_at(newest)).flatten(),
        }
    }

    fn state(&self) -> MutexGuard<'_, LogState> {
        // A panic does not poison it: no statement that could panic separates two that must both
        // run.
        self.state.lock()
    }
}

impl LogState {
    /// Returns the last position that needs no commit any more.
    fn persisted_through(&self) -> u64 {
        self.durable.as_ref().map_or(u64::MAX, |durable| durable.persisted_through)
    }

    /// Returns the position before the oldest entry that can still be read.
    fn evicted_through(&self) -> u64 {
        self.durable.as_ref().map_or(self.ring.evicted_through(), |durable| durable.evicted_through)
    }

    /// Returns the id of the entry behind `position`, if there is one by now.
    fn id_after(&self, position: u64) -> Option<EventId> {
        (position < self.ring.newest_position()).then(|| self.ids.id_at(position + 1)).flatten()
    }
}

/// Size of a log, and the ids at both ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogStats {
    /// Entries in memory.
    pub(crate) events: usize,
    /// Bytes in memory.
    pub(crate) bytes: u64,
    /// Entries and bytes in the store, where there is one.
    pub(crate) stored: Option<(u64, u64)>,
    /// Oldest id that can still be read.
    pub(crate) oldest_id: Option<EventId>,
    /// Newest id ever given.
    pub(crate) newest_id: Option<EventId>,
}

/// Returns the span that begins with the first id of an epoch. In an empty log the span covers
/// position 0, too, so that a client can resume from `<epoch>-0`.
pub(crate) fn first_span_of_epoch(newest: u64, epoch: u64) -> IdSpan {
    match newest {
        0 => IdSpan { first_position: 0, first_id: EventId::new(epoch, 0) },
        newest => IdSpan { first_position: newest + 1, first_id: EventId::new(epoch, newest + 1) },
    }
}

/// Returns a new epoch: the Unix time in milliseconds, or one more than the highest epoch so far if
/// the clock has been set back since. An epoch is never used twice, because an id would then name
/// two events.
pub(crate) fn epoch_after(highest: u64) -> u64 {
    wall_clock::now().unix_ms.max(highest.saturating_add(1))
}
