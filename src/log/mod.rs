//! The log of one product: numbers entries, keeps the newest in memory, and reads them back.
//!
//! In: drafts and gaps, in the upstream's order. Out: entries by position, as often as a reader
//! asks. Appending never waits: the store's writer takes entries out of memory in its own time,
//! where a store is configured.
//!
//! May use: `event`, `log_limit`, `metrics`, `store`.

pub(crate) mod backing;
mod durable_range;
mod id_spans;
pub(crate) mod persist;
mod publish;
mod read;
pub(crate) mod replay_permits;
mod ring;

use std::{
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use self::{durable_range::DurableRange, publish::Appended, ring::Ring};
use crate::{
    event::{Draft, Entry, Event, EventId, Gap, GapReason, ProductId, SessionId},
    log_limit::LogRateLimit,
    metrics::LogMetrics,
    store::{PersistedLog, StoreHandle},
};

pub(crate) use self::durable_range::Hole;
#[cfg(any(test, fuzzing))]
pub(crate) use self::id_spans::IdLookup;
pub(crate) use self::id_spans::{IdSpan, IdSpans};
pub(crate) use self::read::{ReadOutcome, ResolvedStart};

/// The entries of one product, and the one place that numbers them.
#[derive(Debug)]
pub(crate) struct Log {
    product: ProductId,
    /// Of the ids that this log gives by itself.
    epoch: u64,
    state: Mutex<LogState>,
    appended: Notify,
    /// Entries up to here are in the store, or never will be.
    persisted: watch::Sender<u64>,
    /// Entries up to here came as history, not as news. All of them do while a relay behind a relay
    /// is recovering.
    history_through: AtomicU64,
    created_at: Instant,
    store: Option<Arc<StoreHandle>>,
    metrics: LogMetrics,
}

#[derive(Debug)]
struct LogState {
    ring: Ring,
    ids: IdSpans,
    durable: Option<DurableRange>,
    numbering: Numbering,
    link: UpstreamLink,
    /// There were entries before this process began.
    has_prior_entries: bool,
    /// Of the complaint that the store does not keep up.
    throttle: LogRateLimit,
}

/// Who gives the ids.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Numbering {
    /// Nobody knows: the upstream has not answered yet.
    Undecided,
    /// This log.
    Own,
    /// The upstream, itself a relay.
    Upstream,
}

/// How far a log is behind its upstream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum UpstreamLink {
    /// There is no connection.
    Disconnected { since: Instant },
    /// A relay repeats what came meanwhile.
    Replaying,
    /// What comes is live.
    Live,
}

