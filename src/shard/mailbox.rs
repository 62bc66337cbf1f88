//! Mailbox of one shard: new subscribers and wake-ups from any thread.
//!
//! A task per subscriber would cost a wake-up, a queue entry and a scheduling turn for every
//! delivery. Here an event wakes the shard's task once, and the task visits the subscribers that
//! the event concerns.
//!
//! ```text
//! ShardPlacement ─ new subscriber ────────────────────┐
//! another shard ── moved subscriber ──────────────────┴─► pending: [ … ]   ─┐
//! wheel, socket, admission ─ SubscriberWaker ───────────► woken: [ 7, 31 ] ─┼─► task of the shard
//! fan-out ─ GroupWaker, once until events are taken ────► with events: [ 0 ] ┘
//! ```
//!
//! The lists need no bound of their own. A subscriber is in `woken` once (once more when it was
//! removed or has just moved), a group in `groups_with_events` once per batch, and admission limits
//! the subscribers.
//!
//! May use: `net`.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    task::Wake,
};

use atomic_waker::AtomicWaker;
use parking_lot::{Mutex, MutexGuard};

use super::ShardSubscriber;
use crate::net::{AcceptedSocket, ConnectionPermit};

/// Mailbox of one shard's task.
#[derive(Debug)]
pub(super) struct ShardMailbox {
    pub(super) shard: usize,
    inbox: Mutex<MailboxContents>,
    pub(super) waker: AtomicWaker,
    /// Subscribers on the shard and in `pending`.
    pub(super) load: AtomicUsize,
    /// Tick of the wheel at the task's last sign of life.
    pub(super) last_turn_tick: AtomicU64,
    /// Time that the shard's thread was busy at the last look, in thousandths of all time.
    pub(super) busy_permille: AtomicU32,
}

/// Lists that the task takes at its next turn.
#[derive(Debug, Default)]
pub(super) struct MailboxContents {
    pub(super) pending: Vec<ShardArrival>,
    /// Slot keys of woken subscribers.
    pub(super) woken: Vec<usize>,
    /// Keys of the product groups for which events are queued.
    pub(super) groups_with_events: Vec<usize>,
    /// Set once the shard accepts no more subscribers.
    pub(super) is_closed: bool,
}

/// A subscriber that a shard has to attach.
#[derive(Debug)]
pub(super) enum ShardArrival {
    /// A new one.
    New(PendingSubscriber),
    /// One that another shard has given away.
    Moved(MovedSubscriber),
}

/// A subscriber on its way from one shard to another. Its waker goes along: sockets, deadlines and
/// admission keep it.
pub(super) struct MovedSubscriber {
    pub(super) subscriber: Box<dyn ShardSubscriber>,
    pub(super) waker: Arc<SubscriberWaker>,
}

impl fmt::Debug for MovedSubscriber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("MovedSubscriber").finish_non_exhaustive()
    }
}

/// A subscriber on its way to its shard.
pub(crate) struct PendingSubscriber {
    pub(super) socket: std::net::TcpStream,
    pub(super) permit: ConnectionPermit,
    pub(super) factory: SubscriberFactory,
}

/// Builds a subscriber around its socket, once the socket is registered with the shard's runtime.
pub(crate) type SubscriberFactory =
    Box<dyn FnOnce(AcceptedSocket) -> Box<dyn ShardSubscriber> + Send>;

#[cfg(test)]
impl PendingSubscriber {
    /// Returns a subscriber that a test attaches itself.
    pub(crate) fn new(
        socket: std::net::TcpStream,
        permit: ConnectionPermit,
        factory: SubscriberFactory,
    ) -> Self {
        Self { socket, permit, factory }
    }
}

impl fmt::Debug for PendingSubscriber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PendingSubscriber")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

impl ShardMailbox {
    pub(super) fn new(shard: usize) -> Self {
        Self {
            shard,
            inbox: Mutex::default(),
            waker: AtomicWaker::new(),
            load: AtomicUsize::new(0),
            last_turn_tick: AtomicU64::new(0),
            busy_permille: AtomicU32::new(0),
        }
    }

    /// Adds a new subscriber, or returns it if the shard has closed its mailbox.
    pub(super) fn push(&self, subscriber: PendingSubscriber) -> Option<PendingSubscriber> {
        self.push_arrival(subscriber, ShardArrival::New)
    }

    /// Adds a subscriber of another shard, or returns it if the shard has closed its mailbox.
    pub(super) fn push_moved(&self, subscriber: MovedSubscriber) -> Option<MovedSubscriber> {
        self.push_arrival(subscriber, ShardArrival::Moved)
    }

