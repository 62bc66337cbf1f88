//! One coarse timer for the heartbeats and write deadlines of all connections.
//!
//! ```text
//!  slots     0 │ 1 │ 2 │ … │ 1023      one slot per 100 ms, 102.4 s around
//!  alarm     due_tick: when to wake      queued_tick ≤ due_tick: the slot that holds the entry
//! ```
//!
//! Moving an alarm to a later time only stores that time; if its slot is processed too early, the
//! entry moves to a later slot. So a busy connection, which moves its deadline with every write,
//! takes no lock here, and an idle one costs a visit per heartbeat.
//!
//! In the relay, `thread.rs` turns the wheel, and `pulse.rs` shows whether a runtime is alive.
//!
//! May use: `wake_state`.

mod pulse;
mod thread;

use std::{
    mem,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    task::Waker,
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub(crate) use self::{pulse::RuntimePulse, thread::WheelThread};
use crate::wake_state::WakeState;

/// Timer wheel: slots of entries, and the current tick.
#[derive(Debug)]
pub(crate) struct TimerWheel {
    started: Instant,
    /// Current tick. Written under the lock of `slots`.
    current_tick: AtomicU64,
    slots: Mutex<Box<[Vec<Arc<WakeState>>]>>,
}

impl TimerWheel {
    /// Creates a wheel that does not turn yet.
    pub(crate) fn new() -> Arc<Self> {
        let slots = (0..SLOT_COUNT).map(|_| Vec::new()).collect();
        // Tick 0 is left out: it means "never" in an entry.
        Arc::new(Self {
            started: Instant::now(),
            current_tick: AtomicU64::new(1),
            slots: Mutex::new(slots),
        })
    }

    /// Turns the wheel until `stop`, on the runtime of the caller. The relay has a
    /// [`WheelThread`] for that; this is for simulations, and for tests, whose clock may be paused.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future loses nothing: the next turn catches up.
    pub(crate) async fn run(&self, stop: CancellationToken) {
        let mut interval = tokio::time::interval(TICK);
        // After a pause `turn` catches up on the ticks at once; `interval` must not deliver them
        // as well.
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        while stop.run_until_cancelled(interval.tick()).await.is_some() {
            self.turn();
        }
    }

    /// Turns the wheel to the current time, and wakes every task whose alarm is due. One task or
    /// thread turns a wheel.
    fn turn(&self) {
        let target = 1 + self.started.elapsed().as_millis() as u64 / TICK.as_millis() as u64;
        while self.current_tick() < target {
            // Outside the lock of the slots: a woken task may set its alarm again.
            self.advance().iter().for_each(|entry| entry.waker.wake());
        }
    }

    /// Returns the time until the next turn has something to do.
    fn time_to_next_tick(&self) -> Duration {
        let next = TICK.saturating_mul(u32::try_from(self.current_tick()).unwrap_or(u32::MAX));
        next.saturating_sub(self.started.elapsed())
    }

    /// Returns how long the wheel has not turned, to the tick. Shows whether its thread is alive.
    pub(crate) fn stalled_for(&self) -> Duration {
        let turned_for =
            TICK.saturating_mul(u32::try_from(self.current_tick() - 1).unwrap_or(u32::MAX));
        self.started.elapsed().saturating_sub(turned_for)
    }

    /// Returns the wheel's current tick.
    pub(crate) fn current_tick(&self) -> u64 {
        self.current_tick.load(SeqCst)
    }

    /// Returns the first tick that is `wait` or more from now.
    pub(crate) fn deadline_after(&self, wait: Duration) -> Deadline {
        self.deadline_in(Self::ticks_in(wait))
    }

    /// Returns the last tick that is `wait` or less from now, for deadlines that must not be late.
    pub(crate) fn deadline_within(&self, wait: Duration) -> Deadline {
        // By the clock, not by the current tick: on a busy machine the wheel's thread may be late,
        // and the deadline would be early by as much.
        let end = self.started.elapsed().saturating_add(wait);
        let ticks = u64::try_from(end.as_millis() / TICK.as_millis()).unwrap_or(u64::MAX);
        Deadline::at_tick(ticks.saturating_add(1))
    }

    /// Returns the deadline that is `ticks` after the current tick.
    pub(crate) fn deadline_in(&self, ticks: u64) -> Deadline {
        Deadline::at_tick(self.current_tick().saturating_add(ticks))
    }

    /// Returns the ticks after which at least `wait` has passed.
    pub(crate) fn ticks_in(wait: Duration) -> u64 {
        let ticks = wait.as_millis().div_ceil(TICK.as_millis());
        // One more: the current tick began up to one tick ago.
        u64::try_from(ticks).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// Moves on by one tick, and returns the entries that are due.
    fn advance(&self) -> Vec<Arc<WakeState>> {
        let mut slots = self.slots();
        let now = self.current_tick.fetch_add(1, SeqCst) + 1;
        // The allocation of the slot is dropped with its entries.
        let mut entries = slots.get_mut(slot_index(now)).map(mem::take).unwrap_or_default();
        entries.retain(|entry| {
            if u64::from(entry.queued_tick.load(SeqCst)) != now {
                return false; // an earlier alarm has since moved it to an earlier slot
            }
            // Store, then load, against store, then load in `Alarm::set`: either `set` sees that
            // the entry is in no slot and inserts it, or its due tick is seen here. Only SeqCst
            // orders a store before a later load of another atomic, so acquire and release would
            // not do.
            entry.queued_tick.store(NO_TICK, SeqCst);
            let Some(due) = NonZeroU32::new(entry.due_tick.load(SeqCst)).map(Deadline) else {
                return false;
            };
            let is_due = due.tick() <= now;
            if !is_due {
                insert_entry(&mut slots, entry, due, now);
            }
            is_due
        });
        entries
    }

    /// Puts the entry into a slot that is processed at `due` or before, unless it is in such a
    /// slot.
    fn enqueue(&self, entry: &Arc<WakeState>, due: Deadline) {
        if entry.is_queued_by(due) {
            return;
        }
        let mut slots = self.slots();
        // Checked again under the lock: `advance` may have taken the entry out in between, or put
        // it into a slot.
        if !entry.is_queued_by(due) {
            insert_entry(&mut slots, entry, due, self.current_tick());
        }
    }

    fn slots(&self) -> MutexGuard<'_, Box<[Vec<Arc<WakeState>>]>> {
        // A slot is a list, and each change of it is one call, so a panic cannot leave one half
        // done.
        self.slots.lock()
    }
}

/// Tick of a wheel at which a wait is over.
///
/// In 32 bits, which are 13 years of ticks: each idle subscriber holds several.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Deadline(NonZeroU32);

impl Deadline {
    /// A tick that never comes.
    pub(crate) const NEVER: Self = Self(NonZeroU32::MAX);

    /// Returns the deadline of a tick that was stored as a number.
    pub(crate) fn at_tick(tick: u64) -> Self {
        let tick = u32::try_from(tick).unwrap_or(u32::MAX);
        // A wheel begins with tick 1, so 0 is over from the start as well.
        Self(NonZeroU32::new(tick).unwrap_or(NonZeroU32::MIN))
    }

    /// Returns the number of the tick.
    pub(crate) fn tick(self) -> u64 {
        u64::from(self.0.get())
    }

    /// Returns whether the wheel has reached the tick.
    pub(crate) fn is_over(self, wheel: &TimerWheel) -> bool {
        wheel.current_tick() >= self.tick()
    }
}

/// Puts an entry into the slot of `due`, or into the farthest one.
fn insert_entry(
    slots: &mut [Vec<Arc<WakeState>>],
    entry: &Arc<WakeState>,
    due: Deadline,
    now: u64,
) {
    // Not the current slot, which has been taken out: the entry would wait there for a whole round.
    let tick = due.tick().clamp(now + 1, now + SLOT_COUNT as u64 - 1);
    entry.queued_tick.store(Deadline::at_tick(tick).0.get(), SeqCst);
    if let Some(slot) = slots.get_mut(slot_index(tick)) {
        // Entries of dropped alarms, which else stay until the slot is processed: most connections
        // are short, or leave hyper with their first response.
        if slot.len() == slot.capacity() {
            slot.retain(|entry| entry.due_tick.load(SeqCst) != NO_TICK);
            // So that as many insertions come before the next pass over the slot.
            slot.reserve(slot.len() + 1);
        }
        slot.push(Arc::clone(entry));
    }
}

fn slot_index(tick: u64) -> usize {
    usize::try_from(tick % SLOT_COUNT as u64).unwrap_or_default()
}

/// A task's alarm on the wheel.
#[derive(Debug)]
pub(crate) struct Alarm {
    wheel: Arc<TimerWheel>,
    entry: Arc<WakeState>,
}

impl WakeState {
    /// Returns whether the entry is in the slot of `due` or in an earlier one, which is as good:
    /// when that is processed, the entry moves on.
    fn is_queued_by(&self, due: Deadline) -> bool {
        let queued = self.queued_tick.load(SeqCst);
        queued != NO_TICK && queued <= due.0.get()
    }
}

impl Alarm {
    /// Creates an alarm that is not set.
    pub(crate) fn new(wheel: &Arc<TimerWheel>) -> Self {
        Self::sharing(wheel, &Arc::default())
    }

    /// Creates an alarm of the task that `entry` wakes already, with the same waker. No alarm has
    /// had this entry before: a dropped alarm's may look as if it were in a slot.
    pub(crate) fn sharing(wheel: &Arc<TimerWheel>, entry: &Arc<WakeState>) -> Self {
        Self { wheel: Arc::clone(wheel), entry: Arc::clone(entry) }
    }

    /// Returns the wheel of the alarm.
    pub(crate) fn wheel(&self) -> &TimerWheel {
        &self.wheel
    }

    /// Wakes `waker` at `due`, and cancels the time set before.
    ///
    /// The waker may also be woken early, or more than once: the woken task asks
    /// [`Deadline::is_over`] of its own deadlines.
    pub(crate) fn set(&self, due: Deadline, waker: &Waker) {
        // Registered first: once the due tick is stored, the wheel may wake.
        self.entry.waker.register(waker);
        self.entry.due_tick.store(due.0.get(), SeqCst);
        self.wheel.enqueue(&self.entry, due);
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // The entry stays in its slot until that slot is processed or full; it must not keep the
        // task alive until then.
        self.entry.due_tick.store(NO_TICK, SeqCst);
        drop(self.entry.waker.take());
    }
}

/// Precision of heartbeats and deadlines.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// Number of slots: 102.4 s ahead. An entry that is due later is put back when its slot is
/// processed.
const SLOT_COUNT: usize = 1024;

/// Stands for an alarm that is not set, and for an entry that is in no slot.
const NO_TICK: u32 = 0;

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicUsize, task::Wake};

    use super::*;

    #[derive(Default)]
    struct WheelWakeCounter(AtomicUsize);

    impl Wake for WheelWakeCounter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    impl WheelWakeCounter {
        fn count(&self) -> usize {
            self.0.load(SeqCst)
        }
    }

    /// Returns a wheel that turns on the paused clock.
    fn running_wheel() -> (Arc<TimerWheel>, CancellationToken, tokio::task::JoinHandle<()>) {
        let (wheel, stop) = (TimerWheel::new(), CancellationToken::new());
        let task = tokio::spawn({
            let (wheel, stop) = (Arc::clone(&wheel), stop.clone());
            async move { wheel.run(stop).await }
        });
        (wheel, stop, task)
    }

    fn wake_counter() -> (Arc<WheelWakeCounter>, Waker) {
        let counter = Arc::new(WheelWakeCounter::default());
        (Arc::clone(&counter), Waker::from(counter))
    }

    #[tokio::test(start_paused = true)]
    async fn deadline_within_rounds_down_also_while_the_wheel_is_late() {
        let wheel = TimerWheel::new();
        for (wait, ticks) in [(0, 0), (99, 0), (100, 1), (250, 2)] {
            assert_eq!(
                wheel.deadline_within(Duration::from_millis(wait)).tick() - wheel.current_tick(),
                ticks,
                "{wait} ms"
            );
        }
        tokio::time::advance(Duration::from_millis(450)).await;
        assert_eq!(
            wheel.deadline_within(Duration::from_millis(250)).tick() - wheel.current_tick(),
            7
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_alarm_wakes_once_and_no_earlier_than_it_is_due() {
        let (wheel, stop, task) = running_wheel();
        for wait in [
            Duration::from_millis(1),
            Duration::from_secs(1),
            Duration::from_secs(30),
            Duration::from_secs(600),
        ] {
            let (counter, waker) = wake_counter();
            let alarm = Alarm::new(&wheel);
            let due = wheel.deadline_after(wait);
            alarm.set(due, &waker);
            let set = Instant::now();
            while counter.count() == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
                assert!(set.elapsed() < wait + 4 * TICK, "{wait:?}");
            }
            assert!(set.elapsed() >= wait, "{wait:?}: {:?}", set.elapsed());
            tokio::time::sleep(Duration::from_secs(200)).await;
            assert_eq!(counter.count(), 1);
        }
        stop.cancel();
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn an_alarm_can_be_moved_either_way_and_put_off_again_and_again() {
        let (wheel, stop, task) = running_wheel();
        let (counter, waker) = wake_counter();
        let alarm = Alarm::new(&wheel);
        alarm.set(wheel.deadline_after(Duration::from_secs(50)), &waker);
        alarm.set(wheel.deadline_after(Duration::from_secs(1)), &waker);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(counter.count(), 1, "earlier");
        for _ in 0..100 {
            alarm.set(wheel.deadline_after(Duration::from_secs(2)), &waker);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(counter.count(), 1, "put off");
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(counter.count(), 2);
        let queued: usize = wheel.slots().iter().map(Vec::len).sum();
        assert!(queued <= 1, "{queued}");
        stop.cancel();
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_alarm_wakes_no_task_and_keeps_no_task_alive() {
        let (wheel, stop, task) = running_wheel();
        let (counter, waker) = wake_counter();
        let alarm = Alarm::new(&wheel);
        alarm.set(wheel.deadline_after(Duration::from_secs(1)), &waker);
        drop((alarm, waker));
        assert_eq!(Arc::strong_count(&counter), 1);
        tokio::time::sleep(Duration::from_secs(200)).await;
        assert_eq!(counter.count(), 0);
        stop.cancel();
        task.await.unwrap();
    }

    #[test]
    fn alarms_that_are_dropped_early_do_not_pile_up_in_their_slot() {
        let wheel = TimerWheel::new();
        let due = wheel.deadline_after(Duration::from_secs(60));
        let kept = Alarm::new(&wheel);
        kept.set(due, Waker::noop());
        for _ in 0..1000 {
            Alarm::new(&wheel).set(due, Waker::noop());
        }
        let queued: usize = wheel.slots().iter().map(Vec::len).sum();
        assert!(queued <= 8, "{queued}");
        assert_eq!(Arc::strong_count(&kept.entry), 2, "the slot has the alarm that is not dropped");
    }

    #[tokio::test(start_paused = true)]
    async fn an_alarm_that_shares_its_waker_wakes_the_task_that_registered_last() {
        let (wheel, stop, task) = running_wheel();
        let state = Arc::new(WakeState::default());
        let alarm = Alarm::sharing(&wheel, &state);
        let (counter, waker) = wake_counter();
        alarm.set(wheel.deadline_after(Duration::from_secs(1)), &waker);
        state.waker.wake();
        assert_eq!(counter.count(), 1, "the other owner wakes what the alarm has registered");
        state.waker.register(&waker);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(counter.count(), 2, "the alarm wakes what the other owner has registered");
        stop.cancel();
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_wheel_that_does_not_turn_returns_for_how_long() {
        let wheel = TimerWheel::new();
        tokio::time::advance(Duration::from_secs(31)).await;
        assert_eq!(wheel.stalled_for(), Duration::from_secs(31));
        let stop = CancellationToken::new();
        let run = wheel.run(stop.clone());
        let _ = tokio::time::timeout(Duration::from_secs(1), run).await;
        assert!(wheel.stalled_for() <= TICK);
    }
}
