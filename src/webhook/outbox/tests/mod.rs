mod commit;
mod redelivery;

use bytes::Bytes;

use super::{
    circuit_breaker::FAILURES_TO_OPEN,
    item::MOST_ATTEMPTS,
    journal::{MOST_UNWRITTEN_BYTES, MOST_UNWRITTEN_LETTERS},
    *,
};
use crate::{
    event::{Draft, EventId, Kind},
    store::Fate,
    webhook_delivery::Outcome,
};

const AGAIN: Verdict = Verdict::Again { after: None };

/// An outbox and a clock.
struct Bench {
    outbox: Outbox,
    base: Now,
    elapsed: u64,
}

impl Bench {
    fn new(max_in_flight: usize) -> Self {
        Self::with(Policy { max_in_flight, ..POLICY })
    }

    fn with(policy: Policy) -> Self {
        let base = Now { instant: Instant::now(), unix_ms: 1_000_000 };
        let mut outbox = Outbox::new(policy, 0, Vec::new(), base);
        outbox.random = Rng::with_seed(1);
        Self { outbox, base, elapsed: 0 }
    }

    fn now(&self) -> Now {
        let elapsed = Duration::from_millis(self.elapsed);
        Now { instant: self.base.instant + elapsed, unix_ms: self.base.unix_ms + self.elapsed }
    }

    fn take(&mut self, place: u64, session: &str) {
        self.outbox.take(event(place, session, 10), self.now());
    }

    /// Events without sessions.
    fn take_many(&mut self, places: std::ops::RangeInclusive<u64>) {
        places.for_each(|place| self.take(place, ""));
    }

    /// Sends all that goes out now.
    fn sent(&mut self) -> Vec<u64> {
        let now = self.now();
        std::iter::from_fn(|| self.outbox.next(now)).map(|event| event.place()).collect()
    }

    fn settle(&mut self, place: u64, status: u16, verdict: &Verdict) {
        let now = self.now();
        self.outbox.settle(place, attempt(status, now.unix_ms), verdict, now);
    }

    fn fail(&mut self, place: u64) {
        self.settle(place, 503, &AGAIN);
    }

    fn accept(&mut self, place: u64) {
        self.settle(place, 200, &Verdict::Accepted);
    }

    fn commit(&mut self) -> Changes {
        let changes = self.outbox.changes().unwrap_or_default();
        self.outbox.committed();
        changes
    }

    fn state(&self) -> EndpointState {
        self.outbox.standing().state
    }

    /// Until something is due, in milliseconds.
    fn wait(&self) -> Option<u64> {
        self.outbox.due().map(|due| due.saturating_duration_since(self.now().instant).as_millis() as u64)
    }

    /// Goes on to when something is due, and sends it.
    fn sent_when_due(&mut self) -> Vec<u64> {
        self.elapsed += self.wait().unwrap() + 1;
        self.sent()
    }

    /// Opens the endpoint by deliveries 1 to 5, which wait for their retries then.
    fn open(max_in_flight: usize) -> Self {
        let mut bench = Self::new(max_in_flight);
        bench.take_many(1..=7);
        for place in 1..=FAILURES_TO_OPEN as u64 {
            assert_eq!(bench.state(), EndpointState::Active);
            let now = bench.now();
            assert_eq!(bench.outbox.next(now).unwrap().place(), place);
            bench.fail(place);
        }
        bench
    }
}

#[test]
fn one_session_goes_in_order_while_others_go_beside_it() {
    let mut bench = Bench::new(16);
    for (place, session) in [(1, "a"), (2, "a"), (3, "b"), (4, ""), (5, ""), (6, "b")] {
        bench.take(place, session);
    }
    assert_eq!(bench.sent(), [1, 3, 4, 5]);
    bench.accept(3);
    assert_eq!(bench.sent(), [6]);
    bench.fail(1);
    assert_eq!(bench.sent(), NONE, "2 waits for the retry of 1");
    assert_eq!(bench.sent_when_due(), [1]);
    bench.accept(1);
    assert_eq!(bench.sent(), [2]);
}