impl Log {
    /// An empty log that keeps what fits within `bounds`, in memory alone.
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
        };
        Self::with_state(product, epoch, state, None, metrics)
    }

    /// The log that goes on where the store has kept it, under the epoch that the store has
    /// reserved.
    pub(crate) fn restored(
        product: ProductId,
        bounds: MemoryBounds,
        kept: PersistedLog,
        epoch: u64,
        past_lost: bool,
        store: Arc<StoreHandle>,
        metrics: LogMetrics,
    ) -> Self {
        let mut ids = IdSpans::restored(kept.spans);
        let numbering = infer_numbering(kept.newest, ids.id_at(kept.newest));
        let link = UpstreamLink::Disconnected { since: Instant::now() };
        ids.begin_span(first_span_of_epoch(kept.newest, epoch));
        let mut durable =
            DurableRange::new(kept.product_number, kept.evicted_through, kept.newest, kept.holes);
        (durable.events, durable.bytes) = (kept.events, kept.bytes);
        metrics.set_store_usage(durable.events, durable.bytes);
        let ring = Ring::new(bounds, kept.newest);
        let has_past = past_lost || kept.newest > 0;
        let state = LogState {
            ring,
            ids,
            durable: Some(durable),
            numbering,
            link,
            has_prior_entries: has_past,
            throttle: LogRateLimit::default(),
        };
        Self::with_state(product, epoch, state, Some(store), metrics)
    }

    fn with_state(
        product: ProductId,
        epoch: u64,
        state: LogState,
        store: Option<Arc<StoreHandle>>,
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
            store,
            metrics,
        }
    }

    /// Whose log it is.
    pub(crate) fn product(&self) -> &ProductId {
        &self.product
    }

    /// Writes an event behind everything so far, under an id of this log's, and says where it
    /// stands. Never waits for a disk or a reader.
    pub(crate) fn append(&self, draft: Draft) -> Appended {
        self.append_with_own_id(self.state(), draft)
    }

    fn append_with_own_id(&self, state: MutexGuard<'_, LogState>, draft: Draft) -> Appended {
        let id = state.next_own_id(self.epoch);
        let position = self
            .push(state, id, |position| Entry::Event(Arc::new(Event::new(id, position, draft))));
        Appended { id, position }
    }

    /// Writes an event under the id that the upstream has given it, unless it is here already.
    pub(crate) fn append_numbered(&self, draft: Draft, id: EventId) {
        let state = self.state();
        if !state.ids.has_passed(id, state.ring.newest_position()) {
            self.push(state, id, |position| {
                Entry::Event(Arc::new(Event::new(id, position, draft)))
            });
        }
    }

    /// Writes down that events may be missing here.
    pub(crate) fn append_gap(&self, reason: GapReason) {
        let state = self.state();
        let newest = state.ring.newest_position();
        let after = (newest > 0).then(|| state.ids.id_at(newest)).flatten();
        let id = state.next_own_id(self.epoch);
        self.push_gap(state, reason, id, after.map(|id| id.to_string().into()));
    }

    /// Writes down a gap that the upstream has announced, unless it is here already. One of which
    /// the upstream says that it stands before everything, because it does not know the id that it
    /// was asked for, is new wherever it stands: it gets an id of this log's if need be.
    pub(crate) fn append_numbered_gap(
        &self,
        reason: GapReason,
        id: Option<EventId>,
        after: Option<Box<str>>,
    ) {
        let state = self.state();
        let newest = state.ring.newest_position();
        let id = match id {
            Some(id) if !state.ids.has_passed(id, newest) => id,
            Some(_) if reason != GapReason::UnknownId => return,
            _ => state.next_own_id(self.epoch),
        };
        self.push_gap(state, reason, id, after);
    }

    fn push_gap(
        &self,
        state: MutexGuard<'_, LogState>,
        reason: GapReason,
        id: EventId,
        after: Option<Box<str>>,
    ) {
        self.metrics.record_gap(reason);
        let product = self.product.clone();
        self.push(state, id, |position| {
            Entry::Gap(Arc::new(Gap { product, reason, position, id, after, before: None }))
        });
    }

    fn push(
        &self,
        mut state: MutexGuard<'_, LogState>,
        id: EventId,
        entry: impl FnOnce(u64) -> Entry,
    ) -> u64 {
        let position = state.ring.newest_position() + 1;
        state.ids.append(position, id);
        state.ring.push(entry(position));
        self.enforce_bounds(&mut state);
        drop(state);
        self.appended.notify_one();
        if let Some(store) = &self.store {
            store.wake_writer();
        }
        position
    }

    /// Brings the memory back within its bounds.
    fn enforce_bounds(&self, state: &mut LogState) {
        let persisted_through = state.persisted_through();
        let LogState { ring, durable, throttle, .. } = state;
        let evicted_through = ring.evict(persisted_through);
        if durable.as_mut().is_some_and(|shelf| shelf.record_memory_eviction(evicted_through)) {
            if throttle.allow() {
                tracing::error!(product = %self.product, "the store does not keep up: events leave memory before they are kept");
            }
            self.metrics.record_gap(GapReason::NotKept);
        }
        self.metrics.set_memory_usage(ring.len(), ring.bytes());
        if state.persisted_through() > persisted_through {
            self.notify_persisted(state);
        }
    }

    /// The place up to which everything is in the store, or never will be; `u64::MAX` without a
    /// store. Told once for each commit. Goes back where the file is lost: what is in memory is
    /// then committed again.
    pub(crate) fn watch_persisted(&self) -> watch::Receiver<u64> {
        self.persisted.subscribe()
    }

    fn notify_persisted(&self, state: &LogState) {
        let persisted_through = state.persisted_through();
        self.persisted.send_if_modified(|current| {
            mem::replace(current, persisted_through) != persisted_through
        });
    }

    /// Waits until there is something behind `place`, and returns the entries there, at most `most`
    /// of them, with the place of the first: greater than `place + 1` when entries were evicted
    /// before anybody could look.
    ///
    /// For the one reader that follows the log, the fan-out: it alone is woken.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing.
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
            self.appended.notified().await;
        }
    }

    /// The id of the entry at `place`; at 0, of the place before everything. None where nobody
    /// remembers.
    pub(crate) fn id_at(&self, position: u64) -> Option<EventId> {
        self.state().ids.id_at(position)
    }

    /// Place of the newest entry, 0 before the first.
    pub(crate) fn newest_position(&self) -> u64 {
        self.state().ring.newest_position()
    }

    /// The newest id, if there is an entry.
    pub(crate) fn newest_id(&self) -> Option<EventId> {
        let state = self.state();
        let newest = state.ring.newest_position();
        (newest > 0).then(|| state.ids.id_at(newest)).flatten()
    }

    /// Whether there were entries before this process began: what came since the last of them is
    /// missing.
    pub(crate) fn has_prior_entries(&self) -> bool {
        self.state().has_prior_entries
    }

    /// Notes that the upstream has answered, and who gives the ids from now on. A relay begins with
    /// what came meanwhile, up to its first heartbeat.
    pub(crate) fn set_numbering(&self, numbering: Numbering) {
        let mut state = self.state();
        state.numbering = numbering;
        state.link = if numbering == Numbering::Upstream {
            UpstreamLink::Replaying
        } else {
            UpstreamLink::Live
        };
    }

    /// Notes that the connection to the upstream is lost.
    pub(crate) fn mark_upstream_disconnected(&self) {
        self.state().link = UpstreamLink::Disconnected { since: Instant::now() };
    }

    /// Whether the upstream has not answered yet.
    pub(crate) fn is_numbering_undecided(&self) -> bool {
        self.state().numbering == Numbering::Undecided
    }

    /// Notes that what comes from now on is history, until [`Log::finish_replay`] says otherwise.
    pub(crate) fn begin_recovery(&self) {
        self.history_through.store(u64::MAX, Ordering::SeqCst);
    }

    /// Notes that what the upstream repeats, history or not, has come to its end.
    pub(crate) fn finish_replay(&self) {
        self.state().link = UpstreamLink::Live;
        if self.is_recovering() {
            self.history_through.store(self.newest_position(), Ordering::SeqCst);
            self.appended.notify_one();
        }
    }

    /// Whether it has everything that it can have by now, as far as it knows: its upstream is a
    /// connector, which repeats nothing, or a relay that has come to the end of what it repeats.
    pub(crate) fn has_caught_up(&self) -> bool {
        let state = self.state();
        let is_up = match state.numbering {
            Numbering::Undecided => false,
            Numbering::Own => true,
            Numbering::Upstream => state.link == UpstreamLink::Live,
        };
        is_up && !self.is_recovering()
    }

    /// Whether a relay repeats what came while it was not connected.
    pub(crate) fn is_replaying(&self) -> bool {
        self.state().link == UpstreamLink::Replaying
    }

    /// Whether it is behind the relay that numbers it: what is ahead of it may come with the
    /// replay. From one that has been away for long, nobody knows when.
    pub(crate) fn is_behind_upstream(&self) -> bool {
        let state = self.state();
        let is_behind = match state.link {
            UpstreamLink::Disconnected { since } => since.elapsed() < UPSTREAM_OUTAGE_GRACE,
            UpstreamLink::Replaying => true,
            UpstreamLink::Live => false,
        };
        is_behind && state.numbering == Numbering::Upstream
    }

    /// Whether what comes is history.
    pub(crate) fn is_recovering(&self) -> bool {
        self.history_through() == u64::MAX
    }

    /// Entries up to this place came as history; `u64::MAX` while they still do.
    pub(crate) fn history_through(&self) -> u64 {
        self.history_through.load(Ordering::SeqCst)
    }

    /// Takes the events of a session out of memory, and returns how many of them the store does not
    /// have. Of the others, it has copies of its own.
    pub(crate) fn erase(&self, session: &SessionId) -> u64 {
        let mut state = self.state();
        let places = state.ring.erase(session);
        self.metrics.set_memory_usage(state.ring.len(), state.ring.bytes());
        let in_store = |position: &&u64| {
            state.durable.as_ref().is_some_and(|shelf| shelf.contains(**position))
        };
        (places.len() - places.iter().filter(in_store).count()) as u64
    }

    /// What it holds at this moment.
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
        // The state is whole after every statement of its own: a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LogState {
    /// The place up to which nothing waits for the store.
    fn persisted_through(&self) -> u64 {
        self.durable.as_ref().map_or(u64::MAX, |shelf| shelf.persisted_through)
    }

    /// The place before the oldest entry that can still be read.
    fn evicted_through(&self) -> u64 {
        self.durable.as_ref().map_or(self.ring.evicted_through(), |shelf| shelf.evicted_through)
    }

    /// The id of the entry behind `place`, if there is one by now.
    fn id_after(&self, position: u64) -> Option<EventId> {
        (position < self.ring.newest_position()).then(|| self.ids.id_at(position + 1)).flatten()
    }

    /// The id of the next entry of this log's own: behind one of the upstream's that one's with a
    /// suffix.
    fn next_own_id(&self, epoch: u64) -> EventId {
        let newest = self.ring.newest_position();
        match self.ids.id_at(newest).filter(|_| self.numbering == Numbering::Upstream && newest > 0)
        {
            Some(last) => EventId { suffix: last.suffix.saturating_add(1), ..last },
            None => EventId::new(epoch, newest + 1),
        }
    }
}

