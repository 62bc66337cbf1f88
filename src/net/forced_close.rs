//! An end for whoever takes nothing.
//!
//! While a peer takes nothing, nothing is asked of the body that is sent to it: it cannot see that its time is over. Whoever
//! guards the socket (`guarded`) or the HTTP/2 stream (`patience`) looks here while it is blocked, and only then: who reads
//! gets a proper end from the body itself.
//!
//! May use: `wheel`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    task::Waker,
    time::Duration,
};

use atomic_waker::AtomicWaker;

use crate::timer_wheel::Wheel;

/// The tick at which an exchange is cut off if it is blocked then.
#[derive(Debug)]
pub(crate) struct Cut {
    wheel: Arc<Wheel>,
    due: AtomicU64,
    waker: AtomicWaker,
}

impl Cut {
    /// None.
    pub(crate) fn new(wheel: &Arc<Wheel>) -> Arc<Self> {
        Arc::new(Self { wheel: Arc::clone(wheel), due: AtomicU64::new(NEVER), waker: AtomicWaker::new() })
    }

    /// Cuts it off at this tick, unless it is to be cut off before.
    pub(crate) fn at(&self, tick: u64) {
        self.due.fetch_min(tick, SeqCst);
        self.waker.wake();
    }

    /// Cuts it off once it has had a moment to take its last bytes.
    pub(crate) fn soon(&self) {
        self.at(self.wheel.after(MOMENT));
    }

    /// The exchange is over: the next one on this connection has its own time.
    pub(crate) fn lift(&self) {
        self.due.store(NEVER, SeqCst);
    }

    /// When it is due, with word to `waker` when that changes.
    pub(crate) fn due(&self, waker: &Waker) -> u64 {
        self.waker.register(waker); // before the look: no change goes unseen
        self.due.load(SeqCst)
    }
}

/// Far longer than who reads needs to make room, far shorter than an operator waits for somebody to be gone.
const MOMENT: Duration = Duration::from_millis(700);

/// A tick that never comes.
const NEVER: u64 = u64::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earlier_end_counts_until_the_exchange_is_over() {
        let wheel = Wheel::new();
        let cut = Cut::new(&wheel);
        let due = || cut.due(Waker::noop());
        cut.at(50);
        cut.soon();
        assert_eq!(due(), wheel.after(MOMENT));
        cut.at(60);
        assert_eq!(due(), wheel.after(MOMENT));
        cut.lift();
        assert_eq!(due(), NEVER);
    }
}
