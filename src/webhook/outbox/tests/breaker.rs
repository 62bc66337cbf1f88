//! Circuit breaker of an outbox: disabled, throttled, open, probed.

use super::*;

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
fn five_failures_of_one_delivery_do_not_open_the_circuit() {
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
fn attempts_in_flight_when_the_circuit_opened_do_not_count_again() {
    let mut harness = OutboxHarness::new(16);
    harness.enqueue_many(1..=7);
    harness.send_all();
    (1..=5).for_each(|position| harness.fail(position));
    let until = harness.outbox.endpoint_status().until;
    harness.elapsed += 10;
    harness.fail(6);
    assert_eq!(harness.outbox.endpoint_status().until, until);
    harness.settle(7, 404, &Disposition::Refused);
    assert_eq!(harness.endpoint_state(), EndpointState::Active, "a receiver that refuses is there");
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
