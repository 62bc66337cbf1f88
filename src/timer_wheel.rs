//! One coarse timer for all connections: heartbeats and write deadlines without a timer each.
//!
//! A ring of slots, one turned over every [`TICK`]. An alarm lies in one slot; moving it to a later
//! time only writes the time down, and the turn that finds it too early puts it further on. So a
//! busy connection costs nothing here, and an idle one a visit per heartbeat.
//!
//! May use: no other module.

use std::{
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    task::Waker,
    time::Duration,
};

use atomic_waker::AtomicWaker;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The slots and the hand that turns them.
#[derive(Debug)]
pub(crate) struct TimerWheel {
    started: Instant,
    /// Written under the lock of `slots`.
    current_tick: AtomicU64,
    slots: Mutex<Box<[Vec<Arc<TimerEntry>>]>>,
}

impl TimerWheel {
    /// A wheel at rest.
    pub(crate) fn new() -> Arc<Self> {
        let slots = (0..SLOT_COUNT).map(|_| Vec::new()).collect();
        // Tick 0 is left out: it stands for "never" in an entry.
        Arc::new(Self {
            started: Instant::now(),
            current_tick: AtomicU64::new(1),
            slots: Mutex::new(slots),
        })
    }

    /// Turns the wheel until `stop`.
    pub(crate) async fn run(&self, stop: CancellationToken) {
        let mut interval = tokio::time::interval(TICK);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        while stop.run_until_cancelled(interval.tick()).await.is_some() {
            let target = 1 + self.started.elapsed().as_millis() as u64 / TICK.as_millis() as u64;
            while self.current_tick() < target {
                self.advance().iter().for_each(|entry| entry.waker.wake());
            }
        }
    }

    /// How long it has not turned, to the tick: whether the runtime it turns on is alive.
    pub(crate) fn stalled_for(&self) -> Duration {
        let turned_for =
            TICK.saturating_mul(u32::try_from(self.current_tick() - 1).unwrap_or(u32::MAX));
        self.started.elapsed().saturating_sub(turned_for)
    }

    /// The tick it stands at.
    pub(crate) fn current_tick(&self) -> u64 {
        self.current_tick.load(SeqCst)
    }

    /// The first tick that is `wait` or more from now.
    pub(crate) fn tick_after(&self, wait: Duration) -> u64 {
        let ticks = wait.as_millis().div_ceil(TICK.as_millis());
        self.current_tick()
            .saturating_add(u64::try_from(ticks).unwrap_or(u64::MAX))
            .saturating_add(1)
    }

    /// The last tick that is `wait` or less from now, for what must not come late.
    pub(crate) fn tick_within(&self, wait: Duration) -> u64 {
        let ticks = wait.as_millis() / TICK.as_millis();
        self.current_tick().saturating_add(u64::try_from(ticks).unwrap_or(u64::MAX))
    }

    /// Moves on by one tick, and returns the entries that are due.
    fn advance(&self) -> Vec<Arc<TimerEntry>> {
        let mut slots = self.slots();
        let now = self.current_tick.fetch_add(1, SeqCst) + 1;
        let mut entries = slots.get_mut(slot_index(now)).map(mem::take).unwrap_or_default();
        entries.retain(|entry| {
            if entry.queued_tick.load(SeqCst) != now {
                return false; // it has been put into an earlier slot since
            }
            // In this order, against `set`: either it sees that the entry lies nowhere, or its due
            // time is seen here.
            entry.queued_tick.store(NO_TICK, SeqCst);
            match entry.due_tick.load(SeqCst) {
                NO_TICK => false,
                due if due <= now => true,
                due => {
                    insert_entry(&mut slots, entry, due, now);
                    false
                }
            }
        });
        entries
    }

    /// Sees to it that the entry lies in a slot that is turned at `due_tick` or before.
    fn enqueue(&self, entry: &Arc<TimerEntry>, due: u64) {
        if entry.is_queued_by(due) {
            return;
        }
        let mut slots = self.slots();
        if !entry.is_queued_by(due) {
            insert_entry(&mut slots, entry, due, self.current_tick());
        }
    }

