//! World around one outbox in the model test: log, store and receiver, with one function for each
//! thing that can happen to a delivery.

use super::*;

/// One entry of the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct ModelEntry {
    /// Index into [`SESSIONS`]; 0 is none.
    pub(super) session: usize,
    /// The entry is in the webhook's scope.
    pub(super) is_ours: bool,
    pub(super) is_erased: bool,
}

/// The rows of one webhook in the store.
#[derive(Debug, Default)]
pub(super) struct ModelStore {
    pub(super) cursor: u64,
    pub(super) owed: BTreeMap<u64, OwedDelivery>,
    /// Dead letters, and whether each is requeued.
    pub(super) dead_letters: BTreeMap<u64, (DeadLetter, bool)>,
    pub(super) expired_through: u64,
}

impl ModelStore {
    pub(super) fn apply(&mut self, changes: &WebhookChanges) {
        self.cursor = self.cursor.max(changes.position);
        for (position, change) in &changes.deliveries {
            // An exception after the position would be read and enqueued a second time.
            assert!(*position <= changes.position, "an exception behind the position");
            match change {
                // Taken before the notice of the expiry was applied.
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

/// An attempt in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct RunningAttempt {
    pub(super) position: u64,
    pub(super) is_probe: bool,
    /// The attempt runs against a former endpoint.
    pub(super) is_superseded: bool,
}

/// One outbox, the world around it, and the record that the assertions need.
pub(super) struct OutboxModel {
    pub(super) seed: u64,
    pub(super) rng: Rng,
    pub(super) base: Now,
    pub(super) elapsed: u64,
    pub(super) payload: Bytes,
    pub(super) policy: DeliveryPolicy,
    /// Bound of one batch.
    pub(super) max_batch_rows: usize,
    pub(super) outbox: Outbox,
    pub(super) log: Vec<ModelEntry>,
    /// Encoded once: encoding takes most of the test's time.
    pub(super) events: Vec<Arc<Event>>,
    pub(super) store: ModelStore,
    pub(super) committing: Option<WebhookChanges>,
    pub(super) has_unreported_expiry: bool,
    /// In this life of the process.
    pub(super) store_has_expired: bool,
    pub(super) in_flight: Vec<RunningAttempt>,
    pub(super) is_receiver_down: bool,
    /// Positions that the receiver has accepted, in order.
    pub(super) accepted: Vec<u64>,
    /// Life in which each position was accepted last.
    pub(super) last_life: BTreeMap<u64, usize>,
    pub(super) ever_dead: BTreeSet<u64>,
    pub(super) lost_answers: BTreeSet<u64>,
    pub(super) lost_with_file: BTreeSet<u64>,
    /// Dead letters that the outbox counted as lost, because the store could not be written for too
    /// long.
    pub(super) counted_lost: u64,
    /// Per life of the process: how many deliveries it may leave to be delivered twice, and how
    /// many were.
    pub(super) lives: Vec<(usize, usize)>,
    pub(super) is_degraded: bool,
}

impl OutboxModel {
    pub(super) fn begin(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let base = Now {
            instant: Instant::now(),
            unix_ms: 1_700_000_000_000,
            earliest_ms: 1_700_000_000_000,
        };
        let in_memory = EventStorage::InMemory { max_bytes: rng.u64(1 << 10..4 << 20) };
        let event_storage = if rng.u32(0..5) == 0 { in_memory } else { EventStorage::InStore };
        let policy = policy(&mut rng, event_storage);
        // So large that not all events stay loaded, or so small that they do.
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

    pub(super) fn now(&self) -> Now {
        let elapsed = Duration::from_millis(self.elapsed);
        Now {
            instant: self.base.instant + elapsed,
            unix_ms: self.base.unix_ms + self.elapsed,
            earliest_ms: self.base.unix_ms + self.elapsed,
        }
    }

    pub(super) fn entry(&self, position: u64) -> ModelEntry {
        self.log[position as usize - 1]
    }

    pub(super) fn event(&self, position: u64) -> Arc<Event> {
        Arc::clone(&self.events[position as usize - 1])
    }

    pub(super) fn append(&mut self, count: usize) {
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
                (session, None),
                &self.payload,
            )));
        }
    }

