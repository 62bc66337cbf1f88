//! The outbox against a model: every delivery is accepted, dead, erased or expired in the end, in
//! order, and never twice without a reason.
//!
//! Random schedules of events, answers, commits that succeed or fail, crashes, reloads and commands
//! of operators; each is known by its seed.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::*;
use crate::{
    event::{EventId, Kind},
    store::DeliveryChange,
    webhook_delivery::Outcome,
};

/// One entry of the log.
#[derive(Clone, Copy, Debug)]
struct ModelEntry {
    /// 0 is none.
    session: usize,
    /// It is for this webhook.
    is_ours: bool,
    is_erased: bool,
}

/// The store, as far as it concerns one webhook.
#[derive(Debug, Default)]
struct ModelStore {
    cursor: u64,
    owed: BTreeMap<u64, OwedDelivery>,
    /// Dead letters, and whether they are to be delivered again.
    dead_letters: BTreeMap<u64, (DeadLetter, bool)>,
    expired_through: u64,
}

impl ModelStore {
    fn apply(&mut self, changes: &WebhookChanges) {
        self.cursor = self.cursor.max(changes.position);
        for (position, fate) in &changes.deliveries {
            assert!(*position <= changes.position, "an exception behind the position");
            match fate {
                // Written before word of the expiry had come.
                DeliveryChange::Owed(_) if *position <= self.expired_through => {}
                DeliveryChange::Owed(owed) => drop(self.owed.insert(*position, owed.clone())),
                DeliveryChange::Settled => {
                    drop((self.owed.remove(position), self.dead_letters.remove(position)));
                }
                DeliveryChange::Dead(dead_letter) => {
                    self.owed.remove(position);
                    self.dead_letters.insert(*position, (dead_letter.clone(), false));
                }
            }
        }
    }
}

/// An attempt under way.
#[derive(Clone, Copy, Debug)]
struct RunningAttempt {
    position: u64,
    is_probe: bool,
    /// At an endpoint that is the webhook's no longer.
    is_superseded: bool,
}

/// The whole world around one outbox.
struct OutboxModel {
    seed: u64,
    rng: Rng,
    base: Now,
    elapsed: u64,
    payload: Bytes,
    policy: DeliveryPolicy,
    /// In one batch.
    max_batch_rows: usize,
    outbox: Outbox,
    log: Vec<ModelEntry>,
    /// Encoded once: that is what takes time here.
    events: Vec<Arc<Event>>,
    store: ModelStore,
    committing: Option<WebhookChanges>,
    has_unreported_expiry: bool,
    /// In this life.
    store_has_expired: bool,
    in_flight: Vec<RunningAttempt>,
    is_receiver_down: bool,
    /// What the receiver has accepted, in order; and in which life each was accepted last.
    accepted: Vec<u64>,
    last_life: BTreeMap<u64, usize>,
    ever_dead: BTreeSet<u64>,
    lost_answers: BTreeSet<u64>,
    lost_with_file: BTreeSet<u64>,
    /// Dead letters that were counted as lost, because the store could not be written for too long.
    counted_lost: u64,
    /// Per life: how many it may leave to be delivered twice, and how many were.
    lives: Vec<(usize, usize)>,
    is_degraded: bool,
}

impl OutboxModel {
    fn begin(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let base = Now { instant: Instant::now(), unix_ms: 1_700_000_000_000 };
        let in_memory = EventStorage::InMemory { max_bytes: rng.u64(1 << 10..4 << 20) };
        let keeping = if rng.u32(0..5) == 0 { in_memory } else { EventStorage::InStore };
        let policy = policy(&mut rng, keeping);
        // So large that the store's events are not all held, or so small that they are.
        let filling = if rng.u32(0..10) == 0 { 96 << 10 } else { 40 };
        let mut outbox = Outbox::new(policy, 0, Vec::new(), base);
        outbox.random = Rng::with_seed(seed);
        let max_batch_rows = if rng.bool() { rng.usize(1..20) } else { 1000 };
        outbox.journal.max_batch_rows = max_batch_rows;
        Self {
            seed,
            rng,
            base,
            elapsed: 0,
            payload: Bytes::from(format!("{{\"x\":\"{}\"}}", "x".repeat(filling))),
            policy,
            max_batch_rows,
            outbox,
            log: Vec::new(),
            events: Vec::new(),
            store: ModelStore::default(),
            committing: None,
            has_unreported_expiry: false,
            store_has_expired: false,
            in_flight: Vec::new(),
            is_receiver_down: false,
            accepted: Vec::new(),
            last_life: BTreeMap::new(),
            ever_dead: BTreeSet::new(),
            lost_answers: BTreeSet::new(),
            lost_with_file: BTreeSet::new(),
            counted_lost: 0,
            lives: vec![(policy.max_in_flight, 0)],
            is_degraded: false,
        }
    }

