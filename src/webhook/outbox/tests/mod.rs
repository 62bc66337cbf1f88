//! Unit tests of the outbox: order within sessions, slots, retries, bounds, lists.

mod breaker;
mod commit;
mod harness;
mod redelivery;

use bytes::Bytes;

use self::harness::*;
use super::{
    circuit_breaker::FAILURES_TO_OPEN,
    item::MAX_KEPT_ATTEMPTS,
    journal::{MAX_UNWRITTEN_DEAD_LETTER_BYTES, MAX_UNWRITTEN_DEAD_LETTERS},
    schedule::MAX_PRELOADED_HEADS,
    *,
};
use crate::{
    event::{Draft, ErasedEvents, EventId, Kind, SessionId},
    store::{DeliveryChange, WebhookChanges},
    webhook::Disposition,
    webhook_delivery::{Attempt, DeadLetter, DeadLetterReason, Outcome},
};

#[test]
fn one_session_goes_in_order_while_others_go_beside_it() {
    let mut harness = OutboxHarness::new(16);
    for (position, session) in [(1, "a"), (2, "a"), (3, "b"), (4, ""), (5, ""), (6, "b")] {
        harness.enqueue(position, session);
    }
    assert_eq!(harness.send_all(), [1, 3, 4, 5]);
    harness.accept(3);
    assert_eq!(harness.send_all(), [6]);
    harness.fail(1);
    assert_eq!(harness.send_all(), NO_POSITIONS, "2 waits for the retry of 1");
    assert_eq!(harness.send_all_when_due(), [1]);
    harness.accept(1);
    assert_eq!(harness.send_all(), [2]);
}

#[test]
fn a_slot_is_free_when_its_settlement_is_committed_or_could_not_be() {
    let mut harness = OutboxHarness::new(2);
    harness.enqueue_many(1..=5);
    assert_eq!(harness.send_all(), [1, 2]);
    harness.accept(1);
    assert_eq!((harness.send_all(), harness.outbox.next_due_at()), (vec![], None));
    let changes = harness.outbox.take_urgent_changes().unwrap();
    assert_eq!(harness.send_all(), NO_POSITIONS);
    harness.outbox.record_commit_failure(changes);
    assert_eq!(harness.send_all(), [3]);
    harness.fail(2);
    assert_eq!(harness.send_all(), [4], "a failure can be forgotten");
    harness.accept(3);
    harness.commit();
    assert_eq!(harness.send_all(), [5]);
}

#[test]
fn retries_and_first_attempts_share_the_slots_while_both_wait() {
    for (slots, retries) in [(8, 4), (3, 1), (2, 1)] {
        let mut harness = OutboxHarness::with(DeliveryPolicy {
            max_in_flight: slots,
            max_retries: 100,
            ..POLICY
        });
        let mut next = 1;
        for _ in 0..20 {
            harness.enqueue(next, "");
            let now = harness.now();
            harness.outbox.next(now).unwrap();
            harness.fail(next);
            harness.outbox.breaker.enable(); // leaves the waiting retries as they are
            next += 1;
        }
        harness.outbox.enable();
        harness.enqueue_many(next..=next + 20);
        let sent = harness.send_all();
        assert_eq!(sent.iter().filter(|position| **position < next).count(), retries, "{sent:?}");
        assert_eq!(sent.len(), slots);
    }
}

#[test]
fn with_one_slot_retries_and_first_attempts_take_turns() {
    let mut harness =
        OutboxHarness::with(DeliveryPolicy { max_in_flight: 1, max_retries: 100, ..POLICY });
    harness.enqueue_many(1..=10);
    let mut sent = Vec::new();
    for _ in 0..10 {
        let positions = harness.send_all();
        harness.fail(positions[0]);
        harness.outbox.enable();
        sent.extend(positions);
    }
    assert_eq!(
        sent,
        [1, 1, 2, 1, 3, 1, 4, 1, 5, 1],
        "retries by their time, the others by their place"
    );
}

