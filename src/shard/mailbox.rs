//! Mailbox of one shard: new subscribers and wake-ups from other threads.
//!
//! May use: `net`.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::Wake,
};

use atomic_waker::AtomicWaker;

use super::ShardSubscriber;
use crate::net::{AcceptedSocket, ConnectionPermit};

/// What others leave for one task.
#[derive(Debug)]
pub(super) struct ShardMailbox {
    pub(super) shard: usize,
    inbox: Mutex<MailboxContents>,
    pub(super) waker: AtomicWaker,
    /// Subscribers that it has, or is about to have.
    pub(super) load: AtomicUsize,
    /// The tick of its last sign of life.
    pub(super) last_turn_tick: AtomicU64,
}

#[derive(Debug, Default)]
pub(super) struct MailboxContents {
    pub(super) pending: Vec<PendingSubscriber>,
    /// Those whose bell has rung.
    pub(super) woken: Vec<usize>,
    /// Flocks for which something has arrived.
    pub(super) signaled: Vec<usize>,
    pub(super) is_closed: bool,
}

/// A subscriber on its way to its lane.
pub(crate) struct PendingSubscriber {
    pub(super) socket: std::net::TcpStream,
    pub(super) permit: ConnectionPermit,
    pub(super) factory: SubscriberFactory,
}

/// Makes a subscriber of what it came with and its socket, once that belongs to its lane.
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
        formatter.debug_struct("Newcomer").field("socket", &self.socket).finish_non_exhaustive()
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
        }
    }

    pub(super) fn push(&self, subscriber: PendingSubscriber) -> Option<PendingSubscriber> {
        let mut subscriber = Some(subscriber);
        self.post(|inbox| {
            if !inbox.is_closed {
                self.load.fetch_add(1, Ordering::Relaxed);
                inbox.pending.extend(subscriber.take());
            }
        });
        subscriber
    }

    /// Leaves something for the task, which need be woken for the first only.
    fn post(&self, change: impl FnOnce(&mut MailboxContents)) {
        let mut inbox = self.inbox();
        let was_empty = inbox.is_empty();
        change(&mut inbox);
        let is_first = was_empty && !inbox.is_empty();
        drop(inbox);
        if is_first {
            self.waker.wake();
        }
    }

    pub(super) fn inbox(&self) -> MutexGuard<'_, MailboxContents> {
        // A list is whole after each change.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl MailboxContents {
    fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.woken.is_empty() && self.signaled.is_empty()
    }
}

/// Tells a shard which of its subscribers has something to do.
#[derive(Debug)]
pub(super) struct SubscriberWaker {
    mailbox: Arc<ShardMailbox>,
    /// Of the subscriber; of another one after it has gone, which does no harm.
    key: usize,
    pub(super) is_queued: AtomicBool,
}

impl SubscriberWaker {
    /// The bell of a subscriber.
    pub(super) fn new(mailbox: &Arc<ShardMailbox>, key: usize) -> Arc<Self> {
        Arc::new(Self { mailbox: Arc::clone(mailbox), key, is_queued: AtomicBool::new(false) })
    }
}

impl Wake for SubscriberWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.is_queued.swap(true, Ordering::SeqCst) {
            self.mailbox.post(|inbox| inbox.woken.push(self.key));
        }
    }
}

/// Tells a shard for which of its flocks something has arrived.
#[derive(Debug)]
pub(super) struct GroupWaker {
    mailbox: Arc<ShardMailbox>,
    key: usize,
}

impl GroupWaker {
    /// The call of a flock.
    pub(super) fn new(mailbox: &Arc<ShardMailbox>, key: usize) -> Self {
        Self { mailbox: Arc::clone(mailbox), key }
    }
}

impl Wake for GroupWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.mailbox.post(|inbox| inbox.signaled.push(self.key));
    }
}
