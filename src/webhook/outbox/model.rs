//! The outbox against a model: everything is accepted, dead, erased or expired in the end, in order, and never twice without
//! a reason.
//!
//! Random schedules of events, answers, commits that succeed or fail, crashes, reloads and orders of operators; each is known
//! by its seed.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::*;
use crate::{
    event::{EventId, Kind},
    store::Fate,
    webhook_delivery::Outcome,
};

/// One entry of the log.
#[derive(Clone, Copy, Debug)]
struct Sent {
    /// 0 is none.
    session: usize,
    /// It is for this webhook.
    is_ours: bool,
    is_erased: bool,
}

/// The store, as far as it concerns one webhook.
#[derive(Debug, Default)]
struct Shelf {
    position: u64,
    owed: BTreeMap<u64, Owed>,
    /// Dead letters, and whether they are to be delivered again.
    letters: BTreeMap<u64, (DeadLetter, bool)>,
    expired_through: u64,
}

impl Shelf {
    fn apply(&mut self, changes: &Changes) {
        self.position = self.position.max(changes.position);
        for (place, fate) in &changes.fates {
            assert!(*place <= changes.position, "an exception behind the position");
            match fate {
                // Written before word of the expiry had come.
                Fate::Owed(_) if *place <= self.expired_through => {}
                Fate::Owed(owed) => drop(self.owed.insert(*place, owed.clone())),
                Fate::Settled => drop((self.owed.remove(place), self.letters.remove(place))),
                Fate::Dead(letter) => {
                    self.owed.remove(place);
                    self.letters.insert(*place, (letter.clone(), false));
                }
            }
        }
    }
}

/// An attempt under way.
#[derive(Clone, Copy, Debug)]
struct Attempted {
    place: u64,
    began_open: bool,
    /// At an endpoint that is the webhook's no longer.
    is_former: bool,
}

/// The whole world around one outbox.
struct World {
    seed: u64,
    rng: Rng,
    base: Now,
    elapsed: u64,
    payload: Bytes,
    policy: Policy,
    /// In one batch.
    most_fates: usize,
    outbox: Outbox,
    log: Vec<Sent>,
    /// Encoded once: that is what takes time here.
    events: Vec<Arc<Event>>,
    shelf: Shelf,
    flying: Option<Changes>,
    untold: bool,
    /// In this life.
    has_expired: bool,
    running: Vec<Attempted>,
    is_down: bool,
    /// What the receiver has accepted, in order; and in which life each was accepted last.
    accepted: Vec<u64>,
    last_life: BTreeMap<u64, usize>,
    ever_dead: BTreeSet<u64>,
    lost_answers: BTreeSet<u64>,
    lost_with_file: BTreeSet<u64>,
    /// Dead letters that were counted as lost, because the store could not be written for too long.
    counted: u64,
    /// Per life: how many it may leave to be delivered twice, and how many were.
    lives: Vec<(usize, usize)>,
    is_degraded: bool,
}

impl World {
    fn begin(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let base = Now { instant: Instant::now(), unix_ms: 1_700_000_000_000 };
        let in_memory = Keeping::InMemory { most_bytes: rng.u64(1 << 10..4 << 20) };
        let keeping = if rng.u32(0..5) == 0 { in_memory } else { Keeping::InStore };
        let policy = policy(&mut rng, keeping);
        // So large that the store's events are not all held, or so small that they are.
        let filling = if rng.u32(0..10) == 0 { 96 << 10 } else { 40 };
        let mut outbox = Outbox::new(policy, 0, Vec::new(), base);
        outbox.random = Rng::with_seed(seed);
        let most_fates = if rng.bool() { rng.usize(1..20) } else { 1000 };
        outbox.journal.most_fates = most_fates;
        Self {
            seed,
            rng,
            base,
            elapsed: 0,
            payload: Bytes::from(format!("{{\"x\":\"{}\"}}", "x".repeat(filling))),
            policy,
            most_fates,
            outbox,
            log: Vec::new(),
            events: Vec::new(),
            shelf: Shelf::default(),
            flying: None,
            untold: false,
            has_expired: false,
            running: Vec::new(),
            is_down: false,
            accepted: Vec::new(),
            last_life: BTreeMap::new(),
            ever_dead: BTreeSet::new(),
            lost_answers: BTreeSet::new(),
            lost_with_file: BTreeSet::new(),
            counted: 0,
            lives: vec![(policy.max_in_flight, 0)],
            is_degraded: false,
        }
    }