#[test]
fn waits_double_within_a_tenth_up_to_the_longest_and_all_attempts_are_spent_once() {
    let mut harness = OutboxHarness::new(4);
    harness.enqueue(1, "a");
    assert_eq!(harness.send_all(), [1]);
    for expected in [2000, 4000, 8000, 10_000] {
        harness.fail(1);
        let wait = harness.ms_until_due().unwrap();
        assert!(
            wait >= expected * 9 / 10 && wait <= expected * 11 / 10 && wait <= 10_000,
            "{wait} of {expected}"
        );
        assert_eq!(
            harness.outbox.pending(None, 9, harness.now())[0].1,
            Some(harness.now().unix_ms + wait)
        );
        assert_eq!(harness.send_all_when_due(), [1]);
    }
    harness.fail(1);
    let changes = harness.commit();
    let Some(DeliveryChange::Dead(dead_letter)) = changes.deliveries.get(&1) else {
        panic!("{changes:?}")
    };
    assert_eq!(
        (dead_letter.reason, dead_letter.delivery.attempts.len()),
        (DeadLetterReason::Exhausted, 5)
    );
    assert_eq!(dead_letter.payload, event(1, "a", 10).payload());
    assert_eq!(harness.outbox.owed(), (0, None));
}

#[test]
fn refusals_are_dead_letters_at_once_with_their_reason() {
    for (disposition, reason) in [
        (Disposition::Refused, DeadLetterReason::Refused),
        (Disposition::Gone, DeadLetterReason::Refused),
        (Disposition::Forbidden, DeadLetterReason::EgressRefused),
    ] {
        let mut harness = OutboxHarness::new(4);
        harness.enqueue(1, "a");
        harness.send_all();
        harness.settle(1, 410, &disposition);
        let changes = harness.commit();
        assert!(
            matches!(
                &changes.deliveries[&1],
                DeliveryChange::Dead(dead_letter) if dead_letter.reason == reason
            ),
            "{changes:?}"
        );
        assert_eq!(
            harness.endpoint_state() == EndpointState::Disabled,
            disposition == Disposition::Gone
        );
    }
}

#[test]
fn a_restart_continues_from_the_state_in_the_store() {
    let mut harness = OutboxHarness::new(16);
    for (position, session) in [(1, "a"), (2, "b"), (3, "a")] {
        harness.enqueue(position, session);
    }
    harness.send_all();
    harness.fail(1);
    let changes = harness.commit_all();
    let owed = changes.deliveries.into_values().filter_map(|change| {
        if let DeliveryChange::Owed(owed) = change { Some(owed) } else { None }
    });
    harness.outbox = Outbox::new(POLICY, changes.position, owed.collect(), harness.now());
    assert_eq!((harness.outbox.cursor(), harness.outbox.owed()), (3, (3, Some(1_000_000))));
    assert_eq!(harness.outbox.next_to_load(), Some(2), "1 waits, 3 is behind it");
    assert_eq!(harness.send_all(), NO_POSITIONS);
    harness.outbox.load(&event(2, "b", 10));
    assert_eq!((harness.outbox.next_to_load(), harness.send_all()), (None, vec![2]));
    harness.elapsed += harness.ms_until_due().unwrap();
    assert_eq!((harness.send_all(), harness.outbox.next_to_load()), (vec![], Some(1)));
    assert!(harness.outbox.discard_unreadable(1), "cannot be read");
    assert!(!harness.outbox.discard_unreadable(1) && !harness.outbox.discard_unreadable(77));
    assert_eq!(harness.outbox.next_to_load(), Some(3));
    assert_eq!(harness.commit().deliveries[&1], DeliveryChange::Settled);
    harness.enqueue(3, "a");
    assert_eq!(harness.outbox.owed().0, 2, "what has been passed is not taken again");
}

#[test]
fn few_stored_deliveries_are_loaded_at_once_and_the_rest_in_time() {
    let mut harness = OutboxHarness::new(8);
    harness.enqueue_many(1..=1000);
    assert_eq!(harness.outbox.counts.loaded, MAX_LOADED_EVENTS);
    let mut delivered = Vec::new();
    while harness.outbox.owed().0 > 0 {
        while let Some(position) = harness.outbox.next_to_load() {
            (position..position + 10)
                .for_each(|position| harness.outbox.load(&event(position, "", 10)));
            assert!(harness.outbox.counts.loaded <= MAX_LOADED_EVENTS + MAX_PRELOADED_HEADS);
        }
        let sent = harness.send_all();
        sent.iter().for_each(|position| harness.accept(*position));
        harness.commit();
        delivered.extend(sent);
    }
    assert_eq!(delivered, (1..=1000).collect::<Vec<_>>());
}

