//! Batches of changes: their bounds, failed commits, and commits that take long.

use super::*;
use crate::log::DamagedEvent;

#[test]
fn a_batch_has_a_bound_and_its_position_stays_before_what_is_left() {
    let mut harness = OutboxHarness::new(2);
    harness.enqueue_many(1..=2500);
    assert_eq!(harness.send_all(), [1, 2]);
    (1..=2).for_each(|position| harness.accept(position));
    harness.outbox.urge_changes();
    let batch = |harness: &mut OutboxHarness| {
        let changes = harness.commit();
        (changes.position, changes.deliveries.len(), harness.send_all().len())
    };
    assert_eq!(
        batch(&mut harness),
        (1002, 1000, 0),
        "what is settled keeps its slots until all is written"
    );
    assert_eq!(batch(&mut harness), (2002, 1000, 0));
    assert_eq!(batch(&mut harness), (2500, 498, 2), "now their slots are free");
    assert_eq!(harness.outbox.take_all_changes(), None);
}

#[test]
fn a_batch_has_a_bound_on_the_payloads_of_dead_letters() {
    let mut harness = OutboxHarness::new(16);
    for position in 1..=5 {
        harness.outbox.enqueue(event(position, "", 600 << 10), harness.now());
    }
    for position in harness.send_all() {
        harness.settle(position, 400, &Disposition::Refused);
    }
    let positions = |changes: WebhookChanges| {
        (changes.position, changes.deliveries.into_keys().collect::<Vec<_>>())
    };
    assert_eq!(positions(harness.commit()), (2, vec![1, 2]));
    assert_eq!(positions(harness.commit()), (4, vec![3, 4]));
    assert_eq!(positions(harness.commit()), (5, vec![5]));
}

#[test]
fn while_nothing_can_be_written_slots_are_free() {
    let mut harness = OutboxHarness::new(2);
    harness.enqueue_many(1..=8);
    assert_eq!(harness.send_all(), [1, 2]);
    harness.accept(1);
    let stalled = harness.outbox.take_urgent_changes().unwrap();
    harness.accept(2);
    assert_eq!(harness.send_all(), NO_POSITIONS);
    harness.outbox.mark_store_degraded();
    assert_eq!(harness.send_all(), [3, 4]);
    harness.outbox.record_commit_failure(stalled);
    (3..=4).for_each(|position| harness.accept(position));
    assert_eq!(
        (harness.send_all(), harness.commit().position),
        (vec![], 4),
        "and held again once it can be written"
    );
}

#[test]
fn a_commit_that_was_done_although_it_was_reported_as_failed_leaves_no_row_behind() {
    let mut harness = OutboxHarness::new(4);
    harness.enqueue_many(1..=2);
    let changes = harness.outbox.take_all_changes().unwrap();
    assert_eq!(harness.send_all(), [1, 2]);
    harness.accept(1);
    harness.outbox.record_commit_failure(changes);
    harness.accept(2);
    assert_eq!(
        harness.commit().deliveries,
        [(1, DeliveryChange::Settled), (2, DeliveryChange::Settled)].into()
    );
}

#[test]
fn only_exceptions_are_written_and_only_what_should_not_wait_asks_for_it() {
    let mut harness = OutboxHarness::new(16);
    harness.enqueue_many(1..=3);
    harness.outbox.advance_to(9);
    assert_eq!(harness.outbox.take_urgent_changes(), None);
    harness.send_all();
    harness.accept(1);
    let changes = harness.outbox.take_all_changes().unwrap();
    assert_eq!(
        (changes.position, changes.deliveries.keys().copied().collect::<Vec<_>>()),
        (9, vec![2, 3])
    );
    harness.fail(2);
    harness.accept(3);
    assert_eq!(
        (harness.outbox.take_urgent_changes(), harness.outbox.take_all_changes()),
        (None, None),
        "one batch at a time"
    );
    harness.outbox.record_commit();
    let changes = harness.commit();
    assert!(
        matches!(
            &changes.deliveries[&2],
            DeliveryChange::Owed(owed) if owed.next_attempt_at.is_some()
        ),
        "{changes:?}"
    );
    assert_eq!(changes.deliveries[&3], DeliveryChange::Settled, "its row was on its way");
    harness.outbox.advance_to(12);
    assert_eq!(harness.outbox.take_urgent_changes(), None);
    assert_eq!(harness.outbox.take_all_changes().unwrap().position, 12);
    harness.outbox.record_commit();
    assert_eq!(harness.outbox.take_all_changes(), None);
}