    pub(super) fn enqueue(&mut self, limit: usize) {
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

    pub(super) fn enqueue_one(&mut self, position: u64) {
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

    pub(super) fn load(&mut self) {
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

    pub(super) fn send(&mut self, limit: usize) {
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

    pub(super) fn begin_attempt(&mut self, event: &Event, state: EndpointState) {
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

    pub(super) fn accept(&mut self, position: u64) {
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

    pub(super) fn answer(&mut self) {
        if self.in_flight.is_empty() {
            return;
        }
        let attempt = self.in_flight.swap_remove(self.rng.usize(0..self.in_flight.len()));
        let again = Disposition::Retry { after: None };
        let (status, disposition) = match self.rng.u32(0..100) {
            _ if self.is_receiver_down => (503, again),
            0..55 => (200, Disposition::Accepted),
            55..70 => (500, again),
            70..80 => (0, again), // accepted, but the answer is lost
            80..88 => (400, Disposition::Refused),
            88..95 => (
                429,
                Disposition::Retry { after: Some(Duration::from_millis(self.rng.u64(1..30_000))) },
            ),
            95..98 => (0, Disposition::Forbidden),
            _ => (410, Disposition::Gone),
        };
        self.settle(attempt, status, &disposition);
    }

    pub(super) fn settle(
        &mut self,
        attempted: RunningAttempt,
        status: u16,
        disposition: &Disposition,
    ) {
        let RunningAttempt { position, is_superseded, .. } = attempted;
        let is_lost_answer = status == 0 && *disposition != Disposition::Forbidden;
        if *disposition == Disposition::Accepted || is_lost_answer {
            self.accept(position);
        }
        if is_lost_answer {
            self.lost_answers.insert(position);
        }
        if is_superseded {
            let now = self.now().instant;
            let before = self.outbox.breaker.status(now);
            self.outbox.settle_former(position, attempt(status), disposition, self.now());
            let (is_open, after) =
                (self.outbox.get(position).is_some(), self.outbox.breaker.status(now));
            assert_eq!(before, after, "seed {}: the present endpoint has heard it", self.seed);
            assert!(
                !is_open || *disposition != Disposition::Accepted,
                "seed {}: {position} is accepted",
                self.seed
            );
        } else {
            self.outbox.settle(position, attempt(status), disposition, self.now());
        }
        // Later deliveries of its session go on now, even if the dead letter is never written.
        if *disposition != Disposition::Accepted && self.outbox.get(position).is_none() {
            self.ever_dead.insert(position);
        }
    }
}

pub(super) fn policy(rng: &mut Rng, event_storage: EventStorage) -> DeliveryPolicy {
    DeliveryPolicy {
        max_retries: rng.u32(0..6),
        initial_backoff: Duration::from_millis(rng.u64(1..3000)),
        max_backoff: Duration::from_millis(rng.u64(3000..60_000)),
        max_in_flight: rng.usize(1..9),
        event_storage,
    }
}

pub(super) fn attempt(status: u16) -> Attempt {
    let (outcome, status) = match status {
        0 => (Outcome::Connect, None),
        200 => (Outcome::Accepted, Some(200)),
        400..500 => (Outcome::Refused, Some(status)),
        _ => (Outcome::Failed, Some(status)),
    };
    Attempt { at: 0, duration_ms: 1, outcome, status, error: None }
}

pub(super) fn delivery_of(event: &Event) -> Delivery {
    Delivery {
        position: event.position(),
        event_id: event.id(),
        kind: event.kind().clone(),
        session: event.session().cloned(),
        created_at: 0,
        attempts: Vec::new(),
    }
}

pub(super) const SESSIONS: [&str; 5] = ["", "a", "b", "c", "d"];
