//! With `log.data_dir`, pending deliveries survive restarts and outages of a receiver of any
//! length.

use std::{collections::BTreeMap, ops::Range, time::Duration};

use crate::common::{
    PRODUCT,
    connector::{Connector, Link},
    events::event_of,
    page::publish,
    receiver::{Answer, Receiver},
    relay::{Relay, Setup},
    store::DataDir,
    wait,
    webhooks::{LOOPBACK, outcomes, table, url},
};
use serde_json::{Value, json};

/// Number of sessions, whose events take turns.
const SESSIONS: usize = 7;

fn session(number: usize) -> String {
    format!("s{}", number % SESSIONS)
}

fn events(numbers: Range<usize>) -> impl Iterator<Item = String> {
    numbers.map(|n| event_of(&session(n), n))
}

/// Checks that exactly these events were accepted, once each and in order within each session.
fn assert_all_once(receiver: &Receiver, numbers: Range<usize>) {
    let mut expected = BTreeMap::<_, Vec<_>>::new();
    numbers.for_each(|n| expected.entry(session(n)).or_default().push(n));
    let accepted = receiver.accepted_by_session();
    for (session, numbers) in &expected {
        let found = accepted.get(session).map_or(&[][..], Vec::as_slice);
        let first = numbers.iter().zip(found).position(|(expected, found)| expected != found);
        assert_eq!(first, None, "{session}: {first:?} is the first out of order");
        assert_eq!(found.len(), numbers.len(), "{session}");
    }
    assert_eq!(accepted.len(), expected.len());
}

fn setup(data: &DataDir, connector: &Connector, receiver: &Receiver, log: &str) -> Setup {
    data.setup(connector, log).more(&(table("hook", receiver, "") + LOOPBACK))
}

/// Accepts the upstream connection of a restarted relay.
fn reconnect(relay: &Relay, connector: &Connector, link: Link) -> Link {
    drop(link);
    relay.reconnect(connector)
}

#[test]
fn events_during_an_outage_of_the_receiver_are_delivered_after_a_restart_in_order() {
    let (connector, data, receiver) = (Connector::new(), DataDir::new(), Receiver::accepting());
    let setup = setup(&data, &connector, &receiver, "");
    let relay = setup.start();
    let mut link = connector.stream();
    publish(&relay, &mut link, events(0..100));
    receiver.wait_for_accepted(100);
    relay.wait_until_settled("hook");
    receiver.stop();
    publish(&relay, &mut link, events(100..300));
    wait::until("attempts fail", || relay.attempts("hook", "connect") > 3.0);
    relay.stop();
    let relay = setup.start();
    relay.wait_for_pending("hook", 200);
    let mut link = reconnect(&relay, &connector, link);
    publish(&relay, &mut link, events(300..350));
    receiver.start();
    receiver.wait_for_accepted(350);
    relay.wait_until_settled("hook");
    assert_all_once(&receiver, 0..350);
    assert_eq!(relay.webhook("hook")["dead"], 0);
}

#[test]
fn a_clean_restart_repeats_no_delivery_and_keeps_attempts() {
    let (connector, data) = (Connector::new(), DataDir::new());
    let receiver =
        Receiver::new(|request| Answer::Status(if request.session() == "bad" { 500 } else { 200 }));
    let slow_retry = table("hook", &receiver, "max_backoff = '1s'");
    let setup = data.setup(&connector, "").more(&(slow_retry + LOOPBACK));
    let mut relay = setup.start();
    let mut link = connector.stream();
    publish(&relay, &mut link, [event_of("bad", 9999)]);
    for run in 0..4 {
        publish(&relay, &mut link, events(run * 50..run * 50 + 50));
        receiver.wait_for_accepted(run * 50 + 50);
        relay.wait_for_pending("hook", 1);
        let before = outcomes(&relay.deliveries("hook", "pending")[0]).len();
        relay.stop();
        relay = setup.start();
        let after = outcomes(&relay.wait_for_deliveries("hook", "pending", 1)[0]).len();
        // A long list of attempts may be shortened, but used attempts are not reset.
        assert!(after >= before.min(8), "run {run}: {after} of {before} attempts are remembered");
        link = reconnect(&relay, &connector, link);
    }
    receiver.set_script(|_| Answer::Status(200));
    relay.wait_until_settled("hook");
    let accepted = receiver.accepted_by_session();
    assert_eq!(accepted["bad"], [9999]);
    let others: usize = accepted.values().map(Vec::len).sum();
    assert_eq!(others, 201, "each once");
    assert!(accepted.values().all(|numbers| numbers.is_sorted()));
}

