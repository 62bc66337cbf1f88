//! Activity of a connection, by which it is decided whether the connection gives way to a newcomer.
//!
//! In: requests that begin and end, on the connection's own task. Out: a rank, for `displacement`.
//!
//! May use: `timer_wheel`.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::timer_wheel::TimerWheel;

/// Requests that a connection is used for.
// Relaxed everywhere: each value is a hint for the choice of a connection, and publishes no other
// memory.
#[derive(Debug, Default)]
pub(super) struct ConnectionActivity {
    running: AtomicU32,
    idle_since: AtomicU64,
}

impl ConnectionActivity {
    /// Counts a request as running until the returned guard is dropped.
    pub(super) fn begin_request<'a>(&'a self, wheel: &'a TimerWheel) -> RunningRequest<'a> {
        self.running.fetch_add(1, Relaxed);
        RunningRequest { activity: self, wheel }
    }

    /// Returns whether a handler is working on a request.
    pub(super) fn is_working(&self) -> bool {
        self.running.load(Relaxed) > 0
    }

    /// Returns the tick at which the last request was answered, 0 before the first one.
    pub(super) fn idle_since(&self) -> u64 {
        self.idle_since.load(Relaxed)
    }
}

/// Request that a handler is working on, until dropped.
pub(super) struct RunningRequest<'a> {
    activity: &'a ConnectionActivity,
    wheel: &'a TimerWheel,
}

impl Drop for RunningRequest<'_> {
    fn drop(&mut self) {
        self.activity.idle_since.store(self.wheel.current_tick(), Relaxed);
        self.activity.running.fetch_sub(1, Relaxed);
    }
}
