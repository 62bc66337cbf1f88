//! The simulated users of one product.
//!
//! In: a seed, and the time of each event. Out: payloads, endlessly. Pure: the same seed gives the
//! same payloads except for their times.
//!
//! May use: no other module.

use fastrand::Rng;

use super::person::Person;

/// The users who are currently in one product.
pub(crate) struct Population {
    product: String,
    payload_bytes: usize,
    rng: Rng,
    people: Vec<Person>,
    /// Number of events so far.
    turn: u64,
}

impl Population {
    /// Creates a population of `sessions` users, at least one, whose payloads have about
    /// `payload_bytes` bytes or more.
    pub(crate) fn new(
        seed: u64,
        product: &str,
        sessions: usize,
        payload_bytes: usize,
    ) -> Population {
        let mut rng = Rng::with_seed(seed ^ stable_hash(product));
        // The first user is signed in, because a demo begins with that user, and a tour needs a
        // session.
        let mut people = vec![Person::customer(&mut rng)];
        people.extend((1..sessions).map(|_| Person::random_visitor(&mut rng)));
        Population { product: product.to_owned(), payload_bytes, rng, people, turn: 0 }
    }

    /// Returns the JSON text of the next payload, forwarded at `now` (Unix seconds).
    pub(crate) fn next_payload(&mut self, now: f64) -> String {
        let Population { product, payload_bytes, rng, people, turn } = self;
        let person = pick_person(people, *turn, rng);
        if person.has_left() {
            // A new user replaces the one who has left, so the number of users stays the same.
            *person = Person::random_visitor(rng);
        }
        let mut payload = person.next_payload(*turn, now, product, rng);
        *turn += 1;
        payload.pad_to(*payload_bytes, rng);
        payload.set_times(now, rng);
        payload.encode()
    }
}

/// Returns the user of the next event. Every second one of the first events belongs to the first
/// user: with many sessions no other user would have done enough for a summary.
fn pick_person<'a>(people: &'a mut [Person], turn: u64, rng: &mut Rng) -> &'a mut Person {
    let is_first_persons_turn = turn < OPENING_EVENTS && turn.is_multiple_of(2);
    let index = if is_first_persons_turn { 0 } else { rng.usize(..people.len()) };
    people.get_mut(index).expect("the index is below the number of people, which is never zero")
}