    fn now(&self) -> Now {
        let elapsed = Duration::from_millis(self.elapsed);
        Now { instant: self.base.instant + elapsed, unix_ms: self.base.unix_ms + self.elapsed }
    }

    fn sent(&self, place: u64) -> Sent {
        self.log[place as usize - 1]
    }

    fn event(&self, place: u64) -> Arc<Event> {
        Arc::clone(&self.events[place as usize - 1])
    }

    fn append(&mut self, count: usize) {
        for _ in 0..count {
            let session = self.rng.usize(0..SESSIONS.len());
            self.log.push(Sent { session, is_ours: self.rng.u32(0..5) > 0, is_erased: false });
            let (place, name) = (self.log.len() as u64, SESSIONS[session]);
            let session = (session > 0).then(|| SessionId::new(name).unwrap());
            let id = EventId::new(7, place);
            self.events.push(Arc::new(Event::restored(id, place, Kind::Actions, session, &self.payload)));
        }
    }

    fn take(&mut self, most: usize) {
        for _ in 0..most {
            let place = self.outbox.position() + 1;
            if place > self.log.len() as u64 || !self.outbox.has_room() {
                return;
            }
            let sent = self.sent(place);
            if sent.is_ours && !sent.is_erased {
                self.take_one(place);
            }
            self.outbox.pass(place);
        }
    }

    fn take_one(&mut self, place: u64) {
        let before: Vec<u64> = self.outbox.items.keys().copied().collect();
        self.outbox.take(self.event(place), self.now());
        if self.outbox.is_in_memory() {
            let items = &self.outbox.items;
            self.ever_dead.extend(before.into_iter().chain([place]).filter(|place| !items.contains_key(place)));
        }
    }

    fn load(&mut self) {
        while let Some(place) = self.outbox.wants() {
            if self.rng.u32(0..10) == 0 {
                self.outbox.cannot_be_read(place, self.now());
                let others = self.outbox.wants();
                assert!(others != Some(place) || self.outbox.endpoint.is_open(), "seed {}: {place} again", self.seed);
                return;
            }
            let page = place..(place + self.rng.u64(1..9)).min(self.log.len() as u64 + 1);
            for place in page {
                if self.sent(place).is_erased {
                    self.outbox.is_gone(place);
                } else if self.sent(place).is_ours {
                    self.outbox.load(&self.event(place));
                }
            }
            assert_ne!(self.outbox.wants(), Some(place), "seed {}: {place} was loaded", self.seed);
        }
    }

    fn send(&mut self, most: usize) {
        for _ in 0..most {
            let now = self.now();
            let before = self.outbox.endpoint.standing(now.instant).state;
            let Some(event) = self.outbox.next(now) else {
                let due = self.outbox.due();
                assert!(due.is_none_or(|due| due > now.instant), "seed {}: due, and nothing comes", self.seed);
                return;
            };
            self.begin_attempt(&event, before);
        }
    }

    fn begin_attempt(&mut self, event: &Event, state: EndpointState) {
        let (seed, place) = (self.seed, event.place());
        let is_shut = matches!(state, EndpointState::Disabled | EndpointState::Throttled);
        assert!(!is_shut, "seed {seed}: {place} is sent to an endpoint that is {state:?}");
        let began_open = state == EndpointState::Open;
        let probes = self.running.iter().filter(|attempt| attempt.began_open).count();
        assert!(!began_open || probes == 0 || !self.outbox.endpoint.is_open(), "seed {seed}: two probes");
        let session = self.sent(place).session;
        for other in &self.running {
            let same = other.place == place || session > 0 && self.sent(other.place).session == session;
            assert!(!same, "seed {seed}: {place} runs beside {} of its session", other.place);
        }
        assert!(event.payload() == self.payload, "seed {seed}: other bytes");
        self.running.push(Attempted { place, began_open, is_former: false });
        assert!(self.running.len() <= self.lives.last().unwrap().0, "seed {seed}: too many in flight");
    }

    fn accept(&mut self, place: u64) {
        let life = self.lives.len() - 1;
        if let Some(before) = self.last_life.insert(place, life) {
            let is_excused = self.lost_answers.contains(&place);
            assert!(is_excused || before < life, "seed {}: {place} is delivered twice", self.seed);
            if !is_excused {
                self.lives[before].1 += 1;
                let (most, twice) = self.lives[before];
                assert!(twice <= most, "seed {}: {twice} twice after a crash with {most} in flight", self.seed);
            }
        }
        self.accepted.push(place);
    }

