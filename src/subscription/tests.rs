//! The seam between catching up and following, step by step: every subscriber receives precisely
//! what its scope admits.

use std::{
    task::{Context, Poll, Waker},
    time::Duration,
};

use super::*;
use crate::{
    event::{EventId, GapReason},
    fanout::{FanoutHarness, ShardPort},
    log::Numbering,
};

/// `http::public::sse` adds up what else an idle subscriber has.
#[test]
fn a_subscription_of_one_session_takes_few_bytes() {
    assert!(size_of::<Subscription>() <= 176, "{}", size_of::<Subscription>());
    assert!(size_of::<Scope>() <= 72, "{}", size_of::<Scope>());
}

#[test]
fn a_subscription_on_a_shard_keeps_no_read_buffer_once_it_is_caught_up() {
    let mut harness = FanoutHarness::new(100);
    let mut reader = harness.subscribe(scope(&[], &[]), &StartPosition::Oldest);
    harness.append("a", "x");
    harness.append("a", "x");
    harness.dispatch_all();
    reader.subscription.move_to_shard(&ShardPort::new(&harness.fanout, 0, Waker::noop().clone()));
    reader.read(1);
    assert!(reader.subscription.backlog.is_some(), "the second event is in the buffer");
    reader.read(9);
    assert_eq!(reader.events(), [1, 2]);
    assert!(reader.subscription.is_caught_up() && reader.subscription.backlog.is_none());
}

#[test]
fn an_event_wakes_its_receivers_once_and_no_other_subscriber() {
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
        "other sessions' events wake no subscriber"
    );
    assert_eq!(all.wakes(), 2);
}