#[test]
fn a_batch_goes_no_further_than_the_last_settlement_until_deliveries_have_waited_for_long() {
    let mut harness = OutboxHarness::new(4);
    harness.enqueue_many(1..=9);
    assert_eq!(harness.send_all(), [1, 2, 3, 4]);
    harness.accept(3);
    let batch = |changes: WebhookChanges| {
        (changes.position, changes.deliveries.into_keys().collect::<Vec<_>>())
    };
    assert_eq!(batch(harness.commit()), (3, vec![1, 2]), "4 to 9 are behind the position");
    assert_eq!(harness.send_all(), [5], "and the slot is free");
    harness.outbox.urge_aged_changes();
    assert_eq!(harness.outbox.take_urgent_changes(), None, "they have just come");
    harness.enqueue(10, "");
    harness.outbox.urge_aged_changes();
    assert_eq!(batch(harness.commit()), (9, vec![4, 5, 6, 7, 8, 9]));
    harness.outbox.urge_changes();
    assert_eq!(batch(harness.commit()), (10, vec![10]));
    assert_eq!(harness.outbox.take_all_changes(), None);
}

#[test]
fn changes_of_a_failed_commit_are_merged_under_newer_ones() {
    let mut harness = OutboxHarness::new(16);
    harness.enqueue_many(1..=4);
    harness.send_all();
    harness.settle(1, 400, &Disposition::Refused);
    let changes = harness.outbox.take_all_changes().unwrap();
    harness.accept(2);
    harness.settle(3, 400, &Disposition::Refused);
    harness.outbox.record_commit_failure(changes);
    let changes = harness.commit();
    assert_eq!(changes.deliveries.keys().copied().collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert!(matches!(&changes.deliveries[&1], DeliveryChange::Dead(_)));
    assert_eq!(
        changes.deliveries[&2],
        DeliveryChange::Settled,
        "there may be a row of it all the same"
    );
    assert!(matches!(&changes.deliveries[&4], DeliveryChange::Owed(_)));
}

#[test]
fn dead_letters_that_cannot_be_written_are_bounded_and_those_lost_are_counted() {
    for (bytes, kept_count) in
        [(10, MAX_UNWRITTEN_DEAD_LETTERS), (1 << 20, MAX_UNWRITTEN_DEAD_LETTER_BYTES >> 20)]
    {
        let mut harness = OutboxHarness::new(1);
        let count = kept_count as u64 + 20;
        for position in 1..=count {
            harness.outbox.enqueue(event(position, "", bytes), harness.now());
            harness.send_all();
            harness.settle(position, 400, &Disposition::Refused);
            let changes = harness.outbox.take_urgent_changes().unwrap();
            harness.outbox.record_commit_failure(changes);
        }
        assert_eq!((harness.outbox.take_lost_count(), harness.outbox.take_lost_count()), (20, 0));
        let batches = std::iter::from_fn(|| {
            Some(harness.commit()).filter(|changes| !changes.deliveries.is_empty())
        });
        assert!(batches.flat_map(|changes| changes.deliveries.into_keys()).eq(21..=count));
    }
}

#[test]
fn when_the_file_is_lost_everything_owed_is_written_again() {
    let mut harness = OutboxHarness::new(16);
    harness.enqueue_many(1..=3);
    harness.outbox.take_all_changes().unwrap();
    harness.outbox.record_commit();
    harness.outbox.rewrite_all();
    let changes = harness.commit();
    assert_eq!((changes.position, changes.deliveries.len()), (3, 3));
}

#[test]
fn a_damaged_event_is_a_dead_letter_without_a_body_and_delays_no_other_of_its_session() {
    let mut harness = OutboxHarness::new(4);
    let owed = |position| OwedDelivery {
        delivery: Delivery { attempts: Vec::new(), ..dead_letter(position, "s").delivery },
        next_attempt_at: None,
    };
    harness.outbox = Outbox::new(POLICY, 3, vec![owed(2), owed(3)], harness.now());
    let now = harness.now();
    harness.outbox.give_up_damaged(2, now);
    assert_eq!(harness.outbox.next_to_load(), Some(3), "the next of the session");
    harness.outbox.load(&event(3, "s", 10));
    harness.outbox.give_up_damaged(3, now); // no effect: it could be read after all
    let unread = DamagedEvent { id: EventId::new(7, 5), kind: Kind::Actions, session: None };
    harness.outbox.give_up_unread(5, unread.clone(), now);
    assert_eq!(harness.outbox.cursor(), 5);
    harness.outbox.give_up_unread(3, unread, now); // no effect: it is owed
    let changes = harness.commit();
    assert_eq!(changes.deliveries.keys().copied().collect::<Vec<_>>(), [2, 5]);
    for change in changes.deliveries.values() {
        let DeliveryChange::Dead(letter) = change else { panic!("{change:?}") };
        assert_eq!((letter.reason, letter.payload.len()), (DeadLetterReason::Damaged, 0));
    }
    assert_eq!(harness.send_all(), [3]);
}