    fn push_arrival<T>(&self, subscriber: T, arrival: fn(T) -> ShardArrival) -> Option<T> {
        let mut subscriber = Some(subscriber);
        self.post(|inbox| {
            if !inbox.is_closed {
                // Relaxed: an estimate, see `ShardPlacement::take`.
                self.load.fetch_add(1, Ordering::Relaxed);
                inbox.pending.extend(subscriber.take().map(arrival));
            }
        });
        subscriber
    }

    /// Changes the lists, and wakes the task if they were empty.
    ///
    /// One wake-up is enough: the task registers its waker before it takes the lists under the same
    /// lock, and at the end of a turn wakes itself if a list has been filled meanwhile.
    fn post(&self, change: impl FnOnce(&mut MailboxContents)) {
        let mut inbox = self.inbox();
        let was_empty = inbox.is_empty();
        change(&mut inbox);
        let is_first = was_empty && !inbox.is_empty();
        // Unlocked first: the woken thread takes the same lock at once.
        drop(inbox);
        if is_first {
            self.waker.wake();
        }
    }

    /// Returns whether the shard's thread was busy for more than half of the time at the last look.
    pub(super) fn is_busy(&self) -> bool {
        // Relaxed: an estimate, from which no other memory is read.
        self.busy_permille.load(Ordering::Relaxed) > BUSY_PERMILLE
    }

    pub(super) fn inbox(&self) -> MutexGuard<'_, MailboxContents> {
        self.inbox.lock()
    }
}

/// Share of the time that a shard's thread may be busy, in thousandths, before it gives subscribers
/// away.
const BUSY_PERMILLE: u32 = 500;

impl MailboxContents {
    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.woken.is_empty() && self.groups_with_events.is_empty()
    }
}

/// Waker of one subscriber: adds its slot key to the mailbox of its shard.
#[derive(Debug)]
pub(super) struct SubscriberWaker {
    /// Changes when the subscriber moves to another shard.
    target: Mutex<WakeTarget>,
    /// Whether the key is in the mailbox.
    pub(super) is_in_mailbox: AtomicBool,
}

/// Bytes of a waker.
#[cfg(test)]
pub(crate) const SUBSCRIBER_WAKER_BYTES: usize = size_of::<SubscriberWaker>();

/// Place of a subscriber.
#[derive(Debug)]
struct WakeTarget {
    mailbox: Arc<ShardMailbox>,
    /// Slot key of the subscriber. After its removal the key may belong to another subscriber,
    /// which then is polled once for nothing.
    key: usize,
}

impl SubscriberWaker {
    /// Returns the waker of the subscriber in slot `key`.
    pub(super) fn new(mailbox: &Arc<ShardMailbox>, key: usize) -> Arc<Self> {
        let target = Mutex::new(WakeTarget { mailbox: Arc::clone(mailbox), key });
        Arc::new(Self { target, is_in_mailbox: AtomicBool::new(false) })
    }

    /// Has later wake-ups go to another slot, whose subscriber the caller then polls: a wake-up in
    /// between may have gone to the former one.
    pub(super) fn move_to(&self, mailbox: &Arc<ShardMailbox>, key: usize) {
        *self.target.lock() = WakeTarget { mailbox: Arc::clone(mailbox), key };
        // After the target: a wake-up that finds `false` from here on goes to the new slot.
        self.is_in_mailbox.store(false, Ordering::SeqCst);
    }
}

impl Wake for SubscriberWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // SeqCst, as is the task's `store(false)`: that store must come before the reads of the
        // poll that follows it, and Release does not order a store before a later load. A wake-up
        // that finds `true` here is therefore seen by the poll that is still to come.
        if !self.is_in_mailbox.swap(true, Ordering::SeqCst) {
            let target = self.target.lock();
            target.mailbox.post(|inbox| inbox.woken.push(target.key));
        }
    }
}

/// Waker of one product group: adds its key to the shard's mailbox.
///
/// The fan-out's shard queue calls it once until the queued events are taken, so it needs no flag
/// against duplicates.
#[derive(Debug)]
pub(super) struct GroupWaker {
    mailbox: Arc<ShardMailbox>,
    key: usize,
}

impl GroupWaker {
    /// Returns the waker of the product group `key`.
    pub(super) fn new(mailbox: &Arc<ShardMailbox>, key: usize) -> Self {
        Self { mailbox: Arc::clone(mailbox), key }
    }
}

impl Wake for GroupWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.mailbox.post(|inbox| inbox.groups_with_events.push(self.key));
    }
}
