//! Spread: a busy shard gives subscribers to a shard that is not.
//!
//! The subscribers of a product begin on its home shard, where an event wakes one thread, whose
//! caches hold it. That is the cheapest place for as long as one thread has the time.
//!
//! May use: `timer_wheel`.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{runtime::RuntimeMetrics, time::Instant};

use super::mailbox::ShardMailbox;
use crate::timer_wheel::TimerWheel;

/// Measures how busy one shard's thread is, and decides what it gives away.
#[derive(Debug)]
pub(super) struct ShardSpread {
    mailboxes: Box<[Arc<ShardMailbox>]>,
    thread: RuntimeMetrics,
    measured_at: Instant,
    busy_before: Duration,
    next_tick: u64,
    plan: Option<SpreadPlan>,
}

/// Subscribers that a shard is to give to another one.
#[derive(Debug)]
pub(super) struct SpreadPlan {
    pub(super) target: Arc<ShardMailbox>,
    /// Subscribers still to be given; 0 once the plan is done.
    pub(super) remaining: usize,
    /// Slot to look at next.
    pub(super) next_slot: usize,
}

impl ShardSpread {
    /// Returns the spread of a shard whose runtime has these metrics.
    pub(super) fn new(mailboxes: &[Arc<ShardMailbox>], thread: RuntimeMetrics) -> Self {
        Self {
            mailboxes: mailboxes.into(),
            busy_before: thread.worker_total_busy_duration(0),
            thread,
            measured_at: Instant::now(),
            next_tick: 0,
            plan: None,
        }
    }

    /// Returns what is left to give away. Measures anew every [`MEASURE_TICKS`]; a shard that has
    /// no turn in that time is not busy.
    pub(super) fn plan(
        &mut self,
        own: &Arc<ShardMailbox>,
        wheel: &TimerWheel,
    ) -> Option<&mut SpreadPlan> {
        let tick = wheel.current_tick();
        if tick >= self.next_tick {
            self.next_tick = tick + MEASURE_TICKS;
            self.measure(own);
        }
        self.plan.as_mut().filter(|plan| plan.remaining > 0)
    }

    fn measure(&mut self, own: &Arc<ShardMailbox>) {
        let now = Instant::now();
        let busy = self.thread.worker_total_busy_duration(0);
        let share = busy_permille(
            busy.saturating_sub(self.busy_before),
            now.saturating_duration_since(self.measured_at),
        );
        (self.measured_at, self.busy_before) = (now, busy);
        // Relaxed, like the reads: an estimate, through which no other memory is read.
        own.busy_permille.store(share, Ordering::Relaxed);
        self.plan = SpreadPlan::for_shard(own, &self.mailboxes);
    }
}

impl SpreadPlan {
    /// Returns a plan if `own` is busy, and the shard with the least work has half of its work at
    /// most: as many subscribers as make half of the difference in work.
    ///
    /// The work is booked to the target at once. So neither the next look, before the target has
    /// measured itself, nor another busy shard gives it the same work again.
    fn for_shard(own: &Arc<ShardMailbox>, mailboxes: &[Arc<ShardMailbox>]) -> Option<Self> {
        if !own.is_busy() {
            return None;
        }
        let work_of = |mailbox: &Arc<ShardMailbox>| mailbox.busy_permille.load(Ordering::Relaxed);
        let others = mailboxes.iter().filter(|it| !Arc::ptr_eq(it, own));
        let target = others.min_by_key(|it| work_of(it))?;
        let (own_work, target_work) = (work_of(own), work_of(target));
        if target_work > own_work / 2 {
            return None;
        }
        let given_work = (own_work - target_work) / 2;
        target.busy_permille.fetch_add(given_work, Ordering::Relaxed);
        // Both are thousandths, so the share is below a half.
        let load = own.load.load(Ordering::Relaxed);
        let remaining = load * given_work as usize / own_work as usize;
        Some(Self { target: Arc::clone(target), remaining, next_slot: 0 })
    }
}

/// Returns the busy part of `elapsed` in thousandths.
fn busy_permille(busy: Duration, elapsed: Duration) -> u32 {
    let share = busy.as_nanos() * 1000 / elapsed.as_nanos().max(1);
    u32::try_from(share).map_or(1000, |share| share.min(1000))
}

/// Ticks between two looks at how busy the thread was: 300 ms. Until then a crowd that is too much
/// for one thread has waited.
const MEASURE_TICKS: u64 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns shards that are busy for so many thousandths, with a thousand subscribers each.
    fn shards(busy: &[u32]) -> Vec<Arc<ShardMailbox>> {
        let numbered = busy.iter().enumerate();
        let mailbox = |(shard, busy): (usize, &u32)| {
            let mailbox = ShardMailbox::new(shard);
            mailbox.busy_permille.store(*busy, Ordering::Relaxed);
            mailbox.load.store(1000, Ordering::Relaxed);
            Arc::new(mailbox)
        };
        numbered.map(mailbox).collect()
    }

    /// Returns how many subscribers a shard gives to which.
    fn given_by(own: usize, shards: &[Arc<ShardMailbox>]) -> Option<(usize, usize)> {
        let plan = SpreadPlan::for_shard(&shards[own], shards)?;
        Some((plan.remaining, plan.target.shard))
    }

    #[test]
    fn a_busy_shard_gives_half_of_the_difference_in_work_to_the_shard_with_the_least() {
        assert_eq!(given_by(0, &shards(&[900, 300, 100])), Some((444, 2)));
        assert_eq!(given_by(1, &shards(&[0, 1000])), Some((500, 0)));
    }

    #[test]
    fn a_shard_keeps_its_subscribers_while_it_has_time_or_the_others_have_not() {
        assert_eq!(given_by(0, &shards(&[500, 0])), None, "half busy is not busy");
        assert_eq!(given_by(0, &shards(&[900, 460])), None, "it would be given back");
        assert_eq!(given_by(0, &shards(&[900])), None, "there is no other shard");
    }

    #[test]
    fn a_shard_gets_no_work_twice_before_it_has_measured_itself() {
        let shards = shards(&[1000, 1000, 1000, 0]);
        assert_eq!(given_by(0, &shards), Some((500, 3)));
        assert_eq!(given_by(1, &shards), Some((250, 3)));
        assert_eq!([given_by(0, &shards), given_by(2, &shards)], [None, None]);
    }

    #[test]
    fn the_share_of_the_time_is_bounded() {
        let ms = Duration::from_millis;
        assert_eq!(busy_permille(ms(150), ms(300)), 500);
        assert_eq!(busy_permille(ms(301), ms(300)), 1000);
        assert_eq!(busy_permille(ms(1), Duration::ZERO), 1000);
    }
}