#[test]
fn the_outbox_has_capacity_until_the_bound_on_owed_deliveries() {
    let mut harness = OutboxHarness::new(8);
    for position in 1..=MAX_OWED_DELIVERIES {
        assert!(harness.outbox.has_capacity());
        harness.enqueue(position, if position % 2 == 0 { "a" } else { "" });
    }
    assert!(!harness.outbox.has_capacity());
    let sent = harness.send_all();
    harness.accept(sent[0]);
    assert!(harness.outbox.has_capacity());
}

#[test]
fn in_memory_a_new_delivery_displaces_the_oldest_that_is_not_in_flight() {
    let one = event(1, "a", 1000).size_bytes() as u64;
    let event_storage = EventStorage::InMemory { max_bytes: 3 * one };
    let mut harness = OutboxHarness::with(DeliveryPolicy { event_storage, ..POLICY });
    harness.outbox.enqueue(event(1, "a", 1000), harness.now());
    assert_eq!(harness.send_all(), [1]);
    (2..=4).for_each(|position| harness.outbox.enqueue(event(position, "a", 1000), harness.now()));
    assert!(harness.outbox.has_capacity());
    let changes = harness.commit();
    assert!(matches!(
        &changes.deliveries[&2],
        DeliveryChange::Dead(dead_letter) if dead_letter.reason == DeadLetterReason::Expired
    ));
    assert_eq!(
        changes.deliveries[&2].clone(),
        match &changes.deliveries[&2] {
            DeliveryChange::Dead(dead_letter) => DeliveryChange::Dead(DeadLetter {
                payload: event(2, "a", 1000).payload(),
                ..dead_letter.clone()
            }),
            other => panic!("{other:?}"),
        }
    );
    harness.accept(1);
    assert_eq!(harness.send_all(), [3]);
}

#[test]
fn an_expired_delivery_is_dropped_silently_unless_it_is_accepted_after_all() {
    let mut harness = OutboxHarness::new(4);
    harness.enqueue_many(1..=6);
    harness.send_all();
    harness.accept(4);
    harness.outbox.expire_through(5);
    assert_eq!(harness.outbox.owed().0, 1);
    assert_eq!(harness.outbox.pending(None, 9, harness.now()).len(), 1);
    assert!(harness.outbox.get(1).is_none());
    harness.accept(1);
    harness.fail(2);
    harness.settle(3, 400, &Disposition::Refused);
    let changes = harness.commit_all();
    assert_eq!(changes.deliveries.keys().copied().collect::<Vec<_>>(), [1, 4, 6]);
    assert_eq!(
        (&changes.deliveries[&1], &changes.deliveries[&4]),
        (&DeliveryChange::Settled, &DeliveryChange::Settled)
    );
    assert_eq!(harness.send_all(), [6]);
}

#[test]
fn a_delivery_accepted_while_it_expires_is_settled_even_after_a_failed_batch() {
    let mut harness = OutboxHarness::new(4);
    harness.enqueue_many(1..=2);
    harness.send_all();
    let changes = harness.outbox.take_all_changes().unwrap();
    harness.accept(1);
    harness.outbox.expire_through(2);
    harness.accept(2);
    harness.outbox.record_commit_failure(changes);
    let changes = harness.commit();
    assert_eq!(
        (&changes.deliveries[&1], &changes.deliveries[&2]),
        (&DeliveryChange::Settled, &DeliveryChange::Settled)
    );
}

#[test]
fn an_erased_session_leaves_no_record_for_any_outcome_of_attempts_in_flight() {
    for disposition in [Disposition::Accepted, AGAIN, Disposition::Refused] {
        let mut harness = OutboxHarness::new(4);
        for (position, session) in [(1, "a"), (2, "a"), (3, "b"), (4, "a"), (5, "b")] {
            harness.enqueue(position, session);
        }
        harness.send_all();
        harness.accept(1);
        harness.accept(3);
        harness.commit_all();
        assert_eq!(harness.send_all(), [2, 5]);
        harness.outbox.erase(&erased_session("a"));
        assert_eq!(harness.outbox.owed().0, 1);
        let of_b: Vec<u64> = harness
            .outbox
            .delivered(None, 9)
            .iter()
            .map(|(_, delivery)| delivery.position)
            .collect();
        assert_eq!(of_b, [3]);
        harness.settle(2, 200, &disposition);
        let changes = harness.commit();
        assert_eq!(
            (&changes.deliveries[&2], &changes.deliveries[&4]),
            (&DeliveryChange::Settled, &DeliveryChange::Settled)
        );
        assert_eq!((harness.send_all(), harness.outbox.delivered(None, 9).len()), (vec![], 1));
    }
}

