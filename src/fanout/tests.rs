//! The seam between catching up and following, against a model: every subscriber sees precisely
//! what its scope admits.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use bytes::Bytes;
use proptest::prelude::*;
use tokio::time::Instant;

use super::*;
use crate::{
    event::{Draft, Event, EventId, Gap, GapReason, Kind, Only, ProductId, SessionId},
    log::{MemoryBounds, Numbering},
    metrics::Metrics,
};

/// A fan-out whose task the test runs by hand.
pub(super) struct FanoutHarness {
    pub(super) fanout: Arc<Fanout>,
    position: u64,
}

impl FanoutHarness {
    pub(super) fn new(ring_events: usize) -> Self {
        let product = ProductId::new("p").unwrap();
        let metrics = Metrics::new().unwrap().log(&product);
        let log = Log::new(product, MemoryBounds { events: ring_events, bytes: u64::MAX }, metrics);
        log.set_numbering(Numbering::Own);
        Self { fanout: Arc::new(Fanout::new(Arc::new(log), 1)), position: 0 }
    }

    pub(super) fn append(&self, session: &str, kind: &str) {
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

    /// What the task does for one batch.
    fn dispatch(&mut self) {
        let tail = self.fanout.log().tail(self.position, DISPATCH_BATCH_ENTRIES);
        let mut tail = std::pin::pin!(tail);
        let mut context = Context::from_waker(Waker::noop());
        if let Poll::Ready((first, entries)) = tail.as_mut().poll(&mut context) {
            self.position = self.fanout.dispatch(self.position, first, &entries);
        }
    }

    pub(super) fn dispatch_all(&mut self) {
        loop {
            let before = self.position;
            self.dispatch();
            if self.position == before {
                return;
            }
        }
    }

    pub(super) fn subscribe(&self, scope: Scope, start: &StartPosition) -> FanoutReader {
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

/// A subscriber, and what it has seen: places of events, and gap notices.
pub(super) struct FanoutReader {
    pub(super) subscription: Subscription,
    wake_counter: Arc<FanoutWakeCounter>,
    seen: Vec<Result<u64, Gap>>,
    is_on_shard: bool,
    is_following: bool,
}

impl FanoutReader {
    fn resync_from(&mut self, position: u64) {
        self.is_following = false;
        self.subscription.resync_from(position);
    }

    /// Takes at most `most` items.
    fn read(&mut self, max_items: usize) {
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

    fn events(&self) -> Vec<u64> {
        self.seen.iter().filter_map(|item| item.as_ref().ok().copied()).collect()
    }

    fn gaps(&self) -> Vec<&Gap> {
        self.seen.iter().filter_map(|item| item.as_ref().err()).collect()
    }

    fn wakes(&self) -> usize {
        self.wake_counter.0.load(SeqCst)
    }
}

pub(super) fn scope(sessions: &[&str], kinds: &[&str]) -> Scope {
    let sessions: BTreeSet<_> =
        sessions.iter().map(|session| SessionId::new(session).unwrap()).collect();
    let kinds: BTreeSet<_> = kinds.iter().map(|kind| Kind::new(kind)).collect();
    Scope {
        sessions: if sessions.is_empty() { Only::Everything } else { Only::These(sessions) },
        kinds: if kinds.is_empty() { Only::Everything } else { Only::These(kinds) },
    }
}

#[test]
fn an_event_wakes_its_receivers_once_and_nobody_else() {
    let mut harness = FanoutHarness::new(100);
    let mut all = harness.subscribe(scope(&[], &[]), &StartPosition::Now);
    let mut mine = harness.subscribe(scope(&["a"], &[]), &StartPosition::Now);
    let mut of_kind = harness.subscribe(scope(&[], &["k"]), &StartPosition::Now);
    let mut both = harness.subscribe(scope(&["a", "b"], &["k"]), &StartPosition::Now);
    for reader in [&mut all, &mut mine, &mut of_kind, &mut both] {
        reader.read(9);
    }
    harness.append("c", "x");
    harness.append("", "x");
    harness.append("a", "x");
    harness.append("b", "k");
    harness.append("b", "k");
    harness.dispatch_all();
    let readers = [&mut all, &mut mine, &mut of_kind, &mut both];
    assert_eq!(readers.map(|reader| reader.wakes()), [1, 1, 1, 1]);
    for reader in [&mut all, &mut mine, &mut of_kind, &mut both] {
        reader.read(9);
    }
    assert_eq!(all.events(), [1, 2, 3, 4, 5]);
    assert_eq!(mine.events(), [3]);
    assert_eq!((of_kind.events(), both.events()), (vec![4, 5], vec![4, 5]));
    harness.append("c", "x");
    harness.dispatch_all();
    assert_eq!(
        [mine.wakes(), of_kind.wakes(), both.wakes()],
        [1, 1, 1],
        "others' events wake nobody"
    );
    assert_eq!(all.wakes(), 2);
}

#[test]
fn ten_thousand_listeners_to_other_sessions_are_not_even_looked_at() {
    let harness = FanoutHarness::new(100);
    let readers: Vec<_> = (0..10_000)
        .map(|number| harness.subscribe(scope(&[&format!("s{number}")], &[]), &StartPosition::Now))
        .collect();
    harness.append("s7", "x");
    let mut visited = 0;
    let (_, entries) = {
        let log = harness.fanout.log();
        let tail = std::pin::pin!(log.tail(0, 9));
        match tail.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(tail) => tail,
            Poll::Pending => panic!("something was appended"),
        }
    };
    let Entry::Event(event) = &entries[0] else { panic!("an event was appended") };
    let (session, kind) = (event.session(), event.kind());
    harness.fanout.registry().subscribers.for_each_match(
        session,
        kind,
        BucketFilter::ALL,
        |_, _| visited += 1,
    );
    assert_eq!(visited, 1);
    drop(readers);
    assert!(harness.fanout.registry().subscribers.is_empty(), "who leaves leaves nothing behind");
}

#[test]
fn an_idle_session_subscriber_gets_no_gap_when_others_events_are_evicted() {
    let mut harness = FanoutHarness::new(16);
    let mut reader = harness.subscribe(scope(&["a"], &[]), &StartPosition::Now);
    reader.read(9);
    for _ in 0..100 {
        harness.append("b", "x");
        harness.dispatch_all();
    }
    harness.append("a", "x");
    harness.dispatch_all();
    reader.read(9);
    assert_eq!((reader.events(), reader.gaps().len()), (vec![101], 0));
}

#[test]
fn a_subscriber_that_was_not_looking_while_its_events_were_evicted_is_told() {
    let mut harness = FanoutHarness::new(16);
    let mut reader = harness.subscribe(scope(&["a"], &[]), &StartPosition::Now);
    reader.read(9);
    harness.append("a", "x");
    harness.dispatch_all();
    reader.read(9);
    harness.append("b", "x");
    harness.append("a", "x"); // at 3, never read
    for _ in 0..40 {
        harness.append("b", "x");
        harness.dispatch_all();
    }
    harness.append("a", "x");
    harness.dispatch_all();
    reader.read(9);
    assert_eq!(reader.events(), [1, 44]);
    let gap = reader.gaps()[0];
    assert_eq!((reader.gaps().len(), gap.reason), (1, GapReason::Evicted));
    let log = harness.fanout.log();
    assert_eq!((gap.id, gap.before), (log.id_at(28).unwrap(), log.id_at(29)));
    assert_eq!(
        gap.after.as_deref(),
        Some(&*log.id_at(1).unwrap().to_string()),
        "the last id it has"
    );
}

#[test]
fn what_was_evicted_before_the_fanout_could_look_is_announced_to_those_it_concerns() {
    let mut harness = FanoutHarness::new(16);
    let mut all = harness.subscribe(scope(&[], &[]), &StartPosition::Now);
    let mut mine = harness.subscribe(scope(&["a"], &[]), &StartPosition::Now);
    harness.append("b", "x");
    harness.append("a", "x");
    harness.dispatch_all();
    all.read(9);
    mine.read(9);
    for _ in 0..20 {
        harness.append("a", "x");
        harness.append("b", "x");
    }
    harness.dispatch_all();
    for reader in [&mut all, &mut mine] {
        reader.read(99);
        assert_eq!(reader.gaps().len(), 1);
        assert_eq!(reader.gaps()[0].before, harness.fanout.log().id_at(27));
    }
    assert_eq!(all.events(), [1, 2].into_iter().chain(27..=42).collect::<Vec<_>>());
    assert_eq!(mine.events().len(), 1 + 8);
}

#[test]
fn ids_that_are_not_of_this_log_are_answered_by_a_notice_and_everything_kept() {
    let mut harness = FanoutHarness::new(16);
    for _ in 0..20 {
        harness.append("a", "x");
    }
    harness.dispatch_all();
    let log = harness.fanout.log();
    let epoch = log.id_at(0).unwrap().epoch;
    let foreign = EventId::new(epoch - 1, 7);
    let future = EventId::new(epoch, 21);
    for (start, after) in [
        (StartPosition::After(foreign), Some(foreign.to_string())),
        (StartPosition::After(future), Some(future.to_string())),
        (StartPosition::Malformed, None),
    ] {
        let mut reader = harness.subscribe(scope(&[], &[]), &start);
        reader.read(99);
        let gap = reader.gaps()[0];
        assert_eq!((reader.gaps().len(), gap.reason), (1, GapReason::UnknownId));
        assert_eq!(gap.after.as_deref(), after.as_deref());
        assert_eq!((gap.id, gap.before), (log.id_at(4).unwrap(), log.id_at(5)));
        assert_eq!(reader.events(), (5..=20).collect::<Vec<_>>());
    }
    let mut oldest = harness.subscribe(scope(&[], &[]), &StartPosition::Oldest);
    harness.append("a", "x"); // evicts one more before the first look
    oldest.read(99);
    assert_eq!((oldest.gaps().len(), oldest.events()), (0, (6..=21).collect()));
}

#[test]
fn a_stalled_subscriber_holds_one_handover_and_nobody_waits_for_it() {
    let mut harness = FanoutHarness::new(100_000);
    let mut stalled = harness.subscribe(scope(&[], &[]), &StartPosition::Now);
    let mut other = harness.subscribe(scope(&[], &[]), &StartPosition::Now);
    for round in 0..500 {
        // Appending and showing are plain calls: there is nothing in them that could wait for a
        // subscriber.
        (0..20).for_each(|_| harness.append(&"s".repeat(1000), "x"));
        harness.dispatch_all();
        other.read(20);
        assert_eq!(other.events().len(), (round + 1) * 20);
        stalled.read(usize::from(round == 0)); // one event, and then no more
        let held = stalled.subscription.buffered();
        assert!(held.0 <= 16 && held.1 <= 32 * 1024, "{held:?}");
    }
    assert_eq!(stalled.wakes(), 1, "marked once, and not again until it looks");
    stalled.read(usize::MAX);
    assert_eq!((stalled.events().len(), stalled.gaps().len()), (10_000, 0));
}

#[test]
fn the_position_moves_with_what_the_scope_hides() {
    let mut harness = FanoutHarness::new(16);
    let mut reader = harness.subscribe(scope(&["a"], &[]), &StartPosition::Now);
    harness.append("b", "x");
    harness.append("b", "x");
    reader.read(9);
    assert_eq!(reader.subscription.advance_last_id(), None, "not shown yet");
    harness.dispatch_all();
    reader.read(9);
    assert_eq!(reader.subscription.advance_last_id(), harness.fanout.log().id_at(2));
    assert_eq!(reader.subscription.advance_last_id(), None, "told once");
}

#[test]
fn who_asked_for_what_is_kept_is_told_of_what_it_lost_since() {
    let mut harness = FanoutHarness::new(16);
    let mut reader = harness.subscribe(scope(&[], &[]), &StartPosition::Oldest);
    for _ in 0..100 {
        harness.append("a", "x");
    }
    harness.dispatch_all();
    reader.read(99);
    assert_eq!((reader.gaps().len(), reader.events()), (1, (85..=100).collect()));
    assert_eq!(reader.gaps()[0].after, None);
}

#[test]
fn a_resume_from_before_everything_names_the_id_it_came_with() {
    let mut harness = FanoutHarness::new(16);
    let before_everything = harness.fanout.log().id_at(0).unwrap();
    for _ in 0..20 {
        harness.append("a", "x");
    }
    harness.dispatch_all();
    let mut reader = harness.subscribe(scope(&[], &[]), &StartPosition::After(before_everything));
    reader.read(99);
    assert_eq!(reader.gaps()[0].after.as_deref(), Some(&*before_everything.to_string()));
}

/// Seconds until one whose id does not come is told so; none if it is still waiting after five
/// minutes.
async fn seconds_until_gap(harness: &FanoutHarness) -> Option<u32> {
    let mut reader = harness.subscribe(scope(&[], &[]), &StartPosition::After(EventId::new(1, 1)));
    for seconds in 0..300 {
        reader.read(1);
        if !reader.seen.is_empty() {
            assert_eq!(reader.gaps()[0].reason, GapReason::UnknownId);
            return Some(seconds);
        }
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    None
}

#[tokio::test(start_paused = true)]
async fn who_is_ahead_waits_for_a_replay_and_for_a_relay_that_is_not_away_for_long() {
    let harness = FanoutHarness::new(16);
    let log = harness.fanout.log();
    assert_eq!(seconds_until_gap(&harness).await, Some(0), "behind a connector nothing comes");
    log.set_numbering(Numbering::Upstream);
    assert_eq!(seconds_until_gap(&harness).await, None, "as long as the relay repeats");
    log.finish_replay();
    assert_eq!(seconds_until_gap(&harness).await, Some(5));
    log.mark_upstream_disconnected();
    assert!(!log.is_recovering(), "what comes afterwards is news");
    let until = seconds_until_gap(&harness).await.unwrap();
    assert!((60..=66).contains(&until), "{until}");
    assert_eq!(seconds_until_gap(&harness).await, Some(5), "it has been away for long");
    log.set_numbering(Numbering::Upstream);
    assert!(!log.has_caught_up() && seconds_until_gap(&harness).await.is_none());
    log.mark_upstream_disconnected();
    log.set_numbering(Numbering::Own);
    assert_eq!(seconds_until_gap(&harness).await, Some(0), "a connector again");
}

/// One step of a random schedule.
#[derive(Clone, Debug)]
enum FanoutStep {
    Append { session: usize, kind: usize },
    Gap,
    Dispatch,
    Subscribe { sessions: Vec<usize>, kinds: Vec<usize>, back: Option<u64> },
    Read { reader: usize, max_items: usize },
    Join(usize),
    DeliverQueued(Vec<usize>),
}

fn step() -> impl Strategy<Value = FanoutStep> {
    let few = |max_items| proptest::collection::vec(0_usize..max_items, 0..3);
    prop_oneof![
        8 => (0_usize..5, 0_usize..3).prop_map(|(session, kind)| FanoutStep::Append { session, kind }),
        1 => Just(FanoutStep::Gap),
        4 => Just(FanoutStep::Dispatch),
        2 => (few(5), few(3), proptest::option::of(0_u64..40))
            .prop_map(|(sessions, kinds, back)| FanoutStep::Subscribe { sessions, kinds, back }),
        2 => (0_usize..8).prop_map(FanoutStep::Join),
        4 => few(8).prop_map(FanoutStep::DeliverQueued),
        6 => (0_usize..8, 1_usize..40).prop_map(|(reader, max_items)| FanoutStep::Read { reader, max_items }),
    ]
}

/// What a model reader expects: where it began, what it may see.
struct Expectation {
    reader: FanoutReader,
    scope: Scope,
    after: u64,
}

/// What a lane's task does, as far as the fan-out is concerned.
struct FanoutShardHarness {
    shard_index: ShardIndex,
    queued: Vec<Arc<Event>>,
}

impl FanoutShardHarness {
    fn new(fanout: &Arc<Fanout>) -> Self {
        Self { shard_index: ShardIndex::new(fanout, 0, Waker::noop().clone()), queued: Vec::new() }
    }

    fn join(&mut self, number: usize, reader: &mut FanoutReader) {
        if !reader.is_on_shard {
            reader.is_on_shard = true;
            self.shard_index.add(number, &mut reader.subscription);
        }
    }

    fn read(&self, reader: &mut FanoutReader, max_items: usize) {
        if let Some(position) = self.shard_index.position().filter(|_| reader.is_on_shard) {
            reader.subscription.advance_to(position);
        }
        reader.read(max_items);
        reader.is_following = reader.is_on_shard && reader.subscription.is_caught_up();
    }

    /// Gives what has arrived to those who follow; `stuck` are those who cannot take anything now.
    fn deliver_queued(&mut self, readers: &mut [Expectation], stuck: &[usize]) {
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

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// delivered + announced = sent: whatever a scope admits and is not seen lies in a range that a
    /// gap announces, order is kept, nothing comes twice, and nothing that the scope hides is seen;
    /// to a lane's followers as to others.
    #[test]
    fn a_resume_seam_has_no_hole_and_no_duplicate(steps in proptest::collection::vec(step(), 1..300)) {
        let sessions = ["", "a", "b", "c", "d"];
        let kinds = ["actions", "summary", "x"];
        let mut harness = FanoutHarness::new(24);
        let mut entries: Vec<Option<(usize, usize)>> = Vec::new(); // none is a gap
        let mut readers: Vec<Expectation> = Vec::new();
        let mut shard = FanoutShardHarness::new(&harness.fanout);
        for step in steps {
            match step {
                FanoutStep::Append { session, kind } => {
                    harness.append(sessions[session], kinds[kind]);
                    entries.push(Some((session, kind)));
                }
                FanoutStep::Gap => {
                    harness.fanout.log().append_gap(GapReason::UpstreamReconnect);
                    entries.push(None);
                }
                FanoutStep::Dispatch => harness.dispatch(),
                FanoutStep::Subscribe { sessions: of, kinds: only, back } => {
                    let of: Vec<_> = of.into_iter().filter(|of| *of > 0).map(|of| sessions[of]).collect();
                    let only: Vec<_> = only.into_iter().map(|only| kinds[only]).collect();
                    let scope = scope(&of, &only);
                    let (start, after) = match back {
                        Some(back) => {
                            let sequence = (entries.len() as u64).saturating_sub(back);
                            (StartPosition::After(harness.fanout.log().id_at(sequence).unwrap()), sequence)
                        }
                        None => (StartPosition::Now, harness.position),
                    };
                    readers.push(Expectation { reader: harness.subscribe(scope.clone(), &start), scope, after });
                }
                FanoutStep::Read { reader, max_items } => {
                    if let Some(expectation) = readers.get_mut(reader) {
                        shard.read(&mut expectation.reader, max_items);
                    }
                }
                FanoutStep::Join(number) => {
                    if let Some(expectation) = readers.get_mut(number) {
                        shard.join(number, &mut expectation.reader);
                    }
                }
                FanoutStep::DeliverQueued(stuck) => shard.deliver_queued(&mut readers, &stuck),
            }
        }
        harness.dispatch_all();
        shard.deliver_queued(&mut readers, &[]);
        for Expectation { mut reader, scope, after } in readers {
            // the first time it comes to its end
            (0..2).for_each(|_| shard.read(&mut reader, 1000));
            let mut covered = after;
            for item in &reader.seen {
                let (from, to, announced) = match item {
                    Ok(sequence) => (*sequence, *sequence, false),
                    Err(gap) if gap.reason == GapReason::Evicted => (covered + 1, gap.position, true),
                    Err(gap) => (gap.position, gap.position, false),
                };
                prop_assert!(from > covered, "in order, none twice");
                prop_assert!(announced || (covered + 1..from).all(|hidden| !admits(&scope, &entries, hidden, &sessions, &kinds)));
                prop_assert!(announced || admits(&scope, &entries, to, &sessions, &kinds));
                covered = to;
            }
            let rest = covered + 1..=entries.len() as u64;
            prop_assert!(rest.into_iter().all(|hidden| !admits(&scope, &entries, hidden, &sessions, &kinds)), "to the end");
            prop_assert!(reader.subscription.has_passed(entries.len() as u64));
        }
    }
}

fn admits(
    scope: &Scope,
    entries: &[Option<(usize, usize)>],
    at: u64,
    sessions: &[&str],
    kinds: &[&str],
) -> bool {
    let Some((session, kind)) = entries[at as usize - 1] else {
        return true;
    };
    let session = match &scope.sessions {
        Only::Everything => true,
        Only::These(wanted) => {
            SessionId::new(sessions[session]).is_ok_and(|session| wanted.contains(&session))
        }
    };
    session && scope.kinds.admits(&Kind::new(kinds[kind]))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever is appended, shown and read in between: what comes is what the filter of the moment
    /// admits, in order, once; for one that its lane tells what arrives as for others.
    #[test]
    fn a_scope_that_changes_loses_and_repeats_nothing(
        steps in prop::collection::vec((0_u8..7, 0_usize..4), 1..80),
        is_on_shard in any::<bool>(),
    ) {
        let scopes = [scope(&["a"], &[]), scope(&["a", "b"], &[]), scope(&[], &["k"]), scope(&[], &[])];
        let kinds = [("a", "k"), ("b", "k"), ("a", "x"), ("c", "x")];
        let mut harness = FanoutHarness::new(1000);
        let (reader, scope) = (harness.subscribe(scopes[0].clone(), &StartPosition::Now), scopes[0].clone());
        let (mut readers, mut shard) = ([Expectation { reader, scope, after: 0 }], FanoutShardHarness::new(&harness.fanout));
        if is_on_shard {
            shard.join(0, &mut readers[0].reader);
        }
        let (mut appended, mut current, mut expected, mut from) = (Vec::new(), 0, Vec::new(), 0);
        let due = |appended: &[(&str, &str)], scope: &Scope, from: u64| -> Vec<u64> {
            let positions = (1_u64..).zip(appended).filter(|(position, _)| *position > from);
            let admits = |session: &str, kind: &str| {
                let session = matches!(&scope.sessions, Only::Everything)
                    || scope.sessions.admits(&SessionId::new(session).unwrap());
                session && scope.kinds.admits(&Kind::new(kind))
            };
            positions.filter(|(_, (session, kind))| admits(session, kind)).map(|(position, _)| position).collect()
        };
        for (step, which) in steps {
            match step {
                0 | 1 => {
                    appended.push(kinds[which]);
                    harness.append(kinds[which].0, kinds[which].1);
                }
                2 => harness.dispatch(),
                3 => shard.read(&mut readers[0].reader, which),
                4 => shard.deliver_queued(&mut readers, &[]),
                5 => shard.deliver_queued(&mut readers, &[0]),
                _ => {
                    let reader = &mut readers[0].reader;
                    // What the old scope had still to give is judged by the new one.
                    let returned_through = reader.subscription.returned_through();
                    let given = due(&appended, &scopes[current], from).into_iter().filter(|position| *position <= returned_through);
                    expected.extend(given);
                    prop_assert_eq!(&reader.events(), &expected);
                    from = returned_through;
                    current = which;
                    reader.is_following = false;
                    match is_on_shard {
                        true => shard.shard_index.change_scope(0, &mut reader.subscription, scopes[which].clone()),
                        false => reader.subscription.change_scope(scopes[which].clone()),
                    }
                }
            }
        }
        harness.dispatch_all();
        shard.deliver_queued(&mut readers, &[]);
        let [Expectation { mut reader, .. }] = readers;
        // the first time it comes to its end
        (0..2).for_each(|_| shard.read(&mut reader, usize::MAX));
        expected.extend(due(&appended, &scopes[current], from));
        prop_assert_eq!(reader.events(), expected);
        drop(reader);
        prop_assert!(harness.fanout.registry().subscribers.is_empty());
    }
}
