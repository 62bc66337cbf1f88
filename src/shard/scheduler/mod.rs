//! The task of a lane that writes to its subscribers.
//!
//! ```text
//! fan-out ─ an event has arrived ──────────────► flock: who is concerned? ─► give it to 7, 12, 31
//! wheel, socket, a word to leave ─ rings a bell ► due: [ 7, 40 ] ──────────► poll 7, 40
//! ```
//!
//! May use: `event`, `net` (the socket), `wheel`.

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
    DeliveryOutcome, ShardSubscriber, WriteScratch,
    mailbox::{PendingSubscriber, ShardMailbox, SubscriberWaker},
    product_group::ProductGroup,
};
use crate::timer_wheel::{Alarm, TimerWheel};

/// Runs one shard.
pub(super) async fn run(
    mailbox: Arc<ShardMailbox>,
    write_timeout: Duration,
    wheel: Arc<TimerWheel>,
    shutdown: CancellationToken,
) {
    let mut scheduler = ShardScheduler::new(&mailbox, write_timeout, &wheel);
    let run_until_shutdown = poll_fn(|context| {
        scheduler.run_turn(context);
        Poll::<()>::Pending
    });
    shutdown.run_until_cancelled(run_until_shutdown).await;
    mailbox.inbox().is_closed = true;
    let run_until_empty = poll_fn(|context| {
        scheduler.run_turn(context);
        if scheduler.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    });
    // Whoever takes nothing now is cut off.
    let _ = timeout(SHARD_SHUTDOWN_GRACE, run_until_empty).await;
}

/// The subscribers of one shard, in the hands of its task.
pub(super) struct ShardScheduler {
    mailbox: Arc<ShardMailbox>,
    slots: Slab<SubscriberSlot>,
    /// Those that are to be polled.
    run_queue: VecDeque<usize>,
    /// Those who are to be let in.
    pending: VecDeque<PendingSubscriber>,
    groups: Slab<ProductGroup>,
    /// Flocks that have something to give.
    delivery_queue: VecDeque<usize>,
    /// Change places with the lists in the inbox, so that none is ever allocated anew.
    woken: Vec<usize>,
    signaled: Vec<usize>,
    scratch: WriteScratch,
    liveness_alarm: Alarm,
    liveness_due: u64,
}

struct SubscriberSlot {
    subscriber: Box<dyn ShardSubscriber>,
    group: usize,
    /// The first of its flock's arrivals that is for it, if it is concerned.
    first_event: Option<usize>,
    is_queued: bool,
    waker: Arc<SubscriberWaker>,
}

