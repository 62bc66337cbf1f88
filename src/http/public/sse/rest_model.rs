//! Law of rest: a subscriber that rests between deliveries, or moves to another shard, receives the
//! same bytes, at the same ticks, and ends at the same position as one that never does.

use std::{
    io::{ErrorKind, Read},
    net::TcpStream,
    sync::Arc,
    time::Duration,
};

use proptest::prelude::*;
use tokio::{runtime::Builder, task::yield_now};
use tokio_util::sync::CancellationToken;

use super::tests::{SchedulerHarness, WRITE_TIMEOUT};
use crate::{
    http::tests::publish_as, shard::SteppedScheduler, subscription::scope, timer_wheel::TICK,
};

/// One step of a random schedule.
#[derive(Clone, Debug)]
enum RestStep {
    Publish { session: usize, kind: usize, bytes: usize },
    Turn,
    WakeAll,
    Move,
    Advance(u64),
}

fn rest_step() -> impl Strategy<Value = RestStep> {
    prop_oneof![
        6 => (0_usize..3, 0_usize..2, 0_usize..20_000).prop_map(|(session, kind, bytes)| {
            RestStep::Publish { session, kind, bytes }
        }),
        6 => Just(RestStep::Turn),
        1 => Just(RestStep::WakeAll),
        1 => Just(RestStep::Move),
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
        prop_assert_eq!(rested.received, awake.received);
        prop_assert_eq!(rested.positions, awake.positions);
    }
}

/// What a schedule has led to.
struct ScheduleOutcome {
    /// Subscribers that rested before a delivery, over all turns.
    rests: usize,
    /// Text that each client had received before each advance of the clock, and at the end.
    received: Vec<Vec<String>>,
    /// Positions of all subscribers, in ascending order.
    positions: Vec<u64>,
}

fn run(steps: &[RestStep], seed: u64, may_rest: bool) -> ScheduleOutcome {
    let runtime = Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(run_steps(steps, seed, may_rest))
}

async fn run_steps(steps: &[RestStep], seed: u64, may_rest: bool) -> ScheduleOutcome {
    fastrand::seed(seed); // the heartbeats' jitter
    let mut harness = SchedulerHarness::new();
    let stop = CancellationToken::new();
    let wheel = Arc::clone(&harness.relay.wheel);
    let turning = tokio::spawn({
        let (wheel, stop) = (Arc::clone(&wheel), stop.clone());
        async move { wheel.run(stop).await }
    });
    let scopes =
        [scope(&[], &[]), scope(&["a"], &[]), scope(&[], &["k"]), scope(&["a", "b"], &["x"])];
    let mut clients = Vec::new();
    for scope in scopes {
        clients.push(harness.subscribe_with_scope("one", scope).await);
    }
    let received = vec![Vec::new(); clients.len()];
    let mut outcome = ScheduleOutcome { rests: 0, received, positions: Vec::new() };
    let mut shards = [harness.scheduler, SteppedScheduler::numbered(1, WRITE_TIMEOUT, &wheel)];
    for step in steps {
        match step {
            RestStep::Publish { session, kind, bytes } => {
                let of = (SESSIONS[*session], KINDS[*kind]);
                publish_as(&harness.relay, "one", of, &"y".repeat(*bytes));
            }
            RestStep::Turn => outcome.rests += turn(&mut shards, may_rest),
            RestStep::WakeAll => shards.iter_mut().for_each(SteppedScheduler::wake_all),
            RestStep::Move if may_rest => move_between(&mut shards),
            RestStep::Move => {}
            RestStep::Advance(ms) => {
                // A subscriber that has moved may need a turn less or more for the same bytes.
                outcome.rests += settle(&mut shards, may_rest).await;
                read_all(&mut clients, &mut outcome.received);
                tokio::time::advance(Duration::from_millis(*ms)).await;
                while wheel.stalled_for() > TICK {
                    yield_now().await;
                }
                // A heartbeat's id depends on how far its shard is, if events are queued there.
                outcome.rests += settle(&mut shards, may_rest).await;
            }
        }
        yield_now().await;
    }
    outcome.rests += settle(&mut shards, may_rest).await;
    // A poll takes each position over entries that the scope hides.
    shards.iter_mut().for_each(SteppedScheduler::wake_all);
    outcome.rests += settle(&mut shards, may_rest).await;
    read_all(&mut clients, &mut outcome.received);
    outcome.positions = shards.iter_mut().flat_map(SteppedScheduler::positions).collect();
    outcome.positions.sort_unstable();
    stop.cancel();
    turning.await.unwrap();
    outcome
}

/// Moves what may move from one shard to the other, in the direction in which there is something.
fn move_between([first, second]: &mut [SteppedScheduler; 2]) {
    if first.give_away_to(second) == 0 {
        second.give_away_to(first);
    }
}

/// Runs turns until no subscriber asks for another one.
async fn settle(shards: &mut [SteppedScheduler], may_rest: bool) -> usize {
    let mut resting = 0;
    loop {
        resting += turn(shards, may_rest);
        yield_now().await;
        if shards.iter().all(SteppedScheduler::is_at_rest) {
            return resting;
        }
    }
}

/// Runs a turn of each shard, and returns the number of subscribers that rested when the events
/// were delivered.
fn turn(shards: &mut [SteppedScheduler], may_rest: bool) -> usize {
    let mut resting = 0;
    for scheduler in shards {
        scheduler.collect_events();
        scheduler.collect_wakeups();
        scheduler.poll_ready();
        if !may_rest {
            scheduler.end_rests();
        }
        resting += scheduler.resting_count();
        scheduler.deliver_queued();
    }
    resting
}

fn read_all(clients: &mut [TcpStream], received: &mut [Vec<String>]) {
    for (client, received) in clients.iter_mut().zip(received) {
        received.push(without_epochs(&read_available(client)));
    }
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