#[test]
fn ten_thousand_subscribers_to_other_sessions_are_not_visited() {
    let harness = FanoutHarness::new(100);
    let readers: Vec<_> = (0..10_000)
        .map(|number| harness.subscribe(scope(&[&format!("s{number}")], &[]), &StartPosition::Now))
        .collect();
    harness.append("s7", "x");
    let (_, entries) = {
        let log = harness.fanout.log();
        let tail = std::pin::pin!(log.tail(0, 9));
        match tail.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(tail) => tail,
            Poll::Pending => panic!("something was appended"),
        }
    };
    let Entry::Event(event) = &entries[0] else { panic!("an event was appended") };
    assert_eq!(harness.fanout.count_visits(event), 1);
    drop(readers);
    assert!(!harness.fanout.has_signals(), "a dropped subscription leaves nothing in the index");
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
fn a_subscriber_that_did_not_read_gets_a_gap_for_evicted_events() {
    let mut harness = FanoutHarness::new(16);
    let mut reader = harness.subscribe(scope(&["a"], &[]), &StartPosition::Now);
    reader.read(9);
    harness.append("a", "x");
    harness.dispatch_all();
    reader.read(9);
    harness.append("b", "x");
    harness.append("a", "x"); // at position 3, never read
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
fn entries_evicted_before_dispatch_are_announced_to_their_subscribers() {
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
    let mut ahead = harness.subscribe(scope(&[], &[]), &StartPosition::After(future));
    ahead.read(99);
    let gap = ahead.gaps()[0];
    assert_eq!(
        (gap.reason, gap.id, gap.before),
        (GapReason::UnknownId, log.id_at(20).unwrap(), None)
    );
    assert!(ahead.events().is_empty(), "everything before is older than its id");
    for (start, after) in [
        (StartPosition::After(foreign), Some(foreign.to_string())),
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
    harness.append("a", "x"); // evicts one more before the first read
    oldest.read(99);
    assert_eq!((oldest.gaps().len(), oldest.events()), (0, (6..=21).collect()));
}

#[test]
fn a_stalled_subscriber_holds_one_read_buffer_and_delays_no_other() {
    let mut harness = FanoutHarness::new(100_000);
    let mut stalled = harness.subscribe(scope(&[], &[]), &StartPosition::Now);
    let mut other = harness.subscribe(scope(&[], &[]), &StartPosition::Now);
    for round in 0..500 {
        // Appending and dispatching are plain calls: there is no await in them that could wait for
        // a subscriber.
        (0..20).for_each(|_| harness.append(&"s".repeat(1000), "x"));
        harness.dispatch_all();
        other.read(20);
        assert_eq!(other.events().len(), (round + 1) * 20);
        stalled.read(usize::from(round == 0)); // one event, and no more
        let held = stalled.subscription.buffered();
        assert!(held.0 <= 16 && held.1 <= 32 * 1024, "{held:?}");
    }
    assert_eq!(stalled.wakes(), 1, "notified once, and not again until it reads");
    stalled.read(usize::MAX);
    assert_eq!((stalled.events().len(), stalled.gaps().len()), (10_000, 0));
}

#[test]
fn a_poll_looks_at_a_bounded_number_of_entries_however_many_items_are_taken() {
    let mut harness = FanoutHarness::new(10_000);
    let names: Vec<_> = (0..300).map(|n| format!("s{n}")).collect();
    for n in 0..6000 {
        harness.append(&names[n % 300], if n % 200 == 0 { "rare" } else { "x" });
    }
    harness.dispatch_all();
    let sessions: Vec<_> = names.iter().map(String::as_str).collect();
    for sessions in [&sessions[..], &sessions[..10], &[]] {
        let mut reader = harness.subscribe(scope(sessions, &["rare"]), &StartPosition::Oldest);
        let mut polls = 0;
        while !reader.subscription.is_caught_up() {
            let before = reader.subscription.skipped();
            reader.read(usize::MAX); // until `Pending`
            let skipped = reader.subscription.skipped() - before;
            assert!(skipped < 1024 + 256 + 64, "{skipped}");
            polls += 1;
        }
        assert_eq!(reader.wakes() + 1, polls, "the reader is woken to go on");
        let in_scope = (0..6000).filter(|n| n % 200 == 0);
        let in_scope = in_scope.filter(|n| sessions.is_empty() || n % 300 < sessions.len());
        assert_eq!(reader.events(), in_scope.map(|n| n as u64 + 1).collect::<Vec<_>>());
        assert!(reader.subscription.skipped() <= 6000 + 64 * 64);
    }
}

#[test]
fn the_position_moves_with_what_the_scope_hides() {
    let mut harness = FanoutHarness::new(16);
    let mut reader = harness.subscribe(scope(&["a"], &[]), &StartPosition::Now);
    harness.append("b", "x");
    harness.append("b", "x");
    reader.read(9);
    assert_eq!(reader.subscription.advance_last_id(), None, "not dispatched yet");
    harness.dispatch_all();
    reader.read(9);
    assert_eq!(reader.subscription.advance_last_id(), harness.fanout.log().id_at(2));
    assert_eq!(reader.subscription.advance_last_id(), None, "returned once");
}

#[test]
fn a_subscriber_from_the_oldest_entry_gets_a_gap_for_what_was_evicted_since() {
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

/// Returns the seconds until a subscriber with an id that never comes gets its gap; none if it
/// still waits after five minutes.
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
async fn an_id_ahead_of_the_log_waits_for_a_replay_and_for_a_relay_that_is_not_away_for_long() {
    let harness = FanoutHarness::new(16);
    let log = harness.fanout.log();
    assert_eq!(seconds_until_gap(&harness).await, Some(0), "behind a connector nothing comes");
    log.set_numbering(Numbering::Upstream);
    assert_eq!(seconds_until_gap(&harness).await, None, "while the relay repeats");
    log.finish_replay();
    assert_eq!(seconds_until_gap(&harness).await, Some(5));
    log.mark_upstream_disconnected();
    assert!(!log.is_recovering(), "what comes afterwards is not history");
    let until = seconds_until_gap(&harness).await.unwrap();
    assert!((60..=66).contains(&until), "{until}");
    assert_eq!(seconds_until_gap(&harness).await, Some(5), "it has been away for long");
    log.set_numbering(Numbering::Upstream);
    assert!(!log.has_caught_up() && seconds_until_gap(&harness).await.is_none());
    log.mark_upstream_disconnected();
    log.set_numbering(Numbering::Own);
    assert_eq!(seconds_until_gap(&harness).await, Some(0), "a connector again");
}