/// How much a log keeps in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MemoryBounds {
    /// Entries, at the most.
    pub(crate) events: usize,
    /// Bytes, at the most; one entry is kept whatever its size.
    pub(crate) bytes: u64,
}

/// How much one reading returns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReadLimits {
    /// Entries, at the most.
    pub(crate) entries: usize,
    /// Bytes after which no further entry is added; one is always returned.
    pub(crate) bytes: usize,
}

/// What a log holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogStats {
    /// Entries in memory.
    pub(crate) events: usize,
    /// Bytes in memory.
    pub(crate) bytes: u64,
    /// Entries and bytes in the store, where there is one.
    pub(crate) stored: Option<(u64, u64)>,
    /// The oldest id kept.
    pub(crate) oldest_id: Option<EventId>,
    /// The newest id ever given.
    pub(crate) newest_id: Option<EventId>,
}

/// Who gave the id of the newest entry kept, as far as that tells. An own one behind no other's has
/// its place for a sequence; an upstream's may have, too.
fn infer_numbering(newest: u64, id: Option<EventId>) -> Numbering {
    match id {
        Some(id) if newest > 0 && (id.sequence != newest || id.suffix > 0) => Numbering::Upstream,
        _ => Numbering::Undecided,
    }
}

/// How long a relay may be away before clients with ids that are ahead need not wait for it: a
/// restart, or the move to another machine.
const UPSTREAM_OUTAGE_GRACE: Duration = Duration::from_secs(60);

/// The span that begins with the first id of an epoch.
pub(crate) fn first_span_of_epoch(newest: u64, epoch: u64) -> IdSpan {
    match newest {
        0 => IdSpan { first_position: 0, first_id: EventId::new(epoch, 0) },
        newest => IdSpan { first_position: newest + 1, first_id: EventId::new(epoch, newest + 1) },
    }
}

/// Unix milliseconds, or one more than the highest epoch so far if the clock has been set back
/// since.
pub(crate) fn epoch_after(highest: u64) -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX).max(highest.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_this_log_cannot_have_given_tells_that_the_upstream_numbered_it() {
        for (newest, id, numbering) in [
            (40, "7-41", Numbering::Upstream),
            (40, "7-40.1", Numbering::Upstream),
            (40, "7-40", Numbering::Undecided),
            (0, "7-1", Numbering::Undecided),
        ] {
            assert_eq!(infer_numbering(newest, EventId::parse(id)), numbering, "{id} at {newest}");
        }
        assert_eq!(infer_numbering(40, None), Numbering::Undecided);
    }
}