impl ShardScheduler {
    /// Nobody yet.
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
            signaled: Vec::new(),
            scratch: WriteScratch { batch: VecDeque::new(), written_bytes: 0, write_timeout },
            liveness_alarm: Alarm::new(wheel),
            liveness_due: 0,
        }
    }

    /// Whether nobody is here.
    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty() && self.pending.is_empty()
    }

    /// Does some of what there is to do. `context` is woken when there is more.
    pub(super) fn run_turn(&mut self, context: &Context<'_>) {
        self.mailbox.waker.register(context.waker());
        self.record_liveness(context);
        // In this order: who has been told to leave before an event came does not get it.
        self.collect_events();
        let has_more = self.collect_wakeups();
        self.scratch.written_bytes = 0;
        self.poll_ready();
        self.scratch.written_bytes = 0;
        self.deliver_queued();
        if has_more || !self.run_queue.is_empty() || !self.delivery_queue.is_empty() {
            context.waker().wake_by_ref();
        }
    }

    /// Shows once a second that the lane is alive.
    fn record_liveness(&mut self, context: &Context<'_>) {
        let now = self.liveness_alarm.wheel().current_tick();
        if now >= self.liveness_due {
            self.mailbox.last_turn_tick.store(now, Ordering::Relaxed);
            self.liveness_due = self.liveness_alarm.wheel().tick_after(LIVENESS_INTERVAL);
            self.liveness_alarm.set(self.liveness_due, context.waker());
        }
    }

    /// Has some of those that are due do their work.
    fn poll_ready(&mut self) {
        for _ in 0..MAX_SUBSCRIBERS_PER_TURN {
            if self.scratch.written_bytes > MAX_BYTES_PER_TURN {
                return;
            }
            let Some(key) = self.run_queue.pop_front() else { return };
            let Some(slot) = self.slots.get_mut(key) else { continue };
            slot.is_queued = false;
            if let Some(group) = self.groups.get_mut(slot.group) {
                slot.subscriber.subscription().advance_to(group.advance_delivered_through());
            }
            let waker = Waker::from(Arc::clone(&slot.waker));
            let mut context = Context::from_waker(&waker);
            let group = self.groups.get_mut(slot.group);
            let poll = || {
                let polled = slot.subscriber.poll(&mut context, &mut self.scratch);
                let rescope = slot.subscriber.take_requested_scope().zip(group);
                let has_rescoped = rescope.is_some();
                if let Some((scope, group)) = rescope {
                    group.change_scope(key, slot.subscriber.subscription(), scope);
                }
                (polled.is_ready(), has_rescoped)
            };
            match catch_panic(poll) {
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

    /// Gives some of those who are concerned what has arrived.
    fn deliver_queued(&mut self) {
        let mut budget = MAX_SUBSCRIBERS_PER_TURN;
        while budget > 0
            && let Some(key) = self.delivery_queue.pop_front()
        {
            budget = self.deliver_group(key, budget);
            let Some(group) = self.groups.get_mut(key) else { continue };
            group.metrics.flush();
            let is_done = group.finish_batch();
            group.is_queued = group.is_signaled || !is_done;
            if group.is_queued {
                self.delivery_queue.push_back(key); // the other products have their turn
                if budget > 0 && is_done {
                    return; // it is called: what has arrived is looked for at the next turn
                }
            }
        }
    }

    /// Gives what has arrived for one flock to so many, and returns how many of these were not there.
    fn deliver_group(&mut self, key: usize, budget: usize) -> usize {
        for remaining in (0..budget).rev() {
            if self.scratch.written_bytes > MAX_BYTES_PER_TURN {
                return 0;
            }
            let Some(group) = self.groups.get_mut(key) else { return remaining };
            let Some(recipient) = group.recipients.pop_front() else { return remaining };
            // Under the number of one that has gone may be another one, even of another product.
            let slot = self.slots.get_mut(recipient).filter(|slot| slot.group == key);
            let Some(slot) = slot else { continue };
            let Some(first) = slot.first_event.take() else { continue };
            let (queued, metrics) = group.queued_from(first);
            let deliver = || match slot.is_queued {
                true => slot.subscriber.fall_back_to_log(queued.first_position()),
                false => slot.subscriber.deliver(queued, &mut self.scratch, metrics),
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

    fn remove(&mut self, key: usize) {
        self.scratch.batch.clear();
        self.mailbox.load.fetch_sub(1, Ordering::Relaxed);
        let Some(mut slot) = self.slots.try_remove(key) else { return };
        let Some(group) = self.groups.get_mut(slot.group) else { return };
        if group.leave(key, slot.subscriber.subscription().scope()) {
            self.groups.try_remove(slot.group);
        }
    }
}

impl SubscriberSlot {
    fn schedule(&mut self, key: usize, run_queue: &mut VecDeque<usize>) {
        if !std::mem::replace(&mut self.is_queued, true) {
            run_queue.push_back(key);
        }
    }

    /// Its work has panicked: it ends.
    fn mark_panicked(&mut self) {
        self.subscriber.mark_panicked();
    }
}

/// Does the work of one subscriber. A mistake in it ends that one, whose client comes back, and no other.
fn catch_panic<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work))
        .inspect_err(|_| {
            error!("a subscriber was cut off: its work panicked; please report the panic above")
        })
        .ok()
}

/// Subscribers in one turn: what else the thread has to do waits for no more than twice as many.
const MAX_SUBSCRIBERS_PER_TURN: usize = 32;

/// Bytes written after which a turn is over.
const MAX_BYTES_PER_TURN: usize = 512 * 1024;

/// Between two signs of life.
const LIVENESS_INTERVAL: Duration = Duration::from_secs(1);

/// What they may take to end once the relay does.
const SHARD_SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_mistake_in_the_work_of_one_stream_is_told_and_no_others() {
        assert_eq!(catch_panic(|| 7), Some(7));
        assert_eq!(catch_panic(|| panic!("a mistake")), None::<u8>);
    }
}