#[test]
fn a_webhook_registered_by_the_api_continues_after_a_restart() {
    let (connector, data, receiver) = (Connector::new(), DataDir::new(), Receiver::accepting());
    let setup = data.setup(&connector, "").more(LOOPBACK);
    let relay = setup.start();
    let mut link = connector.stream();
    publish(&relay, &mut link, events(1000..1010));
    let definition = json!({
        "id": "hook", "product_id": PRODUCT, "url": url(&receiver, "hook"), "secret": "s3cret", "types": ["actions"],
        "timeout": "7s", "max_retries": 50, "initial_backoff": "20ms", "max_backoff": "100ms", "max_in_flight": 3,
    });
    let created = relay.call("POST", "/api/v1/webhooks", &definition);
    assert_eq!(created.status(), 201, "{created:?}");
    let again = relay.call("POST", "/api/v1/webhooks", &definition);
    assert_eq!(again.status(), 409);
    publish(&relay, &mut link, events(0..20));
    receiver.wait_for_accepted(20);
    relay.wait_until_settled("hook");
    receiver.stop();
    publish(&relay, &mut link, events(20..40));
    relay.stop();
    let relay = setup.start();
    let view = relay.webhook("hook");
    assert_eq!((&view["source"], &view["secret"]), (&"api".into(), &"********".into()));
    for name in [
        "url",
        "types",
        "timeout",
        "max_retries",
        "initial_backoff",
        "max_backoff",
        "max_in_flight",
    ] {
        assert_eq!(view[name], definition[name], "{name}");
    }
    receiver.start();
    let mut link = reconnect(&relay, &connector, link);
    publish(&relay, &mut link, events(40..60));
    receiver.wait_for_accepted(60);
    relay.wait_until_settled("hook");
    assert_all_once(&receiver, 0..60); // and no event from before the registration
    assert_eq!(relay.call("DELETE", "/api/v1/webhooks/hook", &Value::Null).status(), 204);
    relay.stop();
    let relay = setup.start();
    assert_eq!(
        relay.ask_admin("/api/v1/webhooks/hook").status(),
        404,
        "a deleted webhook does not return"
    );
}

#[test]
fn a_changed_webhook_of_the_file_keeps_its_position_and_overrides_the_api() {
    let (connector, data, receiver) = (Connector::new(), DataDir::new(), Receiver::accepting());
    let relay = setup(&data, &connector, &receiver, "").start();
    let mut link = connector.stream();
    publish(&relay, &mut link, events(0..20));
    receiver.wait_for_accepted(20);
    relay.wait_until_settled("hook");
    receiver.stop();
    publish(&relay, &mut link, events(20..40));
    let taken = json!({ "id": "hook", "product_id": PRODUCT, "url": url(&receiver, "other"), "secret": "s3cret" });
    assert_eq!(relay.call("POST", "/api/v1/webhooks", &taken).status(), 409);
    let changed = relay.call("PUT", "/api/v1/webhooks/hook", &taken).status();
    let removed = relay.call("DELETE", "/api/v1/webhooks/hook", &Value::Null).status();
    assert!(
        (400..500).contains(&changed) && (400..500).contains(&removed),
        "{changed} {removed}: not editable"
    );
    relay.stop();
    receiver.start();
    let elsewhere = table(
        "hook",
        &receiver,
        &format!("url = '{}'\nmax_in_flight = 2", url(&receiver, "elsewhere")),
    );
    let relay = data.setup(&connector, "").more(&(elsewhere + LOOPBACK)).start();
    assert_eq!(relay.webhook("hook")["source"], "file");
    receiver.wait_for_accepted(40);
    let mut link = reconnect(&relay, &connector, link);
    publish(&relay, &mut link, events(40..50));
    receiver.wait_for_accepted(50);
    assert_all_once(&receiver, 0..50);
    let last = receiver.accepted().pop().unwrap();
    assert_eq!(last.head.path(), "/hooks/elsewhere");
}

#[test]
fn deliveries_beyond_retention_are_dead_letters_and_can_be_redelivered() {
    const EVENTS: usize = 1000;
    let (connector, data, receiver) = (Connector::new(), DataDir::new(), Receiver::answering(410));
    let setup = setup(&data, &connector, &receiver, "retention_bytes = '1MiB'");
    let relay = setup.start();
    let mut link = connector.stream();
    // A dead letter that retention has not made: a 410 disables the webhook, and all later events
    // wait.
    publish(&relay, &mut link, [event_of("gone", 9999)]);
    relay.wait_for_webhook("hook", "disabled");
    receiver.set_script(|_| Answer::Status(200));
    // Four mebibytes, of which the store keeps one.
    publish(&relay, &mut link, (0..EVENTS).map(large));
    // A delivery that retention moves between the two requests is in neither list, or in both.
    let (dead, pending) = wait::value("the oldest deliveries are dead, and none is lost", || {
        let lists = (relay.deliveries("hook", "dead"), relay.deliveries("hook", "pending"));
        (lists.1.len() < 300 && lists.0.len() + lists.1.len() == EVENTS + 1).then_some(lists)
    });
    assert_eq!(outcomes(&dead[0]), [] as [&str; 0], "it was never attempted");
    assert!(
        sequence(&dead[0]) < sequence(pending.last().unwrap()),
        "the oldest are given up first"
    );
    relay.stop();
    let relay = setup.start();
    assert!(relay.deliveries("hook", "dead").len() >= dead.len(), "after a restart, too");
    assert_eq!(relay.command_webhook("hook", "enable").status(), 200);
    relay.wait_until_settled("hook");
    let dead_letters = EVENTS + 1 - receiver.accepted().len();
    assert!(dead_letters >= dead.len(), "dead letters are not delivered by themselves");
    assert_eq!(relay.redeliver("hook", &json!({ "state": "dead" })), dead_letters as u64);
    let accepted = receiver.wait_for_accepted(EVENTS + 1);
    let mut numbers: Vec<_> =
        accepted.iter().map(|request| request.number()).filter(|n| *n < EVENTS).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..EVENTS).collect::<Vec<_>>());
    let is_whole = |body: &[u8], n: usize| String::from_utf8_lossy(body) == large(n);
    assert!(
        accepted
            .iter()
            .all(|request| request.number() == 9999 || is_whole(&request.body, request.number()))
    );
    relay.wait_for_dead("hook", 0);
    assert_eq!(
        relay.metrics().value("autoplay_relay_webhook_lost_total", &[("webhook", "hook")]),
        Some(0.0)
    );
}