    fn answer(&mut self) {
        if self.running.is_empty() {
            return;
        }
        let attempt = self.running.swap_remove(self.rng.usize(0..self.running.len()));
        let again = Verdict::Again { after: None };
        let (status, verdict) = match self.rng.u32(0..100) {
            _ if self.is_down => (503, again),
            0..55 => (200, Verdict::Accepted),
            55..70 => (500, again),
            70..80 => (0, again), // accepted, but nobody hears of it
            80..88 => (400, Verdict::Refused),
            88..95 => (429, Verdict::Again { after: Some(Duration::from_millis(self.rng.u64(1..30_000))) }),
            95..98 => (0, Verdict::Forbidden),
            _ => (410, Verdict::Gone),
        };
        self.settle(attempt, status, &verdict);
    }

    fn settle(&mut self, attempted: Attempted, status: u16, verdict: &Verdict) {
        let Attempted { place, is_former, .. } = attempted;
        let is_lost_answer = status == 0 && *verdict != Verdict::Forbidden;
        if *verdict == Verdict::Accepted || is_lost_answer {
            self.accept(place);
        }
        if is_lost_answer {
            self.lost_answers.insert(place);
        }
        if is_former {
            let now = self.now().instant;
            let before = self.outbox.endpoint.standing(now);
            self.outbox.settle_former(place, attempt(status), verdict, self.now());
            let (is_open, after) = (self.outbox.get(place).is_some(), self.outbox.endpoint.standing(now));
            assert_eq!(before, after, "seed {}: the present endpoint has heard it", self.seed);
            assert!(!is_open || *verdict != Verdict::Accepted, "seed {}: {place} is accepted", self.seed);
        } else {
            self.outbox.settle(place, attempt(status), verdict, self.now());
        }
        // Others of its session have gone on, whether the dead letter is ever written or not.
        if *verdict != Verdict::Accepted && self.outbox.get(place).is_none() {
            self.ever_dead.insert(place);
        }
    }

    /// Begins to write down.
    fn write(&mut self, everything: bool) {
        if self.flying.is_none() {
            self.flying = if everything { self.outbox.all_changes() } else { self.outbox.changes() };
        }
        assert!(self.flying.is_none() || self.outbox.all_changes().is_none(), "seed {}: two batches", self.seed);
    }

    fn land(&mut self, succeeds: bool) {
        let Some(changes) = self.flying.take() else { return };
        if succeeds {
            self.commit(&changes);
            self.outbox.committed();
            // Slots were free that should not have been, until everything is written.
            self.is_degraded &= self.outbox.journal.has_any(self.outbox.position);
        } else {
            if self.rng.bool() {
                self.commit(&changes); // although it is reported as failed
            }
            self.is_degraded = true;
            self.outbox.not_committed(changes);
        }
    }

    /// The store takes very long to write, and nobody waits for that.
    fn hang(&mut self) {
        self.is_degraded = true;
        self.outbox.cannot_be_written();
        assert_eq!(self.outbox.journal.slots(), 0, "seed {}", self.seed);
    }

    fn commit(&mut self, changes: &Changes) {
        let dead = changes.fates.iter().filter(|(_, fate)| matches!(fate, Fate::Dead(_)));
        self.ever_dead.extend(dead.map(|(place, _)| *place));
        self.shelf.apply(changes);
    }

    /// Everything is written down, and the store knows what the outbox knows.
    fn check_written(&mut self) {
        self.land(true);
        self.tell();
        let mut batches = 0..self.log.len() * 3 + 10;
        while batches.next().is_some() {
            self.write(true);
            if self.flying.is_none() {
                break;
            }
            self.land(true);
        }
        assert!(!batches.is_empty(), "seed {}: there is always something to write", self.seed);
        let pending = self.outbox.pending(None, usize::MAX, self.now());
        let mut pending: Vec<u64> = pending.iter().map(|(delivery, _)| delivery.place).collect();
        pending.reverse();
        let owed: Vec<u64> = self.shelf.owed.keys().copied().collect();
        assert_eq!(owed, pending, "seed {}: the store does not know what is owed", self.seed);
        assert_eq!(self.shelf.position, self.outbox.position(), "seed {}", self.seed);
        let oldest = self.shelf.owed.values().next().map(|owed| owed.delivery.created_at);
        assert_eq!(self.outbox.owed(), (owed.len() as u64, oldest), "seed {}", self.seed);
    }

