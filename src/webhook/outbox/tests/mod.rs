mod commit;
mod redelivery;

use bytes::Bytes;

use super::{
    circuit_breaker::FAILURES_TO_OPEN,
    item::MAX_KEPT_ATTEMPTS,
    journal::{MAX_UNWRITTEN_DEAD_LETTER_BYTES, MAX_UNWRITTEN_DEAD_LETTERS},
    *,
};
use crate::{
    event::{Draft, EventId, Kind},
    store::DeliveryChange,
    webhook_delivery::Outcome,
};

const AGAIN: Disposition = Disposition::Retry { after: None };

/// An outbox and a clock.
struct OutboxHarness {
    outbox: Outbox,
    base: Now,
    elapsed: u64,
}

impl OutboxHarness {
    fn new(max_in_flight: usize) -> Self {
        Self::with(DeliveryPolicy { max_in_flight, ..POLICY })
    }

    fn with(policy: DeliveryPolicy) -> Self {
        let base = Now { instant: Instant::now(), unix_ms: 1_000_000 };
        let mut outbox = Outbox::new(policy, 0, Vec::new(), base);
        outbox.random = Rng::with_seed(1);
        Self { outbox, base, elapsed: 0 }
    }

    fn now(&self) -> Now {
        let elapsed = Duration::from_millis(self.elapsed);
        Now { instant: self.base.instant + elapsed, unix_ms: self.base.unix_ms + self.elapsed }
    }

    fn enqueue(&mut self, position: u64, session: &str) {
        self.outbox.enqueue(event(position, session, 10), self.now());
    }

    /// Events without sessions.
    fn enqueue_many(&mut self, positions: std::ops::RangeInclusive<u64>) {
        positions.for_each(|position| self.enqueue(position, ""));
    }

    /// Sends all that goes out now.
    fn send_all(&mut self) -> Vec<u64> {
        let now = self.now();
        std::iter::from_fn(|| self.outbox.next(now)).map(|event| event.position()).collect()
    }

    fn settle(&mut self, position: u64, status: u16, verdict: &Disposition) {
        let now = self.now();
        self.outbox.settle(position, attempt(status, now.unix_ms), verdict, now);
    }

    fn fail(&mut self, position: u64) {
        self.settle(position, 503, &AGAIN);
    }

    fn accept(&mut self, position: u64) {
        self.settle(position, 200, &Disposition::Accepted);
    }

    fn commit(&mut self) -> WebhookChanges {
        let changes = self.outbox.take_urgent_changes().unwrap_or_default();
        self.outbox.record_commit();
        changes
    }

    fn endpoint_state(&self) -> EndpointState {
        self.outbox.endpoint_status().state
    }

    /// Until something is due, in milliseconds.
    fn ms_until_due(&self) -> Option<u64> {
        self.outbox
            .next_due_at()
            .map(|due| due.saturating_duration_since(self.now().instant).as_millis() as u64)
    }

    /// Goes on to when something is due, and sends it.
    fn send_all_when_due(&mut self) -> Vec<u64> {
        self.elapsed += self.ms_until_due().unwrap() + 1;
        self.send_all()
    }

    /// Opens the endpoint by deliveries 1 to 5, which wait for their retries then.
    fn with_open_breaker(max_in_flight: usize) -> Self {
        let mut harness = Self::new(max_in_flight);
        harness.enqueue_many(1..=7);
        for position in 1..=FAILURES_TO_OPEN as u64 {
            assert_eq!(harness.endpoint_state(), EndpointState::Active);
            let now = harness.now();
            assert_eq!(harness.outbox.next(now).unwrap().position(), position);
            harness.fail(position);
        }
        harness
    }
}

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
            harness.outbox.breaker.enable(); // without a word to those that wait
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
    let Some(DeliveryChange::Dead(letter)) = changes.deliveries.get(&1) else {
        panic!("{changes:?}")
    };
    assert_eq!((letter.reason, letter.delivery.attempts.len()), (DeadLetterReason::Exhausted, 5));
    assert_eq!(letter.payload, event(1, "a", 10).payload());
    assert_eq!(harness.outbox.owed(), (0, None));
}

