//! Shard scheduler: the task that polls a shard's subscribers and delivers events to them.
//!
//! ```text
//! events ───► ProductGroup: which slots? ─► delivery queue ─► deliver to 7, 12, 31
//! woken ────► slots ──────────────────────► run queue ──────► poll 7, 40
//! ```
//!
//! A turn is bounded: 32 subscribers or 512 KiB from each of the two queues, and 4096 entries that
//! polled subscribers look at in the log and may not see. The scheduler then
//! yields, so that the product's ingest and fan-out on the same thread get their turn.
//!
//! May use: `subscriber`, `timer_wheel`.

mod collect;
#[cfg(test)]
pub(super) mod testing;

use std::{
    collections::VecDeque,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, Waker},
    time::Duration,
};

use slab::Slab;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::{
    DeliveryOutcome,
    mailbox::{MovedSubscriber, ShardArrival, ShardMailbox},
    product_group::ProductGroup,
    slot::SubscriberSlot,
    spread::{ShardSpread, SpreadPlan},
};
use crate::{
    subscriber::WriteScratch,
    timer_wheel::{Alarm, Deadline, TimerWheel},
};

/// Runs one shard until `shutdown`, then until its subscribers have ended or
/// [`SHARD_SHUTDOWN_GRACE`] has passed.
pub(super) async fn run(
    mailbox: Arc<ShardMailbox>,
    mut spread: ShardSpread,
    write_timeout: Duration,
    wheel: Arc<TimerWheel>,
    shutdown: CancellationToken,
) {
    let mut scheduler = ShardScheduler::new(&mailbox, write_timeout, &wheel);
    let run_until_shutdown = poll_fn(|context| {
        scheduler.run_turn(context);
        if let Some(plan) = spread.plan(&mailbox, &wheel) {
            scheduler.give_away(plan);
        }
        Poll::<()>::Pending
    });
    shutdown.run_until_cancelled(run_until_shutdown).await;
    // Under the mailbox's lock, as is the check in `push`: a subscriber is either in `pending`
    // before this line, and found by the next turn, or returned to its caller.
    mailbox.inbox().is_closed = true;
    let run_until_empty = poll_fn(|context| {
        scheduler.run_turn(context);
        if scheduler.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    });
    // Dropping the scheduler closes the sockets that still have unwritten bytes.
    let _ = timeout(SHARD_SHUTDOWN_GRACE, run_until_empty).await;
}

/// Subscribers, product groups and queues of one shard; owned by the shard's task.
pub(super) struct ShardScheduler {
    mailbox: Arc<ShardMailbox>,
    slots: Slab<SubscriberSlot>,
    /// Keys of the slots to poll.
    run_queue: VecDeque<usize>,
    /// Subscribers to attach.
    pending: VecDeque<ShardArrival>,
    groups: Slab<ProductGroup>,
    /// Keys of the groups that have a batch in delivery or a signal pending.
    delivery_queue: VecDeque<usize>,
    /// Swapped with the lists in the mailbox, so that neither is allocated anew.
    woken: Vec<usize>,
    groups_with_events: Vec<usize>,
    scratch: WriteScratch,
    liveness_alarm: Alarm,
    liveness_due: Deadline,
}

impl ShardScheduler {
    /// Returns a scheduler without subscribers.
    pub(super) fn new(
        mailbox: &Arc<ShardMailbox>,
        write_timeout: Duration,
        wheel: &Arc<TimerWheel>,
    ) -> Self {
        Self {
            mailbox: Arc::clone(mailbox),
            slots: Slab::new(),
            run_queue: VecDeque::new(),
            pending: VecDeque::new(),
            groups: Slab::new(),
            delivery_queue: VecDeque::new(),
            woken: Vec::new(),
            groups_with_events: Vec::new(),
            scratch: WriteScratch::new(write_timeout),
            liveness_alarm: Alarm::new(wheel),
            liveness_due: Deadline::at_tick(0),
        }
    }

