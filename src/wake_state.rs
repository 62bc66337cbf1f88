//! What one task is woken for, and its waker: a position of the fan-out, a tick of the timer wheel.
//!
//! A subscriber is woken by the fan-out, by the wheel and by admission, and always the same task
//! is. So its signal ([`SubscriberSignal`](crate::fanout::SubscriberSignal)) and its alarm
//! ([`Alarm`](crate::timer_wheel::Alarm)) are two views of one allocation with one waker: idle
//! subscribers are many, and apart the two would take twice as much.
//!
//! A wake-up takes the waker out. Nothing is lost by that where the task, each time it is polled,
//! registers its waker before it looks at what it may have been woken for.
//!
//! May use: no other module.

use std::sync::atomic::{AtomicU32, AtomicU64};

use atomic_waker::AtomicWaker;

/// Waker of one task, with what its signal and its alarm keep. Each field but the waker is read and
/// written by its view alone.
#[derive(Debug, Default)]
pub(crate) struct WakeState {
    /// Holds one waker: only the task itself registers.
    pub(crate) waker: AtomicWaker,
    /// Of the signal: position of the first entry that the subscription was notified of and has not
    /// read for; 0 for none.
    pub(crate) pending: AtomicU64,
    /// Of the alarm: tick at which to wake the task.
    pub(crate) due_tick: AtomicU32,
    /// Of the wheel: tick in whose slot the state is. Written under the lock of the slots.
    pub(crate) queued_tick: AtomicU32,
}
