//! Law of rest: a subscriber that rests between deliveries receives the same bytes, at the same
//! ticks, and ends at the same position as one that never rests.

use std::{
    io::{ErrorKind, Read},
    sync::Arc,
    time::Duration,
};

use proptest::prelude::*;
use tokio::{runtime::Builder, task::yield_now};
use tokio_util::sync::CancellationToken;

use super::tests::SchedulerHarness;
use crate::{http::tests::publish_as, subscription::scope};

/// One step of a random schedule.
#[derive(Clone, Debug)]
enum RestStep {
    Publish { session: usize, kind: usize, bytes: usize },
    Turn,
    WakeAll,
    Advance(u64),
}

fn rest_step() -> impl Strategy<Value = RestStep> {
    prop_oneof![
        6 => (0_usize..3, 0_usize..2, 0_usize..20_000).prop_map(|(session, kind, bytes)| {
            RestStep::Publish { session, kind, bytes }
        }),
        6 => Just(RestStep::Turn),
        1 => Just(RestStep::WakeAll),
        3 => (100_u64..9_000).prop_map(RestStep::Advance),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn rested_or_not_the_same_bytes_positions_and_heartbeats(
        steps in prop::collection::vec(rest_step(), 1..120),
        seed in any::<u64>(),
    ) {
        let rested = run(&steps, seed, true);
        let awake = run(&steps, seed, false);
        prop_assert!(rested.rests > 0, "some subscriber has rested");
        prop_assert_eq!(awake.rests, 0);
        for (rested, awake) in rested.subscribers.iter().zip(&awake.subscribers) {
            prop_assert_eq!(&rested.received, &awake.received);
            prop_assert_eq!(rested.position, awake.position);
        }
    }
}

/// What a schedule has led to.
struct Outcome {
    /// Subscribers that rested before a delivery, over all turns.
    rests: usize,
    subscribers: Vec<SubscriberOutcome>,
}

#[derive(Default)]
struct SubscriberOutcome {
    /// Text that the client had received after each step.
    received: Vec<String>,
    position: u64,
}

fn run(steps: &[RestStep], seed: u64, may_rest: bool) -> Outcome {
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(run_steps(steps, seed, may_rest))
}

async fn run_steps(steps: &[RestStep], seed: u64, may_rest: bool) -> Outcome {
    fastrand::seed(seed); // the heartbeats' jitter
    let mut harness = SchedulerHarness::new();
    let stop = CancellationToken::new();
    let wheel = Arc::clone(&harness.relay.wheel);
    let turning = tokio::spawn({
        let stop = stop.clone();
        async move { wheel.run(stop).await }
    });
    let scopes =
        [scope(&[], &[]), scope(&["a"], &[]), scope(&[], &["k"]), scope(&["a", "b"], &["x"])];
    let mut clients = Vec::new();
    for scope in scopes {
        clients.push(harness.subscribe_with_scope("one", scope).await);
    }
    let mut outcome = Outcome { rests: 0, subscribers: Vec::new() };
    outcome.subscribers.resize_with(clients.len(), SubscriberOutcome::default);
    for step in steps {
        match step {
            RestStep::Publish { session, kind, bytes } => {
                let of = (SESSIONS[*session], KINDS[*kind]);
                publish_as(&harness.relay, "one", of, &"y".repeat(*bytes));
            }
            RestStep::Turn => outcome.rests += turn(&mut harness, may_rest),
            RestStep::WakeAll => harness.scheduler.wake_all(),
            RestStep::Advance(ms) => tokio::time::advance(Duration::from_millis(*ms)).await,
        }
        yield_now().await;
        for (client, subscriber) in clients.iter_mut().zip(&mut outcome.subscribers) {
            subscriber.received.push(without_epochs(&read_available(client)));
        }
    }
    loop {
        outcome.rests += turn(&mut harness, may_rest);
        yield_now().await;
        if harness.scheduler.is_at_rest() {
            break;
        }
    }
    for (key, (client, subscriber)) in clients.iter_mut().zip(&mut outcome.subscribers).enumerate()
    {
        subscriber.received.push(without_epochs(&read_available(client)));
        subscriber.position = harness.scheduler.position(key);
    }
    stop.cancel();
    turning.await.unwrap();
    outcome
}

/// Runs a turn, and returns the number of subscribers that rested when the events were delivered.
fn turn(harness: &mut SchedulerHarness, may_rest: bool) -> usize {
    let scheduler = &mut harness.scheduler;
    scheduler.collect_events();
    scheduler.collect_wakeups();
    scheduler.poll_ready();
    if !may_rest {
        scheduler.end_rests();
    }
    let resting = scheduler.resting_count();
    scheduler.deliver_queued();
    resting
}

fn read_available(client: &mut impl Read) -> String {
    let mut bytes = Vec::new();
    match client.read_to_end(&mut bytes) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
        other => panic!("the stream stands: {other:?}"),
    }
    String::from_utf8(bytes).unwrap()
}

/// Replaces the epoch of each id, which is the time at which its log began.
fn without_epochs(text: &str) -> String {
    let lines = text.lines().map(|line| match line.strip_prefix("id: ") {
        Some(id) => format!("id: {}", id.split_once('-').unwrap().1),
        None => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

const SESSIONS: [Option<&str>; 3] = [None, Some("a"), Some("b")];

const KINDS: [&str; 2] = ["k", "x"];
