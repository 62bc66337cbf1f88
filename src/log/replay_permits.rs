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

/// The turns there are.
#[derive(Debug)]
pub(crate) struct ReplayPermits {
    capacity: usize,
    queue: Mutex<PermitQueue>,
}

#[derive(Debug, Default)]
struct PermitQueue {
    last_number: u64,
    /// Who has a turn, and since when it lies idle; none while a question is out.
    held: BTreeMap<u64, Option<Instant>>,
    /// Who waits, in the order they came.
    waiting: BTreeMap<u64, Waker>,
    /// When idle turns were last looked for.
    last_reclaim: Option<Instant>,
    /// Turns that were looked at.
    #[cfg(test)]
    visited: usize,
}

impl ReplayPermits {
    /// Turns for `capacity` readers at one time.
    pub(crate) fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self { capacity: capacity.max(1), queue: Mutex::default() })
    }

    /// A ticket for the queue; nobody stands in it yet.
    pub(crate) fn permit(self: &Arc<Self>) -> ReplayPermit {
        ReplayPermit { number: NOT_QUEUED, pool: Arc::clone(self) }
    }

    /// Notes since when the turn of this number lies idle, if there still is one.
    fn set_idle_since(&self, number: u64, idle: Option<Instant>) {
        if let Some(idle_since) = self.queue().held.get_mut(&number) {
            *idle_since = idle;
        }
    }

    fn queue(&self) -> MutexGuard<'_, PermitQueue> {
        // A queue is whole after every statement: a panic elsewhere does not spoil it.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PermitQueue {
    /// Takes back the turns that lie idle. Everybody who waits calls this every now and then: once
    /// in a while is enough.
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

    /// Gives the turns that are free to those who have waited longest, who are to be woken.
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

    /// Whether the ticket of this number, which gets a new one when it joins the queue, has a turn.
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

/// One reader's place among all; given up when dropped.
#[derive(Debug)]
pub(crate) struct ReplayPermit {
    /// Given when it joins the queue, and again when it has lost its turn.
    number: u64,
    pool: Arc<ReplayPermits>,
}

impl ReplayPermit {
    /// Waits for the turn, or keeps it.
    ///
    /// The waker is called when there is a turn for it. Turns that are merely not used any more
    /// show at the next call.
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
            granted = queue.grant(capacity, now);
        }
        let is_acquired = queue.try_acquire(&mut self.number, capacity, now, context.waker());
        drop(queue);
        granted.into_iter().for_each(Waker::wake);
        if is_acquired { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Notes that a question is put: until what is returned is dropped, the turn is in use. There
    /// is one at a time.
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

/// A question that is out. It goes with the question, not with the reader, who may not look for the
/// answer for a long time.
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

/// The number of whoever has not joined the queue yet.
const NOT_QUEUED: u64 = 0;

/// How long a turn may lie idle.
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
    async fn the_others_wait_in_the_order_they_came() {
        let (pool, wakes) = (ReplayPermits::new(2), Arc::new(WakeCounter::default()));
        let mut permits: Vec<_> = (0..5).map(|_| pool.permit()).collect();
        let acquired_now = |permits: &mut [ReplayPermit]| {
            permits.iter_mut().map(|permit| acquires(permit, &wakes)).collect::<Vec<_>>()
        };
        assert_eq!(acquired_now(&mut permits), [true, true, false, false, false]);
        assert_eq!(acquired_now(&mut permits), [true, true, false, false, false]);
        drop(permits.remove(0));
        assert_eq!(wakes.0.load(SeqCst), 1, "the next is told");
        assert!(!acquires(&mut permits[3], &wakes), "and nobody else gets ahead");
        assert_eq!(acquired_now(&mut permits), [true, true, false, false]);
        drop(permits.remove(2)); // who leaves the queue holds nobody up
        drop(permits.remove(0));
        assert_eq!(acquired_now(&mut permits), [true, true]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_use_its_permit_loses_it() {
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
        assert!(!acquires(&mut other, &wakes), "from the answer on, it has as long as ever");
        assert!(acquires(&mut patient, &wakes), "and may ask again");
        drop(patient.begin_use());
        tokio::time::advance(REPLAY_PERMIT_IDLE_TIMEOUT).await; // it does not look for the answer
        assert!(acquires(&mut other, &wakes));
        let in_use = other.begin_use();
        drop(other);
        drop(in_use);
        assert!(acquires(&mut patient, &wakes), "an answer that nobody waits for takes no turn");
    }

    #[tokio::test(start_paused = true)]
    async fn a_permit_is_not_kept_for_one_that_waits_but_does_not_come() {
        let (pool, wakes) = (ReplayPermits::new(1), Arc::new(WakeCounter::default()));
        let (mut first, mut stalled, mut last) = (pool.permit(), pool.permit(), pool.permit());
        assert!(
            acquires(&mut first, &wakes)
                && !acquires(&mut stalled, &wakes)
                && !acquires(&mut last, &wakes)
        );
        drop(first);
        assert_eq!(wakes.0.load(SeqCst), 1);
        assert!(!acquires(&mut last, &wakes), "it is the other's");
        tokio::time::advance(REPLAY_PERMIT_IDLE_TIMEOUT).await;
        assert!(acquires(&mut last, &wakes) && !acquires(&mut stalled, &wakes));
    }

    #[tokio::test(start_paused = true)]
    async fn twenty_thousand_that_wait_look_at_little_more_than_one_does() {
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
                "one look for all"
            );
            tokio::time::advance(REPLAY_PERMIT_IDLE_TIMEOUT / 4).await;
        }
        permits.drain(..CAPACITY);
        assert_eq!(wakes.0.load(SeqCst), CAPACITY, "nobody is woken for nothing");
        assert!(permits[..CAPACITY].iter_mut().all(|permit| acquires(permit, &wakes)));
        permits.reverse(); // those who leave the queue cost it no more
        permits.truncate(CAPACITY);
        assert_eq!(pool.queue().waiting.len(), 0);
        assert_eq!(pool.queue().visited, CAPACITY * 10);
    }
}