    fn slots(&self) -> MutexGuard<'_, Box<[Vec<Arc<TimerEntry>>]>> {
        // A slot is a list: there is no half-done state that a panic could leave behind.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts an entry into the slot of `due_tick`, or into the farthest one there is.
fn insert_entry(slots: &mut [Vec<Arc<TimerEntry>>], entry: &Arc<TimerEntry>, due: u64, now: u64) {
    let tick = due.clamp(now + 1, now + SLOT_COUNT as u64 - 1);
    entry.queued_tick.store(tick, SeqCst);
    if let Some(slot) = slots.get_mut(slot_index(tick)) {
        slot.push(Arc::clone(entry));
    }
}

fn slot_index(tick: u64) -> usize {
    usize::try_from(tick % SLOT_COUNT as u64).unwrap_or_default()
}

/// One task's place on the wheel.
#[derive(Debug)]
pub(crate) struct Alarm {
    wheel: Arc<TimerWheel>,
    entry: Arc<TimerEntry>,
}

#[derive(Debug, Default)]
struct TimerEntry {
    due_tick: AtomicU64,
    /// The tick in whose slot it lies. Written under the lock of the slots.
    queued_tick: AtomicU64,
    waker: AtomicWaker,
}

impl TimerEntry {
    fn is_queued_by(&self, due: u64) -> bool {
        let queued = self.queued_tick.load(SeqCst);
        queued != NO_TICK && queued <= due
    }
}

impl Alarm {
    /// An alarm that is not set.
    pub(crate) fn new(wheel: &Arc<TimerWheel>) -> Self {
        Self { wheel: Arc::clone(wheel), entry: Arc::default() }
    }

    /// The wheel it lies on.
    pub(crate) fn wheel(&self) -> &TimerWheel {
        &self.wheel
    }

    /// Wakes `waker` at tick `due_tick`, instead of whatever was set before.
    ///
    /// It may also be woken early or once too often: who is woken compares
    /// [`TimerWheel::current_tick`] with its own deadline.
    pub(crate) fn set(&self, due: u64, waker: &Waker) {
        self.entry.waker.register(waker);
        self.entry.due_tick.store(due, SeqCst);
        self.wheel.enqueue(&self.entry, due);
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // The entry stays in its slot until that is turned; it must not keep the task alive until
        // then.
        self.entry.due_tick.store(NO_TICK, SeqCst);
        drop(self.entry.waker.take());
    }
}

/// How coarse heartbeats and deadlines are.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// A bit more than 100 s ahead; what is due later is put back when its turn comes.
const SLOT_COUNT: usize = 1024;

/// A time that never comes.
const NO_TICK: u64 = 0;

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

    /// A wheel that turns on the paused clock.
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

    #[test]
    fn what_must_not_come_late_is_due_at_a_tick_before_its_time() {
        let wheel = TimerWheel::new();
        for (wait, ticks) in [(0, 0), (99, 0), (100, 1), (250, 2)] {
            assert_eq!(
                wheel.tick_within(Duration::from_millis(wait)) - wheel.current_tick(),
                ticks,
                "{wait} ms"
            );
        }
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
            let due = wheel.tick_after(wait);
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
        alarm.set(wheel.tick_after(Duration::from_secs(50)), &waker);
        alarm.set(wheel.tick_after(Duration::from_secs(1)), &waker);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(counter.count(), 1, "earlier");
        for _ in 0..100 {
            alarm.set(wheel.tick_after(Duration::from_secs(2)), &waker);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(counter.count(), 1, "put off");
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(counter.count(), 2);
        let lying: usize = wheel.slots().iter().map(Vec::len).sum();
        assert!(lying <= 1, "{lying}");
        stop.cancel();
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_alarm_wakes_nobody_and_keeps_no_task_alive() {
        let (wheel, stop, task) = running_wheel();
        let (counter, waker) = wake_counter();
        let alarm = Alarm::new(&wheel);
        alarm.set(wheel.tick_after(Duration::from_secs(1)), &waker);
        drop((alarm, waker));
        assert_eq!(Arc::strong_count(&counter), 1);
        tokio::time::sleep(Duration::from_secs(200)).await;
        assert_eq!(counter.count(), 0);
        stop.cancel();
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_wheel_that_does_not_turn_says_for_how_long() {
        let wheel = TimerWheel::new();
        tokio::time::advance(Duration::from_secs(31)).await;
        assert_eq!(wheel.stalled_for(), Duration::from_secs(31));
        let stop = CancellationToken::new();
        let run = wheel.run(stop.clone());
        let _ = tokio::time::timeout(Duration::from_secs(1), run).await;
        assert!(wheel.stalled_for() <= TICK);
    }
}
