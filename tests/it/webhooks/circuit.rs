//! The states of an endpoint (disabled, open, active again), and the redelivery of dead letters.

use std::{collections::BTreeMap, ops::Range, time::Duration};

use crate::common::{
    PRODUCT,
    connector::Connector,
    events::{event, event_of},
    page::{Storage, publish},
    receiver::{Answer, Receiver},
    relay::Setup,
    store::DataDir,
    wait,
    webhooks::{LOOPBACK, outcomes, table, url},
};
use serde_json::{Value, json};

/// Returns events of three sessions in turn.
fn events(numbers: Range<usize>) -> impl Iterator<Item = String> {
    numbers.map(|n| event_of(SESSIONS[n % 3], n))
}

/// Returns the numbers that the receiver must have accepted, by session.
fn in_order(numbers: Range<usize>) -> BTreeMap<String, Vec<usize>> {
    let of = |nth: usize| numbers.clone().filter(|n| n % 3 == nth).collect();
    SESSIONS.iter().enumerate().map(|(nth, name)| ((*name).to_owned(), of(nth))).collect()
}

const SESSIONS: [&str; 3] = ["a", "b", "c"];

#[test]
fn a_410_disables_its_webhook_and_later_events_wait_until_it_is_enabled() {
    for storage in Storage::ALL {
        let (connector, receiver) = (Connector::new(), Receiver::answering(410));
        let (setup, _directory) = storage.setup(&connector);
        let relay = setup.more(&(table("hook", &receiver, "") + LOOPBACK)).start();
        let mut link = connector.stream();
        publish(&relay, &mut link, [event_of("gone", 1000)]);
        relay.wait_for_webhook("hook", "disabled");
        assert_eq!(outcomes(&relay.wait_for_deliveries("hook", "dead", 1)[0]), ["refused"]);
        receiver.set_script(|_| Answer::Status(200));
        publish(&relay, &mut link, events(0..30));
        relay.wait_for_deliveries("hook", "pending", 30);
        wait::holds("no request is sent", Duration::from_millis(300), || receiver.count() == 1);
        let logged = relay
            .process
            .stderr
            .so_far()
            .into_iter()
            .filter(|line| line.contains("disabled"))
            .count();
        assert!(logged > 0, "{storage:?}: the state is logged");
        assert_eq!(relay.deliveries("hook", "pending").len(), 30);
        assert_eq!(relay.webhook("hook")["pending"], 30);
        let enabled = relay.command_webhook("hook", "enable");
        assert_eq!((enabled.status(), &enabled.json()["state"]), (200, &"active".into()));
        relay.wait_until_settled("hook");
        assert_eq!(receiver.accepted_by_session(), in_order(0..30), "{storage:?}");
    }
}

#[test]
fn a_disabled_webhook_stays_disabled_after_a_restart() {
    let (connector, data, receiver) = (Connector::new(), DataDir::new(), Receiver::answering(410));
    let setup = data.setup(&connector, "").more(&(table("hook", &receiver, "") + LOOPBACK));
    let relay = setup.start();
    let mut link = connector.stream();
    publish(&relay, &mut link, [event_of("gone", 1000)]);
    relay.wait_for_webhook("hook", "disabled");
    publish(&relay, &mut link, events(0..6));
    relay.stop();
    drop(link);
    receiver.set_script(|_| Answer::Status(200));
    let relay = setup.start();
    assert_eq!(relay.webhook("hook")["state"], "disabled");
    relay.wait_for_pending("hook", 6);
    assert_eq!(receiver.count(), 1);
    relay.command_webhook("hook", "enable");
    relay.wait_until_settled("hook");
    assert_eq!(receiver.accepted_by_session(), in_order(0..6));
}

#[test]
fn a_late_response_of_the_former_url_does_not_change_the_state() {
    let (connector, former) = (Connector::new(), Receiver::new(|_| Answer::HeldThen(410)));
    let present = Receiver::accepting();
    let relay = Setup::behind(&connector).more(LOOPBACK).start();
    let mut link = connector.stream();
    let hook = |receiver| json!({ "id": "hook", "product_id": PRODUCT, "url": url(receiver, "hook"), "secret": "s", "types": [], "max_retries": 0 });
    assert_eq!(relay.call("POST", "/api/v1/webhooks", &hook(&former)).status(), 201);
    publish(&relay, &mut link, [event_of("a", 0)]);
    former.wait_for(1);
    assert_eq!(relay.call("PUT", "/api/v1/webhooks/hook", &hook(&present)).status(), 200);
    former.release();
    publish(&relay, &mut link, [event_of("a", 1)]);
    relay.wait_until_settled("hook");
    assert_eq!(
        (present.accepted_by_session(), relay.webhook("hook")["state"].clone()),
        ([("a".to_owned(), vec![0, 1])].into(), "active".into())
    );
    let delivery = relay.deliveries("hook", "delivered").remove(1);
    assert_eq!(outcomes(&delivery), ["refused", "accepted"]);
}