    fn now(&self) -> Now {
        let elapsed = Duration::from_millis(self.elapsed);
        Now { instant: self.base.instant + elapsed, unix_ms: self.base.unix_ms + self.elapsed }
    }

    fn entry(&self, position: u64) -> ModelEntry {
        self.log[position as usize - 1]
    }

    fn event(&self, position: u64) -> Arc<Event> {
        Arc::clone(&self.events[position as usize - 1])
    }

    fn append(&mut self, count: usize) {
        for _ in 0..count {
            let session = self.rng.usize(0..SESSIONS.len());
            self.log.push(ModelEntry {
                session,
                is_ours: self.rng.u32(0..5) > 0,
                is_erased: false,
            });
            let (position, name) = (self.log.len() as u64, SESSIONS[session]);
            let session = (session > 0).then(|| SessionId::new(name).unwrap());
            let id = EventId::new(7, position);
            self.events.push(Arc::new(Event::restored(
                id,
                position,
                Kind::Actions,
                session,
                &self.payload,
            )));
        }
    }

    fn enqueue(&mut self, limit: usize) {
        for _ in 0..limit {
            let position = self.outbox.cursor() + 1;
            if position > self.log.len() as u64 || !self.outbox.has_capacity() {
                return;
            }
            let entry = self.entry(position);
            if entry.is_ours && !entry.is_erased {
                self.enqueue_one(position);
            }
            self.outbox.advance_to(position);
        }
    }

    fn enqueue_one(&mut self, position: u64) {
        let before: Vec<u64> = self.outbox.items.keys().copied().collect();
        self.outbox.enqueue(self.event(position), self.now());
        if self.outbox.is_in_memory() {
            let items = &self.outbox.items;
            self.ever_dead.extend(
                before
                    .into_iter()
                    .chain([position])
                    .filter(|position| !items.contains_key(position)),
            );
        }
    }

    fn load(&mut self) {
        while let Some(position) = self.outbox.next_to_load() {
            if self.rng.u32(0..10) == 0 {
                self.outbox.defer_unreadable(position, self.now());
                let others = self.outbox.next_to_load();
                assert!(
                    others != Some(position) || self.outbox.breaker.is_open(),
                    "seed {}: {position} again",
                    self.seed
                );
                return;
            }
            let page = position..(position + self.rng.u64(1..9)).min(self.log.len() as u64 + 1);
            for position in page {
                if self.entry(position).is_erased {
                    self.outbox.discard_unreadable(position);
                } else if self.entry(position).is_ours {
                    self.outbox.load(&self.event(position));
                }
            }
            assert_ne!(
                self.outbox.next_to_load(),
                Some(position),
                "seed {}: {position} was loaded",
                self.seed
            );
        }
    }

    fn send(&mut self, limit: usize) {
        for _ in 0..limit {
            let now = self.now();
            let before = self.outbox.breaker.status(now.instant).state;
            let Some(event) = self.outbox.next(now) else {
                let due = self.outbox.next_due_at();
                assert!(
                    due.is_none_or(|due| due > now.instant),
                    "seed {}: due, and nothing comes",
                    self.seed
                );
                return;
            };
            self.begin_attempt(&event, before);
        }
    }