    /// Returns whether no subscriber is attached or about to be.
    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty() && self.pending.is_empty()
    }

    /// Runs one bounded turn. `context` is woken when there is more to do.
    pub(super) fn run_turn(&mut self, context: &Context<'_>) {
        // Before the lists are taken: a wake-up in between finds this turn's waker.
        self.mailbox.waker.register(context.waker());
        self.record_liveness(context);
        // Events first, wake-ups after them: a disconnect that was requested before an event was
        // queued is then among the wake-ups, and `deliver_group` polls such a subscriber instead
        // of delivering to it.
        self.collect_events();
        let has_more = self.collect_wakeups();
        // Each half has a budget of its own: catching up must not delay live events, nor the
        // reverse.
        self.scratch.written_bytes = 0;
        self.poll_ready();
        self.scratch.written_bytes = 0;
        self.deliver_queued();
        if has_more || !self.run_queue.is_empty() || !self.delivery_queue.is_empty() {
            context.waker().wake_by_ref();
        }
    }

    /// Stores the current tick once a second, as the shard's sign of life for `/healthz`.
    fn record_liveness(&mut self, context: &Context<'_>) {
        let wheel = self.liveness_alarm.wheel();
        if self.liveness_due.is_over(wheel) {
            // Relaxed: the health check reads this value alone.
            self.mailbox.last_turn_tick.store(wheel.current_tick(), Ordering::Relaxed);
            self.liveness_due = wheel.deadline_after(LIVENESS_INTERVAL);
            self.liveness_alarm.set(self.liveness_due, context.waker());
        }
    }

    /// Polls slots of the run queue, within the bounds of a turn.
    fn poll_ready(&mut self) {
        let mut skipped: u32 = 0;
        for _ in 0..MAX_SUBSCRIBERS_PER_TURN {
            if self.scratch.written_bytes > MAX_BYTES_PER_TURN || skipped > MAX_SKIPPED_PER_TURN {
                return;
            }
            let Some(key) = self.run_queue.pop_front() else { return };
            let Some(slot) = self.slots.get_mut(key) else { continue };
            // Before the poll: a wake-up of the subscriber by itself schedules it again.
            slot.is_in_run_queue = false;
            if let Some(group) = self.groups.get_mut(slot.group) {
                slot.subscription().advance_to(group.advance_delivered_through());
            }
            let skipped_before = slot.subscription().skipped();
            let waker = Waker::from(Arc::clone(&slot.waker));
            let mut context = Context::from_waker(&waker);
            let group = self.groups.get_mut(slot.group);
            let poll = || {
                let polled = slot.wake().poll(&mut context, &mut self.scratch);
                let rescope = slot.wake().take_requested_scope().zip(group);
                let has_rescoped = rescope.is_some();
                if let Some((scope, group)) = rescope {
                    // The batch was selected by the old scope; the log has its events.
                    slot.first_event = None;
                    group.change_scope(key, slot.subscription(), scope);
                }
                (polled.is_ready(), has_rescoped)
            };
            let polled = catch_panic(poll);
            let skipped_now = slot.subscription().skipped();
            skipped = skipped.saturating_add(skipped_now.wrapping_sub(skipped_before));
            match polled {
                Some((false, false)) if !slot.is_in_run_queue => slot.rest(),
                Some((false, false)) => {}
                Some((false, true)) => slot.schedule(key, &mut self.run_queue),
                Some((true, _)) => self.remove(key),
                None => {
                    slot.mark_panicked();
                    self.remove(key);
                }
            }
        }
    }

    /// Delivers the batches of the delivery queue, within the bounds of a turn.
    fn deliver_queued(&mut self) {
        let mut budget = MAX_SUBSCRIBERS_PER_TURN;
        while budget > 0
            && let Some(key) = self.delivery_queue.pop_front()
        {
            budget = self.deliver_group(key, budget);
            let Some(group) = self.groups.get_mut(key) else { continue };
            group.metrics.flush();
            let is_done = group.finish_batch();
            group.is_in_delivery_queue = group.has_queued_events || !is_done;
            if group.is_in_delivery_queue {
                self.delivery_queue.push_back(key); // the other products first
                if budget > 0 && is_done {
                    // A signal is pending and the batch is done: the next turn takes the events.
                    // Going on here would visit the same group for ever.
                    return;
                }
            }
        }
    }

    /// Delivers one group's batch to at most `budget` recipients and returns the unused budget.
    fn deliver_group(&mut self, key: usize, budget: usize) -> usize {
        let tick = Deadline::at_tick(self.liveness_alarm.wheel().current_tick());
        for remaining in (0..budget).rev() {
            if self.scratch.written_bytes > MAX_BYTES_PER_TURN {
                return 0;
            }
            let Some(group) = self.groups.get_mut(key) else { return remaining };
            let Some(recipient) = group.recipients.pop_front() else { return remaining };
            // A removed subscriber's key may belong to a new one by now, even of another product.
            let slot = self.slots.get_mut(recipient).filter(|slot| slot.group == key);
            let Some(slot) = slot else { continue };
            let Some(first) = slot.first_event.take() else { continue };
            let (queued, metrics) = group.queued_from(first);
            // A scheduled subscriber has a wake-up to handle first, which may be a disconnect.
            let deliver = || match slot.is_in_run_queue {
                true => slot.wake().parts().fall_back_to_log(queued.first_position()),
                false => slot.deliver(queued, &mut self.scratch, metrics, tick),
            };
            match catch_panic(deliver) {
                Some(DeliveryOutcome::Handled) => {}
                Some(DeliveryOutcome::NeedsPoll) => slot.schedule(recipient, &mut self.run_queue),
                Some(DeliveryOutcome::Ended) => self.remove(recipient),
                None => {
                    slot.mark_panicked();
                    self.remove(recipient);
                }
            }
        }
        0
    }

    /// Removes a subscriber, and its group if it was the last there.
    fn remove(&mut self, key: usize) {
        // A subscriber that failed or panicked may have left buffers of its own in there, which
        // would be written to the next subscriber's socket.
        self.scratch.batch.clear();
        drop(self.take_out(key));
    }

    /// Takes a subscriber out of its slot and its group, and removes the group if it was the last
    /// there.
    fn take_out(&mut self, key: usize) -> Option<SubscriberSlot> {
        let mut slot = self.slots.try_remove(key)?;
        self.mailbox.load.fetch_sub(1, Ordering::Relaxed);
        if let Some(group) = self.groups.get_mut(slot.group)
            && group.leave(key, slot.subscription().scope())
        {
            self.groups.try_remove(slot.group);
        }
        Some(slot)
    }

    /// Gives subscribers of everything that have nothing to do to another shard. Looks at no more
    /// slots than a turn may deliver to.
    fn give_away(&mut self, plan: &mut SpreadPlan) {
        for _ in 0..MAX_SUBSCRIBERS_PER_TURN {
            let key = plan.next_slot;
            if plan.remaining == 0 || key >= self.slots.capacity() {
                return plan.remaining = 0;
            }
            plan.next_slot += 1;
            // Not by waking it: a subscriber that stays goes on resting.
            let is_movable = self.slots.get_mut(key).is_some_and(SubscriberSlot::is_movable);
            let Some(slot) = (if is_movable { self.take_out(key) } else { None }) else { continue };
            let (subscriber, waker) = slot.into_parts();
            plan.remaining -= 1;
            // Returned by a shard that is ending: this one ends as well, and lets it finish here.
            if let Some(returned) = plan.target.push_moved(MovedSubscriber { subscriber, waker }) {
                self.mailbox.load.fetch_add(1, Ordering::Relaxed);
                self.attach(ShardArrival::Moved(returned));
            }
        }
    }
}

