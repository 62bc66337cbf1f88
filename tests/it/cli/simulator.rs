//! The simulated connector, whose events depend on its seed.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use crate::common::{
    http::{self, Look, Wire},
    process::{self, Process},
    relay::Setup,
    wait::TIMEOUT,
};
use serde_json::Value;

#[test]
fn the_same_seed_makes_the_same_events_except_for_their_times() {
    let simulators = [simulate("7"), simulate("7"), simulate("8")];
    let events: Vec<Vec<Value>> = std::thread::scope(|scope| {
        let readers: Vec<_> =
            simulators.iter().map(|simulator| scope.spawn(|| events(simulator, 800))).collect();
        readers.into_iter().map(|reader| reader.join().unwrap()).collect()
    });
    assert!(are_parts_of_one(&events[0], &events[1]), "the same seed");
    assert!(!are_parts_of_one(&events[0], &events[2]), "another seed");
}

#[test]
fn the_simulator_sends_every_payload_type_and_a_relay_accepts_all() {
    let (_simulator, address) = simulate("1");
    let relay =
        Setup::new().upstream("prod_1", &format!("http://{address}/stream/prod_1"), "").start();
    let mut subscriber = relay.subscribe_to("/stream/prod_1");
    let mut kinds = BTreeSet::new();
    for _ in 0..1500 {
        let event = subscriber.item();
        if event.event.is_some() {
            continue;
        }
        let payload = event.json();
        assert_eq!(payload["product_id"], "prod_1");
        kinds.insert(payload["type"].as_str().unwrap().to_owned());
    }
    for kind in ["actions", "summary", "usertour_trigger"] {
        assert!(kinds.contains(kind), "{kind} in {kinds:?}");
    }
    let metrics = relay.metrics();
    let rejected =
        |reason| metrics.value("autoplay_relay_upstream_rejected_total", &[("reason", reason)]);
    assert_eq!(
        (rejected("invalid_json"), rejected("no_type"), rejected("wrong_product")),
        (Some(0.0), Some(0.0), Some(0.0))
    );
}

#[test]
fn the_simulator_sends_heartbeats_at_the_given_interval() {
    let arguments = [
        "--log-format",
        "json",
        "simulate",
        "--listen",
        "127.0.0.1:0",
        "--product",
        "prod_1",
        "--rate",
        "0.001",
        "--heartbeat",
        "200ms",
    ];
    let simulator = Process::start(&arguments, &[]);
    let address = process::address(&simulator.log_line("simulating"), "listen").unwrap();
    let begin = Instant::now();
    let blocks = blocks(&(simulator, address), 3, |block| block.starts_with("event: heartbeat"));
    assert!(blocks.iter().all(|block| block == "event: heartbeat\ndata:"), "{blocks:?}");
    assert!(begin.elapsed() >= Duration::from_millis(500), "{:?}", begin.elapsed());
}

type Simulator = (Process, std::net::SocketAddr);

fn simulate(seed: &str) -> Simulator {
    let arguments = [
        "--log-format",
        "json",
        "simulate",
        "--listen",
        "127.0.0.1:0",
        "--product",
        "prod_1",
        "--rate",
        "400",
        "--seed",
        seed,
    ];
    let simulator = Process::start(&arguments, &[]);
    let address = process::address(&simulator.log_line("simulating"), "listen").unwrap();
    (simulator, address)
}

/// Returns the next events of a simulator without their times.
fn events(simulator: &Simulator, count: usize) -> Vec<Value> {
    let blocks = blocks(simulator, count, |block| block.starts_with("data: "));
    let payloads = blocks
        .iter()
        .map(|block| serde_json::from_str(block.strip_prefix("data: ").unwrap()).unwrap());
    payloads.map(without_times).collect()
}

/// Returns the next blocks of a kind.
fn blocks(simulator: &Simulator, count: usize, is_wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let mut wire = Wire::connect(simulator.1);
    wire.send(http::request(simulator.1, "GET", "/stream/prod_1", &[]));
    let mut framing = wire.head().framing();
    let (mut body, deadline) = (Vec::new(), Instant::now() + TIMEOUT);
    loop {
        wire.decode(&mut framing, &mut body);
        let text = String::from_utf8_lossy(&body);
        let (whole, _) = text.rsplit_once("\n\n").unwrap_or_default();
        let found: Vec<_> = whole
            .split("\n\n")
            .filter(|block| is_wanted(block))
            .take(count)
            .map(str::to_owned)
            .collect();
        if found.len() == count {
            return found;
        }
        assert_ne!(wire.look(deadline), Look::End, "the simulator ends its stream");
        assert!(Instant::now() < deadline, "{count} blocks in time");
    }
}

fn without_times(mut value: Value) -> Value {
    match &mut value {
        Value::Object(fields) => {
            fields.retain(|name, _| {
                !matches!(name.as_str(), "forwarded_at" | "timestamp_start" | "timestamp_end")
            });
            fields.values_mut().for_each(|field| *field = without_times(field.take()));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| *item = without_times(item.take())),
        _ => {}
    }
    value
}

/// Returns true if one sequence continues the other: no client can connect before the very first
/// event.
fn are_parts_of_one(one: &[Value], other: &[Value]) -> bool {
    let begins_later = |early: &[Value], late: &[Value]| {
        (0..early.len() - MIN_OVERLAP)
            .any(|shift| early[shift..].iter().zip(late).all(|(a, b)| a == b))
    };
    begins_later(one, other) || begins_later(other, one)
}

/// Minimum length of the common part.
const MIN_OVERLAP: usize = 200;
