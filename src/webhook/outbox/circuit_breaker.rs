//! Circuit breaker of one endpoint: whether anything may be sent to it at a given time.
//!
//! ```text
//!            5 failures in a row, each of another delivery
//! active ─────────────────────────────────────────────────► open ──► probe, at growing intervals
//!   ▲  ▲ ▲                                                   │
//!   │  │ └───────── any answer but "retry" ──────────────────┘
//!   │  └─ the time has come ── throttled ◄── Retry-After
//!   └──── enable ───────────── disabled  ◄── 410, an operator
//! ```
//!
//! May use: `webhook_delivery`.

use std::{collections::VecDeque, time::Duration};

use fastrand::Rng;
use tokio::time::Instant;

use super::policy::DeliveryPolicy;
use crate::webhook_delivery::{Attempt, EndpointState};

/// Failures in a row, each of another delivery, that open the circuit. Fewer may be a few events
/// that the receiver cannot process.
pub(super) const FAILURES_TO_OPEN: usize = 5;

/// Upper bound of any wait: of one that a receiver asks for, and of a stored one after the wall
/// clock was set back.
pub(super) const MAX_RETRY_DELAY: Duration = Duration::from_secs(24 * 60 * 60);

/// State of one endpoint. Throttled and open are independent: an open endpoint that was throttled
/// is open afterwards. Disabled replaces both.
#[derive(Debug, Default)]
pub(super) struct CircuitBreaker {
    is_disabled: bool,
    throttled_until: Option<Instant>,
    open: Option<OpenCircuit>,
    /// Deliveries whose attempts failed since the last answer, latest last: at most
    /// [`FAILURES_TO_OPEN`].
    recent_failures: VecDeque<u64>,
    problem: Option<String>,
}

/// Probes of an open circuit.
#[derive(Debug)]
struct OpenCircuit {
    next_probe: Instant,
    failed_probes: u32,
    /// The delivery in flight as a probe.
    probe: Option<u64>,
}

/// State of an endpoint, and its cause.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::webhook) struct EndpointStatus {
    /// The state.
    pub(in crate::webhook) state: EndpointState,
    /// End of the throttle, or time of the next probe.
    pub(in crate::webhook) until: Option<Instant>,
    /// Cause of a state other than active.
    pub(in crate::webhook) problem: Option<String>,
}

/// Deliveries that may be sent now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum SendPermission {
    /// Every delivery that is due.
    Any,
    /// Only the oldest head, to find out whether the endpoint is back.
    Probe,
    /// No delivery.
    Denied,
}

impl CircuitBreaker {
    /// Returns the permission at `now`.
    pub(super) fn permission(&self, now: Instant) -> SendPermission {
        match &self.open {
            // Before `open`: not even a probe may disregard the receiver's `Retry-After`.
            _ if self.is_disabled || self.is_throttled(now) => SendPermission::Denied,
            None => SendPermission::Any,
            Some(open) if open.probe.is_none() && open.next_probe <= now => SendPermission::Probe,
            Some(_) => SendPermission::Denied,
        }
    }

    /// Returns when the permission changes by the passing of time alone.
    pub(super) fn next_change_at(&self, now: Instant) -> Option<Instant> {
        let probe =
            self.open.as_ref().filter(|open| open.probe.is_none()).map(|open| open.next_probe);
        let throttle = self.throttled_until.filter(|until| *until > now);
        throttle.or(probe).filter(|_| !self.is_disabled)
    }

    /// Returns whether the circuit is open, so that only the oldest head is of interest.
    pub(super) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    fn is_throttled(&self, now: Instant) -> bool {
        self.throttled_until.is_some_and(|until| until > now)
    }

    /// Records that an attempt begins; on an open circuit it is the probe.
    pub(super) fn begin_attempt(&mut self, position: u64) {
        if let Some(open) = &mut self.open {
            open.probe = Some(position);
        }
    }