#[test]
fn a_late_response_does_not_disable_a_webhook_that_an_operator_has_enabled() {
    let (connector, receiver) = (Connector::new(), Receiver::new(|_| Answer::HeldThen(410)));
    let relay = Setup::behind(&connector)
        .more(&(table("hook", &receiver, "max_retries = 0") + LOOPBACK))
        .start();
    let mut link = connector.stream();
    publish(&relay, &mut link, [event_of("a", 0)]);
    receiver.wait_for(1);
    assert_eq!(relay.command_webhook("hook", "enable").json()["state"], "active");
    receiver.set_script(|_| Answer::Status(200));
    receiver.release();
    relay.wait_until_settled("hook");
    assert_eq!((receiver.count(), relay.webhook("hook")["state"].clone()), (2, "active".into()));
    assert_eq!(outcomes(&relay.deliveries("hook", "delivered").remove(0)), ["refused", "accepted"]);
}

#[test]
fn an_open_circuit_probes_with_the_oldest_delivery_until_the_receiver_recovers() {
    for storage in Storage::ALL {
        let (connector, receiver) = (Connector::new(), Receiver::answering(503));
        let (setup, _directory) = storage.setup(&connector);
        let relay = setup.more(&(table("hook", &receiver, "max_in_flight = 8") + LOOPBACK)).start();
        let mut link = connector.stream();
        publish(&relay, &mut link, (0..60).map(|n| event_of(&format!("s{n}"), n)));
        relay.wait_for_webhook("hook", "open");
        // Attempts in flight when the circuit opened come to an end; from then on only the oldest
        // delivery is tried.
        let oldest_alone = || {
            let requests = receiver.requests();
            let last = &requests[requests.len().saturating_sub(4)..];
            last.len() == 4 && last.iter().all(|request| request.number() == last[0].number())
        };
        wait::until("four probes one after the other", oldest_alone);
        let probed = receiver.requests().last().unwrap().number();
        // No delivery is given up meanwhile; the newest ones become pending sooner or later.
        let waiting = relay.wait_for_deliveries("hook", "pending", 60);
        let oldest = waiting.last().unwrap()["event_id"].as_str().unwrap().to_owned();
        assert_eq!(
            receiver.requests().last().unwrap().id(),
            oldest,
            "{storage:?}: {probed} is not the oldest"
        );
        let attempts_used = || -> Vec<usize> {
            let attempts = |delivery: &Value| delivery["attempts"].as_array().unwrap().len();
            relay.deliveries("hook", "pending").iter().rev().skip(1).map(attempts).collect()
        };
        let (before, count) = (attempts_used(), receiver.count());
        wait::until("more probes", || receiver.count() > count + 2);
        assert_eq!(attempts_used(), before, "{storage:?}: only the probe uses attempts");
        publish(&relay, &mut link, [event_of("late", 60)]);
        receiver.set_script(|_| Answer::Status(200));
        relay.wait_until_settled("hook");
        relay.wait_for_webhook("hook", "active");
        let mut accepted: Vec<_> =
            receiver.accepted().iter().map(|request| request.number()).collect();
        accepted.sort_unstable();
        assert_eq!(accepted, (0..=60).collect::<Vec<_>>(), "{storage:?}");
        assert_eq!(relay.webhook("hook")["dead"], 0);
    }
}

#[test]
fn failures_of_one_delivery_do_not_open_the_circuit() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let receiver =
        Receiver::new(|request| Answer::Status(if request.number() == 0 { 500 } else { 200 }));
    let relay = data.setup(&connector, "").more(&(table("hook", &receiver, "") + LOOPBACK)).start();
    let mut link = connector.stream();
    publish(&relay, &mut link, [event_of("bad", 0)]);
    receiver.wait_for(25);
    assert_eq!(relay.webhook("hook")["state"], "active");
    publish(&relay, &mut link, [event_of("good", 1)]);
    receiver.wait_for_accepted(1);
}