    fn crash(&mut self) {
        if let Some(changes) = self.flying.take()
            && self.rng.bool()
        {
            self.commit(&changes);
        }
        for attempt in std::mem::take(&mut self.running) {
            if self.rng.bool() {
                self.accept(attempt.place);
            }
        }
        // What the store expires before it hears of an acceptance is dead there until it is told otherwise.
        if self.is_degraded || self.has_expired {
            self.lives.last_mut().unwrap().0 = usize::MAX;
        }
        self.lives.push((self.policy.max_in_flight, 0));
        (self.untold, self.has_expired) = (false, false);
        let owed = self.shelf.owed.values().cloned().collect();
        self.counted += self.outbox.take_lost();
        self.outbox = Outbox::new(self.policy, self.shelf.position, owed, self.now());
        self.outbox.random = Rng::with_seed(self.seed);
        self.outbox.journal.most_fates = self.most_fates;
        self.is_degraded = false;
    }

    fn reload(&mut self) {
        self.policy = policy(&mut self.rng, self.policy.keeping);
        self.outbox.change(self.policy);
        let most = &mut self.lives.last_mut().unwrap().0;
        *most = (*most).max(self.policy.max_in_flight);
    }

    /// The webhook has another endpoint from now on, or an operator says that this one is well.
    fn enable(&mut self) {
        self.outbox.enable();
        for attempt in &mut self.running {
            (attempt.began_open, attempt.is_former) = (false, true);
        }
    }

    /// The store makes dead letters of what has been owed for too long; the outbox hears of it, sooner or later.
    fn expire(&mut self) {
        let through = self.rng.u64(0..=self.log.len() as u64).max(self.shelf.expired_through);
        for place in 1..=through {
            let sent = self.sent(place);
            let is_owed = self.shelf.owed.remove(&place).is_some() || place > self.shelf.position && sent.is_ours;
            if is_owed && !sent.is_erased {
                let event = self.event(place);
                let delivery = delivery_of(&event);
                let (reason, payload) = (DeadReason::Expired, event.payload());
                self.shelf.letters.insert(place, (DeadLetter { delivery, reason, died_at: 0, payload }, false));
                self.ever_dead.insert(place);
            }
        }
        self.shelf.position = self.shelf.position.max(through);
        self.shelf.expired_through = through;
        (self.untold, self.has_expired) = (true, true);
    }

    fn tell(&mut self) {
        if std::mem::take(&mut self.untold) {
            self.outbox.expire(self.shelf.expired_through);
        }
    }

    fn erase(&mut self) {
        let erased = self.rng.usize(1..SESSIONS.len());
        let session = SessionId::new(SESSIONS[erased]).unwrap();
        self.log.iter_mut().filter(|sent| sent.session == erased).for_each(|sent| sent.is_erased = true);
        self.shelf.owed.retain(|_, owed| owed.delivery.session.as_ref() != Some(&session));
        self.shelf.letters.retain(|_, (letter, _)| letter.delivery.session.as_ref() != Some(&session));
        self.outbox.erase(&session);
        let shown = self.outbox.delivered(None, usize::MAX);
        assert!(shown.iter().all(|(_, delivery)| !self.sent(delivery.place).is_erased), "seed {}", self.seed);
    }

    fn requeue(&mut self) {
        self.shelf.letters.values_mut().for_each(|(_, is_requeued)| *is_requeued = true);
        self.outbox.walk_anew();
    }

    fn redeliver(&mut self) {
        self.tell();
        if let Some(after) = self.outbox.wants_letters_behind() {
            let behind = self.shelf.letters.range(after + 1..).map(|(_, letter)| letter);
            let letters = behind.filter(|(_, is_requeued)| *is_requeued).map(|(letter, _)| letter.clone());
            let letters = letters.take(self.rng.usize(1..40)).collect();
            self.outbox.redeliver(letters, self.now());
        }
    }

    /// The file is lost, with all dead letters.
    fn replace(&mut self) {
        self.land(false);
        self.tell();
        self.lost_with_file.extend(self.shelf.letters.keys());
        let expired_through = self.shelf.expired_through;
        self.shelf = Shelf { expired_through, ..Shelf::default() };
        self.is_degraded = true;
        self.outbox.rewrite();
        // A crash before the next commit would be one of the file, too.
        self.check_written();
    }

