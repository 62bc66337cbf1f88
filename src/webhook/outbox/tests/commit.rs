//! What is written down when that is much, when it fails, and when it takes long.

use super::*;

#[test]
fn a_batch_has_a_bound_and_its_position_stays_before_what_is_left() {
    let mut harness = OutboxHarness::new(2);
    harness.enqueue_many(1..=2500);
    assert_eq!(harness.send_all(), [1, 2]);
    (1..=2).for_each(|position| harness.accept(position));
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
        (vec![], 8),
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
