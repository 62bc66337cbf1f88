//! What an upstream says of itself, for readiness and the admin API.
//!
//! In: notes by the one task that holds the upstream. Out: a copy for whoever asks.
//!
//! May use: no other module.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

/// The shared board of one upstream.
#[derive(Debug)]
pub(crate) struct UpstreamStatus(Mutex<UpstreamSnapshot>);

impl UpstreamStatus {
    /// An upstream that is about to be connected for the first time.
    pub(crate) fn new() -> Self {
        Self(Mutex::new(UpstreamSnapshot {
            state: UpstreamState::Connecting,
            since: SystemTime::now(),
            last_event: None,
            last_heartbeat: None,
            lag: None,
            problem: None,
        }))
    }

    /// The facts at this moment.
    pub(crate) fn snapshot(&self) -> UpstreamSnapshot {
        self.lock().clone()
    }

    /// Notes a new state, and what led to it if that is a problem.
    pub(crate) fn set_state(&self, state: UpstreamState, problem: Option<String>) {
        let mut snapshot = self.lock();
        if snapshot.state != state {
            snapshot.state = state;
            snapshot.since = SystemTime::now();
        }
        if state != UpstreamState::Connecting {
            snapshot.problem = problem;
        }
    }

    /// Notes an event and how long it was on its way, if known.
    pub(crate) fn record_event(&self, at: SystemTime, lag: Option<Duration>) {
        let mut snapshot = self.lock();
        snapshot.last_event = Some(at);
        snapshot.lag = lag.or(snapshot.lag);
    }

    /// Notes a heartbeat.
    pub(crate) fn record_heartbeat(&self, at: SystemTime) {
        self.lock().last_heartbeat = Some(at);
    }

    fn lock(&self) -> MutexGuard<'_, UpstreamSnapshot> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of an upstream.
#[derive(Clone, Debug)]
pub(crate) struct UpstreamSnapshot {
    /// What it is doing.
    pub(crate) state: UpstreamState,
    /// Since when.
    pub(crate) since: SystemTime,
    /// When the last event came.
    pub(crate) last_event: Option<SystemTime>,
    /// When the last heartbeat came.
    pub(crate) last_heartbeat: Option<SystemTime>,
    /// How long the last event that said so was on its way.
    pub(crate) lag: Option<Duration>,
    /// Why it is not connected, in one line without secrets.
    pub(crate) problem: Option<String>,
}

/// What an upstream is doing.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum UpstreamState {
    /// An attempt is under way.
    Connecting,
    /// The stream stands.
    Connected,
    /// The last attempt or stream failed; the next attempt comes after a wait.
    BackingOff,
    /// The upstream answered 400, 401, 403 or 404: a person must act.
    Refused,
}

impl UpstreamState {
    /// As it stands in the admin API.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Connected => "connected",
            Self::BackingOff => "backing_off",
            Self::Refused => "refused",
        }
    }
}