    fn begin_attempt(&mut self, event: &Event, state: EndpointState) {
        let (seed, position) = (self.seed, event.position());
        let is_closed_to_sends =
            matches!(state, EndpointState::Disabled | EndpointState::Throttled);
        assert!(
            !is_closed_to_sends,
            "seed {seed}: {position} is sent to an endpoint that is {state:?}"
        );
        let is_probe = state == EndpointState::Open;
        let probes = self.in_flight.iter().filter(|attempt| attempt.is_probe).count();
        assert!(
            !is_probe || probes == 0 || !self.outbox.breaker.is_open(),
            "seed {seed}: two probes"
        );
        let session = self.entry(position).session;
        for other in &self.in_flight {
            let is_same_session = other.position == position
                || session > 0 && self.entry(other.position).session == session;
            assert!(
                !is_same_session,
                "seed {seed}: {position} runs beside {} of its session",
                other.position
            );
        }
        assert!(event.payload() == self.payload, "seed {seed}: other bytes");
        self.in_flight.push(RunningAttempt { position, is_probe, is_superseded: false });
        assert!(
            self.in_flight.len() <= self.lives.last().unwrap().0,
            "seed {seed}: too many in flight"
        );
    }

    fn accept(&mut self, position: u64) {
        let life = self.lives.len() - 1;
        if let Some(before) = self.last_life.insert(position, life) {
            let is_excused = self.lost_answers.contains(&position);
            assert!(
                is_excused || before < life,
                "seed {}: {position} is delivered twice",
                self.seed
            );
            if !is_excused {
                self.lives[before].1 += 1;
                let (most, twice) = self.lives[before];
                assert!(
                    twice <= most,
                    "seed {}: {twice} twice after a crash with {most} in flight",
                    self.seed
                );
            }
        }
        self.accepted.push(position);
    }

    fn answer(&mut self) {
        if self.in_flight.is_empty() {
            return;
        }
        let attempt = self.in_flight.swap_remove(self.rng.usize(0..self.in_flight.len()));
        let again = Disposition::Retry { after: None };
        let (status, verdict) = match self.rng.u32(0..100) {
            _ if self.is_receiver_down => (503, again),
            0..55 => (200, Disposition::Accepted),
            55..70 => (500, again),
            70..80 => (0, again), // accepted, but nobody hears of it
            80..88 => (400, Disposition::Refused),
            88..95 => (
                429,
                Disposition::Retry { after: Some(Duration::from_millis(self.rng.u64(1..30_000))) },
            ),
            95..98 => (0, Disposition::Forbidden),
            _ => (410, Disposition::Gone),
        };
        self.settle(attempt, status, &verdict);
    }

    fn settle(&mut self, attempted: RunningAttempt, status: u16, verdict: &Disposition) {
        let RunningAttempt { position, is_superseded, .. } = attempted;
        let is_lost_answer = status == 0 && *verdict != Disposition::Forbidden;
        if *verdict == Disposition::Accepted || is_lost_answer {
            self.accept(position);
        }
        if is_lost_answer {
            self.lost_answers.insert(position);
        }
        if is_superseded {
            let now = self.now().instant;
            let before = self.outbox.breaker.status(now);
            self.outbox.settle_former(position, attempt(status), verdict, self.now());
            let (is_open, after) =
                (self.outbox.get(position).is_some(), self.outbox.breaker.status(now));
            assert_eq!(before, after, "seed {}: the present endpoint has heard it", self.seed);
            assert!(
                !is_open || *verdict != Disposition::Accepted,
                "seed {}: {position} is accepted",
                self.seed
            );
        } else {
            self.outbox.settle(position, attempt(status), verdict, self.now());
        }
        // Others of its session have gone on, whether the dead letter is ever written or not.
        if *verdict != Disposition::Accepted && self.outbox.get(position).is_none() {
            self.ever_dead.insert(position);
        }
    }

    /// Begins to write down.
    fn begin_commit(&mut self, everything: bool) {
        if self.committing.is_none() {
            self.committing = if everything {
                self.outbox.take_all_changes()
            } else {
                self.outbox.take_urgent_changes()
            };
        }
        assert!(
            self.committing.is_none() || self.outbox.take_all_changes().is_none(),
            "seed {}: two batches",
            self.seed
        );
    }

    fn finish_commit(&mut self, succeeds: bool) {
        let Some(changes) = self.committing.take() else { return };
        if succeeds {
            self.commit(&changes);
            self.outbox.record_commit();
            // Slots were free that should not have been, until everything is written.
            self.is_degraded &= self.outbox.journal.has_changes(self.outbox.cursor);
        } else {
            if self.rng.bool() {
                self.commit(&changes); // although it is reported as failed
            }
            self.is_degraded = true;
            self.outbox.record_commit_failure(changes);
        }
    }

