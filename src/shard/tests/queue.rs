//! What is queued for a shard, when, and for which subscribers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
};

use crate::{
    event::{Event, GapReason, ScopeKey, StartPosition},
    fanout::{FanoutHarness, MAX_QUEUED_EVENTS, QueueContents, SubscriberSignal},
    shard::index::ShardIndex,
    subscription::{Subscription, SubscriptionItem, scope},
};

/// Counts wake-ups.
#[derive(Default)]
struct ShardWakeCounter(AtomicUsize);

impl Wake for ShardWakeCounter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// Returns a shard with subscribers of these scopes, which have not been polled.
fn shard_with(
    harness: &FanoutHarness,
    scopes: &[(&[&str], &[&str])],
) -> (ShardIndex, Vec<Subscription>, Arc<ShardWakeCounter>) {
    let wakes = Arc::new(ShardWakeCounter::default());
    let mut shard_index = ShardIndex::new(&harness.fanout, 0, Waker::from(Arc::clone(&wakes)));
    let join = |(number, (sessions, kinds)): (usize, &(&[&str], &[&str]))| {
        let mut subscription =
            harness.subscribe(scope(sessions, kinds), &StartPosition::Now).subscription;
        shard_index.add(number, &mut subscription);
        subscription
    };
    let subscriptions = scopes.iter().enumerate().map(join).collect();
    (shard_index, subscriptions, wakes)
}

fn keys(events: &[Arc<Event>]) -> impl ExactSizeIterator<Item = ScopeKey<'_>> {
    events.iter().map(|event| event.scope_key())
}

fn positions(events: &[Arc<Event>]) -> Vec<u64> {
    events.iter().map(|event| event.position()).collect()
}

#[test]
fn an_event_is_queued_once_per_shard_and_only_where_a_subscriber_may_see_it() {
    let mut harness = FanoutHarness::new(100);
    let (shard_index, _subscriptions, wakes) =
        shard_with(&harness, &[(&["a"], &[]), (&["a", "b"], &["k"]), (&["c"], &["k"])]);
    for (session, kind) in [("a", "k"), ("b", "x"), ("d", "k"), ("", "k"), ("c", "k")] {
        harness.append(session, kind);
    }
    harness.dispatch_all();
    harness.append("a", "x");
    harness.dispatch_all();
    assert_eq!(wakes.0.load(SeqCst), 1, "woken once until the queue is taken");
    assert_eq!(shard_index.position(), None, "the queue is not empty");
    let mut events = Vec::new();
    assert_eq!(shard_index.take_queued(&mut events), QueueContents::Events);
    // The second is queued because the shard has a subscriber of its session, though not of its
    // kind.
    assert_eq!(positions(&events), [1, 2, 5, 6]);
    let mut interested = vec![Vec::new(); events.len()];
    shard_index.for_each_interested(keys(&events), |at, key| interested[at].push(key));
    interested.iter_mut().for_each(|numbers| numbers.sort_unstable());
    assert_eq!(interested, [vec![0, 1], vec![], vec![2], vec![0]]);
    assert_eq!(shard_index.position(), Some(6));
    harness.append("a", "x");
    harness.dispatch_all();
    assert_eq!(wakes.0.load(SeqCst), 2);
}

#[test]
fn a_burst_visits_a_subscriber_once_per_session_and_kind_not_once_per_event() {
    let mut harness = FanoutHarness::new(10_000);
    let scopes: [(&[&str], &[&str]); 5] =
        [(&[], &[]), (&["a"], &[]), (&["a"], &["l"]), (&[], &["k"]), (&["a", "b"], &["k", "l"])];
    let (shard_index, _subscriptions, _) = shard_with(&harness, &scopes);
    for _ in 0..100 {
        for (session, kind) in [("c", "k"), ("a", "k"), ("b", "k"), ("a", "l")] {
            harness.append(session, kind);
        }
    }
    harness.dispatch_all();
    let mut events = Vec::new();
    assert_eq!(shard_index.take_queued(&mut events), QueueContents::Events);
    assert_eq!(events.len(), 400);
    let mut visits = Vec::new();
    shard_index.for_each_interested(keys(&events), |at, key| visits.push((key, at)));
    visits.sort_unstable();
    // Each with its first event, and at most once for each session and kind.
    assert_eq!(visits, [(0, 0), (1, 1), (1, 3), (2, 3), (3, 0), (4, 1), (4, 2), (4, 3)]);
}

