//! How an endpoint stands: whether anything may be sent to it now.
//!
//! ```text
//!            5 failures in a row, each of another delivery
//! active ─────────────────────────────────────────────────► open ──► probe, at growing intervals
//!   ▲  ▲ ▲                                                   │
//!   │  │ └───────── any answer but "again" ──────────────────┘
//!   │  └─ the time has come ── throttled ◄── Retry-After
//!   └──── enable ───────────── disabled  ◄── 410, an operator
//! ```
//!
//! May use: `delivery`.

use std::{collections::VecDeque, time::Duration};

use fastrand::Rng;
use tokio::time::Instant;

use super::{Policy, Standing};
use crate::webhook_delivery::{Attempt, EndpointState};

/// Failures in a row, each of another delivery, after which an endpoint is held back. Fewer may be a few poisonous events.
pub(super) const FAILURES_TO_OPEN: usize = 5;

/// The longest that a receiver can ask for, and that a clock set back can make of a wait that is kept.
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

/// An endpoint.
#[derive(Debug, Default)]
pub(super) struct Endpoint {
    is_disabled: bool,
    throttled_until: Option<Instant>,
    open: Option<Open>,
    /// Whose attempts have failed since the last answer, latest last: at most [`FAILURES_TO_OPEN`].
    failing: VecDeque<u64>,
    problem: Option<String>,
}

/// It is held back, and tried.
#[derive(Debug)]
struct Open {
    next_probe: Instant,
    failed_probes: u32,
    probe: Option<u64>,
}

/// What may be sent now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Gate {
    /// Whatever is due.
    Free,
    /// The oldest, to see whether the endpoint is back.
    Probe,
    /// Nothing.
    Shut,
}

impl Endpoint {
    /// What may be sent at this moment.
    pub(super) fn gate(&self, now: Instant) -> Gate {
        match &self.open {
            _ if self.is_disabled || self.is_throttled(now) => Gate::Shut,
            None => Gate::Free,
            Some(open) if open.probe.is_none() && open.next_probe <= now => Gate::Probe,
            Some(_) => Gate::Shut,
        }
    }

    /// When the gate is another one although nothing else has happened.
    pub(super) fn turns_at(&self, now: Instant) -> Option<Instant> {
        let probe = self.open.as_ref().filter(|open| open.probe.is_none()).map(|open| open.next_probe);
        let throttle = self.throttled_until.filter(|until| *until > now);
        throttle.or(probe).filter(|_| !self.is_disabled)
    }

    /// Whether it is open, so that only the oldest is of interest.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    fn is_throttled(&self, now: Instant) -> bool {
        self.throttled_until.is_some_and(|until| until > now)
    }

    /// An attempt begins.
    pub(super) fn begin(&mut self, place: u64) {
        if let Some(open) = &mut self.open {
            open.probe = Some(place);
        }
    }

    /// It is to be tried again, perhaps not before a while.
    pub(super) fn failed(&mut self, place: u64, attempt: &Attempt, after: Option<Duration>, chance: &mut Chance<'_>) {
        if self.is_disabled {
            return;
        }
        self.problem = Some(problem_of(attempt));
        if let Some(after) = after.filter(|after| !after.is_zero()) {
            self.throttled_until = self.throttled_until.max(Some(chance.now + after.min(LONGEST_WAIT)));
        }
        if self.open.is_some() {
            return self.no_answer(place, chance);
        }
        self.failing.push_back(place);
        if self.failing.len() > FAILURES_TO_OPEN {
            self.failing.pop_front();
        }
        if self.failing.len() == FAILURES_TO_OPEN && are_different(&self.failing) {
            self.failing.clear();
            let next_probe = chance.now + chance.wait_after(1);
            self.open = Some(Open { next_probe, failed_probes: 0, probe: None });
        }
    }

    /// An attempt has ended without word from the receiver. If it was the probe, the next one waits for longer.
    pub(super) fn no_answer(&mut self, place: u64, chance: &mut Chance<'_>) {
        if let Some(open) = self.open.as_mut().filter(|open| open.probe == Some(place)) {
            open.probe = None;
            open.failed_probes = open.failed_probes.saturating_add(1);
            open.next_probe = chance.now + chance.wait_after(open.failed_probes.saturating_add(1));
        }
    }

    /// The receiver has given a verdict: it is there. Tells whether that was news.
    pub(super) fn answered(&mut self) -> bool {
        self.failing.clear();
        self.open.take().is_some()
    }

    /// Nothing is to be sent any more.
    pub(super) fn disable(&mut self, problem: &str) {
        *self = Self { is_disabled: true, problem: Some(problem.to_owned()), ..Self::default() };
    }

    /// It has asked to be left alone until then.
    pub(super) fn throttle(&mut self, until: Instant) {
        if !self.is_disabled {
            self.throttled_until = self.throttled_until.max(Some(until));
            self.problem = Some("asked to wait, before the relay was restarted".to_owned());
        }
    }

    /// It is active, whatever it was.
    pub(super) fn enable(&mut self) {
        *self = Self::default();
    }

    /// How it stands.
    pub(super) fn standing(&self, now: Instant) -> Standing {
        let (state, until) = match &self.open {
            _ if self.is_disabled => (EndpointState::Disabled, None),
            _ if self.is_throttled(now) => (EndpointState::Throttled, self.throttled_until),
            Some(open) => (EndpointState::Open, Some(open.next_probe).filter(|_| open.probe.is_none())),
            None => (EndpointState::Active, None),
        };
        let problem = self.problem.clone().filter(|_| state != EndpointState::Active);
        Standing { state, until, problem }
    }
}

/// What went wrong, in short.
pub(super) fn problem_of(attempt: &Attempt) -> String {
    match (&attempt.error, attempt.status) {
        (Some(error), _) => error.to_string(),
        (None, Some(status)) => format!("answered {status}"),
        (None, None) => attempt.outcome.as_str().to_owned(),
    }
}

fn are_different(places: &VecDeque<u64>) -> bool {
    let mut rest = places.iter();
    while let Some(place) = rest.next() {
        if rest.clone().any(|other| other == place) {
            return false;
        }
    }
    true
}

/// The moment, the policy and the dice, which decide how long to wait.
#[derive(Debug)]
pub(super) struct Chance<'a> {
    /// This moment.
    pub(super) now: Instant,
    /// How hard the webhook is tried.
    pub(super) policy: Policy,
    /// Keeps those that failed together from coming back together.
    pub(super) random: &'a mut Rng,
}

impl Chance<'_> {
    /// The wait after the `failures`-th failure: doubling, within ± 10 %, never above the longest.
    pub(super) fn wait_after(&mut self, failures: u32) -> Duration {
        let longest = self.policy.max_backoff.min(LONGEST_WAIT);
        let doubled = 2_u32.checked_pow(failures.saturating_sub(1));
        let wait = doubled.and_then(|factor| self.policy.initial_backoff.checked_mul(factor));
        let wait = wait.map_or(longest, |wait| wait.min(longest));
        wait.mul_f64(0.9 + 0.2 * self.random.f64()).min(longest)
    }
}
