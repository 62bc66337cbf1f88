//! The sign of life of a runtime.
//!
//! May use: no other module.

use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use super::{Alarm, Deadline, TICK, TimerWheel};

/// The tick at which a runtime last polled a task of its own.
///
/// The wheel turns on a thread, so it turns although no worker of the runtime polls anything.
#[derive(Debug, Default)]
pub(crate) struct RuntimePulse {
    last_tick: AtomicU64,
}

impl RuntimePulse {
    /// Stores the current tick every [`PULSE_INTERVAL`] until `stop`.
    pub(crate) async fn run(&self, wheel: &Arc<TimerWheel>, stop: CancellationToken) {
        let alarm = Alarm::new(wheel);
        let mut due = Deadline::at_tick(0);
        let beat = poll_fn(|context| {
            if due.is_over(wheel) {
                // Relaxed: the health check reads this value alone.
                self.last_tick.store(wheel.current_tick(), Ordering::Relaxed);
                due = wheel.deadline_after(PULSE_INTERVAL);
            }
            // At each poll, also one that came early: the waker may be another one.
            alarm.set(due, context.waker());
            Poll::<()>::Pending
        });
        stop.run_until_cancelled(beat).await;
    }

    /// Returns the time since the last sign of life, in whole ticks of `wheel`.
    pub(crate) fn stalled_for(&self, wheel: &TimerWheel) -> Duration {
        let ticks = wheel.current_tick().saturating_sub(self.last_tick.load(Ordering::Relaxed));
        TICK.saturating_mul(u32::try_from(ticks).unwrap_or(u32::MAX))
    }
}

/// Interval between two signs of life; `/healthz` reports a runtime that is silent for 30 s.
const PULSE_INTERVAL: Duration = Duration::from_secs(1);