/// Runs the work of one subscriber and returns `None` if it panicked.
///
/// A panic ends that subscriber, whose client reconnects, and no other. `AssertUnwindSafe` holds
/// because the caller removes the subscriber, and [`ShardScheduler::remove`] clears the scratch.
fn catch_panic<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work))
        .inspect_err(|_| {
            error!("a subscriber was cut off: its work panicked; please report the panic above");
        })
        .ok()
}

/// Subscribers polled, and subscribers delivered to, in one turn: other tasks of the thread wait
/// for twice as many at most.
const MAX_SUBSCRIBERS_PER_TURN: usize = 32;

/// Bytes written after which a half of a turn is over: 16 full write batches.
const MAX_BYTES_PER_TURN: usize = 512 * 1024;

/// Entries that the subscribers of one turn look at in vain: some hundred microseconds. A poll that
/// began before may pass it.
const MAX_SKIPPED_PER_TURN: u32 = 4096;

/// Interval between two signs of life; `/healthz` reports a shard that is silent for 30 s.
const LIVENESS_INTERVAL: Duration = Duration::from_secs(1);

/// Time for subscribers to finish their writes once the shards are stopped.
///
/// Subscribers got a disconnect reason in the drain window before; this covers the last writes.
const SHARD_SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_in_one_subscribers_work_is_caught() {
        assert_eq!(catch_panic(|| 7), Some(7));
        assert_eq!(catch_panic(|| panic!("a mistake")), None::<u8>);
    }
}