#[test]
fn a_burst_finds_every_subscriber_that_one_of_its_events_is_for_whatever_limits_it_has() {
    let mut harness = FanoutHarness::new(10_000);
    let scopes: [(&[&str], &[&str]); 6] = [
        (&["/u"], &[]),
        (&["/u"], &["l"]),
        (&["a", "/u"], &[]),
        (&["a", "/v"], &["k"]),
        (&["/w"], &[]),
        (&["/u", "/v"], &[]),
    ];
    let (shard_index, _subscriptions, _) = shard_with(&harness, &scopes);
    for _ in 0..50 {
        for (session, kind) in [("a", "k"), ("b/u", "k"), ("a/v", "l"), ("a/u", "k"), ("a/v", "k")]
        {
            harness.append(session, kind);
        }
    }
    harness.dispatch_all();
    let mut events = Vec::new();
    assert_eq!(shard_index.take_queued(&mut events), QueueContents::Events);
    let mut visits = Vec::new();
    shard_index.for_each_interested(keys(&events), |at, key| visits.push((key, at)));
    visits.sort_unstable();
    assert_eq!(visits, [(0, 1), (2, 3), (3, 4), (5, 1), (5, 2), (5, 4)]);
}

#[test]
fn when_a_shard_queue_overflows_only_matching_subscribers_of_users_resync() {
    let mut harness = FanoutHarness::new(100_000);
    let (shard_index, _subscriptions, _) =
        shard_with(&harness, &[(&["/u"], &[]), (&["/quiet"], &[]), (&["a", "/v"], &[])]);
    (0..=MAX_QUEUED_EVENTS).for_each(|_| harness.append("a/u", "k"));
    harness.append("a/v", "k");
    harness.dispatch_all();
    let QueueContents::Marks(marks) = shard_index.take_queued(&mut Vec::new()) else {
        panic!("the queue must have overflowed")
    };
    let mut resyncs = Vec::new();
    let mark_keys = marks.iter().map(|mark| mark.scope_key());
    shard_index.for_each_interested(mark_keys, |at, key| resyncs.push((key, marks[at].position)));
    resyncs.sort_unstable();
    assert_eq!(resyncs, [(0, 1), (2, MAX_QUEUED_EVENTS as u64 + 2)]);
}

#[test]
fn when_a_shard_queue_overflows_only_matching_subscribers_resync_from_their_first_event() {
    let mut harness = FanoutHarness::new(100_000);
    let (shard_index, _subscriptions, _) =
        shard_with(&harness, &[(&["a"], &[]), (&["b"], &[]), (&["quiet"], &[]), (&[], &["x"])]);
    harness.append("nobody's", "k");
    (0..MAX_QUEUED_EVENTS).for_each(|_| harness.append("a", "k"));
    harness.append("b", "k");
    harness.append("b", "x");
    harness.append("a", "k");
    harness.dispatch_all();
    assert_eq!(shard_index.position(), None);
    let mut events = Vec::new();
    let QueueContents::Marks(marks) = shard_index.take_queued(&mut events) else {
        panic!("the queue must have overflowed")
    };
    assert!(events.is_empty());
    let most = MAX_QUEUED_EVENTS as u64;
    let mut resyncs = Vec::new();
    let mark_keys = marks.iter().map(|mark| mark.scope_key());
    shard_index.for_each_interested(mark_keys, |at, key| resyncs.push((key, marks[at].position)));
    resyncs.sort_unstable();
    assert_eq!(resyncs, [(0, 2), (1, most + 2), (1, most + 3), (3, most + 3)]);
    harness.append("a", "x");
    harness.dispatch_all();
    assert_eq!(
        shard_index.take_queued(&mut events),
        QueueContents::Events,
        "events are queued again"
    );
    assert_eq!(positions(&events), [most + 5]);
}