#[test]
fn a_slot_is_free_when_its_settlement_is_committed_or_could_not_be() {
    let mut bench = Bench::new(2);
    bench.take_many(1..=5);
    assert_eq!(bench.sent(), [1, 2]);
    bench.accept(1);
    assert_eq!((bench.sent(), bench.outbox.due()), (vec![], None));
    let changes = bench.outbox.changes().unwrap();
    assert_eq!(bench.sent(), NONE);
    bench.outbox.not_committed(changes);
    assert_eq!(bench.sent(), [3]);
    bench.fail(2);
    assert_eq!(bench.sent(), [4], "a failure can be forgotten");
    bench.accept(3);
    bench.commit();
    assert_eq!(bench.sent(), [5]);
}

#[test]
fn retries_and_first_attempts_share_the_slots_while_both_wait() {
    for (slots, retries) in [(8, 4), (3, 1), (2, 1)] {
        let mut bench = Bench::with(Policy { max_in_flight: slots, max_retries: 100, ..POLICY });
        let mut next = 1;
        for _ in 0..20 {
            bench.take(next, "");
            let now = bench.now();
            bench.outbox.next(now).unwrap();
            bench.fail(next);
            bench.outbox.endpoint.enable(); // without a word to those that wait
            next += 1;
        }
        bench.outbox.enable();
        bench.take_many(next..=next + 20);
        let sent = bench.sent();
        assert_eq!(sent.iter().filter(|place| **place < next).count(), retries, "{sent:?}");
        assert_eq!(sent.len(), slots);
    }
}

#[test]
fn with_one_slot_retries_and_first_attempts_take_turns() {
    let mut bench = Bench::with(Policy { max_in_flight: 1, max_retries: 100, ..POLICY });
    bench.take_many(1..=10);
    let mut sent = Vec::new();
    for _ in 0..10 {
        let places = bench.sent();
        bench.fail(places[0]);
        bench.outbox.enable();
        sent.extend(places);
    }
    assert_eq!(sent, [1, 1, 2, 1, 3, 1, 4, 1, 5, 1], "retries by their time, the others by their place");
}

#[test]
fn waits_double_within_a_tenth_up_to_the_longest_and_all_attempts_are_spent_once() {
    let mut bench = Bench::new(4);
    bench.take(1, "a");
    assert_eq!(bench.sent(), [1]);
    for expected in [2000, 4000, 8000, 10_000] {
        bench.fail(1);
        let wait = bench.wait().unwrap();
        assert!(wait >= expected * 9 / 10 && wait <= expected * 11 / 10 && wait <= 10_000, "{wait} of {expected}");
        assert_eq!(bench.outbox.pending(None, 9, bench.now())[0].1, Some(bench.now().unix_ms + wait));
        assert_eq!(bench.sent_when_due(), [1]);
    }
    bench.fail(1);
    let changes = bench.commit();
    let Some(Fate::Dead(letter)) = changes.fates.get(&1) else { panic!("{changes:?}") };
    assert_eq!((letter.reason, letter.delivery.attempts.len()), (DeadReason::Exhausted, 5));
    assert_eq!(letter.payload, event(1, "a", 10).payload());
    assert_eq!(bench.outbox.owed(), (0, None));
}

#[test]
fn refusals_are_dead_letters_at_once_with_their_reason() {
    for (verdict, reason) in [
        (Verdict::Refused, DeadReason::Refused),
        (Verdict::Gone, DeadReason::Refused),
        (Verdict::Forbidden, DeadReason::EgressRefused),
    ] {
        let mut bench = Bench::new(4);
        bench.take(1, "a");
        bench.sent();
        bench.settle(1, 410, &verdict);
        let changes = bench.commit();
        assert!(matches!(&changes.fates[&1], Fate::Dead(letter) if letter.reason == reason), "{changes:?}");
        assert_eq!(bench.state() == EndpointState::Disabled, verdict == Verdict::Gone);
    }
}

#[test]
fn a_disabled_endpoint_gets_nothing_until_it_is_enabled_and_then_everything_at_once() {
    let mut bench = Bench::new(3);
    bench.take_many(1..=4);
    bench.sent();
    bench.settle(1, 410, &Verdict::Gone);
    bench.fail(2);
    bench.commit();
    let standing = bench.outbox.standing();
    assert_eq!((standing.state, standing.until), (EndpointState::Disabled, None));
    assert_eq!(standing.problem.as_deref(), Some("answered 410"));
    bench.elapsed += 1_000_000;
    assert_eq!((bench.sent(), bench.outbox.due(), bench.outbox.wants()), (vec![], None, None));
    bench.outbox.enable();
    assert_eq!(bench.sent(), [2, 4]);
    bench.outbox.disable("an operator said so");
    assert_eq!(bench.outbox.standing().problem.as_deref(), Some("an operator said so"));
}

