//! Deadlines of one subscriber: every time at which it must be looked at although nothing happens.
//!
//! ```text
//! heartbeat   nothing was sent for `server.heartbeat_interval`        a heartbeat
//! age         the connection is as old as `server.max_connection_age` rotated
//! expiry      the relay's own end of the token's use                  expired
//! end         a disconnect's grace, or the token's end, is over       cut off while blocked
//! write       the socket has taken nothing for `server.write_timeout` cut off as stalled
//! ```
//!
//! The first four are here. The last one exists only while a socket is full, and stands with the
//! bytes that the socket has not taken: in [`SubscriberSocket`](super::SubscriberSocket), or below
//! hyper in `net`. `end` is set by a reason that does not wait for the log (kicked, revoked,
//! removed, over WebSocket also expired), and by a closing handshake. The drain window belongs to
//! `admission`, which marks one subscriber after the other: a marked subscriber gets the log first,
//! and has only the write deadline while its socket is full.
//!
//! May use: `timer_wheel`.

use std::{
    task::{Context, Waker},
    time::Duration,
};

use tokio::time::Instant;

use crate::timer_wheel::{Alarm, Deadline, TimerWheel};

/// Deadlines of one subscriber, and the alarm for the next of them.
#[derive(Debug)]
pub(crate) struct SubscriberDeadlines {
    alarm: Alarm,
    heartbeat_ticks: u32,
    heartbeat: Deadline,
    age: Deadline,
    /// `None` without a token that expires. Boxed: most subscribers have none.
    expiry: Option<Box<TokenExpiry>>,
    end: Deadline,
}

/// Expiry of the subscriber's token.
#[derive(Debug)]
struct TokenExpiry {
    expires_at: Instant,
    /// When the subscriber is woken for it.
    wake_at: Deadline,
}

/// End of a subscriber's token: no event is sent after `disconnect_at`, and the connection is
/// closed at `end`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TokenEnd {
    /// When deliveries end.
    pub(crate) disconnect_at: Instant,
    /// The tick at which the subscriber is woken for that.
    pub(crate) wake_at: Deadline,
    /// When the connection is cut off.
    pub(crate) end: Deadline,
}

impl SubscriberDeadlines {
    /// Returns the deadlines of a subscriber that begins now.
    ///
    /// Heartbeats come up to a tenth earlier than the interval, and the age is between 0.8 and 1.2
    /// of `max_age`: ten thousand subscribers of one event must not share a tick, nor come back in
    /// waves.
    pub(crate) fn new(
        alarm: Alarm,
        heartbeat_interval: Duration,
        max_age: Option<Duration>,
        token: Option<TokenEnd>,
    ) -> Self {
        let heartbeat_interval = heartbeat_interval.mul_f64(1.0 - fastrand::f64() / 10.0);
        let age = max_age.map(|age| age.mul_f64(0.8 + 0.4 * fastrand::f64()));
        let expiry = token
            .map(|it| Box::new(TokenExpiry { expires_at: it.disconnect_at, wake_at: it.wake_at }));
        let wheel = alarm.wheel();
        let heartbeat_ticks = TimerWheel::ticks_in(heartbeat_interval);
        Self {
            heartbeat_ticks: u32::try_from(heartbeat_ticks).unwrap_or(u32::MAX),
            heartbeat: wheel.deadline_after(heartbeat_interval),
            age: age.map_or(Deadline::NEVER, |age| wheel.deadline_after(age)),
            expiry,
            end: token.map_or(Deadline::NEVER, |it| it.end),
            alarm,
        }
    }

    /// Returns the timer wheel.
    pub(crate) fn wheel(&self) -> &TimerWheel {
        self.alarm.wheel()
    }

    /// Restarts the heartbeat interval.
    pub(crate) fn reset_heartbeat(&mut self) {
        self.heartbeat = self.wheel().deadline_in(self.heartbeat_ticks.into());
    }

    /// Restarts the heartbeat interval as of an earlier tick.
    pub(crate) fn restart_heartbeat_at(&mut self, tick: Deadline) {
        self.heartbeat = Deadline::at_tick(tick.tick() + u64::from(self.heartbeat_ticks));
    }

    /// Returns whether a heartbeat is due.
    pub(crate) fn is_heartbeat_due(&self) -> bool {
        self.heartbeat.is_over(self.wheel())
    }

    /// Returns whether the connection has reached its age.
    pub(super) fn is_age_reached(&self) -> bool {
        self.age.is_over(self.wheel())
    }

    /// Returns whether the token has expired. Reads the clock as well, for the wheel may stall.
    pub(super) fn has_token_expired(&self) -> bool {
        self.expiry.as_ref().is_some_and(|expiry| {
            expiry.wake_at.is_over(self.wheel()) || Instant::now() >= expiry.expires_at
        })
    }

    /// Returns when the token expires, if it does.
    pub(crate) fn token_expires_at(&self) -> Option<Instant> {
        self.expiry.as_ref().map(|expiry| expiry.expires_at)
    }

    /// Returns whether the token has expired at `now`.
    pub(crate) fn is_token_expired_at(&self, now: Instant) -> bool {
        self.expiry.as_ref().is_some_and(|expiry| now >= expiry.expires_at)
    }

    /// Moves the end to `grace` from now, unless it is earlier already.
    pub(crate) fn end_within(&mut self, grace: Duration) {
        self.end = self.end.min(self.wheel().deadline_after(grace));
    }

    /// Returns whether the connection must be cut off, whatever is still to be sent.
    pub(crate) fn is_end_reached(&self) -> bool {
        self.end.is_over(self.wheel())
    }

    /// Has `context` woken at the next heartbeat, at the age, at the expiry, and at `other`.
    pub(super) fn wake_when_idle(&self, other: Deadline, context: &Context<'_>) {
        let expiry = self.expiry.as_ref().map_or(Deadline::NEVER, |expiry| expiry.wake_at);
        let next = self.heartbeat.min(self.age).min(expiry).min(other);
        self.alarm.set(next, context.waker());
    }

    /// Has `waker` woken at the expiry, at the end, and at `write`, the deadline of a full socket.
    pub(super) fn wake_while_blocked(&self, write: Deadline, waker: &Waker) {
        let expiry = self.expiry.as_ref().map(|expiry| expiry.wake_at);
        // An expiry that is over has nothing more to do here: the end counts from then on. It would
        // wake the task at every tick.
        let expiry = expiry.filter(|at| !at.is_over(self.wheel())).unwrap_or(Deadline::NEVER);
        self.alarm.set(write.min(self.end).min(expiry), waker);
    }
}