/// Returns the sequence of the event's id.
fn sequence(delivery: &Value) -> u64 {
    let id = delivery["event_id"].as_str().unwrap();
    id.split_once('-').unwrap().1.parse().unwrap()
}

/// Returns an event of 4 KiB.
fn large(number: usize) -> String {
    let (session, filler) = (session(number), "x".repeat(4000));
    format!(
        r#"{{"type":"actions","product_id":"{PRODUCT}","session_id":"{session}","count":{number},"filler":"{filler}"}}"#
    )
}

#[test]
fn deliveries_beyond_the_memory_limits_are_dead_letters() {
    let (connector, receiver) = (Connector::new(), Receiver::answering(410));
    let bounds = "memory_bytes = '64KiB'\nmemory_events = 16";
    let relay = Setup::behind(&connector)
        .log(bounds)
        .more(&(table("hook", &receiver, "") + LOOPBACK))
        .start();
    let mut link = connector.stream();
    publish(&relay, &mut link, [event_of("gone", 9999)]);
    relay.wait_for_webhook("hook", "disabled");
    receiver.set_script(|_| Answer::Status(200));
    for begin in (0..100).step_by(4) {
        publish(&relay, &mut link, (begin..begin + 4).map(large));
        // No faster than the webhook takes the events: the log keeps sixteen, and an event that is
        // evicted unread is lost. The lists have only what the webhook has taken. The dead letters
        // are listed first: a delivery that becomes one between the two requests is in neither.
        wait::until("the webhook has taken all", || {
            let listed = ["dead", "pending"].map(|state| relay.deliveries("hook", state).len());
            listed.iter().sum::<usize>() == begin + 5
        });
    }
    assert!(relay.webhook("hook")["dead"].as_u64().unwrap() > 1, "some deliveries are dead");
    relay.command_webhook("hook", "enable");
    relay.wait_until_settled("hook");
    relay.redeliver("hook", &json!({ "state": "dead" }));
    let mut numbers: Vec<_> =
        receiver.wait_for_accepted(101).iter().map(|request| request.number()).collect();
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq((0..100).chain([9999])));
}

#[test]
fn a_receiver_gets_every_event_of_a_long_outage_in_order() {
    let is_long = std::env::var_os("AUTOPLAY_RELAY_LONG").is_some();
    let events = if is_long { 100_000 } else { 20_000 };
    let (connector, data) = (Connector::new(), DataDir::new());
    let (receiver, witness) = (Receiver::accepting(), Receiver::accepting());
    let tables = table("hook", &receiver, "max_backoff = '2s'") + &table("witness", &witness, "");
    let relay = data.setup(&connector, "").more(&(tables + LOOPBACK)).start();
    let mut link = connector.stream();
    receiver.stop();
    for begin in (0..events).step_by(STEP) {
        let frames =
            (begin..begin + STEP).map(|n| format!("data: {}\n\n", event_of(&session(n), n)));
        link.send(frames.collect::<String>());
        // Not further ahead of the witness than a store on a busy machine can follow: no event may
        // be evicted from memory before it is persisted.
        witness.wait_for_accepted((begin + STEP).saturating_sub(4 * STEP));
    }
    witness.wait_for_accepted(events);
    relay.wait_for_pending("hook", events as u64);
    assert_eq!(
        relay.webhook("hook")["dead"],
        0,
        "an outage of the endpoint uses no attempts of deliveries"
    );
    receiver.start();
    receiver.wait_for_accepted(events);
    wait::until("both are settled", || {
        ["hook", "witness"].iter().all(|id| relay.webhook(id)["pending"] == 0)
    });
    for receiver in [&receiver, &witness] {
        assert_all_once(receiver, 0..events);
    }
    assert_eq!(relay.webhook("hook")["state"], "active");
    assert_eq!(
        relay.deliveries("hook", "delivered").len(),
        1000,
        "the latest deliveries are listed"
    );
    assert_eq!(relay.gaps("not_kept"), 0.0);
    wait::holds("no request is repeated", Duration::from_millis(200), || {
        receiver.count() == receiver.accepted().len()
    });
}

/// Events in one write.
const STEP: usize = 500;