#[test]
fn a_throttled_endpoint_gets_nothing_until_the_latest_time_it_has_asked_for() {
    let mut bench = Bench::new(8);
    bench.take_many(1..=4);
    let now = bench.now();
    (0..3).for_each(|_| drop(bench.outbox.next(now)));
    for (place, seconds) in [(1, 60), (2, 30), (3, 90)] {
        bench.settle(place, 429, &Verdict::Again { after: Some(Duration::from_secs(seconds)) });
        assert_eq!(bench.sent(), NONE);
        assert_eq!(bench.wait(), Some(1000 * seconds.max(60)));
    }
    let standing = bench.outbox.standing();
    assert_eq!((standing.state, standing.problem.as_deref()), (EndpointState::Throttled, Some("answered 429")));
    assert_eq!(bench.outbox.pending(None, 1, now)[0].1, Some(now.unix_ms + 90_000));
    bench.elapsed = 89_999;
    assert_eq!(bench.sent(), NONE);
    bench.elapsed = 90_000;
    assert_eq!(bench.sent(), [2, 4, 1, 3], "a retry, the new one, the rest");
    assert_eq!(bench.state(), EndpointState::Active);
}

#[test]
fn five_failures_of_one_delivery_hold_nobody_back() {
    let mut bench = Bench::with(Policy { max_retries: 100, ..POLICY });
    bench.take(1, "poison");
    for _ in 0..20 {
        assert_eq!(if bench.wait() == Some(0) { bench.sent() } else { bench.sent_when_due() }, [1]);
        bench.fail(1);
        assert_eq!(bench.state(), EndpointState::Active);
    }
    bench.take(2, "a");
    assert_eq!(bench.sent(), [2]);
}

#[test]
fn an_acceptance_between_failures_begins_their_count_anew() {
    let mut bench = Bench::new(20);
    bench.take_many(1..=9);
    bench.sent();
    (1..=4).for_each(|place| bench.fail(place));
    bench.accept(5);
    (6..=9).for_each(|place| bench.fail(place));
    assert_eq!(bench.state(), EndpointState::Active);
}

#[test]
fn an_open_endpoint_is_probed_with_the_oldest_at_growing_intervals() {
    let mut bench = Bench::open(16);
    let standing = bench.outbox.standing();
    assert_eq!((standing.state, standing.problem.as_deref()), (EndpointState::Open, Some("answered 503")));
    for expected in [2000, 4000, 8000] {
        assert_eq!(bench.sent(), NONE);
        let wait = bench.wait().unwrap();
        assert!(wait >= expected * 9 / 10 && wait <= expected * 11 / 10, "{wait} of {expected}");
        assert_eq!(bench.sent_when_due(), [1], "and only this one");
        assert_eq!(bench.outbox.due(), None, "while the probe is under way");
        bench.fail(1);
    }
    let attempts: Vec<usize> = (1..=7).map(|place| bench.outbox.get(place).unwrap().attempts.len()).collect();
    assert_eq!(attempts, [4, 1, 1, 1, 1, 0, 0]);
    assert_eq!(bench.sent_when_due(), [1]);
    bench.fail(1);
    assert!(bench.outbox.get(1).is_none(), "exhausted");
    assert_eq!(bench.sent_when_due(), [2]);
    bench.accept(2);
    assert_eq!(bench.state(), EndpointState::Active);
    assert_eq!(bench.sent(), [6, 3, 7, 4, 5], "all that waits is due");
}

#[test]
fn what_was_under_way_when_the_endpoint_opened_does_not_count_again() {
    let mut bench = Bench::new(16);
    bench.take_many(1..=7);
    bench.sent();
    (1..=5).for_each(|place| bench.fail(place));
    let until = bench.outbox.standing().until;
    bench.elapsed += 10;
    bench.fail(6);
    assert_eq!(bench.outbox.standing().until, until);
    bench.settle(7, 404, &Verdict::Refused);
    assert_eq!(bench.state(), EndpointState::Active, "whoever refuses is there");
}