#[test]
fn refusals_are_dead_letters_at_once_with_their_reason() {
    for (verdict, reason) in [
        (Disposition::Refused, DeadLetterReason::Refused),
        (Disposition::Gone, DeadLetterReason::Refused),
        (Disposition::Forbidden, DeadLetterReason::EgressRefused),
    ] {
        let mut harness = OutboxHarness::new(4);
        harness.enqueue(1, "a");
        harness.send_all();
        harness.settle(1, 410, &verdict);
        let changes = harness.commit();
        assert!(
            matches!(&changes.deliveries[&1], DeliveryChange::Dead(letter) if letter.reason == reason),
            "{changes:?}"
        );
        assert_eq!(
            harness.endpoint_state() == EndpointState::Disabled,
            verdict == Disposition::Gone
        );
    }
}

#[test]
fn a_disabled_endpoint_gets_nothing_until_it_is_enabled_and_then_everything_at_once() {
    let mut harness = OutboxHarness::new(3);
    harness.enqueue_many(1..=4);
    harness.send_all();
    harness.settle(1, 410, &Disposition::Gone);
    harness.fail(2);
    harness.commit();
    let status = harness.outbox.endpoint_status();
    assert_eq!((status.state, status.until), (EndpointState::Disabled, None));
    assert_eq!(status.problem.as_deref(), Some("answered 410"));
    harness.elapsed += 1_000_000;
    assert_eq!(
        (harness.send_all(), harness.outbox.next_due_at(), harness.outbox.next_to_load()),
        (vec![], None, None)
    );
    harness.outbox.enable();
    assert_eq!(harness.send_all(), [2, 4]);
    harness.outbox.disable("an operator said so");
    assert_eq!(harness.outbox.endpoint_status().problem.as_deref(), Some("an operator said so"));
}

#[test]
fn a_throttled_endpoint_gets_nothing_until_the_latest_time_it_has_asked_for() {
    let mut harness = OutboxHarness::new(8);
    harness.enqueue_many(1..=4);
    let now = harness.now();
    (0..3).for_each(|_| drop(harness.outbox.next(now)));
    for (position, seconds) in [(1, 60), (2, 30), (3, 90)] {
        harness.settle(
            position,
            429,
            &Disposition::Retry { after: Some(Duration::from_secs(seconds)) },
        );
        assert_eq!(harness.send_all(), NO_POSITIONS);
        assert_eq!(harness.ms_until_due(), Some(1000 * seconds.max(60)));
    }
    let status = harness.outbox.endpoint_status();
    assert_eq!(
        (status.state, status.problem.as_deref()),
        (EndpointState::Throttled, Some("answered 429"))
    );
    assert_eq!(harness.outbox.pending(None, 1, now)[0].1, Some(now.unix_ms + 90_000));
    harness.elapsed = 89_999;
    assert_eq!(harness.send_all(), NO_POSITIONS);
    harness.elapsed = 90_000;
    assert_eq!(harness.send_all(), [2, 4, 1, 3], "a retry, the new one, the rest");
    assert_eq!(harness.endpoint_state(), EndpointState::Active);
}

#[test]
fn five_failures_of_one_delivery_hold_nobody_back() {
    let mut harness = OutboxHarness::with(DeliveryPolicy { max_retries: 100, ..POLICY });
    harness.enqueue(1, "poison");
    for _ in 0..20 {
        assert_eq!(
            if harness.ms_until_due() == Some(0) {
                harness.send_all()
            } else {
                harness.send_all_when_due()
            },
            [1]
        );
        harness.fail(1);
        assert_eq!(harness.endpoint_state(), EndpointState::Active);
    }
    harness.enqueue(2, "a");
    assert_eq!(harness.send_all(), [2]);
}

#[test]
fn an_acceptance_between_failures_begins_their_count_anew() {
    let mut harness = OutboxHarness::new(20);
    harness.enqueue_many(1..=9);
    harness.send_all();
    (1..=4).for_each(|position| harness.fail(position));
    harness.accept(5);
    (6..=9).for_each(|position| harness.fail(position));
    assert_eq!(harness.endpoint_state(), EndpointState::Active);
}