fn erased_session(name: &str) -> ErasedEvents {
    let sessions = [SessionId::new(name).unwrap()].into();
    ErasedEvents { sessions, ..ErasedEvents::default() }
}

#[test]
fn erased_events_without_a_session_go_by_their_positions() {
    let mut harness = OutboxHarness::new(2);
    (1..=5).for_each(|position| harness.enqueue(position, ""));
    assert_eq!(harness.send_all(), [1, 2]);
    harness.accept(1);
    harness.commit_all();
    let erased = ErasedEvents { positions: [1, 2, 4, 9].into(), ..ErasedEvents::default() };
    harness.outbox.erase(&erased);
    assert_eq!(harness.outbox.owed().0, 2, "3 and 5");
    assert!(harness.outbox.delivered(None, 9).is_empty());
    harness.settle(2, 400, &Disposition::Refused);
    assert!(harness.commit().deliveries.values().all(|change| *change == DeliveryChange::Settled));
    assert_eq!(harness.send_all(), [3, 5]);
}

#[test]
fn a_dead_letter_of_an_erased_session_is_not_written_even_if_it_is_on_its_way() {
    let mut harness = OutboxHarness::new(4);
    (1..=2).for_each(|position| harness.enqueue(position, "a"));
    harness.send_all();
    harness.settle(1, 400, &Disposition::Refused);
    let changes = harness.outbox.take_urgent_changes().unwrap();
    harness.send_all();
    harness.settle(2, 400, &Disposition::Refused);
    harness.outbox.erase(&erased_session("a"));
    harness.outbox.record_commit_failure(changes);
    assert!(harness.commit().deliveries.values().all(|change| *change == DeliveryChange::Settled));
}

#[test]
fn the_last_thousand_deliveries_are_listed_newest_first_and_the_last_hundred_attempts() {
    let mut harness = OutboxHarness::new(1);
    for position in 1..=1100 {
        harness.enqueue(position, "");
        harness.send_all();
        harness.accept(position);
        harness.commit();
    }
    let all = harness.outbox.delivered(None, usize::MAX);
    assert_eq!((all.len(), all[0].0, all[0].1.position, all[999].0), (1000, 1100, 1100, 101));
    let page: Vec<u64> =
        harness.outbox.delivered(Some(1000), 2).into_iter().map(|(number, _)| number).collect();
    assert_eq!(page, [999, 998]);
    let mut item = OutboxItem::new(all[0].1.clone(), None, ItemKind::Owed);
    (0..150).for_each(|at| item.record_attempt(attempt(503, at)));
    assert_eq!(
        (item.delivery.attempts.len(), item.delivery.attempts[0].at),
        (MAX_KEPT_ATTEMPTS, 50)
    );
}

#[test]
fn owed_deliveries_are_listed_newest_first_with_their_due_times() {
    let mut harness = OutboxHarness::new(1);
    for (position, session) in [(1, "a"), (2, "a"), (3, "")] {
        harness.enqueue(position, session);
    }
    harness.send_all();
    let due: Vec<_> = harness
        .outbox
        .pending(None, 9, harness.now())
        .into_iter()
        .map(|it| (it.0.position, it.1))
        .collect();
    assert_eq!(due, [(3, Some(1_000_000)), (2, None), (1, None)]);
    assert_eq!(harness.outbox.pending(Some(3), 1, harness.now())[0].0.position, 2);
}

#[test]
fn a_delivery_is_as_old_as_its_event_if_that_is_known() {
    let mut harness = OutboxHarness::new(1);
    harness.elapsed = 5000;
    harness.enqueue(1, "");
    let (payload, received) =
        (Bytes::from_static(b"{}"), harness.base.instant + Duration::from_secs(2));
    let draft = Draft {
        kind: Kind::Actions,
        session: None,
        user: None,
        forwarded_at: None,
        payload,
        received,
    };
    harness.outbox.enqueue(Arc::new(Event::new(EventId::new(7, 2), 2, draft)), harness.now());
    let created: Vec<u64> = harness
        .outbox
        .pending(None, 9, harness.now())
        .iter()
        .map(|(delivery, _)| delivery.created_at)
        .collect();
    assert_eq!(created, [1_002_000, 1_005_000]);
}

#[test]
fn an_item_is_small() {
    assert!(size_of::<OutboxItem>() <= 136, "{}", size_of::<OutboxItem>());
}
