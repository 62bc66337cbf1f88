//! Dead letters that are delivered again: in their order, and none of a session that fails in the way of another's.

use super::*;

/// Dead letters in the store that wait to be delivered again, by place.
struct Shelf(BTreeMap<u64, DeadLetter>);

impl Shelf {
    /// The outbox asks for some, and gets at most `most`. Tells whether it is to ask again soon.
    fn give(&self, bench: &mut Bench, most: usize) -> bool {
        let now = bench.now();
        let Some(after) = bench.outbox.wants_letters_behind() else { return true };
        let letters = self.0.range(after + 1..).take(most).map(|(_, letter)| letter.clone());
        bench.outbox.redeliver(letters.collect(), now)
    }

    /// What the outbox has settled is no dead letter any more.
    fn commit(&mut self, bench: &mut Bench) {
        for (place, fate) in bench.commit().fates {
            assert_eq!(fate, Fate::Settled, "of {place}");
            self.0.remove(&place);
        }
    }
}

#[test]
fn a_session_that_fails_keeps_no_letter_of_another_from_being_delivered() {
    let mut bench = Bench::new(16);
    let sessions = (1..=60).map(|place| (place, "fails")).chain((61..=65).map(|place| (place, "well")));
    let mut shelf = Shelf(sessions.map(|(place, session)| (place, letter(place, session))).collect());
    let mut accepted = Vec::new();
    for _ in 0..12 {
        shelf.give(&mut bench, 48);
        for place in bench.sent() {
            if place > 60 {
                bench.accept(place);
                accepted.push(place);
            } else {
                bench.fail(place);
            }
        }
        shelf.commit(&mut bench);
    }
    assert_eq!(
        (accepted, bench.outbox.letters()),
        ((61..=65).collect(), 1),
        "and of the other one only the first is here"
    );
    let is_worth_it: Vec<bool> = (0..3).map(|_| shelf.give(&mut bench, 48)).collect();
    assert!(is_worth_it.contains(&false), "there is nothing else, so it asks more rarely");
}

#[test]
fn letters_of_a_session_are_delivered_in_order_whatever_fails_and_however_they_come() {
    for seed in 0..200 {
        let (mut bench, mut rng) = (Bench::with(Policy { max_retries: u32::MAX, ..POLICY }), Rng::with_seed(seed));
        let names = ["", "a", "b", "c", "d", "e", "f", "g"];
        let session = |place: u64| names[(place * 7 / 3 % 8) as usize];
        let mut shelf = Shelf((1..=150).map(|place| (place, letter(place, session(place)))).collect());
        let (mut accepted, mut under_way) = (Vec::new(), Vec::new());
        for turn in 0.. {
            assert!(turn < 10_000, "seed {seed}: {} are never delivered", shelf.0.len());
            if shelf.0.is_empty() {
                break;
            }
            bench.elapsed += rng.u64(0..3000);
            shelf.give(&mut bench, rng.usize(1..49));
            under_way.extend(bench.sent());
            for _ in 0..rng.usize(0..8) {
                let Some(nth) = (!under_way.is_empty()).then(|| rng.usize(0..under_way.len())) else { break };
                let place = under_way.swap_remove(nth);
                let fails = rng.u32(0..10) < if session(place) == "a" { 9 } else { 2 };
                if fails {
                    bench.fail(place);
                } else {
                    bench.accept(place);
                    accepted.push(place);
                }
            }
            if rng.bool() {
                shelf.commit(&mut bench);
            }
            bench.outbox.enable();
        }
        assert_eq!(accepted.len(), 150, "seed {seed}: each once");
        for name in &names[1..] {
            let of: Vec<u64> = accepted.iter().copied().filter(|place| session(*place) == *name).collect();
            assert!(of.is_sorted(), "seed {seed}: {name}: {of:?}");
        }
    }
}

#[test]
fn letters_that_are_requeued_before_those_that_were_looked_at_go_first() {
    let mut bench = Bench::new(16);
    let mut shelf = Shelf([(8, letter(8, "a"))].into());
    shelf.give(&mut bench, 48);
    assert_eq!(bench.sent(), [8]);
    bench.accept(8);
    shelf.commit(&mut bench);
    shelf.0.extend([3, 5, 9].map(|place| (place, letter(place, "a"))));
    bench.outbox.walk_anew();
    shelf.give(&mut bench, 48);
    for place in [3, 5, 9] {
        assert_eq!(bench.sent(), [place]);
        bench.accept(place);
    }
}