#[test]
fn an_open_endpoint_is_probed_with_the_oldest_at_growing_intervals() {
    let mut harness = OutboxHarness::with_open_breaker(16);
    let status = harness.outbox.endpoint_status();
    assert_eq!(
        (status.state, status.problem.as_deref()),
        (EndpointState::Open, Some("answered 503"))
    );
    for expected in [2000, 4000, 8000] {
        assert_eq!(harness.send_all(), NO_POSITIONS);
        let wait = harness.ms_until_due().unwrap();
        assert!(wait >= expected * 9 / 10 && wait <= expected * 11 / 10, "{wait} of {expected}");
        assert_eq!(harness.send_all_when_due(), [1], "and only this one");
        assert_eq!(harness.outbox.next_due_at(), None, "while the probe is under way");
        harness.fail(1);
    }
    let attempts: Vec<usize> =
        (1..=7).map(|position| harness.outbox.get(position).unwrap().attempts.len()).collect();
    assert_eq!(attempts, [4, 1, 1, 1, 1, 0, 0]);
    assert_eq!(harness.send_all_when_due(), [1]);
    harness.fail(1);
    assert!(harness.outbox.get(1).is_none(), "exhausted");
    assert_eq!(harness.send_all_when_due(), [2]);
    harness.accept(2);
    assert_eq!(harness.endpoint_state(), EndpointState::Active);
    assert_eq!(harness.send_all(), [6, 3, 7, 4, 5], "all that waits is due");
}

#[test]
fn what_was_under_way_when_the_endpoint_opened_does_not_count_again() {
    let mut harness = OutboxHarness::new(16);
    harness.enqueue_many(1..=7);
    harness.send_all();
    (1..=5).for_each(|position| harness.fail(position));
    let until = harness.outbox.endpoint_status().until;
    harness.elapsed += 10;
    harness.fail(6);
    assert_eq!(harness.outbox.endpoint_status().until, until);
    harness.settle(7, 404, &Disposition::Refused);
    assert_eq!(harness.endpoint_state(), EndpointState::Active, "whoever refuses is there");
}

#[test]
fn a_throttled_endpoint_that_was_open_is_open_again_afterwards() {
    let mut harness = OutboxHarness::with_open_breaker(16);
    harness.send_all_when_due();
    harness.settle(1, 503, &Disposition::Retry { after: Some(Duration::from_secs(60)) });
    assert_eq!(
        (harness.endpoint_state(), harness.ms_until_due()),
        (EndpointState::Throttled, Some(60_000))
    );
    harness.elapsed += 60_000;
    assert_eq!(harness.send_all(), [1], "a probe");
    assert_eq!(harness.endpoint_state(), EndpointState::Open);
    harness.outbox.enable();
    assert_eq!(harness.endpoint_state(), EndpointState::Active);
    assert_eq!(harness.send_all().len(), 6);
}

