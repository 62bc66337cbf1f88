//! What is written down when that is much, when it fails, and when it takes long.

use super::*;

#[test]
fn a_batch_has_a_bound_and_its_position_stays_before_what_is_left() {
    let mut bench = Bench::new(2);
    bench.take_many(1..=2500);
    assert_eq!(bench.sent(), [1, 2]);
    (1..=2).for_each(|place| bench.accept(place));
    let batch = |bench: &mut Bench| {
        let changes = bench.commit();
        (changes.position, changes.fates.len(), bench.sent().len())
    };
    assert_eq!(batch(&mut bench), (1002, 1000, 0), "what is settled keeps its slots until all is written");
    assert_eq!(batch(&mut bench), (2002, 1000, 0));
    assert_eq!(batch(&mut bench), (2500, 498, 2), "now their slots are free");
    assert_eq!(bench.outbox.all_changes(), None);
}

#[test]
fn a_batch_has_a_bound_on_the_payloads_of_dead_letters() {
    let mut bench = Bench::new(16);
    for place in 1..=5 {
        bench.outbox.take(event(place, "", 600 << 10), bench.now());
    }
    for place in bench.sent() {
        bench.settle(place, 400, &Verdict::Refused);
    }
    let places = |changes: Changes| (changes.position, changes.fates.into_keys().collect::<Vec<_>>());
    assert_eq!(places(bench.commit()), (2, vec![1, 2]));
    assert_eq!(places(bench.commit()), (4, vec![3, 4]));
    assert_eq!(places(bench.commit()), (5, vec![5]));
}

#[test]
fn while_nothing_can_be_written_slots_are_free() {
    let mut bench = Bench::new(2);
    bench.take_many(1..=8);
    assert_eq!(bench.sent(), [1, 2]);
    bench.accept(1);
    let hangs = bench.outbox.changes().unwrap();
    bench.accept(2);
    assert_eq!(bench.sent(), NONE);
    bench.outbox.cannot_be_written();
    assert_eq!(bench.sent(), [3, 4]);
    bench.outbox.not_committed(hangs);
    (3..=4).for_each(|place| bench.accept(place));
    assert_eq!((bench.sent(), bench.commit().position), (vec![], 8), "and held again once it can be written");
}

#[test]
fn a_commit_that_was_done_although_it_was_reported_as_failed_leaves_no_row_behind() {
    let mut bench = Bench::new(4);
    bench.take_many(1..=2);
    let written = bench.outbox.all_changes().unwrap();
    assert_eq!(bench.sent(), [1, 2]);
    bench.accept(1);
    bench.outbox.not_committed(written);
    bench.accept(2);
    assert_eq!(bench.commit().fates, [(1, Fate::Settled), (2, Fate::Settled)].into());
}
