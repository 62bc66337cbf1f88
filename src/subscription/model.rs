//! Subscribers of a durable log against a model: delivered + announced = sent, through outages,
//! restarts and crashes.
//!
//! Random schedules of publishing, subscribing, reading, disconnecting, reconnecting, upstream
//! outages, eviction, restarts and crashes. Each is known by its seed: `AUTOPLAY_RELAY_SEED`
//! repeats one, `AUTOPLAY_RELAY_LONG` runs 5000.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::poll_fn,
    path::Path,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use fastrand::Rng;
use tokio::time::Instant;

use super::*;
use crate::{
    event::{Draft, EventId, Gap, GapReason, Kind, Only, ProductId, SessionId, UserId},
    log::{MemoryBounds, Numbering},
    metrics::Metrics,
    store::{Store, StoreSettings},
};

/// One run of a relay, with its fan-out driven by hand.
struct RelayInstance {
    fanout: Arc<Fanout>,
    position: u64,
    store: Store,
}

impl RelayInstance {
    fn begin(directory: &Path, rng: &mut Rng) -> Self {
        let product = ProductId::new("p").unwrap();
        let settings = StoreSettings {
            directory: directory.to_owned(),
            retention: Duration::from_secs(3600),
            // About a hundred and fifty events, beside the file's own pages.
            retention_bytes: if rng.bool() { 272 << 10 } else { 1 << 30 },
            dead_letter_retention: Duration::from_secs(3600),
            dead_letter_bytes: 1 << 30,
            max_concurrent_replays: 4,
        };
        let bounds = MemoryBounds { events: 16, bytes: u64::MAX };
        let (store, logs) =
            Store::open(settings, bounds, &[product], &Metrics::new().unwrap()).unwrap();
        let log = Arc::clone(&logs[0]);
        log.set_numbering(Numbering::Own);
        let fanout = Arc::new(Fanout::new(log, 1));
        Self { position: fanout.dispatched_through(), fanout, store }
    }

    /// Appends a gap for an outage of the upstream, which every client receives at its position.
    fn append_gap(&self, sent: &mut Vec<SentEntry>, names: &mut BTreeMap<EventId, usize>) {
        let log = self.fanout.log();
        log.append_gap(GapReason::UpstreamReconnect);
        names.insert(log.newest_id().unwrap(), sent.len());
        sent.push(SentEntry { number: sent.len(), session: 0, user: 0, kind: 0, is_gap: true });
    }

