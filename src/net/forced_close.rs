//! An end for whoever takes nothing.
//!
//! While a peer takes nothing, nothing is asked of the body that is sent to it: it cannot see that
//! its time is over. Whoever guards the socket (`guarded`) or the HTTP/2 stream (`patience`) looks
//! here while it is blocked, and only then: who reads gets a proper end from the body itself.
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

use crate::timer_wheel::TimerWheel;

/// The tick at which an exchange is cut off if it is blocked then.
#[derive(Debug)]
pub(crate) struct ForcedClose {
    wheel: Arc<TimerWheel>,
    tick: AtomicU64,
    waker: AtomicWaker,
}

impl ForcedClose {
    /// None.
    pub(crate) fn new(wheel: &Arc<TimerWheel>) -> Arc<Self> {
        Arc::new(Self {
            wheel: Arc::clone(wheel),
            tick: AtomicU64::new(NEVER_TICK),
            waker: AtomicWaker::new(),
        })
    }

    /// Cuts it off at this tick, unless it is to be cut off before.
    pub(crate) fn schedule_at(&self, tick: u64) {
        self.tick.fetch_min(tick, SeqCst);
        self.waker.wake();
    }

    /// Cuts it off once it has had a moment to take its last bytes.
    pub(crate) fn schedule_soon(&self) {
        self.schedule_at(self.wheel.tick_after(FORCED_CLOSE_DELAY));
    }

    /// The exchange is over: the next one on this connection has its own time.
    pub(crate) fn cancel(&self) {
        self.tick.store(NEVER_TICK, SeqCst);
    }

    /// When it is due, with word to `waker` when that changes.
    pub(crate) fn due_tick(&self, waker: &Waker) -> u64 {
        self.waker.register(waker); // before the look: no change goes unseen
        self.tick.load(SeqCst)
    }
}

/// Far longer than who reads needs to make room, far shorter than an operator waits for somebody to
/// be gone.
const FORCED_CLOSE_DELAY: Duration = Duration::from_millis(700);

/// A tick that never comes.
const NEVER_TICK: u64 = u64::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earlier_end_counts_until_the_exchange_is_over() {
        let wheel = TimerWheel::new();
        let forced_close = ForcedClose::new(&wheel);
        let due = || forced_close.due_tick(Waker::noop());
        forced_close.schedule_at(50);
        forced_close.schedule_soon();
        assert_eq!(due(), wheel.tick_after(FORCED_CLOSE_DELAY));
        forced_close.schedule_at(60);
        assert_eq!(due(), wheel.tick_after(FORCED_CLOSE_DELAY));
        forced_close.cancel();
        assert_eq!(due(), NEVER_TICK);
    }
}