    /// The store takes very long to write, and nobody waits for that.
    fn stall_store(&mut self) {
        self.is_degraded = true;
        self.outbox.mark_store_degraded();
        assert_eq!(self.outbox.journal.occupied_slots(), 0, "seed {}", self.seed);
    }

    fn commit(&mut self, changes: &WebhookChanges) {
        let dead =
            changes.deliveries.iter().filter(|(_, fate)| matches!(fate, DeliveryChange::Dead(_)));
        self.ever_dead.extend(dead.map(|(position, _)| *position));
        self.store.apply(changes);
    }

    /// Everything is written down, and the store knows what the outbox knows.
    fn commit_all_and_check(&mut self) {
        self.finish_commit(true);
        self.report_expiry();
        let mut batches = 0..self.log.len() * 3 + 10;
        while batches.next().is_some() {
            self.begin_commit(true);
            if self.committing.is_none() {
                break;
            }
            self.finish_commit(true);
        }
        assert!(!batches.is_empty(), "seed {}: there is always something to write", self.seed);
        let pending = self.outbox.pending(None, usize::MAX, self.now());
        let mut pending: Vec<u64> = pending.iter().map(|(delivery, _)| delivery.position).collect();
        pending.reverse();
        let owed: Vec<u64> = self.store.owed.keys().copied().collect();
        assert_eq!(owed, pending, "seed {}: the store does not know what is owed", self.seed);
        assert_eq!(self.store.cursor, self.outbox.cursor(), "seed {}", self.seed);
        let oldest = self.store.owed.values().next().map(|owed| owed.delivery.created_at);
        assert_eq!(self.outbox.owed(), (owed.len() as u64, oldest), "seed {}", self.seed);
    }

    fn crash(&mut self) {
        if let Some(changes) = self.committing.take()
            && self.rng.bool()
        {
            self.commit(&changes);
        }
        for attempt in std::mem::take(&mut self.in_flight) {
            if self.rng.bool() {
                self.accept(attempt.position);
            }
        }
        // What the store expires before it hears of an acceptance is dead there until it is told
        // otherwise.
        if self.is_degraded || self.store_has_expired {
            self.lives.last_mut().unwrap().0 = usize::MAX;
        }
        self.lives.push((self.policy.max_in_flight, 0));
        (self.has_unreported_expiry, self.store_has_expired) = (false, false);
        let owed = self.store.owed.values().cloned().collect();
        self.counted_lost += self.outbox.take_lost_count();
        self.outbox = Outbox::new(self.policy, self.store.cursor, owed, self.now());
        self.outbox.random = Rng::with_seed(self.seed);
        self.outbox.journal.max_batch_rows = self.max_batch_rows;
        self.is_degraded = false;
    }

    fn reload(&mut self) {
        self.policy = policy(&mut self.rng, self.policy.event_storage);
        self.outbox.set_policy(self.policy);
        let limit = &mut self.lives.last_mut().unwrap().0;
        *limit = (*limit).max(self.policy.max_in_flight);
    }

    /// The webhook has another endpoint from now on, or an operator says that this one is well.
    fn enable(&mut self) {
        self.outbox.enable();
        for attempt in &mut self.in_flight {
            (attempt.is_probe, attempt.is_superseded) = (false, true);
        }
    }

    /// The store makes dead letters of what has been owed for too long; the outbox hears of it,
    /// sooner or later.
    fn expire(&mut self) {
        let expired_through =
            self.rng.u64(0..=self.log.len() as u64).max(self.store.expired_through);
        for position in 1..=expired_through {
            let entry = self.entry(position);
            let is_owed = self.store.owed.remove(&position).is_some()
                || position > self.store.cursor && entry.is_ours;
            if is_owed && !entry.is_erased {
                let event = self.event(position);
                let delivery = delivery_of(&event);
                let (reason, payload) = (DeadLetterReason::Expired, event.payload());
                self.store.dead_letters.insert(
                    position,
                    (DeadLetter { delivery, reason, died_at: 0, payload }, false),
                );
                self.ever_dead.insert(position);
            }
        }
        self.store.cursor = self.store.cursor.max(expired_through);
        self.store.expired_through = expired_through;
        (self.has_unreported_expiry, self.store_has_expired) = (true, true);
    }

