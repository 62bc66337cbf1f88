//! Permits for reading from the store: a bounded number of readers at a time, the others in FIFO
//! order.
//!
//! A reader keeps its permit until it has caught up, or has had its answer for
//! [`REPLAY_PERMIT_IDLE_TIMEOUT`] without asking again, because a reader whose socket has stalled
//! must not hold up the queue. While a read is under way the permit is in use, however slow the
//! disk is. A permit that is returned goes to the head of the queue at once: while a reader waits,
//! all permits are taken.
//!
//! May use: no other module.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::time::Instant;

/// Pool of permits, and the queue for them.
#[derive(Debug)]
pub(crate) struct ReplayPermits {
    capacity: usize,
    queue: Mutex<PermitQueue>,
}

#[derive(Debug, Default)]
struct PermitQueue {
    last_number: u64,
    /// Number of each reader with a permit, and since when the permit is idle; `None` while a read
    /// is under way.
    held: BTreeMap<u64, Option<Instant>>,
    /// Wakers of waiting readers, by number: numbers only grow, so this is the order of arrival.
    waiting: BTreeMap<u64, Waker>,
    /// Time of the last scan for idle permits.
    last_reclaim: Option<Instant>,
    /// Permits examined by scans.
    #[cfg(test)]
    visited: usize,
}

impl ReplayPermits {
    /// Returns a pool for `capacity` readers at a time, and at least one.
    pub(crate) fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self { capacity: capacity.max(1), queue: Mutex::default() })
    }

    /// Returns a handle for one reader, which is not queued yet.
    pub(crate) fn permit(self: &Arc<Self>) -> ReplayPermit {
        ReplayPermit { number: NOT_QUEUED, pool: Arc::clone(self) }
    }

    /// Sets since when the permit of this number is idle, unless it has been reclaimed.
    fn set_idle_since(&self, number: u64, idle: Option<Instant>) {
        if let Some(idle_since) = self.queue().held.get_mut(&number) {
            *idle_since = idle;
        }
    }

    fn queue(&self) -> MutexGuard<'_, PermitQueue> {
        // A poisoned lock is used on: the queue is consistent after every statement.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PermitQueue {
    /// Reclaims permits that have been idle for [`REPLAY_PERMIT_IDLE_TIMEOUT`]. Every waiting
    /// reader calls this at each poll, so the scan is skipped if the last one is less than a
    /// quarter of the time-out old: the work does not grow with the number of waiting readers.
    fn reclaim_idle(&mut self, now: Instant) {
        if self
            .last_reclaim
            .is_some_and(|last| now.duration_since(last) < REPLAY_PERMIT_IDLE_TIMEOUT / 4)
        {
            return;
        }
        self.last_reclaim = Some(now);
        #[cfg(test)]
        {
            self.visited += self.held.len();
        }
        self.held.retain(|_, idle| {
            idle.is_none_or(|since| now.duration_since(since) < REPLAY_PERMIT_IDLE_TIMEOUT)
        });
    }

    /// Hands free permits to the readers that have waited longest, and returns their wakers. The
    /// caller wakes them after it has released the lock.
    fn grant(&mut self, capacity: usize, now: Instant) -> Vec<Waker> {
        let mut granted = Vec::new();
        while self.held.len() < capacity
            && let Some((number, waker)) = self.waiting.pop_first()
        {
            self.held.insert(number, Some(now));
            granted.push(waker);
        }
        granted
    }

    /// Returns whether the reader of this number has a permit. Gives it a new number, at the end of
    /// the queue, if it neither has one nor waits.
    fn try_acquire(
        &mut self,
        number: &mut u64,
        capacity: usize,
        now: Instant,
        waker: &Waker,
    ) -> bool {
        if self.held.contains_key(number) {
            return true;
        }
        if let Some(queued_waker) = self.waiting.get_mut(number) {
            queued_waker.clone_from(waker);
            return false;
        }
        self.last_number += 1;
        *number = self.last_number;
        if self.held.len() < capacity {
            self.held.insert(*number, Some(now));
            return true;
        }
        self.waiting.insert(*number, waker.clone());
        false
    }
}