#[test]
fn a_throttled_endpoint_that_was_open_is_open_again_afterwards() {
    let mut bench = Bench::open(16);
    bench.sent_when_due();
    bench.settle(1, 503, &Verdict::Again { after: Some(Duration::from_secs(60)) });
    assert_eq!((bench.state(), bench.wait()), (EndpointState::Throttled, Some(60_000)));
    bench.elapsed += 60_000;
    assert_eq!(bench.sent(), [1], "a probe");
    assert_eq!(bench.state(), EndpointState::Open);
    bench.outbox.enable();
    assert_eq!(bench.state(), EndpointState::Active);
    assert_eq!(bench.sent().len(), 6);
}

#[test]
fn only_exceptions_are_written_and_only_what_should_not_wait_asks_for_it() {
    let mut bench = Bench::new(16);
    bench.take_many(1..=3);
    bench.outbox.pass(9);
    assert_eq!(bench.outbox.changes(), None);
    bench.sent();
    bench.accept(1);
    let changes = bench.outbox.changes().unwrap();
    assert_eq!((changes.position, changes.fates.keys().copied().collect::<Vec<_>>()), (9, vec![2, 3]));
    bench.fail(2);
    bench.accept(3);
    assert_eq!((bench.outbox.changes(), bench.outbox.all_changes()), (None, None), "one batch at a time");
    bench.outbox.committed();
    let changes = bench.commit();
    assert!(matches!(&changes.fates[&2], Fate::Owed(owed) if owed.next_attempt_at.is_some()), "{changes:?}");
    assert_eq!(changes.fates[&3], Fate::Settled, "its row was on its way");
    bench.outbox.pass(12);
    assert_eq!(bench.outbox.changes(), None);
    assert_eq!(bench.outbox.all_changes().unwrap().position, 12);
    bench.outbox.committed();
    assert_eq!(bench.outbox.all_changes(), None);
}

#[test]
fn what_could_not_be_written_comes_again_under_what_has_happened_since() {
    let mut bench = Bench::new(16);
    bench.take_many(1..=4);
    bench.sent();
    bench.settle(1, 400, &Verdict::Refused);
    let changes = bench.outbox.changes().unwrap();
    bench.accept(2);
    bench.settle(3, 400, &Verdict::Refused);
    bench.outbox.not_committed(changes);
    let changes = bench.commit();
    assert_eq!(changes.fates.keys().copied().collect::<Vec<_>>(), [1, 2, 3, 4]);
    assert!(matches!(&changes.fates[&1], Fate::Dead(_)));
    assert_eq!(changes.fates[&2], Fate::Settled, "there may be a row of it all the same");
    assert!(matches!(&changes.fates[&4], Fate::Owed(_)));
}

#[test]
fn dead_letters_that_cannot_be_written_are_bounded_and_those_lost_are_counted() {
    for (bytes, kept) in [(10, MOST_UNWRITTEN_LETTERS), (1 << 20, MOST_UNWRITTEN_BYTES >> 20)] {
        let mut bench = Bench::new(1);
        let count = kept as u64 + 20;
        for place in 1..=count {
            bench.outbox.take(event(place, "", bytes), bench.now());
            bench.sent();
            bench.settle(place, 400, &Verdict::Refused);
            let changes = bench.outbox.changes().unwrap();
            bench.outbox.not_committed(changes);
        }
        assert_eq!((bench.outbox.take_lost(), bench.outbox.take_lost()), (20, 0));
        let batches = std::iter::from_fn(|| Some(bench.commit()).filter(|changes| !changes.fates.is_empty()));
        assert!(batches.flat_map(|changes| changes.fates.into_keys()).eq(21..=count));
    }
}

#[test]
fn when_the_file_is_lost_everything_owed_is_written_again() {
    let mut bench = Bench::new(16);
    bench.take_many(1..=3);
    bench.outbox.all_changes().unwrap();
    bench.outbox.committed();
    bench.outbox.rewrite();
    let changes = bench.commit();
    assert_eq!((changes.position, changes.fates.len()), (3, 3));
}