#[test]
fn more_sessions_than_can_be_marked_make_every_subscriber_resync() {
    let mut harness = FanoutHarness::new(100_000);
    let (shard_index, _subscriptions, _) = shard_with(&harness, &[(&[], &[])]);
    harness.append("a", "k");
    (0..2 * MAX_QUEUED_EVENTS).for_each(|number| harness.append(&format!("s{number}"), "k"));
    harness.dispatch_all();
    assert_eq!(shard_index.take_queued(&mut Vec::new()), QueueContents::Overflowed(1));
}

#[test]
fn a_gap_makes_every_subscriber_resync_from_the_first_queued_entry() {
    let mut harness = FanoutHarness::new(100);
    let (shard_index, _subscriptions, _) = shard_with(&harness, &[(&["a"], &[])]);
    harness.append("b", "k");
    harness.append("a", "k");
    harness.fanout.log().append_gap(GapReason::UpstreamReconnect);
    harness.dispatch_all();
    assert_eq!(shard_index.take_queued(&mut Vec::new()), QueueContents::Overflowed(2));
}

#[test]
fn a_pending_position_from_before_a_shard_took_over_is_cleared() {
    let mut harness = FanoutHarness::new(100);
    harness.append("a", "k");
    harness.dispatch_all();
    let mut shard_index = ShardIndex::new(&harness.fanout, 0, Waker::noop().clone());
    let signal = SubscriberSignal::default();
    let mut subscription = Subscription::start(
        &harness.fanout,
        signal.clone(),
        scope(&[], &[]),
        &StartPosition::Oldest,
    );
    harness.append("a", "k");
    harness.dispatch_all();
    assert_eq!(signal.pending_position(), Some(2));
    shard_index.add(0, &mut subscription);
    assert_eq!(
        signal.pending_position(),
        None,
        "operators would see a subscriber that takes nothing"
    );
}

#[test]
fn a_subscriber_removed_from_a_shard_leaves_no_state_and_the_others_continue() {
    let mut harness = FanoutHarness::new(100);
    let scopes: [(&[&str], &[&str]); 6] = [
        (&["a"], &[]),
        (&["a"], &["k"]),
        (&[], &["k"]),
        (&[], &["k", "l"]),
        (&[], &[]),
        (&[], &[]),
    ];
    let (mut shard_index, subscriptions, _) = shard_with(&harness, &scopes);
    let mut events = Vec::new();
    for (number, subscription) in subscriptions.iter().enumerate() {
        harness.append("a", "k");
        harness.dispatch_all();
        events.clear();
        assert_eq!(shard_index.take_queued(&mut events), QueueContents::Events);
        let mut interested = Vec::new();
        shard_index.for_each_interested(keys(&events), |_, key| interested.push(key));
        interested.sort_unstable();
        assert_eq!(interested, (number..scopes.len()).collect::<Vec<_>>());
        shard_index.remove(number, subscription.scope());
    }
    harness.append("a", "k");
    harness.dispatch_all();
    assert_eq!(
        shard_index.position(),
        Some(scopes.len() as u64 + 1),
        "nothing is queued where no subscriber is left"
    );
    assert!(!harness.fanout.has_shards());
    assert!(!harness.fanout.has_signals());
}

#[test]
fn a_subscriber_that_reads_late_has_no_gap_when_others_events_have_been_evicted() {
    let mut harness = FanoutHarness::new(16);
    let (shard_index, mut subscriptions, _) = shard_with(&harness, &[(&["a"], &[])]);
    let subscription = &mut subscriptions[0];
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..3 {
        for _ in 0..100 {
            harness.append("b", "x");
            harness.dispatch_all();
        }
        harness.append("a", "x");
        harness.dispatch_all();
        let mut events = Vec::new();
        shard_index.take_queued(&mut events);
        subscription.resync_from(events[0].position());
        match subscription.poll_next(&mut context) {
            Poll::Ready(SubscriptionItem::Event { event, .. }) => {
                assert_eq!(event.position(), events[0].position());
            }
            other => panic!("not its event: {other:?}"),
        }
        assert!(subscription.poll_next(&mut context).is_pending());
    }
}