/// One reader's handle to the pool. Dropping it returns the permit, or leaves the queue.
#[derive(Debug)]
pub(crate) struct ReplayPermit {
    /// Assigned when the reader joins the queue, and again after its permit was reclaimed.
    number: u64,
    pool: Arc<ReplayPermits>,
}

impl ReplayPermit {
    /// Acquires a permit, or marks the one that the reader has as used just now.
    ///
    /// The waker is called when a permit is handed to this reader. A permit that another reader
    /// leaves idle is noticed only at a later poll of a waiting reader.
    pub(crate) fn poll_acquire(&mut self, context: &Context<'_>) -> Poll<()> {
        let (now, capacity) = (Instant::now(), self.pool.capacity);
        let mut queue = self.pool.queue();
        if let Some(idle) = queue.held.get_mut(&self.number) {
            *idle = Some(now);
            return Poll::Ready(());
        }
        let mut granted = Vec::new();
        if queue.held.len() >= capacity {
            queue.reclaim_idle(now);
            // Permits just reclaimed go to waiting readers before this one may take any.
            granted = queue.grant(capacity, now);
        }
        let is_acquired = queue.try_acquire(&mut self.number, capacity, now, context.waker());
        drop(queue);
        granted.into_iter().for_each(Waker::wake);
        if is_acquired { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Marks the permit as in use until the returned guard is dropped. A reader has one read under
    /// way at most.
    pub(crate) fn begin_use(&self) -> PermitInUse {
        self.pool.set_idle_since(self.number, None);
        PermitInUse { number: self.number, pool: Arc::clone(&self.pool) }
    }
}

impl Drop for ReplayPermit {
    fn drop(&mut self) {
        let mut queue = self.pool.queue();
        queue.held.remove(&self.number);
        queue.waiting.remove(&self.number);
        let granted = queue.grant(self.pool.capacity, Instant::now());
        drop(queue);
        granted.into_iter().for_each(Waker::wake);
    }
}

/// Guard of a read under way. It travels with the request, not with the reader, which may not look
/// at the answer for a long time.
#[derive(Debug)]
pub(crate) struct PermitInUse {
    number: u64,
    pool: Arc<ReplayPermits>,
}

impl Drop for PermitInUse {
    fn drop(&mut self) {
        self.pool.set_idle_since(self.number, Some(Instant::now()));
    }
}

/// Number of a reader that has not joined the queue yet; numbers begin at 1.
const NOT_QUEUED: u64 = 0;

/// Time for which a permit may be idle. A reader whose socket has stalled delays the queue by this
/// at most.
const REPLAY_PERMIT_IDLE_TIMEOUT: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering::SeqCst},
        task::Wake,
    };

    use super::*;

    #[derive(Default)]
    struct WakeCounter(AtomicUsize);

    impl Wake for WakeCounter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    fn acquires(permit: &mut ReplayPermit, wakes: &Arc<WakeCounter>) -> bool {
        let waker = Waker::from(Arc::clone(wakes));
        permit.poll_acquire(&Context::from_waker(&waker)).is_ready()
    }

    #[tokio::test(start_paused = true)]
    async fn readers_beyond_the_limit_wait_in_order_of_arrival() {
        let (pool, wakes) = (ReplayPermits::new(2), Arc::new(WakeCounter::default()));
        let mut permits: Vec<_> = (0..5).map(|_| pool.permit()).collect();
        let acquired_now = |permits: &mut [ReplayPermit]| {
            permits.iter_mut().map(|permit| acquires(permit, &wakes)).collect::<Vec<_>>()
        };
        assert_eq!(acquired_now(&mut permits), [true, true, false, false, false]);
        assert_eq!(acquired_now(&mut permits), [true, true, false, false, false]);
        drop(permits.remove(0));
        assert_eq!(wakes.0.load(SeqCst), 1, "the next reader is woken");
        assert!(!acquires(&mut permits[3], &wakes), "and no other reader gets ahead");
        assert_eq!(acquired_now(&mut permits), [true, true, false, false]);
        drop(permits.remove(2)); // a reader that leaves the queue delays no other
        drop(permits.remove(0));
        assert_eq!(acquired_now(&mut permits), [true, true]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_permit_is_reclaimed() {
        let (pool, wakes) = (ReplayPermits::new(1), Arc::new(WakeCounter::default()));
        let (mut stalled, mut other) = (pool.permit(), pool.permit());
        assert!(acquires(&mut stalled, &wakes) && !acquires(&mut other, &wakes));
        tokio::time::advance(REPLAY_PERMIT_IDLE_TIMEOUT / 2).await;
        assert!(acquires(&mut stalled, &wakes) && !acquires(&mut other, &wakes));
        tokio::time::advance(REPLAY_PERMIT_IDLE_TIMEOUT).await;
        assert!(acquires(&mut other, &wakes) && !acquires(&mut stalled, &wakes));
        drop(other);
        assert!(acquires(&mut stalled, &wakes));
    }
    #[tokio::test(start_paused = true)]
    async fn a_permit_is_not_lost_while_a_read_is_under_way() {
        let (pool, wakes) = (ReplayPermits::new(1), Arc::new(WakeCounter::default()));
        let (mut patient, mut other) = (pool.permit(), pool.permit());
        assert!(acquires(&mut patient, &wakes));
        let in_use = patient.begin_use();
        tokio::time::advance(REPLAY_PERMIT_IDLE_TIMEOUT * 40).await; // a slow disk
        assert!(!acquires(&mut other, &wakes));
        drop(in_use);
        tokio::time::advance(REPLAY_PERMIT_IDLE_TIMEOUT / 2).await;
        assert!(!acquires(&mut other, &wakes), "the idle time begins with the answer");
        assert!(acquires(&mut patient, &wakes), "and the reader may ask again");
        drop(patient.begin_use());
        // the reader does not look at the answer
        tokio::time::advance(REPLAY_PERMIT_IDLE_TIMEOUT).await;
        assert!(acquires(&mut other, &wakes));
        let in_use = other.begin_use();
        drop(other);
        drop(in_use);
        assert!(acquires(&mut patient, &wakes), "an answer without a reader takes no permit");
    }

    #[tokio::test(start_paused = true)]
    async fn a_permit_is_not_kept_for_a_waiting_reader_that_does_not_poll() {
        let (pool, wakes) = (ReplayPermits::new(1), Arc::new(WakeCounter::default()));
        let (mut first, mut stalled, mut last) = (pool.permit(), pool.permit(), pool.permit());
        assert!(
            acquires(&mut first, &wakes)
                && !acquires(&mut stalled, &wakes)
                && !acquires(&mut last, &wakes)
        );
        drop(first);
        assert_eq!(wakes.0.load(SeqCst), 1);
        assert!(!acquires(&mut last, &wakes), "the permit is the other reader's");
        tokio::time::advance(REPLAY_PERMIT_IDLE_TIMEOUT).await;
        assert!(acquires(&mut last, &wakes) && !acquires(&mut stalled, &wakes));
    }

    #[tokio::test(start_paused = true)]
    async fn twenty_thousand_waiting_readers_scan_little_more_than_one_does() {
        const CAPACITY: usize = 64;
        let (pool, wakes) = (ReplayPermits::new(CAPACITY), Arc::new(WakeCounter::default()));
        let mut permits: Vec<_> = (0..20_000).map(|_| pool.permit()).collect();
        for round in 0..10 {
            let acquired = permits
                .iter_mut()
                .filter_map(|permit| acquires(permit, &wakes).then_some(()))
                .count();
            assert_eq!(
                (acquired, pool.queue().visited),
                (CAPACITY, CAPACITY * (round + 1)),
                "one scan for all"
            );
            tokio::time::advance(REPLAY_PERMIT_IDLE_TIMEOUT / 4).await;
        }
        permits.drain(..CAPACITY);
        assert_eq!(wakes.0.load(SeqCst), CAPACITY, "no reader is woken in vain");
        assert!(permits[..CAPACITY].iter_mut().all(|permit| acquires(permit, &wakes)));
        permits.reverse(); // readers that leave the queue cost no more scans
        permits.truncate(CAPACITY);
        assert_eq!(pool.queue().waiting.len(), 0);
        assert_eq!(pool.queue().visited, CAPACITY * 10);
    }
}