#[test]
fn enabling_an_open_webhook_closes_its_circuit_at_once() {
    let (connector, receiver) = (Connector::new(), Receiver::answering(503));
    let (setup, _directory) = Storage::Memory.setup(&connector);
    // After the first failures, the backoff outlasts the test.
    let lines = "initial_backoff = '10m'\nmax_backoff = '10m'";
    let relay = setup.more(&(table("hook", &receiver, lines) + LOOPBACK)).start();
    let mut link = connector.stream();
    publish(&relay, &mut link, (0..60).map(|n| event_of(&format!("s{n}"), n)));
    relay.wait_for_webhook("hook", "open");
    receiver.set_script(|_| Answer::Status(200));
    assert_eq!(relay.command_webhook("hook", "enable").json()["state"], "active");
    relay.wait_until_settled("hook");
    assert_eq!(receiver.accepted().len(), 60);
}

#[test]
fn dead_letters_are_redelivered_singly_and_all_at_once_in_order() {
    for storage in Storage::ALL {
        let (connector, receiver) = (Connector::new(), Receiver::answering(400));
        let (setup, _directory) = storage.setup(&connector);
        let relay = setup.more(&(table("hook", &receiver, "") + LOOPBACK)).start();
        let mut link = connector.stream();
        let frames = publish(&relay, &mut link, events(0..30));
        let dead_letters = relay.wait_for_deliveries("hook", "dead", 30);
        // Sessions are independent; within each, the newest dead letter is listed first.
        for (nth, session) in SESSIONS.iter().enumerate() {
            let of_session =
                dead_letters.iter().filter(|dead_letter| dead_letter["session_id"] == *session);
            let ids: Vec<_> =
                of_session.map(|dead_letter| dead_letter["event_id"].as_str().unwrap()).collect();
            let expected: Vec<_> =
                frames.iter().skip(nth).step_by(3).rev().map(|frame| frame.id()).collect();
            assert_eq!(ids, expected, "{storage:?}");
        }
        relay.command_webhook("hook", "enable"); // in case the refusals have opened the circuit
        receiver.set_script(|_| Answer::Status(200));
        let before = receiver.count();

        // Number 7, by its id in the list.
        let seventh = dead_letters
            .iter()
            .find(|dead_letter| dead_letter["event_id"] == frames[7].id())
            .unwrap()["id"]
            .clone();
        assert_eq!(relay.redeliver("hook", &json!({ "delivery_ids": [seventh, "1-1"] })), 1);
        let again = receiver.wait_for(before + 1).pop().unwrap();
        assert_eq!(
            (again.id(), again.body.as_slice()),
            (frames[7].id(), frames[7].data.as_slice())
        );
        relay.wait_for_dead("hook", 29);
        let delivered = relay.wait_for_deliveries("hook", "delivered", 1).remove(0);
        let last = outcomes(&delivered).pop();
        assert_eq!(
            (&delivered["event_id"], last.as_deref()),
            (&frames[7].id().into(), Some("accepted"))
        );

        assert_eq!(relay.redeliver("hook", &json!({ "state": "dead" })), 29);
        receiver.wait_for(before + 30);
        relay.wait_for_dead("hook", 0);
        relay.wait_until_settled("hook");
        for (session, numbers) in receiver.accepted_by_session() {
            let rest = numbers.iter().filter(|n| **n != 7).collect::<Vec<_>>();
            assert!(rest.is_sorted() && numbers.len() == 10, "{storage:?} {session}: {numbers:?}");
        }
        assert_eq!(receiver.accepted().len(), 30, "{storage:?}: each once");
        assert_eq!(relay.redeliver("hook", &json!({ "state": "dead" })), 0);
    }
}

#[test]
fn a_dead_letter_that_fails_again_is_dead_again() {
    let (connector, data, receiver) = (Connector::new(), DataDir::new(), Receiver::answering(400));
    let relay = data.setup(&connector, "").more(&(table("hook", &receiver, "") + LOOPBACK)).start();
    let mut link = connector.stream();
    publish(&relay, &mut link, [event(0)]);
    relay.wait_for_dead("hook", 1);
    assert_eq!(relay.redeliver("hook", &json!({ "state": "dead" })), 1);
    receiver.wait_for(2);
    let dead_letter =
        wait::value("the delivery is dead again", || relay.deliveries("hook", "dead").pop());
    assert_eq!(dead_letter["event_id"], receiver.requests()[0].id());
    relay.wait_until_settled("hook");
}
