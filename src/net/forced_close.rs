//! The forced-close deadline of one exchange whose peer takes nothing.
//!
//! While a peer takes nothing, hyper asks its body for nothing, so the body cannot see that its
//! token has expired or that an operator has ended it. `deadline_socket` and `stream_deadline` look
//! at this deadline while they are blocked, and only then: a subscriber that reads gets a proper
//! end from the body itself.
//!
//! May use: `timer_wheel`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    task::Waker,
    time::Duration,
};

use atomic_waker::AtomicWaker;

use crate::timer_wheel::{Deadline, TimerWheel};

/// Tick at which an exchange is cut off if it is blocked then.
#[derive(Debug)]
pub(crate) struct ForcedClose {
    wheel: Arc<TimerWheel>,
    // SeqCst, though AtomicWaker would need less: `schedule_at` writes the tick and then wakes,
    // `deadline` registers and then reads, so one of the two sees the other. None of it is on the
    // path of an event.
    tick: AtomicU64,
    waker: AtomicWaker,
}

impl ForcedClose {
    /// Returns the timer of the connection.
    pub(super) fn wheel(&self) -> &TimerWheel {
        &self.wheel
    }

    /// Creates a deadline that is not set.
    pub(crate) fn new(wheel: &Arc<TimerWheel>) -> Arc<Self> {
        Arc::new(Self {
            wheel: Arc::clone(wheel),
            tick: AtomicU64::new(Deadline::NEVER.tick()),
            waker: AtomicWaker::new(),
        })
    }

    /// Cuts the exchange off at `due`, or earlier if that was scheduled before.
    pub(crate) fn schedule_at(&self, due: Deadline) {
        self.tick.fetch_min(due.tick(), SeqCst);
        self.waker.wake();
    }

    /// Cuts the exchange off after [`FORCED_CLOSE_DELAY`], in which its peer may still take its
    /// last bytes.
    pub(crate) fn schedule_soon(&self) {
        self.schedule_at(self.wheel.deadline_after(FORCED_CLOSE_DELAY));
    }

    /// Clears the deadline when the exchange is over: the next one on this connection has its own.
    pub(crate) fn cancel(&self) {
        self.tick.store(Deadline::NEVER.tick(), SeqCst);
    }

    /// Returns the deadline at which the exchange is cut off, and wakes `waker` when that changes.
    pub(crate) fn deadline(&self, waker: &Waker) -> Deadline {
        // Before the load: a tick stored after the load then finds this waker.
        self.waker.register(waker);
        Deadline::at_tick(self.tick.load(SeqCst))
    }
}

/// Far longer than a reading peer needs to drain its socket buffer, far shorter than an operator
/// waits for a disconnect to take effect.
const FORCED_CLOSE_DELAY: Duration = Duration::from_millis(700);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earlier_end_counts_until_the_exchange_is_over() {
        let wheel = TimerWheel::new();
        let forced_close = ForcedClose::new(&wheel);
        let due = || forced_close.deadline(Waker::noop());
        forced_close.schedule_at(Deadline::at_tick(50));
        forced_close.schedule_soon();
        assert_eq!(due(), wheel.deadline_after(FORCED_CLOSE_DELAY));
        forced_close.schedule_at(Deadline::at_tick(60));
        assert_eq!(due(), wheel.deadline_after(FORCED_CLOSE_DELAY));
        forced_close.cancel();
        assert_eq!(due(), Deadline::NEVER);
    }
}