#[test]
fn a_restart_goes_on_where_the_store_says() {
    let mut bench = Bench::new(16);
    for (place, session) in [(1, "a"), (2, "b"), (3, "a")] {
        bench.take(place, session);
    }
    bench.sent();
    bench.fail(1);
    let changes = bench.commit();
    let owed =
        changes.fates.into_values().filter_map(|fate| if let Fate::Owed(owed) = fate { Some(owed) } else { None });
    bench.outbox = Outbox::new(POLICY, changes.position, owed.collect(), bench.now());
    assert_eq!((bench.outbox.position(), bench.outbox.owed()), (3, (3, Some(1_000_000))));
    assert_eq!(bench.outbox.wants(), Some(2), "1 waits, 3 is behind it");
    assert_eq!(bench.sent(), NONE);
    bench.outbox.load(&event(2, "b", 10));
    assert_eq!((bench.outbox.wants(), bench.sent()), (None, vec![2]));
    bench.elapsed += bench.wait().unwrap();
    assert_eq!((bench.sent(), bench.outbox.wants()), (vec![], Some(1)));
    assert!(bench.outbox.is_gone(1), "cannot be read");
    assert!(!bench.outbox.is_gone(1) && !bench.outbox.is_gone(77));
    assert_eq!(bench.outbox.wants(), Some(3));
    assert_eq!(bench.commit().fates[&1], Fate::Settled);
    bench.take(3, "a");
    assert_eq!(bench.outbox.owed().0, 2, "what has been passed is not taken again");
}

#[test]
fn of_what_the_store_has_few_are_held_and_the_rest_is_loaded_in_time() {
    let mut bench = Bench::new(8);
    bench.take_many(1..=1000);
    assert_eq!(bench.outbox.tally.held, MOST_HELD);
    let mut delivered = Vec::new();
    while bench.outbox.owed().0 > 0 {
        while let Some(place) = bench.outbox.wants() {
            (place..place + 10).for_each(|place| bench.outbox.load(&event(place, "", 10)));
            assert!(bench.outbox.tally.held <= MOST_HELD + MOST_AHEAD);
        }
        let sent = bench.sent();
        sent.iter().for_each(|place| bench.accept(*place));
        bench.commit();
        delivered.extend(sent);
    }
    assert_eq!(delivered, (1..=1000).collect::<Vec<_>>());
}

#[test]
fn there_is_room_until_very_much_is_owed_and_half_of_it_may_be_one_session() {
    let mut bench = Bench::new(8);
    for place in 1..=MOST_OWED {
        assert!(bench.outbox.has_room());
        bench.take(place, if place % 2 == 0 { "a" } else { "" });
    }
    assert!(!bench.outbox.has_room());
    let sent = bench.sent();
    bench.accept(sent[0]);
    assert!(bench.outbox.has_room());
}

#[test]
fn in_memory_the_oldest_that_is_not_under_way_is_given_up_for_what_is_new() {
    let one = event(1, "a", 1000).size_bytes() as u64;
    let keeping = Keeping::InMemory { most_bytes: 3 * one };
    let mut bench = Bench::with(Policy { keeping, ..POLICY });
    bench.outbox.take(event(1, "a", 1000), bench.now());
    assert_eq!(bench.sent(), [1]);
    (2..=4).for_each(|place| bench.outbox.take(event(place, "a", 1000), bench.now()));
    assert!(bench.outbox.has_room());
    let changes = bench.commit();
    assert!(matches!(&changes.fates[&2], Fate::Dead(letter) if letter.reason == DeadReason::Expired));
    assert_eq!(
        changes.fates[&2].clone(),
        match &changes.fates[&2] {
            Fate::Dead(letter) => Fate::Dead(DeadLetter { payload: event(2, "a", 1000).payload(), ..letter.clone() }),
            other => panic!("{other:?}"),
        }
    );
    bench.accept(1);
    assert_eq!(bench.sent(), [3]);
}