    fn report_expiry(&mut self) {
        if std::mem::take(&mut self.has_unreported_expiry) {
            self.outbox.expire_through(self.store.expired_through);
        }
    }

    fn erase(&mut self) {
        let erased = self.rng.usize(1..SESSIONS.len());
        let session = SessionId::new(SESSIONS[erased]).unwrap();
        self.log
            .iter_mut()
            .filter(|sent| sent.session == erased)
            .for_each(|sent| sent.is_erased = true);
        self.store.owed.retain(|_, owed| owed.delivery.session.as_ref() != Some(&session));
        self.store
            .dead_letters
            .retain(|_, (letter, _)| letter.delivery.session.as_ref() != Some(&session));
        self.outbox.erase(&session);
        let delivered = self.outbox.delivered(None, usize::MAX);
        assert!(
            delivered.iter().all(|(_, delivery)| !self.entry(delivery.position).is_erased),
            "seed {}",
            self.seed
        );
    }

    fn requeue(&mut self) {
        self.store.dead_letters.values_mut().for_each(|(_, is_requeued)| *is_requeued = true);
        self.outbox.restart_redelivery_scan();
    }

    fn redeliver(&mut self) {
        self.report_expiry();
        if let Some(after) = self.outbox.next_redelivery_after() {
            let behind = self.store.dead_letters.range(after + 1..).map(|(_, letter)| letter);
            let letters =
                behind.filter(|(_, is_requeued)| *is_requeued).map(|(letter, _)| letter.clone());
            let letters = letters.take(self.rng.usize(1..40)).collect();
            self.outbox.redeliver(letters, self.now());
        }
    }

    /// The file is lost, with all dead letters.
    fn lose_store_file(&mut self) {
        self.finish_commit(false);
        self.report_expiry();
        self.lost_with_file.extend(self.store.dead_letters.keys());
        let expired_through = self.store.expired_through;
        self.store = ModelStore { expired_through, ..ModelStore::default() };
        self.is_degraded = true;
        self.outbox.rewrite_all();
        // A crash before the next commit would be one of the file, too.
        self.commit_all_and_check();
    }

    fn advance(&mut self) {
        let due = self.outbox.next_due_at().map(|due| due - self.base.instant);
        self.elapsed = match due {
            Some(due) if self.rng.bool() => self.elapsed.max(due.as_millis() as u64 + 1),
            _ => self.elapsed + self.rng.u64(0..3000),
        };
    }

    fn step(&mut self) {
        match self.rng.u32(0..1000) {
            0..80 => {
                let count = self.rng.usize(1..20);
                self.append(count);
            }
            80..250 => {
                let limit = self.rng.usize(1..20);
                self.enqueue(limit);
            }
            250..430 => {
                let limit = self.rng.usize(1..10);
                self.send(limit);
            }
            430..640 => self.answer(),
            640..720 => self.load(),
            720..790 => self.begin_commit(false),
            790..805 => self.begin_commit(true),
            805..870 => {
                let succeeds = self.rng.u32(0..10) > 0;
                self.finish_commit(succeeds);
            }
            870..920 => self.advance(),
            920..930 => self.crash(),
            930..937 => self.reload(),
            937..942 => self.outbox.disable("an operator said so"),
            942..955 => self.enable(),
            955..960 => self.expire(),
            960..970 => self.report_expiry(),
            970..974 => self.erase(),
            974..978 => self.requeue(),
            978..985 => self.redeliver(),
            985 => self.stall_store(),
            986..992 => self.is_receiver_down = !self.is_receiver_down,
            992..994 => self.lose_store_file(),
            _ => self.commit_all_and_check(),
        }
    }