/// Returns the FNV-1a hash, which is the same in every build: the standard library's hashes are
/// not.
fn stable_hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Number of events of which every second one belongs to the first user.
const OPENING_EVENTS: u64 = 20;

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use serde_json::Value;

    use super::*;

    const NOW: f64 = 1_700_000_000.25;

    #[test]
    fn the_same_seed_gives_the_same_payloads_at_any_time() {
        let mut early = Population::new(7, "prod_abc", 20, 700);
        let mut late = Population::new(7, "prod_abc", 20, 700);
        for turn in 0..500 {
            let early = without_times(&early.next_payload(NOW + f64::from(turn)));
            assert_eq!(
                early,
                without_times(&late.next_payload(1_800_000_000.123 + 17.1 * f64::from(turn)))
            );
        }
    }

    #[test]
    fn another_seed_or_another_product_gives_other_payloads() {
        let text = |seed, product| {
            let mut population = Population::new(seed, product, 20, 0);
            (0..20).map(|_| population.next_payload(NOW).replace(product, "")).collect::<Vec<_>>()
        };
        assert_ne!(text(1, "prod_abc"), text(2, "prod_abc"));
        assert_ne!(text(1, "prod_abc"), text(1, "prod_xyz"));
    }

    #[test]
    fn the_hash_is_the_published_one() {
        assert_eq!(stable_hash(""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(stable_hash("foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn the_first_twenty_events_show_every_kind() {
        for (seed, sessions) in (0..200).flat_map(|seed| [(seed, 1), (seed, 20), (seed, 3000)]) {
            let kinds: BTreeSet<String> =
                payloads(seed, sessions, 20).iter().map(|it| text(it, "type")).collect();
            assert_eq!(
                Vec::from_iter(kinds),
                ["actions", "summary", "usertour_trigger"],
                "{seed}, {sessions} sessions"
            );
        }
    }

    #[test]
    fn every_payload_has_the_fields_of_the_contract() {
        let mut seen = BTreeSet::new();
        for payload in payloads(3, 20, 5000) {
            assert_eq!(payload["product_id"], "prod_abc");
            match text(&payload, "type").as_str() {
                "actions" => check_actions(&payload),
                "summary" => {
                    assert!(
                        text_or_null(&payload["session_id"])
                            && !text(&payload, "summary").is_empty()
                    );
                    assert!(
                        payload["replaces"].as_u64().unwrap() > 0
                            && payload["forwarded_at"].is_f64()
                    );
                }
                "usertour_trigger" => {
                    assert!(
                        text(&payload, "session_id").starts_with("ps_")
                            && !text(&payload, "flow_id").is_empty()
                    );
                    assert!(payload.get("forwarded_at").is_none());
                    assert!(
                        ["reason", "user_id"]
                            .iter()
                            .all(|key| payload.get(key).is_none_or(Value::is_string))
                    );
                }
                other => panic!("unknown type {other}"),
            }
            seen.extend(
                payload
                    .as_object()
                    .unwrap()
                    .iter()
                    .map(|(key, value)| format!("{key} {}", value.is_null())),
            );
        }
        for expected in [
            "session_id true",
            "user_id true",
            "email true",
            "email false",
            "conversation_id false",
        ] {
            assert!(seen.contains(expected), "never seen: {expected}");
        }
        assert!(!seen.contains("conversation_id true"));
    }

    #[test]
    fn texts_are_not_always_plain_ascii() {
        let mut population = Population::new(4, "prod_abc", 20, 0);
        let not_ascii = (0..200).filter(|_| !population.next_payload(NOW).is_ascii()).count();
        assert!((10..190).contains(&not_ascii), "{not_ascii} of 200");
    }

    #[test]
    fn the_index_grows_through_a_session_and_time_never_decreases() {
        let mut population = Population::new(5, "prod_abc", 20, 0);
        let mut reached: BTreeMap<String, (u64, f64)> = BTreeMap::new();
        for turn in 0..3000 {
            let payload: Value =
                serde_json::from_str(&population.next_payload(NOW + 0.2 * f64::from(turn)))
                    .unwrap();
            let Some(session) = payload["session_id"].as_str() else {
                continue;
            };
            for action in payload["actions"].as_array().into_iter().flatten() {
                let (index, at) = reached.entry(session.to_owned()).or_default();
                assert_eq!(action["index"], *index);
                assert!(action["timestamp_start"].as_f64().unwrap() >= *at);
                (*index, *at) = (*index + 1, action["timestamp_end"].as_f64().unwrap());
            }
        }
        assert!(reached.len() > 40, "only {} sessions", reached.len());
    }

    #[test]
    fn about_the_requested_number_of_sessions_is_active_and_new_ones_arrive() {
        let sessions_in = |events: &[Value]| {
            events.iter().filter_map(|it| it["session_id"].as_str()).collect::<BTreeSet<_>>().len()
        };
        for sessions in [1, 20, 100] {
            let events = payloads(6, sessions, sessions * 200);
            // In this window nearly every user has a turn, and hardly any user leaves.
            let later_window = &events[sessions * 100..sessions * 108];
            let active = sessions_in(later_window);
            assert!(
                active <= sessions * 3 / 2 + 1 && active >= sessions / 2,
                "{active} of {sessions} are active"
            );
            assert!(sessions_in(&events) > sessions * 2, "no new sessions among {sessions}");
        }
    }

    #[test]
    fn every_kind_of_payload_is_padded_to_the_requested_size() {
        let mut population = Population::new(8, "prod_abc", 20, 4096);
        for _ in 0..300 {
            let payload = population.next_payload(NOW);
            assert!(
                (4096..4096 + 512).contains(&payload.len()),
                "{} bytes: {payload}",
                payload.len()
            );
            serde_json::from_str::<Value>(&payload).unwrap();
        }
    }

    fn payloads(seed: u64, sessions: usize, count: usize) -> Vec<Value> {
        let mut population = Population::new(seed, "prod_abc", sessions, 0);
        (0..count)
            .map(|turn| serde_json::from_str(&population.next_payload(NOW + turn as f64)).unwrap())
            .collect()
    }

    fn check_actions(payload: &Value) {
        let actions = payload["actions"].as_array().unwrap();
        assert!((1..=5).contains(&actions.len()) && payload["count"] == actions.len());
        let forwarded_at = payload["forwarded_at"].as_f64().unwrap();
        for action in actions {
            assert!(
                ["pageview", "click", "focus", "type", "submit", "blur"]
                    .contains(&text(action, "type").as_str())
            );
            assert!(!text(action, "title").is_empty() && !text(action, "description").is_empty());
            assert!(text(action, "raw_url").starts_with(&text(action, "canonical_url")));
            assert!(action["index"].is_u64() && action["timestamp_start"].is_f64());
            assert!(action["timestamp_end"].as_f64().unwrap() <= forwarded_at);
            for key in ["session_id", "user_id", "email"] {
                assert!(text_or_null(&action[key]) && action.get(key) == payload.get(key), "{key}");
            }
            assert_eq!(action.get("conversation_id"), payload.get("conversation_id"));
        }
    }

    fn text(value: &Value, key: &str) -> String {
        value[key].as_str().unwrap().to_owned()
    }

    fn text_or_null(value: &Value) -> bool {
        value.is_string() || value.is_null()
    }

    fn without_times(payload: &str) -> Value {
        let mut payload: Value = serde_json::from_str(payload).unwrap();
        payload.as_object_mut().unwrap().remove("forwarded_at");
        for action in payload.get_mut("actions").and_then(Value::as_array_mut).into_iter().flatten()
        {
            action["timestamp_start"].take();
            action["timestamp_end"].take();
        }
        payload
    }
}
