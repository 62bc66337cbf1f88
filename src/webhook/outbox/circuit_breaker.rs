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

use super::policy::DeliveryPolicy;
use crate::webhook_delivery::{Attempt, EndpointState};

/// Failures in a row, each of another delivery, after which an endpoint is held back. Fewer may be a few poisonous events.
pub(super) const FAILURES_TO_OPEN: usize = 5;

/// The longest that a receiver can ask for, and that a clock set back can make of a wait that is kept.
pub(super) const MAX_RETRY_DELAY: Duration = Duration::from_secs(24 * 60 * 60);

/// An endpoint.
#[derive(Debug, Default)]
pub(super) struct CircuitBreaker {
    is_disabled: bool,
    throttled_until: Option<Instant>,
    open: Option<OpenCircuit>,
    /// Whose attempts have failed since the last answer, latest last: at most [`FAILURES_TO_OPEN`].
    recent_failures: VecDeque<u64>,
    problem: Option<String>,
}

/// It is held back, and tried.
#[derive(Debug)]
struct OpenCircuit {
    next_probe: Instant,
    failed_probes: u32,
    probe: Option<u64>,
}

/// How an endpoint stands, and why.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::webhook) struct EndpointStatus {
    /// In one word.
    pub(in crate::webhook) state: EndpointState,
    /// Until when it is throttled, or when it is probed next.
    pub(in crate::webhook) until: Option<Instant>,
    /// What led to it, if it is not active.
    pub(in crate::webhook) problem: Option<String>,
}

/// What may be sent now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum SendPermission {
    /// Whatever is due.
    Any,
    /// The oldest, to see whether the endpoint is back.
    Probe,
    /// Nothing.
    Denied,
}

impl CircuitBreaker {
    /// What may be sent at this moment.
    pub(super) fn permission(&self, now: Instant) -> SendPermission {
        match &self.open {
            _ if self.is_disabled || self.is_throttled(now) => SendPermission::Denied,
            None => SendPermission::Any,
            Some(open) if open.probe.is_none() && open.next_probe <= now => SendPermission::Probe,
            Some(_) => SendPermission::Denied,
        }
    }

    /// When the gate is another one although nothing else has happened.
    pub(super) fn next_change_at(&self, now: Instant) -> Option<Instant> {
        let probe =
            self.open.as_ref().filter(|open| open.probe.is_none()).map(|open| open.next_probe);
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
    pub(super) fn begin_attempt(&mut self, position: u64) {
        if let Some(open) = &mut self.open {
            open.probe = Some(position);
        }
    }

    /// It is to be tried again, perhaps not before a while.
    pub(super) fn record_failure(
        &mut self,
        position: u64,
        attempt: &Attempt,
        retry_after: Option<Duration>,
        backoff: &mut BackoffContext<'_>,
    ) {
        if self.is_disabled {
            return;
        }
        self.problem = Some(describe_problem(attempt));
        if let Some(retry_after) = retry_after.filter(|after| !after.is_zero()) {
            self.throttled_until =
                self.throttled_until.max(Some(backoff.now + retry_after.min(MAX_RETRY_DELAY)));
        }
        if self.open.is_some() {
            return self.record_no_answer(position, backoff);
        }
        self.recent_failures.push_back(position);
        if self.recent_failures.len() > FAILURES_TO_OPEN {
            self.recent_failures.pop_front();
        }
        if self.recent_failures.len() == FAILURES_TO_OPEN && all_distinct(&self.recent_failures) {
            self.recent_failures.clear();
            let next_probe = backoff.now + backoff.delay_after(1);
            self.open = Some(OpenCircuit { next_probe, failed_probes: 0, probe: None });
        }
    }

    /// An attempt has ended without word from the receiver. If it was the probe, the next one waits for longer.
    pub(super) fn record_no_answer(&mut self, position: u64, backoff: &mut BackoffContext<'_>) {
        if let Some(open) = self.open.as_mut().filter(|open| open.probe == Some(position)) {
            open.probe = None;
            open.failed_probes = open.failed_probes.saturating_add(1);
            open.next_probe =
                backoff.now + backoff.delay_after(open.failed_probes.saturating_add(1));
        }
    }

    /// The receiver has given a verdict: it is there. Tells whether that was news.
    pub(super) fn record_answer(&mut self) -> bool {
        self.recent_failures.clear();
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
    pub(super) fn status(&self, now: Instant) -> EndpointStatus {
        let (state, until) = match &self.open {
            _ if self.is_disabled => (EndpointState::Disabled, None),
            _ if self.is_throttled(now) => (EndpointState::Throttled, self.throttled_until),
            Some(open) => {
                (EndpointState::Open, Some(open.next_probe).filter(|_| open.probe.is_none()))
            }
            None => (EndpointState::Active, None),
        };
        let problem = self.problem.clone().filter(|_| state != EndpointState::Active);
        EndpointStatus { state, until, problem }
    }
}

/// What went wrong, in short.
pub(super) fn describe_problem(attempt: &Attempt) -> String {
    match (&attempt.error, attempt.status) {
        (Some(error), _) => error.to_string(),
        (None, Some(status)) => format!("answered {status}"),
        (None, None) => attempt.outcome.as_str().to_owned(),
    }
}

fn all_distinct(positions: &VecDeque<u64>) -> bool {
    let mut remaining = positions.iter();
    while let Some(position) = remaining.next() {
        if remaining.clone().any(|other| other == position) {
            return false;
        }
    }
    true
}

/// The moment, the policy and the dice, which decide how long to wait.
#[derive(Debug)]
pub(super) struct BackoffContext<'a> {
    /// This moment.
    pub(super) now: Instant,
    /// How hard the webhook is tried.
    pub(super) policy: DeliveryPolicy,
    /// Keeps those that failed together from coming back together.
    pub(super) random: &'a mut Rng,
}

impl BackoffContext<'_> {
    /// The wait after the `failures`-th failure: doubling, within ± 10 %, never above the longest.
    pub(super) fn delay_after(&mut self, failures: u32) -> Duration {
        let max_delay = self.policy.max_backoff.min(MAX_RETRY_DELAY);
        let doubled = 2_u32.checked_pow(failures.saturating_sub(1));
        let delay = doubled.and_then(|factor| self.policy.initial_backoff.checked_mul(factor));
        let delay = delay.map_or(max_delay, |wait| wait.min(max_delay));
        delay.mul_f64(0.9 + 0.2 * self.random.f64()).min(max_delay)
    }
}