    fn append(&self, event: &SentEntry) {
        let payload = format!(r#"{{"number":{},"filling":"{}"}}"#, event.number, "x".repeat(400));
        let session = (event.session > 0).then(|| SessionId::new(SESSIONS[event.session]).unwrap());
        let kind = Kind::new(KINDS[event.kind]);
        let payload = Bytes::from(payload);
        self.fanout.log().append(Draft {
            kind,
            session,
            user: (event.user > 0).then(|| UserId::new(SESSIONS[event.user]).unwrap()),
            forwarded_at: None,
            payload,
            received: Instant::now(),
        });
    }

    fn dispatch(&mut self, batches: usize) {
        for _ in 0..batches {
            let before = self.position;
            self.position = self.fanout.dispatch_batch(before);
            if self.position == before {
                return;
            }
        }
    }

    /// Waits until the store has persisted everything.
    fn wait_persisted(&self) {
        while self.fanout.log().backlog() > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Entry of the model.
#[derive(Clone, Copy, Debug)]
struct SentEntry {
    number: usize,
    session: usize,
    user: usize,
    kind: usize,
    is_gap: bool,
}

/// Item that a client has received on any of its connections.
#[derive(Clone, Copy, Debug, PartialEq)]
enum ReceivedItem {
    /// An event, or a gap that is an entry of the log.
    Entry(usize),
    /// A notice of a loss, which is no entry of the log.
    Notice(GapReason),
}

/// A client: connected or away.
struct ModelClient {
    sessions: BTreeSet<usize>,
    users: BTreeSet<usize>,
    kinds: BTreeSet<usize>,
    /// First entry that the client must receive, if it asked for new entries.
    from: Option<usize>,
    subscription: Option<Subscription>,
    last_id: Option<EventId>,
    got: Vec<ReceivedItem>,
}

impl ModelClient {
    /// Creates a client with a random scope, which asks for new entries or for everything.
    fn subscribe_new(relay: &RelayInstance, next: usize, rng: &mut Rng) -> Self {
        let some = |rng: &mut Rng, max_items| {
            (0..rng.usize(0..3)).map(|_| rng.usize(1..max_items)).collect()
        };
        let wants_oldest = rng.u32(0..4) == 0;
        let mut client = ModelClient {
            sessions: some(rng, 5),
            users: if rng.bool() { some(rng, 5) } else { BTreeSet::new() },
            kinds: some(rng, 3),
            from: (!wants_oldest).then_some(next),
            subscription: None,
            last_id: relay.fanout.log().newest_id(),
            got: Vec::new(),
        };
        client.connect(
            relay,
            if wants_oldest { &StartPosition::Oldest } else { &StartPosition::Now },
        );
        client
    }

    fn scope(&self) -> Scope {
        let sessions = self
            .sessions
            .iter()
            .map(|session| SessionId::new(SESSIONS[*session]).unwrap())
            .collect();
        let users = self.users.iter().map(|user| UserId::new(SESSIONS[*user]).unwrap()).collect();
        let kinds = self.kinds.iter().map(|kind| Kind::new(KINDS[*kind])).collect();
        Scope {
            sessions: if self.sessions.is_empty() {
                Only::Everything
            } else {
                Only::These(sessions)
            },
            users: if self.users.is_empty() { Only::Everything } else { Only::These(users) },
            kinds: if self.kinds.is_empty() { Only::Everything } else { Only::These(kinds) },
        }
    }

    fn sees(&self, event: &SentEntry) -> bool {
        let session = self.sessions.is_empty() || self.sessions.contains(&event.session);
        let user = self.users.is_empty() || self.users.contains(&event.user);
        event.is_gap
            || session && user && (self.kinds.is_empty() || self.kinds.contains(&event.kind))
    }

    fn connect(&mut self, relay: &RelayInstance, start: &StartPosition) {
        let subscription =
            Subscription::start(&relay.fanout, SubscriberSignal::default(), self.scope(), start);
        self.subscription = Some(subscription);
    }

    /// Reconnects after the client's last id. A client without one stays away.
    fn reconnect(&mut self, relay: &RelayInstance) {
        match self.last_id {
            Some(id) => self.connect(relay, &StartPosition::After(id)),
            None => self.subscription = None,
        }
    }

    /// Takes at most `max_items` items, and records which id belongs to which event.
    async fn read(&mut self, max_items: usize, names: &mut BTreeMap<EventId, usize>, seed: u64) {
        let Some(subscription) = &mut self.subscription else { return };
        for _ in 0..max_items {
            let began = Instant::now();
            let mut tick = tokio::time::interval(Duration::from_millis(20));
            let item = poll_fn(|context| {
                assert!(began.elapsed() < Duration::from_secs(20), "seed {seed}: stuck");
                match subscription.poll_next(context) {
                    Poll::Ready(item) => Poll::Ready(Some(item)),
                    Poll::Pending if subscription.is_caught_up() => Poll::Ready(None),
                    Poll::Pending => {
                        // As the timer wheel does for a subscription that must be polled again.
                        while subscription.must_poll_again() && tick.poll_tick(context).is_ready() {
                        }
                        Poll::Pending
                    }
                }
            });
            match item.await {
                Some(SubscriptionItem::Event { event, .. }) => {
                    let payload: serde_json::Value =
                        serde_json::from_slice(&event.payload()).unwrap();
                    let number = payload["number"].as_u64().unwrap() as usize;
                    assert_eq!(
                        *names.entry(event.id()).or_insert(number),
                        number,
                        "seed {seed}: an id is used twice"
                    );
                    self.got.push(ReceivedItem::Entry(number));
                    self.last_id = Some(event.id());
                }
                Some(SubscriptionItem::Gap(Gap { reason, id, .. })) => {
                    self.got.push(match reason {
                        GapReason::UpstreamReconnect => ReceivedItem::Entry(names[&id]),
                        reason => ReceivedItem::Notice(reason),
                    });
                    self.last_id = Some(id);
                }
                None => {
                    self.last_id = subscription.advance_last_id().or(self.last_id);
                    return;
                }
            }
        }
    }

    /// Compares what the client received with what was sent.
    fn check(&self, sent: &[SentEntry], seed: u64) {
        let mut next = self.from;
        let mut announced = false;
        for got in &self.got {
            match got {
                ReceivedItem::Notice(GapReason::UnknownId) => (next, announced) = (None, true),
                ReceivedItem::Notice(_) => announced = true,
                ReceivedItem::Entry(number) => {
                    let entry = &sent[*number];
                    assert!(
                        self.sees(entry),
                        "seed {seed}: event {number} is not for {:?} {:?} {:?}",
                        self.sessions,
                        self.users,
                        self.kinds
                    );
                    if let Some(next) = next {
                        assert!(
                            *number >= next,
                            "seed {seed}: event {number} again or out of order: {:?}",
                            self.got
                        );
                        let is_false = announced && *number == next;
                        assert!(
                            !is_false,
                            "seed {seed}: nothing is missing before {number}: {:?}",
                            self.got
                        );
                        // A gap in the log also announces what a crash has lost right before it.
                        self.assert_nothing_lost(
                            &sent[next..*number],
                            announced || entry.is_gap,
                            seed,
                        );
                    }
                    (next, announced) = (Some(number + 1), false);
                }
            }
        }
        if let Some(next) = next {
            self.assert_nothing_lost(&sent[next..], announced, seed);
        }
    }

    fn assert_nothing_lost(&self, between: &[SentEntry], announced: bool, seed: u64) {
        if let Some(lost) = between.iter().find(|event| !announced && self.sees(event)) {
            panic!("seed {seed}: event {} is lost without a notice: {:?}", lost.number, self.got);
        }
    }
}

/// Runs one schedule.
async fn run_schedule(seed: u64) {
    let mut rng = Rng::with_seed(seed);
    let directory = tempfile::tempdir().unwrap();
    let mut relay = RelayInstance::begin(directory.path(), &mut rng);
    let mut sent: Vec<SentEntry> = Vec::new();
    let mut clients: Vec<ModelClient> = Vec::new();
    let mut names: BTreeMap<EventId, usize> = BTreeMap::new();
    for _ in 0..rng.usize(10..120) {
        match rng.u32(0..100) {
            0..30 => {
                for _ in 0..rng.usize(1..60) {
                    let (session, user, kind) = (rng.usize(0..5), rng.usize(0..5), rng.usize(0..3));
                    let event =
                        SentEntry { number: sent.len(), session, user, kind, is_gap: false };
                    relay.append(&event);
                    sent.push(event);
                }
            }
            30..35 => relay.append_gap(&mut sent, &mut names),
            35..50 => relay.dispatch(rng.usize(1..9)),
            50..60 => {
                relay.dispatch(usize::MAX); // so that the model knows which entries are new to it
                clients.push(ModelClient::subscribe_new(&relay, sent.len(), &mut rng));
            }
            60..85 if !clients.is_empty() => {
                let client = rng.usize(0..clients.len());
                clients[client].read(rng.usize(1..60), &mut names, seed).await;
            }
            85..92 if !clients.is_empty() => {
                let client = rng.usize(0..clients.len());
                match clients[client].subscription.take() {
                    Some(_) => {}
                    None => clients[client].reconnect(&relay),
                }
            }
            92..95 => relay.wait_persisted(),
            95..98 => {
                let crashes = rng.bool();
                clients.iter_mut().for_each(|client| client.subscription = None);
                if crashes {
                    relay.store.crash();
                }
                drop(relay);
                relay = RelayInstance::begin(directory.path(), &mut rng);
                if relay.fanout.log().has_prior_entries() {
                    // as ingest does when the upstream is connected again
                    relay.append_gap(&mut sent, &mut names);
                }
            }
            _ => {}
        }
    }
    relay.dispatch(usize::MAX);
    check_all(clients, &relay, &sent, &mut names, seed).await;
}

/// Reads every client to the end of the log, and checks what it has received.
async fn check_all(
    clients: Vec<ModelClient>,
    relay: &RelayInstance,
    sent: &[SentEntry],
    names: &mut BTreeMap<EventId, usize>,
    seed: u64,
) {
    for mut client in clients {
        if client.subscription.is_none() {
            client.reconnect(relay);
        }
        client.read(usize::MAX, names, seed).await;
        // A client that went away before it had an id has no claim.
        if client.subscription.is_some() {
            client.check(sent, seed);
        }
    }
}

#[tokio::test]
async fn delivered_and_announced_is_sent_through_restarts_and_crashes() {
    let schedules = if std::env::var_os("AUTOPLAY_RELAY_LONG").is_some() { 5000 } else { 150 };
    let first: u64 =
        std::env::var("AUTOPLAY_RELAY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    for seed in first..first + schedules {
        run_schedule(seed).await;
    }
}

/// Reads a store of 1500 events on a shard, and returns the number of events in the largest buffer.
/// `is_full` says whether the socket is full after this many of them.
async fn largest_read_on_shard(is_full: impl Fn(usize) -> bool) -> usize {
    let directory = tempfile::tempdir().unwrap();
    let keeps_all = |rng: &Rng| !rng.clone().bool();
    let mut rng = (0..).map(Rng::with_seed).find(keeps_all).unwrap();
    let mut relay = RelayInstance::begin(directory.path(), &mut rng);
    for number in 0..1500 {
        relay.append(&SentEntry { number, session: 0, user: 0, kind: 0, is_gap: false });
        if number % 16 == 15 {
            relay.wait_persisted(); // memory has no more
        }
    }
    relay.dispatch(usize::MAX);
    let (scope, start) = (Scope::EVERYTHING, StartPosition::Oldest);
    let signal = SubscriberSignal::default();
    let mut subscription = Subscription::start(&relay.fanout, signal, scope, &start);
    subscription.is_indexed = false;
    let (mut got, mut largest) = (Vec::new(), 0);
    while got.len() < 1500 {
        match poll_fn(|context| subscription.poll_next(context)).await {
            SubscriptionItem::Event { event, .. } => got.push(event.position()),
            SubscriptionItem::Gap(gap) => panic!("{gap:?} after {got:?}"),
        }
        let (entries, bytes) = subscription.buffered();
        assert!(entries < 64 && bytes <= 64 * 1024, "{entries}, {bytes}");
        largest = largest.max(entries + 1);
        if is_full(got.len()) {
            subscription.give_back_read_ahead();
            let (entries, bytes) = subscription.buffered();
            assert!(entries < 16 && bytes <= 32 * 1024, "a full socket pins {entries}, {bytes}");
            assert_eq!(subscription.returned_through(), *got.last().unwrap());
        }
    }
    assert!(got.is_sorted_by(|one, next| one + 1 == *next), "{got:?}");
    largest
}

#[tokio::test]
async fn a_long_replay_reads_more_at_once_while_its_subscriber_keeps_up() {
    assert_eq!(largest_read_on_shard(|_| false).await, 64);
    assert_eq!(largest_read_on_shard(|got| got % 100 == 0).await, 16, "never keeps up");
    assert_eq!(largest_read_on_shard(|got| got % 350 == 0).await, 64, "keeps up in between");
}

const SESSIONS: [&str; 5] = ["", "a", "b", "c", "d"];

const KINDS: [&str; 3] = ["actions", "summary", "x"];
