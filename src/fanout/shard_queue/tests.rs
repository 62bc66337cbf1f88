//! What is left for a lane, when, and for whom.

use std::{
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    task::{Context, Poll, Wake},
};

use super::*;
use crate::{
    event::{GapReason, Start},
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

fn news(events: &[Arc<Event>]) -> impl ExactSizeIterator<Item = (Option<&SessionId>, &Kind)> {
    events.iter().map(|event| (event.session(), event.kind()))
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
    assert_eq!(followers.take(&mut events), Arrived::Events);
    // The second is for a lane that listens to its session, though nobody there wants its kind.
    assert_eq!(places(&events), [1, 2, 5, 6]);
    let mut concerned = vec![Vec::new(); events.len()];
    followers.concerned(news(&events), |at, number| concerned[at].push(number));
    concerned.iter_mut().for_each(|numbers| numbers.sort_unstable());
    assert_eq!(concerned, [vec![0, 1], vec![], vec![2], vec![0]]);
    assert_eq!(followers.position(), Some(6));
    stage.append("a", "x");
    stage.show_all();
    assert_eq!(calls.0.load(SeqCst), 2);
}

#[test]
fn a_burst_visits_nobody_once_for_each_of_its_events() {
    let mut stage = Stage::new(10_000);
    let scopes: [(&[&str], &[&str]); 5] =
        [(&[], &[]), (&["a"], &[]), (&["a"], &["l"]), (&[], &["k"]), (&["a", "b"], &["k", "l"])];
    let (followers, _subscriptions, _) = lane(&stage, &scopes);
    for _ in 0..100 {
        for (session, kind) in [("c", "k"), ("a", "k"), ("b", "k"), ("a", "l")] {
            stage.append(session, kind);
        }
    }
    stage.show_all();
    let mut events = Vec::new();
    assert_eq!(followers.take(&mut events), Arrived::Events);
    assert_eq!(events.len(), 400);
    let mut visits = Vec::new();
    followers.concerned(news(&events), |at, number| visits.push((number, at)));
    visits.sort_unstable();
    // Each with its first, and at most once for each session and kind.
    assert_eq!(visits, [(0, 0), (1, 1), (1, 3), (2, 3), (3, 0), (4, 1), (4, 2), (4, 3)]);
}

#[test]
fn of_more_than_is_kept_for_a_lane_only_those_concerned_hear_and_look_into_the_log_from_their_first() {
    let mut stage = Stage::new(100_000);
    let (followers, _subscriptions, _) =
        lane(&stage, &[(&["a"], &[]), (&["b"], &[]), (&["quiet"], &[]), (&[], &["x"])]);
    stage.append("nobody's", "k");
    (0..MOST_EVENTS).for_each(|_| stage.append("a", "k"));
    stage.append("b", "k");
    stage.append("b", "x");
    stage.append("a", "k");
    stage.show_all();
    assert_eq!(followers.position(), None);
    let mut events = Vec::new();
    let Arrived::Marks(marks) = followers.take(&mut events) else { panic!("they are too many") };
    assert!(events.is_empty());
    let most = MOST_EVENTS as u64;
    let mut looks = Vec::new();
    let of_marks = marks.iter().map(|mark| (mark.session.as_ref(), &mark.kind));
    followers.concerned(of_marks, |at, number| looks.push((number, marks[at].place)));
    looks.sort_unstable();
    assert_eq!(looks, [(0, 2), (1, most + 2), (1, most + 3), (3, most + 3)]);
    stage.append("a", "x");
    stage.show_all();
    assert_eq!(followers.take(&mut events), Arrived::Events, "from then on it is as before");
    assert_eq!(places(&events), [most + 5]);
}

#[test]
fn more_sessions_than_can_be_marked_are_looked_for_by_everybody() {
    let mut stage = Stage::new(100_000);
    let (followers, _subscriptions, _) = lane(&stage, &[(&[], &[])]);
    stage.append("a", "k");
    (0..2 * MOST_EVENTS).for_each(|number| stage.append(&format!("s{number}"), "k"));
    stage.show_all();
    assert_eq!(followers.take(&mut Vec::new()), Arrived::Torn(1));
}

#[test]
fn a_gap_is_looked_for_by_everybody_from_the_first_that_waits() {
    let mut stage = Stage::new(100);
    let (followers, _subscriptions, _) = lane(&stage, &[(&["a"], &[])]);
    stage.append("b", "k");
    stage.append("a", "k");
    stage.fanout.log().append_gap(GapReason::UpstreamReconnect);
    stage.show_all();
    assert_eq!(followers.take(&mut Vec::new()), Arrived::Torn(2));
}

#[test]
fn a_mark_from_before_a_lane_took_somebody_in_is_no_mark_any_more() {
    let mut stage = Stage::new(100);
    stage.append("a", "k");
    stage.show_all();
    let mut followers = Followers::new(&stage.fanout, 0, Waker::noop().clone());
    let mut subscription = stage.subscribe(scope(&[], &[]), &Start::Oldest).subscription;
    let listener = Arc::clone(&subscription.listener);
    stage.append("a", "k");
    stage.show_all();
    assert_eq!(listener.shown(), Some(2));
    followers.join(0, &mut subscription);
    assert_eq!(listener.shown(), None, "operators would take it for somebody who takes nothing");
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
        assert_eq!(followers.take(&mut events), Arrived::Events);
        let mut concerned = Vec::new();
        followers.concerned(news(&events), |_, number| concerned.push(number));
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