#[test]
fn only_exceptions_are_written_and_only_what_should_not_wait_asks_for_it() {
    let mut harness = OutboxHarness::new(16);
    harness.enqueue_many(1..=3);
    harness.outbox.advance_to(9);
    assert_eq!(harness.outbox.take_urgent_changes(), None);
    harness.send_all();
    harness.accept(1);
    let changes = harness.outbox.take_urgent_changes().unwrap();
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
        matches!(&changes.deliveries[&2], DeliveryChange::Owed(owed) if owed.next_attempt_at.is_some()),
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
fn what_could_not_be_written_comes_again_under_what_has_happened_since() {
    let mut harness = OutboxHarness::new(16);
    harness.enqueue_many(1..=4);
    harness.send_all();
    harness.settle(1, 400, &Disposition::Refused);
    let changes = harness.outbox.take_urgent_changes().unwrap();
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
fn a_restart_goes_on_where_the_store_says() {
    let mut harness = OutboxHarness::new(16);
    for (position, session) in [(1, "a"), (2, "b"), (3, "a")] {
        harness.enqueue(position, session);
    }
    harness.send_all();
    harness.fail(1);
    let changes = harness.commit();
    let owed = changes
        .deliveries
        .into_values()
        .filter_map(|fate| if let DeliveryChange::Owed(owed) = fate { Some(owed) } else { None });
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
fn of_what_the_store_has_few_are_loaded_at_once_and_the_rest_in_time() {
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
fn there_is_room_until_very_much_is_owed_and_half_of_it_may_be_one_session() {
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
fn in_memory_the_oldest_that_is_not_under_way_is_given_up_for_what_is_new() {
    let one = event(1, "a", 1000).size_bytes() as u64;
    let keeping = EventStorage::InMemory { max_bytes: 3 * one };
    let mut harness = OutboxHarness::with(DeliveryPolicy { event_storage: keeping, ..POLICY });
    harness.outbox.enqueue(event(1, "a", 1000), harness.now());
    assert_eq!(harness.send_all(), [1]);
    (2..=4).for_each(|position| harness.outbox.enqueue(event(position, "a", 1000), harness.now()));
    assert!(harness.outbox.has_capacity());
    let changes = harness.commit();
    assert!(
        matches!(&changes.deliveries[&2], DeliveryChange::Dead(letter) if letter.reason == DeadLetterReason::Expired)
    );
    assert_eq!(
        changes.deliveries[&2].clone(),
        match &changes.deliveries[&2] {
            DeliveryChange::Dead(letter) => DeliveryChange::Dead(DeadLetter {
                payload: event(2, "a", 1000).payload(),
                ..letter.clone()
            }),
            other => panic!("{other:?}"),
        }
    );
    harness.accept(1);
    assert_eq!(harness.send_all(), [3]);
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
    assert!(
        matches!(&changes.deliveries[&3], DeliveryChange::Dead(letter) if letter.delivery.attempts.len() == 2)
    );
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
    assert!(
        matches!(&changes.deliveries[&1], DeliveryChange::Dead(letter) if letter.delivery.attempts.len() == 6)
    );
}

#[test]
fn what_the_store_has_expired_goes_without_a_word_unless_it_is_accepted_after_all() {
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
    let changes = harness.commit();
    assert_eq!(changes.deliveries.keys().copied().collect::<Vec<_>>(), [1, 4, 6]);
    assert_eq!(
        (&changes.deliveries[&1], &changes.deliveries[&4]),
        (&DeliveryChange::Settled, &DeliveryChange::Settled)
    );
    assert_eq!(harness.send_all(), [6]);
}

#[test]
fn what_was_accepted_while_the_store_expired_it_is_settled_also_when_a_batch_fails_between() {
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
fn an_erased_session_leaves_no_record_whatever_comes_of_what_is_under_way() {
    for verdict in [Disposition::Accepted, AGAIN, Disposition::Refused] {
        let mut harness = OutboxHarness::new(4);
        for (position, session) in [(1, "a"), (2, "a"), (3, "b"), (4, "a"), (5, "b")] {
            harness.enqueue(position, session);
        }
        harness.send_all();
        harness.accept(1);
        harness.accept(3);
        harness.commit();
        assert_eq!(harness.send_all(), [2, 5]);
        harness.outbox.erase(&SessionId::new("a").unwrap());
        assert_eq!(harness.outbox.owed().0, 1);
        let of_b: Vec<u64> = harness
            .outbox
            .delivered(None, 9)
            .iter()
            .map(|(_, delivery)| delivery.position)
            .collect();
        assert_eq!(of_b, [3]);
        harness.settle(2, 200, &verdict);
        let changes = harness.commit();
        assert_eq!(
            (&changes.deliveries[&2], &changes.deliveries[&4]),
            (&DeliveryChange::Settled, &DeliveryChange::Settled)
        );
        assert_eq!((harness.send_all(), harness.outbox.delivered(None, 9).len()), (vec![], 1));
    }
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
    harness.outbox.erase(&SessionId::new("a").unwrap());
    harness.outbox.record_commit_failure(changes);
    assert!(harness.commit().deliveries.values().all(|fate| *fate == DeliveryChange::Settled));
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
fn what_is_owed_is_listed_newest_first_with_when_it_is_due() {
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
    let draft = Draft { kind: Kind::Actions, session: None, forwarded_at: None, payload, received };
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

fn event(position: u64, session: &str, bytes: usize) -> Arc<Event> {
    let session = (!session.is_empty()).then(|| SessionId::new(session).unwrap());
    let payload = Bytes::from("x".repeat(bytes));
    Arc::new(Event::restored(EventId::new(7, position), position, Kind::Actions, session, &payload))
}

fn dead_letter(position: u64, session: &str) -> DeadLetter {
    let event = event(position, session, 10);
    let delivery = Delivery {
        position,
        event_id: event.id(),
        kind: event.kind().clone(),
        session: event.session().cloned(),
        created_at: 0,
        attempts: vec![attempt(400, 0)],
    };
    DeadLetter { delivery, reason: DeadLetterReason::Refused, died_at: 0, payload: event.payload() }
}

fn attempt(status: u16, at: u64) -> Attempt {
    let outcome = if status == 200 { Outcome::Accepted } else { Outcome::Failed };
    Attempt { at, duration_ms: 1, outcome, status: Some(status), error: None }
}

const POLICY: DeliveryPolicy = DeliveryPolicy {
    max_retries: 4,
    initial_backoff: Duration::from_secs(2),
    max_backoff: Duration::from_secs(10),
    max_in_flight: 16,
    event_storage: EventStorage::InStore,
};

const NO_POSITIONS: [u64; 0] = [];
