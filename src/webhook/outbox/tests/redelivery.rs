//! Redelivery of dead letters: in their order, and without one failing session delaying another.

use super::*;

/// Requeued dead letters in the store, by position.
struct StoredDeadLetters(BTreeMap<u64, DeadLetter>);

impl StoredDeadLetters {
    /// Answers a request of the outbox with up to `limit` dead letters, and returns whether the
    /// outbox wants to ask again soon.
    fn serve_scan(&self, harness: &mut OutboxHarness, limit: usize) -> bool {
        let now = harness.now();
        let Some(after) = harness.outbox.next_redelivery_after() else { return true };
        let dead_letters =
            self.0.range(after + 1..).take(limit).map(|(_, dead_letter)| dead_letter.clone());
        harness.outbox.redeliver(dead_letters.collect(), now)
    }

    /// Commits a batch, and removes the dead letters that the outbox has settled.
    fn commit(&mut self, harness: &mut OutboxHarness) {
        for (position, change) in harness.commit().deliveries {
            assert_eq!(change, DeliveryChange::Settled, "of {position}");
            self.0.remove(&position);
        }
    }
}

#[test]
fn a_session_that_fails_keeps_no_dead_letter_of_another_from_being_delivered() {
    let mut harness = OutboxHarness::new(16);
    let sessions = (1..=60)
        .map(|position| (position, "fails"))
        .chain((61..=65).map(|position| (position, "well")));
    let mut stored = StoredDeadLetters(
        sessions.map(|(position, session)| (position, dead_letter(position, session))).collect(),
    );
    let mut accepted = Vec::new();
    for _ in 0..12 {
        stored.serve_scan(&mut harness, 48);
        for position in harness.send_all() {
            if position > 60 {
                harness.accept(position);
                accepted.push(position);
            } else {
                harness.fail(position);
            }
        }
        stored.commit(&mut harness);
    }
    assert_eq!(
        (accepted, harness.outbox.redelivery_count()),
        ((61..=65).collect(), 1),
        "and of the other one only the first is here"
    );
    let asks_again_soon: Vec<bool> = (0..3).map(|_| stored.serve_scan(&mut harness, 48)).collect();
    assert!(asks_again_soon.contains(&false), "there is nothing else, so it asks more rarely");
}

#[test]
fn dead_letters_of_a_session_are_delivered_in_order_under_every_failure() {
    for seed in 0..200 {
        let (mut harness, mut rng) = (
            OutboxHarness::with(DeliveryPolicy { max_retries: u32::MAX, ..POLICY }),
            Rng::with_seed(seed),
        );
        let names = ["", "a", "b", "c", "d", "e", "f", "g"];
        let session = |position: u64| names[(position * 7 / 3 % 8) as usize];
        let mut stored = StoredDeadLetters(
            (1..=150)
                .map(|position| (position, dead_letter(position, session(position))))
                .collect(),
        );
        let (mut accepted, mut in_flight) = (Vec::new(), Vec::new());
        for turn in 0.. {
            assert!(turn < 10_000, "seed {seed}: {} are never delivered", stored.0.len());
            if stored.0.is_empty() {
                break;
            }
            harness.elapsed += rng.u64(0..3000);
            stored.serve_scan(&mut harness, rng.usize(1..49));
            in_flight.extend(harness.send_all());
            for _ in 0..rng.usize(0..8) {
                let Some(nth) = (!in_flight.is_empty()).then(|| rng.usize(0..in_flight.len()))
                else {
                    break;
                };
                let position = in_flight.swap_remove(nth);
                let fails = rng.u32(0..10) < if session(position) == "a" { 9 } else { 2 };
                if fails {
                    harness.fail(position);
                } else {
                    harness.accept(position);
                    accepted.push(position);
                }
            }
            if rng.bool() {
                stored.commit(&mut harness);
            }
            harness.outbox.enable();
        }
        assert_eq!(accepted.len(), 150, "seed {seed}: each once");
        for name in &names[1..] {
            let of: Vec<u64> =
                accepted.iter().copied().filter(|position| session(*position) == *name).collect();
            assert!(of.is_sorted(), "seed {seed}: {name}: {of:?}");
        }
    }
}

#[test]
fn dead_letters_that_are_requeued_before_those_that_were_looked_at_go_first() {
    let mut harness = OutboxHarness::new(16);
    let mut stored = StoredDeadLetters([(8, dead_letter(8, "a"))].into());
    stored.serve_scan(&mut harness, 48);
    assert_eq!(harness.send_all(), [8]);
    harness.accept(8);
    stored.commit(&mut harness);
    stored.0.extend([3, 5, 9].map(|position| (position, dead_letter(position, "a"))));
    harness.outbox.restart_redelivery_scan();
    stored.serve_scan(&mut harness, 48);
    for position in [3, 5, 9] {
        assert_eq!(harness.send_all(), [position]);
        harness.accept(position);
    }
}

#[test]
fn dead_letters_go_again_in_their_order_but_never_before_a_head_that_has_begun() {
    let mut harness = OutboxHarness::new(16);
    for (position, session) in [(7, "begun"), (8, "fresh"), (9, "fresh")] {
        harness.enqueue(position, session);
    }
    let now = harness.now();
    assert_eq!(harness.outbox.next(now).unwrap().position(), 7);
    harness.commit();
    harness.outbox.redeliver(
        vec![dead_letter(3, "begun"), dead_letter(4, "fresh"), dead_letter(4, "fresh")],
        now,
    );
    assert_eq!((harness.outbox.owed().0, harness.outbox.redelivery_count()), (3, 2));
    assert_eq!(harness.outbox.pending(None, 9, now).len(), 3);
    assert_eq!(harness.send_all(), [4]);
    harness.accept(7);
    assert_eq!(harness.send_all(), [3]);
    harness.accept(4);
    harness.settle(3, 400, &Disposition::Refused);
    harness.outbox.redeliver(vec![dead_letter(3, "begun"), dead_letter(4, "fresh")], now);
    assert_eq!(harness.outbox.redelivery_count(), 0, "the store does not know yet");
    let changes = harness.commit();
    assert_eq!(changes.deliveries[&4], DeliveryChange::Settled);
    assert!(matches!(
        &changes.deliveries[&3],
        DeliveryChange::Dead(dead_letter) if dead_letter.delivery.attempts.len() == 2
    ));
}

#[test]
fn a_redelivery_has_all_attempts_anew_and_is_never_written_as_owed() {
    let mut harness = OutboxHarness::new(16);
    harness
        .outbox
        .redeliver((1..=40).map(|position| dead_letter(position, "a")).collect(), harness.now());
    assert_eq!(harness.send_all(), [1]);
    for _ in 0..POLICY.max_retries {
        harness.fail(1);
        assert_eq!(
            (harness.outbox.take_urgent_changes(), harness.outbox.take_all_changes()),
            (None, None)
        );
        assert_eq!(harness.send_all_when_due(), [1]);
    }
    harness.fail(1);
    let changes = harness.commit();
    assert!(matches!(
        &changes.deliveries[&1],
        DeliveryChange::Dead(dead_letter) if dead_letter.delivery.attempts.len() == 6
    ));
}