    /// The receiver is well again: everything goes out, in a bounded number of steps.
    fn drain(&mut self) {
        self.outbox.enable();
        let max_steps = 200 + 4 * self.log.len();
        for _ in 0..max_steps {
            self.requeue();
            self.redeliver();
            self.enqueue(usize::MAX);
            self.load();
            self.send(usize::MAX);
            for attempt in std::mem::take(&mut self.in_flight) {
                self.settle(attempt, 200, &Disposition::Accepted);
            }
            self.finish_commit(true);
            while self.outbox.journal.is_due() {
                self.begin_commit(false);
                self.finish_commit(true);
            }
            self.report_expiry();
            self.advance();
            // A dead letter may still be on its way to the store.
            let is_written =
                self.committing.is_none() && !self.outbox.journal.has_changes(self.outbox.cursor);
            if self.outbox.items.is_empty() && self.store.dead_letters.is_empty() && is_written {
                break;
            }
        }
        let left: Vec<_> = self.outbox.items.keys().collect();
        assert!(
            left.is_empty(),
            "seed {}: stuck: {left:?}, {:?}",
            self.seed,
            self.outbox.endpoint_status()
        );
        assert!(self.store.dead_letters.is_empty(), "seed {}: dead for ever", self.seed);
        self.enqueue(usize::MAX);
        self.commit_all_and_check();
    }

    fn check_deliveries(&mut self) {
        self.counted_lost += self.outbox.take_lost_count();
        for (index, entry) in self.log.iter().enumerate() {
            let position = index as u64 + 1;
            let is_settled = self.accepted.contains(&position)
                || self.lost_with_file.contains(&position)
                || entry.is_erased;
            let is_counted = entry.is_ours && !is_settled && self.counted_lost > 0;
            self.counted_lost -= u64::from(is_counted);
            assert!(
                !entry.is_ours || is_settled || is_counted,
                "seed {}: {position} is lost",
                self.seed
            );
        }
        let mut seen = BTreeSet::new();
        let mut latest = [0; SESSIONS.len()];
        for position in self
            .accepted
            .iter()
            .filter(|position| seen.insert(**position) && !self.ever_dead.contains(position))
        {
            let session = self.entry(*position).session;
            let is_in_order = session == 0 || latest[session] < *position;
            assert!(
                is_in_order,
                "seed {}: {position} after {} of its session",
                self.seed, latest[session]
            );
            latest[session] = *position;
        }
        let held = self.outbox.counts;
        assert!(
            held.loaded == 0
                && held.loaded_bytes == 0
                && held.in_flight == 0
                && held.in_flight_retries == 0,
            "{held:?}"
        );
    }
}

fn policy(rng: &mut Rng, keeping: EventStorage) -> DeliveryPolicy {
    DeliveryPolicy {
        max_retries: rng.u32(0..6),
        initial_backoff: Duration::from_millis(rng.u64(1..3000)),
        max_backoff: Duration::from_millis(rng.u64(3000..60_000)),
        max_in_flight: rng.usize(1..9),
        event_storage: keeping,
    }
}

fn attempt(status: u16) -> Attempt {
    let (outcome, status) = match status {
        0 => (Outcome::Connect, None),
        200 => (Outcome::Accepted, Some(200)),
        400..500 => (Outcome::Refused, Some(status)),
        _ => (Outcome::Failed, Some(status)),
    };
    Attempt { at: 0, duration_ms: 1, outcome, status, error: None }
}

fn delivery_of(event: &Event) -> Delivery {
    Delivery {
        position: event.position(),
        event_id: event.id(),
        kind: event.kind().clone(),
        session: event.session().cloned(),
        created_at: 0,
        attempts: Vec::new(),
    }
}

/// Tells the seed also of what panics inside the outbox.
struct SeedReporter(u64);

impl Drop for SeedReporter {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("AUTOPLAY_RELAY_SEED={} begins with what failed", self.0);
        }
    }
}

#[test]
fn everything_owed_is_delivered_in_order_or_accounted_for_through_failures_and_crashes() {
    let schedules = if std::env::var_os("AUTOPLAY_RELAY_LONG").is_some() { 20_000 } else { 300 };
    let first: u64 =
        std::env::var("AUTOPLAY_RELAY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    for seed in first..first + schedules {
        let mut model = OutboxModel::begin(seed);
        let _seed_reporter = SeedReporter(seed);
        for _ in 0..model.rng.usize(10..500) {
            model.step();
        }
        model.drain();
        model.check_deliveries();
    }
}

const SESSIONS: [&str; 5] = ["", "a", "b", "c", "d"];