#[test]
fn dead_letters_go_again_in_their_order_but_never_before_a_head_that_has_begun() {
    let mut bench = Bench::new(16);
    for (place, session) in [(7, "begun"), (8, "fresh"), (9, "fresh")] {
        bench.take(place, session);
    }
    let now = bench.now();
    assert_eq!(bench.outbox.next(now).unwrap().place(), 7);
    bench.commit();
    bench.outbox.redeliver(vec![letter(3, "begun"), letter(4, "fresh"), letter(4, "fresh")], now);
    assert_eq!((bench.outbox.owed().0, bench.outbox.letters()), (3, 2));
    assert_eq!(bench.outbox.pending(None, 9, now).len(), 3);
    assert_eq!(bench.sent(), [4]);
    bench.accept(7);
    assert_eq!(bench.sent(), [3]);
    bench.accept(4);
    bench.settle(3, 400, &Verdict::Refused);
    bench.outbox.redeliver(vec![letter(3, "begun"), letter(4, "fresh")], now);
    assert_eq!(bench.outbox.letters(), 0, "the store does not know yet");
    let changes = bench.commit();
    assert_eq!(changes.fates[&4], Fate::Settled);
    assert!(matches!(&changes.fates[&3], Fate::Dead(letter) if letter.delivery.attempts.len() == 2));
}

#[test]
fn a_redelivery_has_all_attempts_anew_and_is_never_written_as_owed() {
    let mut bench = Bench::new(16);
    bench.outbox.redeliver((1..=40).map(|place| letter(place, "a")).collect(), bench.now());
    assert_eq!(bench.sent(), [1]);
    for _ in 0..POLICY.max_retries {
        bench.fail(1);
        assert_eq!((bench.outbox.changes(), bench.outbox.all_changes()), (None, None));
        assert_eq!(bench.sent_when_due(), [1]);
    }
    bench.fail(1);
    let changes = bench.commit();
    assert!(matches!(&changes.fates[&1], Fate::Dead(letter) if letter.delivery.attempts.len() == 6));
}

#[test]
fn what_the_store_has_expired_goes_without_a_word_unless_it_is_accepted_after_all() {
    let mut bench = Bench::new(4);
    bench.take_many(1..=6);
    bench.sent();
    bench.accept(4);
    bench.outbox.expire(5);
    assert_eq!(bench.outbox.owed().0, 1);
    assert_eq!(bench.outbox.pending(None, 9, bench.now()).len(), 1);
    assert!(bench.outbox.get(1).is_none());
    bench.accept(1);
    bench.fail(2);
    bench.settle(3, 400, &Verdict::Refused);
    let changes = bench.commit();
    assert_eq!(changes.fates.keys().copied().collect::<Vec<_>>(), [1, 4, 6]);
    assert_eq!((&changes.fates[&1], &changes.fates[&4]), (&Fate::Settled, &Fate::Settled));
    assert_eq!(bench.sent(), [6]);
}

#[test]
fn what_was_accepted_while_the_store_expired_it_is_settled_also_when_a_batch_fails_between() {
    let mut bench = Bench::new(4);
    bench.take_many(1..=2);
    bench.sent();
    let changes = bench.outbox.all_changes().unwrap();
    bench.accept(1);
    bench.outbox.expire(2);
    bench.accept(2);
    bench.outbox.not_committed(changes);
    let changes = bench.commit();
    assert_eq!((&changes.fates[&1], &changes.fates[&2]), (&Fate::Settled, &Fate::Settled));
}

#[test]
fn an_erased_session_leaves_no_record_whatever_comes_of_what_is_under_way() {
    for verdict in [Verdict::Accepted, AGAIN, Verdict::Refused] {
        let mut bench = Bench::new(4);
        for (place, session) in [(1, "a"), (2, "a"), (3, "b"), (4, "a"), (5, "b")] {
            bench.take(place, session);
        }
        bench.sent();
        bench.accept(1);
        bench.accept(3);
        bench.commit();
        assert_eq!(bench.sent(), [2, 5]);
        bench.outbox.erase(&SessionId::new("a").unwrap());
        assert_eq!(bench.outbox.owed().0, 1);
        let of_b: Vec<u64> = bench.outbox.delivered(None, 9).iter().map(|(_, delivery)| delivery.place).collect();
        assert_eq!(of_b, [3]);
        bench.settle(2, 200, &verdict);
        let changes = bench.commit();
        assert_eq!((&changes.fates[&2], &changes.fates[&4]), (&Fate::Settled, &Fate::Settled));
        assert_eq!((bench.sent(), bench.outbox.delivered(None, 9).len()), (vec![], 1));
    }
}

