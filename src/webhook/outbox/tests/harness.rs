//! Outbox with a clock that tests advance, and the events, attempts and dead letters that they pass
//! in.

use super::*;

/// An outbox and a clock.
pub(super) struct OutboxHarness {
    pub(super) outbox: Outbox,
    pub(super) base: Now,
    pub(super) elapsed: u64,
}

impl OutboxHarness {
    pub(super) fn new(max_in_flight: usize) -> Self {
        Self::with(DeliveryPolicy { max_in_flight, ..POLICY })
    }

    pub(super) fn with(policy: DeliveryPolicy) -> Self {
        let base = Now { instant: Instant::now(), unix_ms: 1_000_000, earliest_ms: 1_000_000 };
        let mut outbox = Outbox::new(policy, 0, Vec::new(), base);
        outbox.random = Rng::with_seed(1);
        Self { outbox, base, elapsed: 0 }
    }

    pub(super) fn now(&self) -> Now {
        let elapsed = Duration::from_millis(self.elapsed);
        Now {
            instant: self.base.instant + elapsed,
            unix_ms: self.base.unix_ms + self.elapsed,
            earliest_ms: self.base.unix_ms + self.elapsed,
        }
    }

    pub(super) fn enqueue(&mut self, position: u64, session: &str) {
        self.outbox.enqueue(event(position, session, 10), self.now());
    }

    /// Enqueues events without sessions.
    pub(super) fn enqueue_many(&mut self, positions: std::ops::RangeInclusive<u64>) {
        positions.for_each(|position| self.enqueue(position, ""));
    }

    /// Releases every event that may be sent now.
    pub(super) fn send_all(&mut self) -> Vec<u64> {
        let now = self.now();
        std::iter::from_fn(|| self.outbox.next(now)).map(|event| event.position()).collect()
    }

    pub(super) fn settle(&mut self, position: u64, status: u16, disposition: &Disposition) {
        let now = self.now();
        self.outbox.settle(position, attempt(status, now.unix_ms), disposition, now);
    }

    pub(super) fn fail(&mut self, position: u64) {
        self.settle(position, 503, &AGAIN);
    }

    pub(super) fn accept(&mut self, position: u64) {
        self.settle(position, 200, &Disposition::Accepted);
    }

    pub(super) fn commit(&mut self) -> WebhookChanges {
        let changes = self.outbox.take_urgent_changes().unwrap_or_default();
        self.outbox.record_commit();
        changes
    }

    /// Commits everything, as after a while without a settlement.
    pub(super) fn commit_all(&mut self) -> WebhookChanges {
        let changes = self.outbox.take_all_changes().unwrap_or_default();
        self.outbox.record_commit();
        changes
    }

    pub(super) fn endpoint_state(&self) -> EndpointState {
        self.outbox.endpoint_status().state
    }

    /// Returns the milliseconds until something is due.
    pub(super) fn ms_until_due(&self) -> Option<u64> {
        self.outbox
            .next_due_at()
            .map(|due| due.saturating_duration_since(self.now().instant).as_millis() as u64)
    }

    /// Advances the clock to the next due time, and releases every event that may be sent then.
    pub(super) fn send_all_when_due(&mut self) -> Vec<u64> {
        self.elapsed += self.ms_until_due().unwrap() + 1;
        self.send_all()
    }

    /// Opens the circuit by failures of deliveries 1 to 5, which wait for their retries then.
    pub(super) fn with_open_breaker(max_in_flight: usize) -> Self {
        let mut harness = Self::new(max_in_flight);
        harness.enqueue_many(1..=7);
        for position in 1..=FAILURES_TO_OPEN as u64 {
            assert_eq!(harness.endpoint_state(), EndpointState::Active);
            let now = harness.now();
            assert_eq!(harness.outbox.next(now).unwrap().position(), position);
            harness.fail(position);
        }
        harness
    }
}

pub(super) fn event(position: u64, session: &str, bytes: usize) -> Arc<Event> {
    let session = (!session.is_empty()).then(|| SessionId::new(session).unwrap());
    let payload = Bytes::from("x".repeat(bytes));
    let (id, names) = (EventId::new(7, position), (session, None));
    Arc::new(Event::restored(id, position, Kind::Actions, names, &payload))
}

pub(super) fn dead_letter(position: u64, session: &str) -> DeadLetter {
    let event = event(position, session, 10);
    let delivery = Delivery {
        position,
        event_id: event.id(),
        kind: event.kind().clone(),
        session: event.session().cloned(),
        created_at: 0,
        attempts: vec![attempt(400, 0)],
    };
    DeadLetter { delivery, reason: DeadLetterReason::Refused, died_at: 0, payload: event.payload() }
}

pub(super) fn attempt(status: u16, at: u64) -> Attempt {
    let outcome = if status == 200 { Outcome::Accepted } else { Outcome::Failed };
    Attempt { at, duration_ms: 1, outcome, status: Some(status), error: None }
}

pub(super) const POLICY: DeliveryPolicy = DeliveryPolicy {
    max_retries: 4,
    initial_backoff: Duration::from_secs(2),
    max_backoff: Duration::from_secs(10),
    max_in_flight: 16,
    event_storage: EventStorage::InStore,
};

pub(super) const NO_POSITIONS: [u64; 0] = [];

pub(super) const AGAIN: Disposition = Disposition::Retry { after: None };
