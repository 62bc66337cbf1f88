//! A worker that waits: it is not polled, misses nothing, and its status counts what has come.

use std::{
    future::poll_fn,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::RwLock;
use tokio::time;

use super::*;
use crate::{
    config::{Secret, WebhookConfig},
    event::{Draft, EventId, Kind, ProductId},
    log::{Log, MemoryBounds, PersistedLog},
    metrics::Metrics,
    outbound::{
        egress_guard::{EgressConnections, EgressGuard},
        tls::tls_client_config,
    },
    store::testing::{self, WriterInbox},
    webhook::{WebhookSource, context::EgressPolicy, definition::PreviousSecret},
    webhook_delivery::{Delivery, EndpointState},
};

/// One worker before a log and a store whose writer is the test.
struct WorkerHarness {
    log: Arc<Log>,
    fanout: Arc<Fanout>,
    inbox: WriterInbox,
    shared: Arc<SharedStatus>,
    commands: mpsc::Sender<WebhookCommand>,
    polls: Arc<AtomicUsize>,
    stop: CancellationToken,
}

/// Storage of the log and of owed deliveries.
#[derive(Clone, Copy, PartialEq)]
enum LogStorage {
    Durable,
    InMemory,
}

impl WorkerHarness {
    /// Starts a worker of this definition. The fan-out does not run until a test says so.
    fn start(storage: LogStorage, definition: Definition) -> Self {
        Self::start_owing(storage, definition, Vec::new())
    }

    /// Starts a worker that has been restored with these deliveries.
    fn start_owing(storage: LogStorage, definition: Definition, owed: Vec<OwedDelivery>) -> Self {
        let (store, inbox) = testing::idle_handle();
        let metrics = Arc::new(Metrics::new().unwrap());
        let (product, bounds) =
            (ProductId::new("p").unwrap(), MemoryBounds { events: 1000, bytes: u64::MAX });
        let log_metrics = metrics.log(&product);
        let log = Arc::new(match storage {
            LogStorage::InMemory => Log::new(product, bounds, log_metrics),
            LogStorage::Durable => {
                let backing = Arc::clone(store.backing());
                Log::restored(product, bounds, empty_log(), 7, false, backing, log_metrics)
            }
        });
        let fanout = Arc::new(Fanout::new(Arc::clone(&log), 1));
        let context = WebhookContext {
            store,
            is_durable: storage == LogStorage::Durable,
            max_memory_bytes: 1 << 20,
            egress: RwLock::new(EgressPolicy {
                guard: Arc::new(EgressGuard::new(&[])),
                tls: tls_client_config(None).unwrap(),
            }),
            connections: EgressConnections::new(1),
        };
        let shared = Arc::new(SharedStatus::new(definition, &fanout));
        let (commands, command_inbox) = mpsc::channel(1);
        let init = WorkerInit {
            shared: Arc::clone(&shared),
            fanout: Arc::clone(&fanout),
            commands: command_inbox,
            position: owed.len() as u64,
            owed,
            metrics: metrics.webhook("w"),
            on_registered: None,
        };
        let worker = Worker::new(Arc::new(context), init);
        let (stop, polls) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
        let (counted, stopped) = (Arc::clone(&polls), stop.clone());
        tokio::spawn(async move {
            let mut run = Box::pin(worker.run(stopped, CancellationToken::new()));
            poll_fn(|context| {
                counted.fetch_add(1, SeqCst);
                run.as_mut().poll(context)
            })
            .await;
        });
        Self { log, fanout, inbox, shared, commands, polls, stop }
    }

    fn dispatch(&self) {
        let (fanout, stop) = (Arc::clone(&self.fanout), self.stop.clone());
        tokio::spawn(async move { fanout.run(stop).await });
    }

    /// Appends an event that the scope of [`definition`] hides.
    fn append_hidden(&self) {
        self.append("hidden");
    }

    fn append(&self, kind: &str) {
        let (payload, received) = (Bytes::from_static(b"{}"), Instant::now());
        let kind = Kind::new(kind);
        self.log.append(Draft {
            kind,
            session: None,
            user: None,
            forwarded_at: None,
            payload,
            received,
        });
    }

    /// Commits what the log has.
    fn commit(&self) {
        if let Some(batch) = self.log.next_unpersisted(1000) {
            self.log.mark_persisted(&batch);
        }
    }

    /// Lets `duration` pass, with a store that works, and returns the positions that it was given.
    async fn pass(&mut self, duration: Duration) -> Vec<u64> {
        let end = Instant::now() + duration;
        let mut positions = Vec::new();
        while Instant::now() < end {
            positions.extend(testing::confirm_all(&mut self.inbox).iter().map(|it| it.position));
            time::sleep(Duration::from_millis(10)).await;
        }
        positions
    }

    /// Returns how often the worker is polled in an hour in which nothing happens.
    async fn polls_in_an_hour(&self) -> usize {
        let before = self.polls.load(SeqCst);
        time::sleep(Duration::from_secs(3600)).await;
        self.polls.load(SeqCst) - before
    }
}

/// Returns the definition of a disabled webhook, so that a delivery that is owed stays so.
fn disabled() -> Definition {
    Definition { disabled: Some("by a test".to_owned()), ..definition() }
}

/// Returns the definition of a webhook for events of the type `shown` alone.
fn definition() -> Definition {
    Definition::new(config("shown"), WebhookSource::Api)
}

fn config(kind: &str) -> WebhookConfig {
    let text = format!(
        r#"{{"id":"w","product_id":"p","url":"https://example.com/","secret":"s","types":["{kind}"]}}"#
    );
    WebhookConfig::from_stored(&text).unwrap()
}

fn owed(position: u64) -> OwedDelivery {
    let (event_id, kind) = (EventId::new(7, position), Kind::new("shown"));
    let delivery =
        Delivery { position, event_id, kind, session: None, created_at: 0, attempts: Vec::new() };
    OwedDelivery { delivery, next_attempt_at: None }
}

fn empty_log() -> PersistedLog {
    PersistedLog {
        product_number: 1,
        newest: 0,
        evicted_through: 0,
        events: 0,
        bytes: 0,
        highest_epoch: 0,
        spans: Vec::new(),
        empty_epochs: Vec::new(),
        holes: Vec::new(),
    }
}

const SETTLED: Duration = Duration::from_secs(5);

#[tokio::test(start_paused = true)]
async fn an_idle_worker_is_never_polled_also_after_traffic_outside_its_scope() {
    for storage in [LogStorage::Durable, LogStorage::InMemory] {
        let mut harness = WorkerHarness::start(storage, definition());
        harness.dispatch();
        harness.pass(SETTLED).await;
        assert_eq!(harness.polls_in_an_hour().await, 0, "from the start");
        for _ in 0..20 {
            harness.append_hidden();
            harness.commit();
            harness.pass(Duration::from_millis(150)).await;
        }
        harness.pass(SETTLED).await;
        assert_eq!(harness.polls_in_an_hour().await, 0, "after traffic");
        harness.stop.cancel();
    }
}

#[tokio::test(start_paused = true)]
async fn a_cursor_follows_entries_outside_the_scope_within_seconds_and_not_with_each_of_them() {
    let mut harness = WorkerHarness::start(LogStorage::Durable, definition());
    harness.dispatch();
    harness.pass(SETTLED).await;
    harness.polls_in_an_hour().await;
    let (mut written, before) = (Vec::new(), harness.polls.load(SeqCst));
    for _ in 0..100 {
        harness.append_hidden();
        harness.commit();
        written.extend(harness.pass(Duration::from_millis(50)).await);
    }
    assert!((3..=6).contains(&written.len()), "five seconds: {written:?}");
    let polls = harness.polls.load(SeqCst) - before;
    assert!(polls < 40, "a hundred commits: {polls}");
    written.extend(harness.pass(Duration::from_secs(3)).await);
    assert_eq!(written.last(), Some(&100), "{written:?}");
    harness.stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_cursor_follows_an_entry_that_is_dispatched_long_after_its_commit() {
    let mut harness = WorkerHarness::start(LogStorage::Durable, definition());
    harness.pass(SETTLED).await;
    harness.append_hidden();
    harness.commit();
    let written = harness.pass(Duration::from_secs(60)).await;
    assert!(written.is_empty(), "it may be within the scope: {written:?}");
    harness.dispatch();
    assert_eq!(harness.pass(SETTLED).await, [1]);
    harness.stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_new_scope_is_not_owed_what_came_while_the_worker_was_idle() {
    for storage in [LogStorage::Durable, LogStorage::InMemory] {
        let mut harness = WorkerHarness::start(storage, disabled());
        harness.dispatch();
        harness.pass(SETTLED).await;
        harness.append_hidden();
        harness.commit();
        harness.polls_in_an_hour().await;
        let wider = disabled().replaced_by(config("hidden"), WebhookSource::Api);
        let (reply, _answer) = oneshot::channel();
        let command = WebhookCommand::Redefine(Box::new(wider), reply);
        harness.commands.send(command).await.unwrap();
        harness.pass(SETTLED).await;
        assert_eq!(harness.shared.status().pending, 0);
        harness.append_hidden();
        harness.commit();
        harness.pass(SETTLED).await;
        assert_eq!(harness.shared.status().pending, 1, "it is owed what comes from then on");
        harness.stop.cancel();
    }
}

#[tokio::test(start_paused = true)]
async fn a_throttle_ends_and_shows_so_although_nothing_is_owed() {
    let until = Now::read().unix_ms + 600_000;
    let throttled = Definition { throttled_until: Some(until), ..definition() };
    let mut harness = WorkerHarness::start(LogStorage::Durable, throttled);
    harness.dispatch();
    harness.pass(SETTLED).await;
    assert_eq!(harness.shared.status().state, EndpointState::Throttled);
    harness.pass(Duration::from_secs(600)).await;
    assert_eq!(harness.shared.status().state, EndpointState::Active);
    assert_eq!(harness.shared.definition().throttled_until, None);
    harness.stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_replaced_secret_ends_although_nothing_is_owed() {
    // The wall clock goes on by itself, unlike the paused clock.
    let until = Now::read().unix_ms + 300;
    let previous = PreviousSecret { secret: Secret::inline("former".to_owned()), until };
    let rotating = Definition { previous_secret: Some(previous), ..definition() };
    let mut harness = WorkerHarness::start(LogStorage::Durable, rotating);
    harness.dispatch();
    let began = std::time::Instant::now();
    while harness.shared.definition().previous_secret.is_some() {
        assert!(began.elapsed() < Duration::from_secs(20));
        harness.pass(Duration::from_millis(10)).await;
    }
    assert!(Now::read().unix_ms >= until);
    harness.stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn an_event_counts_as_pending_from_the_log_to_its_settlement() {
    for storage in [LogStorage::Durable, LogStorage::InMemory] {
        let mut harness = WorkerHarness::start(storage, disabled());
        harness.pass(SETTLED).await;
        assert_eq!(harness.shared.status().pending, 0);
        harness.append("shown");
        assert_eq!(harness.shared.status().pending, 1, "the fan-out does not know of it yet");
        harness.dispatch();
        for turn in 0..100 {
            tokio::task::yield_now().await;
            assert_eq!(harness.shared.status().pending, 1, "turn {turn}");
        }
        harness.pass(SETTLED).await;
        let (reply, looked) = oneshot::channel();
        harness.commands.send(WebhookCommand::Disable(reply)).await.unwrap();
        looked.await.unwrap();
        assert_eq!(harness.shared.status().pending, 1, "without a commit it is not owed yet");
        harness.commit();
        for turn in 0..100 {
            tokio::task::yield_now().await;
            assert_eq!(harness.shared.status().pending, 1, "turn {turn} after the commit");
        }
        harness.stop.cancel();
    }
}

#[tokio::test(start_paused = true)]
async fn events_outside_the_scope_are_not_pending_and_a_status_wakes_no_worker() {
    // In memory, no commit tells the worker of them either.
    let mut harness = WorkerHarness::start(LogStorage::InMemory, definition());
    harness.dispatch();
    harness.pass(SETTLED).await;
    let before = harness.polls.load(SeqCst);
    for _ in 0..100 {
        harness.append_hidden();
        time::sleep(Duration::from_millis(10)).await;
        assert_eq!(harness.shared.status().pending, 0);
    }
    assert_eq!(harness.polls.load(SeqCst), before);
    harness.stop.cancel();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn no_event_is_missing_from_the_pending_ones_while_others_read_and_append() {
    let harness = WorkerHarness::start(LogStorage::InMemory, disabled());
    harness.dispatch();
    for appended in 1..=900 {
        harness.append(if appended % 3 == 0 { "hidden" } else { "shown" });
        let shown = appended - appended / 3;
        for _ in 0..100 {
            let pending = harness.shared.status().pending;
            assert!((shown..=appended).contains(&pending), "{pending} of {appended}");
        }
        // Now and then the worker catches up, and reads a burst at other times.
        if appended % 7 == 0 {
            tokio::task::yield_now().await;
        }
        if appended % 50 == 0 {
            time::sleep(Duration::from_millis(2)).await;
        }
    }
    harness.stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_requeued_dead_letter_is_pending_before_the_worker_hears_of_it() {
    let mut harness = WorkerHarness::start(LogStorage::Durable, disabled());
    harness.pass(SETTLED).await;
    testing::report_requeued(harness.shared.notices(), 3);
    assert_eq!(harness.shared.status().pending, 3);
    harness.pass(SETTLED).await;
    assert_eq!(harness.shared.status().pending, 3, "and is counted once");
    harness.stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_restored_delivery_is_pending_before_the_worker_begins() {
    let harness =
        WorkerHarness::start_owing(LogStorage::Durable, disabled(), vec![owed(1), owed(2)]);
    assert_eq!(harness.polls.load(SeqCst), 0);
    assert_eq!(harness.shared.status().pending, 2);
    harness.stop.cancel();
}