#[test]
fn a_dead_letter_of_an_erased_session_is_not_written_even_if_it_is_on_its_way() {
    let mut bench = Bench::new(4);
    (1..=2).for_each(|place| bench.take(place, "a"));
    bench.sent();
    bench.settle(1, 400, &Verdict::Refused);
    let changes = bench.outbox.changes().unwrap();
    bench.sent();
    bench.settle(2, 400, &Verdict::Refused);
    bench.outbox.erase(&SessionId::new("a").unwrap());
    bench.outbox.not_committed(changes);
    assert!(bench.commit().fates.values().all(|fate| *fate == Fate::Settled));
}

#[test]
fn the_last_thousand_deliveries_are_listed_newest_first_and_the_last_hundred_attempts() {
    let mut bench = Bench::new(1);
    for place in 1..=1100 {
        bench.take(place, "");
        bench.sent();
        bench.accept(place);
        bench.commit();
    }
    let all = bench.outbox.delivered(None, usize::MAX);
    assert_eq!((all.len(), all[0].0, all[0].1.place, all[999].0), (1000, 1100, 1100, 101));
    let page: Vec<u64> = bench.outbox.delivered(Some(1000), 2).into_iter().map(|(number, _)| number).collect();
    assert_eq!(page, [999, 998]);
    let mut item = Item::new(all[0].1.clone(), None, Claim::Owed);
    (0..150).for_each(|at| item.note(attempt(503, at)));
    assert_eq!((item.delivery.attempts.len(), item.delivery.attempts[0].at), (MOST_ATTEMPTS, 50));
}

#[test]
fn what_is_owed_is_listed_newest_first_with_when_it_is_due() {
    let mut bench = Bench::new(1);
    for (place, session) in [(1, "a"), (2, "a"), (3, "")] {
        bench.take(place, session);
    }
    bench.sent();
    let due: Vec<_> = bench.outbox.pending(None, 9, bench.now()).into_iter().map(|it| (it.0.place, it.1)).collect();
    assert_eq!(due, [(3, Some(1_000_000)), (2, None), (1, None)]);
    assert_eq!(bench.outbox.pending(Some(3), 1, bench.now())[0].0.place, 2);
}

#[test]
fn a_delivery_is_as_old_as_its_event_if_that_is_known() {
    let mut bench = Bench::new(1);
    bench.elapsed = 5000;
    bench.take(1, "");
    let (payload, received) = (Bytes::from_static(b"{}"), bench.base.instant + Duration::from_secs(2));
    let draft = Draft { kind: Kind::Actions, session: None, forwarded_at: None, payload, received };
    bench.outbox.take(Arc::new(Event::new(EventId::new(7, 2), 2, draft)), bench.now());
    let created: Vec<u64> =
        bench.outbox.pending(None, 9, bench.now()).iter().map(|(delivery, _)| delivery.created_at).collect();
    assert_eq!(created, [1_002_000, 1_005_000]);
}

#[test]
fn an_item_is_small() {
    assert!(size_of::<Item>() <= 136, "{}", size_of::<Item>());
}

fn event(place: u64, session: &str, bytes: usize) -> Arc<Event> {
    let session = (!session.is_empty()).then(|| SessionId::new(session).unwrap());
    let payload = Bytes::from("x".repeat(bytes));
    Arc::new(Event::restored(EventId::new(7, place), place, Kind::Actions, session, &payload))
}

fn letter(place: u64, session: &str) -> DeadLetter {
    let event = event(place, session, 10);
    let delivery = Delivery {
        place,
        event_id: event.id(),
        kind: event.kind().clone(),
        session: event.session().cloned(),
        created_at: 0,
        attempts: vec![attempt(400, 0)],
    };
    DeadLetter { delivery, reason: DeadReason::Refused, died_at: 0, payload: event.payload() }
}

fn attempt(status: u16, at: u64) -> Attempt {
    let outcome = if status == 200 { Outcome::Accepted } else { Outcome::Failed };
    Attempt { at, duration_ms: 1, outcome, status: Some(status), error: None }
}

const POLICY: Policy = Policy {
    max_retries: 4,
    initial_backoff: Duration::from_secs(2),
    max_backoff: Duration::from_secs(10),
    max_in_flight: 16,
    keeping: Keeping::InStore,
};

const NONE: [u64; 0] = [];