    /// Records a failure that is to be retried, with the pause that the receiver asked for.
    pub(super) fn record_failure(
        &mut self,
        position: u64,
        attempt: &Attempt,
        retry_after: Option<Duration>,
        backoff: &mut BackoffContext<'_>,
    ) {
        // An attempt that was in flight when the endpoint was disabled must not reset the cause.
        if self.is_disabled {
            return;
        }
        self.problem = Some(describe_problem(attempt));
        if let Some(retry_after) = retry_after.filter(|after| !after.is_zero()) {
            // The latest time wins: several attempts in flight may each bring one.
            self.throttled_until =
                self.throttled_until.max(Some(backoff.now + retry_after.min(MAX_RETRY_DELAY)));
        }
        // While open, only the probe's outcome counts: other attempts began before.
        if self.open.is_some() {
            return self.record_no_answer(position, backoff);
        }
        self.recent_failures.push_back(position);
        if self.recent_failures.len() > FAILURES_TO_OPEN {
            self.recent_failures.pop_front();
        }
        // Distinct deliveries: one event that the receiver cannot process fails again and again,
        // and must not stop delivery of the others.
        if self.recent_failures.len() == FAILURES_TO_OPEN && all_distinct(&self.recent_failures) {
            self.recent_failures.clear();
            let next_probe = backoff.now + backoff.delay_after(1);
            self.open = Some(OpenCircuit { next_probe, failed_probes: 0, probe: None });
        }
    }

    /// Records an attempt that ended without an answer. If it was the probe, the next one waits
    /// longer.
    pub(super) fn record_no_answer(&mut self, position: u64, backoff: &mut BackoffContext<'_>) {
        if let Some(open) = self.open.as_mut().filter(|open| open.probe == Some(position)) {
            open.probe = None;
            open.failed_probes = open.failed_probes.saturating_add(1);
            open.next_probe =
                backoff.now + backoff.delay_after(open.failed_probes.saturating_add(1));
        }
    }

    /// Records that the receiver has answered, and returns whether that closed an open circuit.
    pub(super) fn record_answer(&mut self) -> bool {
        self.recent_failures.clear();
        self.open.take().is_some()
    }

    /// Disables the endpoint, and drops every other state.
    pub(super) fn disable(&mut self, problem: &str) {
        *self = Self { is_disabled: true, problem: Some(problem.to_owned()), ..Self::default() };
    }

    /// Restores a throttle from before the restart.
    pub(super) fn throttle(&mut self, until: Instant) {
        if !self.is_disabled {
            self.throttled_until = self.throttled_until.max(Some(until));
            self.problem = Some("asked to wait, before the relay was restarted".to_owned());
        }
    }

    /// Makes the endpoint active from any state.
    pub(super) fn enable(&mut self) {
        *self = Self::default();
    }

    /// Returns the state at `now`.
    pub(super) fn status(&self, now: Instant) -> EndpointStatus {
        let (state, until) = match &self.open {
            _ if self.is_disabled => (EndpointState::Disabled, None),
            _ if self.is_throttled(now) => (EndpointState::Throttled, self.throttled_until),
            // While a probe is in flight, the time of the next one is not known.
            Some(open) => {
                (EndpointState::Open, Some(open.next_probe).filter(|_| open.probe.is_none()))
            }
            None => (EndpointState::Active, None),
        };
        let problem = self.problem.clone().filter(|_| state != EndpointState::Active);
        EndpointStatus { state, until, problem }
    }
}

/// Describes a failed attempt in one line.
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

/// Time, policy and random numbers: everything that determines a delay.
#[derive(Debug)]
pub(super) struct BackoffContext<'a> {
    /// The current time.
    pub(super) now: Instant,
    /// The webhook's policy.
    pub(super) policy: DeliveryPolicy,
    /// Source of jitter, which keeps deliveries that failed together from being retried together.
    pub(super) random: &'a mut Rng,
}

impl BackoffContext<'_> {
    /// Returns the delay after the `failures`-th failure: doubling, within ± 10 %, never above the
    /// bound.
    pub(super) fn delay_after(&mut self, failures: u32) -> Duration {
        let max_delay = self.policy.max_backoff.min(MAX_RETRY_DELAY);
        // An overflow of the doubling is beyond any bound, so it gives the longest delay.
        let doubled = 2_u32.checked_pow(failures.saturating_sub(1));
        let delay = doubled.and_then(|factor| self.policy.initial_backoff.checked_mul(factor));
        let delay = delay.map_or(max_delay, |wait| wait.min(max_delay));
        delay.mul_f64(0.9 + 0.2 * self.random.f64()).min(max_delay)
    }
}
