//! What is left for a lane, when, and for whom.

use std::{
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    task::{Context, Poll, Wake},
};

use super::*;
use crate::{
    event::Start,
    fanout::{
        Item,
        tests::{Stage, scope},
    },
};

/// Counts calls.
#[derive(Default)]
struct Calls(AtomicUsize);

impl Wake for Calls {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// A lane with followers of these scopes, which have been polled.
fn lane(stage: &Stage, scopes: &[(&[&str], &[&str])]) -> (Followers, Vec<Subscription>, Arc<Calls>) {
    let calls = Arc::new(Calls::default());
    let mut followers = Followers::new(&stage.fanout, 0, Waker::from(Arc::clone(&calls)));
    let join = |(number, (sessions, kinds)): (usize, &(&[&str], &[&str]))| {
        let mut subscription = stage.subscribe(scope(sessions, kinds), &Start::Now).subscription;
        followers.join(number, &mut subscription);
        subscription
    };
    let subscriptions = scopes.iter().enumerate().map(join).collect();
    (followers, subscriptions, calls)
}

fn places(events: &[Arc<Event>]) -> Vec<u64> {
    events.iter().map(|event| event.place()).collect()
}

#[test]
fn an_event_is_left_once_for_all_whom_it_concerns_and_not_where_it_concerns_nobody() {
    let mut stage = Stage::new(100);
    let (followers, _subscriptions, calls) = lane(&stage, &[(&["a"], &[]), (&["a", "b"], &["k"]), (&["c"], &["k"])]);
    for (session, kind) in [("a", "k"), ("b", "x"), ("d", "k"), ("", "k"), ("c", "k")] {
        stage.append(session, kind);
    }
    stage.show_all();
    stage.append("a", "x");
    stage.show_all();
    assert_eq!(calls.0.load(SeqCst), 1, "called once until it looks");
    assert_eq!(followers.position(), None, "something waits");
    let mut events = Vec::new();
    assert_eq!(followers.take(&mut events), None);
    // The second is for a lane that listens to its session, though nobody there wants its kind.
    assert_eq!(places(&events), [1, 2, 5, 6]);
    let concerned = events.iter().map(|event| {
        let mut numbers = Vec::new();
        followers.concerned(event, |number| numbers.push(number));
        numbers.sort_unstable();
        numbers
    });
    assert_eq!(concerned.collect::<Vec<_>>(), [vec![0, 1], vec![], vec![2], vec![0]]);
    assert_eq!(followers.position(), Some(6));
    stage.append("a", "x");
    stage.show_all();
    assert_eq!(calls.0.load(SeqCst), 2);
}

#[test]
fn more_than_is_kept_for_a_lane_is_in_the_log_from_the_first_of_it() {
    let mut stage = Stage::new(100_000);
    let (followers, _subscriptions, _) = lane(&stage, &[(&["a"], &[])]);
    stage.append("b", "x");
    (0..MOST_EVENTS + 1).for_each(|_| stage.append("a", "x"));
    stage.show_all();
    let mut events = Vec::new();
    assert_eq!(followers.position(), None);
    assert_eq!(followers.take(&mut events), Some(2));
    assert!(events.is_empty());
    stage.append("a", "x");
    stage.show_all();
    assert_eq!(followers.take(&mut events), None, "from then on it is as before");
    assert_eq!(places(&events), [MOST_EVENTS as u64 + 3]);
}

#[test]
fn who_leaves_a_lane_leaves_nothing_behind_and_the_others_go_on() {
    let mut stage = Stage::new(100);
    let scopes: [(&[&str], &[&str]); 6] =
        [(&["a"], &[]), (&["a"], &["k"]), (&[], &["k"]), (&[], &["k", "l"]), (&[], &[]), (&[], &[])];
    let (mut followers, subscriptions, _) = lane(&stage, &scopes);
    let mut events = Vec::new();
    for (number, subscription) in subscriptions.iter().enumerate() {
        stage.append("a", "k");
        stage.show_all();
        events.clear();
        assert_eq!(followers.take(&mut events), None);
        let mut concerned = Vec::new();
        followers.concerned(&events[0], |number| concerned.push(number));
        concerned.sort_unstable();
        assert_eq!(concerned, (number..scopes.len()).collect::<Vec<_>>());
        followers.leave(number, subscription.scope());
    }
    stage.append("a", "k");
    stage.show_all();
    assert_eq!(followers.position(), Some(scopes.len() as u64 + 1), "nothing is left where nobody listens");
    let audience = stage.fanout.audience();
    let interests = &audience.interests;
    assert!(interests.sessions.is_empty() && interests.kinds.is_empty() && interests.everything == 0);
    assert!(audience.listeners.is_empty());
}

#[test]
fn who_looks_into_the_log_late_has_no_gap_when_others_events_have_been_evicted() {
    let mut stage = Stage::new(16);
    let (followers, mut subscriptions, _) = lane(&stage, &[(&["a"], &[])]);
    let subscription = &mut subscriptions[0];
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..3 {
        for _ in 0..100 {
            stage.append("b", "x");
            stage.show_all();
        }
        stage.append("a", "x");
        stage.show_all();
        let mut events = Vec::new();
        followers.take(&mut events);
        subscription.look_into_the_log(events[0].place());
        match subscription.poll_next(&mut context) {
            Poll::Ready(Item::Event { event, .. }) => assert_eq!(event.place(), events[0].place()),
            other => panic!("not its event: {other:?}"),
        }
        assert!(subscription.poll_next(&mut context).is_pending());
    }
}