    fn advance(&mut self) {
        let due = self.outbox.due().map(|due| due - self.base.instant);
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
                let most = self.rng.usize(1..20);
                self.take(most);
            }
            250..430 => {
                let most = self.rng.usize(1..10);
                self.send(most);
            }
            430..640 => self.answer(),
            640..720 => self.load(),
            720..790 => self.write(false),
            790..805 => self.write(true),
            805..870 => {
                let succeeds = self.rng.u32(0..10) > 0;
                self.land(succeeds);
            }
            870..920 => self.advance(),
            920..930 => self.crash(),
            930..937 => self.reload(),
            937..942 => self.outbox.disable("an operator said so"),
            942..955 => self.enable(),
            955..960 => self.expire(),
            960..970 => self.tell(),
            970..974 => self.erase(),
            974..978 => self.requeue(),
            978..985 => self.redeliver(),
            985 => self.hang(),
            986..992 => self.is_down = !self.is_down,
            992..994 => self.replace(),
            _ => self.check_written(),
        }
    }

    /// The receiver is well again: everything goes out, in a bounded number of steps.
    fn drain(&mut self) {
        self.outbox.enable();
        let most_steps = 200 + 4 * self.log.len();
        for _ in 0..most_steps {
            self.requeue();
            self.redeliver();
            self.take(usize::MAX);
            self.load();
            self.send(usize::MAX);
            for attempt in std::mem::take(&mut self.running) {
                self.settle(attempt, 200, &Verdict::Accepted);
            }
            self.land(true);
            while self.outbox.journal.is_due() {
                self.write(false);
                self.land(true);
            }
            self.tell();
            self.advance();
            // A dead letter may still be on its way to the store.
            let is_written = self.flying.is_none() && !self.outbox.journal.has_any(self.outbox.position);
            if self.outbox.items.is_empty() && self.shelf.letters.is_empty() && is_written {
                break;
            }
        }
        let left: Vec<_> = self.outbox.items.keys().collect();
        assert!(left.is_empty(), "seed {}: stuck: {left:?}, {:?}", self.seed, self.outbox.standing());
        assert!(self.shelf.letters.is_empty(), "seed {}: dead for ever", self.seed);
        self.take(usize::MAX);
        self.check_written();
    }

    fn check(&mut self) {
        self.counted += self.outbox.take_lost();
        for (index, sent) in self.log.iter().enumerate() {
            let place = index as u64 + 1;
            let is_settled = self.accepted.contains(&place) || self.lost_with_file.contains(&place) || sent.is_erased;
            let is_counted = sent.is_ours && !is_settled && self.counted > 0;
            self.counted -= u64::from(is_counted);
            assert!(!sent.is_ours || is_settled || is_counted, "seed {}: {place} is lost", self.seed);
        }
        let mut seen = BTreeSet::new();
        let mut latest = [0; SESSIONS.len()];
        for place in self.accepted.iter().filter(|place| seen.insert(**place) && !self.ever_dead.contains(place)) {
            let session = self.sent(*place).session;
            let is_in_order = session == 0 || latest[session] < *place;
            assert!(is_in_order, "seed {}: {place} after {} of its session", self.seed, latest[session]);
            latest[session] = *place;
        }
        let held = self.outbox.tally;
        assert!(held.held == 0 && held.held_bytes == 0 && held.running == 0 && held.running_retries == 0, "{held:?}");
    }
}

fn policy(rng: &mut Rng, keeping: Keeping) -> Policy {
    Policy {
        max_retries: rng.u32(0..6),
        initial_backoff: Duration::from_millis(rng.u64(1..3000)),
        max_backoff: Duration::from_millis(rng.u64(3000..60_000)),
        max_in_flight: rng.usize(1..9),
        keeping,
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
        place: event.place(),
        event_id: event.id(),
        kind: event.kind().clone(),
        session: event.session().cloned(),
        created_at: 0,
        attempts: Vec::new(),
    }
}

/// Tells the seed also of what panics inside the outbox.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("AUTOPLAY_RELAY_SEED={} begins with what failed", self.0);
        }
    }
}

#[test]
fn everything_owed_is_delivered_in_order_or_accounted_for_through_failures_and_crashes() {
    let schedules = if std::env::var_os("AUTOPLAY_RELAY_LONG").is_some() { 20_000 } else { 300 };
    let first: u64 = std::env::var("AUTOPLAY_RELAY_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    for seed in first..first + schedules {
        let mut world = World::begin(seed);
        let _named = Named(seed);
        for _ in 0..world.rng.usize(10..500) {
            world.step();
        }
        world.drain();
        world.check();
    }
}

const SESSIONS: [&str; 5] = ["", "a", "b", "c", "d"];
