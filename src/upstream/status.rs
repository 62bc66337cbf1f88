//! The observable state of an upstream, for readiness and the admin API.
//!
//! In: records by the one task that holds the upstream. Out: a snapshot for each reader.
//!
//! May use: no other module.

use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, MutexGuard};

/// Status of one upstream, shared by its task and its readers.
#[derive(Debug)]
pub(crate) struct UpstreamStatus(Mutex<UpstreamSnapshot>);

impl UpstreamStatus {
    /// Creates the status of an upstream that is about to connect for the first time.
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

    /// Returns a copy of the present status.
    pub(crate) fn snapshot(&self) -> UpstreamSnapshot {
        self.lock().clone()
    }

    /// Records a state, and the problem that led to it.
    ///
    /// A problem stays on record while the next attempt is under way.
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

    /// Records an event and its time in transit, if known.
    pub(crate) fn record_event(&self, at: SystemTime, lag: Option<Duration>) {
        let mut snapshot = self.lock();
        snapshot.last_event = Some(at);
        snapshot.lag = lag.or(snapshot.lag);
    }

    /// Records a heartbeat.
    pub(crate) fn record_heartbeat(&self, at: SystemTime) {
        self.lock().last_heartbeat = Some(at);
    }

    fn lock(&self) -> MutexGuard<'_, UpstreamSnapshot> {
        self.0.lock()
    }
}

/// Status of an upstream at one moment.
#[derive(Clone, Debug)]
pub(crate) struct UpstreamSnapshot {
    /// Present state.
    pub(crate) state: UpstreamState,
    /// Time at which the state was entered.
    pub(crate) since: SystemTime,
    /// Time of the last event.
    pub(crate) last_event: Option<SystemTime>,
    /// Time of the last heartbeat.
    pub(crate) last_heartbeat: Option<SystemTime>,
    /// Time in transit of the last event that carried its time of dispatch.
    pub(crate) lag: Option<Duration>,
    /// Reason for which the upstream is not connected, in one line without secrets.
    pub(crate) problem: Option<String>,
}

/// State of an upstream's connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum UpstreamState {
    /// An attempt is under way.
    Connecting,
    /// The stream is open.
    Connected,
    /// The last attempt or stream failed; the next attempt comes after a wait.
    BackingOff,
    /// The upstream answered 400, 401, 403 or 404: a person must act.
    Refused,
}

impl UpstreamState {
    /// Returns the name of the state in the admin API.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Connected => "connected",
            Self::BackingOff => "backing_off",
            Self::Refused => "refused",
        }
    }
}
