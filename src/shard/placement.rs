//! The tasks that write to subscribers: a few, each with many.
//!
//! A task for each subscriber would cost a wake-up, a place in a queue and a turn for every
//! delivery. Here, an event wakes each task once, and the task goes through those of its own that
//! are concerned.
//!
//! ```text
//! fan-out ─ calls a flock ────────────────────────────► called: [ 0 ]      ─┐
//! wheel, socket, a word to leave ─ rings one's bell       ► woken: [ 7, 31 ] ─┴─► the shard's task: `crowd`
//! ```
//!
//! May use: `event`, `net`, `timer_wheel`.

use std::{
    collections::VecDeque,
    fmt,
    future::poll_fn,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Poll, Wake},
    time::Duration,
};

use atomic_waker::AtomicWaker;
use tokio::{
    net::TcpStream,
    runtime::Handle,
    task::{JoinSet, coop::unconstrained},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{ShardSubscriber, WriteScratch, scheduler::ShardScheduler};
use crate::{
    event::{Only, Scope},
    net::{AcceptedSocket, ConnectionPermit},
    timer_wheel::{TICK, TimerWheel},
};

/// All subscribers that are written to without hyper.
#[derive(Debug)]
pub(crate) struct ShardPlacement {
    mailboxes: Box<[Arc<ShardMailbox>]>,
    write_timeout: Duration,
}

impl ShardPlacement {
    /// So many shards, one for each lane.
    pub(crate) fn new(shard_count: usize, write_timeout: Duration) -> Arc<Self> {
        let mailboxes = (0..shard_count).map(|shard| Arc::new(ShardMailbox::new(shard))).collect();
        Arc::new(Self { mailboxes, write_timeout })
    }

    /// Goes on with a subscriber whose answer has been sent; `home` is the lane of its product. One
    /// that comes when the lanes have ended is returned, and goes when it is dropped.
    ///
    /// An event that goes to everybody goes to every lane in any case, so those who get everything
    /// are spread evenly. One that goes to a single session costs less if nobody else need be
    /// woken, so those who listen to few stay at home while there is room.
    pub(crate) fn take(
        &self,
        socket: AcceptedSocket,
        scope: &Scope,
        home: usize,
        introduce: SubscriberFactory,
    ) -> Option<PendingSubscriber> {
        let AcceptedSocket { stream, permit } = socket;
        let load = |mailbox: &&Arc<ShardMailbox>| mailbox.load.load(Ordering::Relaxed);
        let mailbox = match matches!(scope.sessions, Only::These(_)) {
            true => self
                .mailboxes
                .iter()
                .cycle()
                .skip(home)
                .take(self.mailboxes.len())
                .find(|it| load(it) < MAX_HOME_SUBSCRIBERS),
            false => None,
        };
        let mailbox = mailbox.or_else(|| self.mailboxes.iter().min_by_key(load))?;
        // The socket belongs to the runtime it was accepted on; the shard registers it with its
        // own.
        match stream.into_std() {
            Ok(socket) => mailbox.push(PendingSubscriber { socket, permit, factory: introduce }),
            Err(error) => {
                debug!(%error, "connection ended");
                None
            }
        }
    }

    /// Looks after one that has come too late for any lane, until it has gone: it has been told to
    /// leave, as has everybody by then. The wheel may stand still already: one that takes nothing
    /// ends with its listener.
    pub(crate) async fn finish_off_shard(
        &self,
        PendingSubscriber { socket, permit, factory }: PendingSubscriber,
    ) {
        let Ok(stream) = TcpStream::from_std(socket) else { return };
        let mut subscriber = factory(AcceptedSocket { stream, permit });
        let mut scratch = WriteScratch {
            batch: VecDeque::new(),
            written_bytes: 0,
            write_timeout: self.write_timeout,
        };
        poll_fn(|context| {
            scratch.written_bytes = 0;
            subscriber.poll(context, &mut scratch)
        })
        .await;
    }

    /// How long the lane that is worst off has not had a turn, as seen from the wheel.
    pub(crate) fn longest_stall(&self, wheel: &TimerWheel) -> Duration {
        let oldest_turn = self
            .mailboxes
            .iter()
            .map(|mailbox| mailbox.last_turn_tick.load(Ordering::Relaxed))
            .min();
        let ticks = wheel.current_tick().saturating_sub(oldest_turn.unwrap_or(u64::MAX));
        TICK.saturating_mul(u32::try_from(ticks).unwrap_or(u32::MAX))
    }

    /// Writes until `end`, and then what is left for a moment.
    pub(crate) async fn run(
        &self,
        threads: impl Iterator<Item = &Handle>,
        wheel: &Arc<TimerWheel>,
        shutdown: CancellationToken,
    ) {
        let mut tasks = JoinSet::new();
        for (mailbox, thread) in self.mailboxes.iter().zip(threads) {
            // Its own turns are what keeps it from holding a thread for long.
            let task = unconstrained(Arc::clone(mailbox).run(
                self.write_timeout,
                Arc::clone(wheel),
                shutdown.clone(),
            ));
            tasks.spawn_on(task, thread);
        }
        tasks.join_all().await;
    }
}

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
    is_closed: bool,
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

    fn push(&self, subscriber: PendingSubscriber) -> Option<PendingSubscriber> {
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

    async fn run(
        self: Arc<Self>,
        write_timeout: Duration,
        wheel: Arc<TimerWheel>,
        shutdown: CancellationToken,
    ) {
        let mut scheduler = ShardScheduler::new(&self, write_timeout, &wheel);
        let run_until_shutdown = poll_fn(|context| {
            scheduler.run_turn(context);
            Poll::<()>::Pending
        });
        shutdown.run_until_cancelled(run_until_shutdown).await;
        self.inbox().is_closed = true;
        let run_until_empty = poll_fn(|context| {
            scheduler.run_turn(context);
            if scheduler.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        });
        // Whoever takes nothing now is cut off.
        let _ = timeout(SHARD_SHUTDOWN_GRACE, run_until_empty).await;
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

/// Subscribers on a lane after which those of one session go to another.
const MAX_HOME_SUBSCRIBERS: usize = 16_384;

/// What they may take to end once the relay does.
const SHARD_SHUTDOWN_GRACE: Duration = Duration::from_secs(5);
