//! The tasks that write to subscribers: a few, each with many.
//!
//! A task for each subscriber would cost a wake-up, a place in a queue and a turn for every delivery. Here, an event wakes each task
//! once, and the task goes through those of its own that are concerned.
//!
//! ```text
//! fan-out ─ calls a flock ────────────────────────────► called: [ 0 ]      ─┐
//! wheel, socket, a word to leave ─ rings one's bell       ► woken: [ 7, 31 ] ─┴─► the shard's task: `crowd`
//! ```
//!
//! May use: `event`, `net` (the socket), `wheel`.

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

use super::{Follower, Lent, scheduler::Crowd};
use crate::{
    event::{Only, Scope},
    net::{Place, Socket},
    timer_wheel::{TICK, Wheel},
};

/// All subscribers that are written to without hyper.
#[derive(Debug)]
pub(crate) struct Shards {
    shards: Box<[Arc<Shard>]>,
    write_timeout: Duration,
}

impl Shards {
    /// So many shards, one for each lane.
    pub(crate) fn new(lanes: usize, write_timeout: Duration) -> Arc<Self> {
        let shards = (0..lanes).map(|lane| Arc::new(Shard::new(lane))).collect();
        Arc::new(Self { shards, write_timeout })
    }

    /// Goes on with a subscriber whose answer has been sent; `home` is the lane of its product. One that comes when the lanes have ended
    /// is returned, and goes when it is dropped.
    ///
    /// An event that goes to everybody goes to every lane in any case, so those who get everything are spread evenly. One that goes
    /// to a single session costs less if nobody else need be woken, so those who listen to few stay at home while there is room.
    pub(crate) fn take(&self, socket: Socket, scope: &Scope, home: usize, introduce: Introduction) -> Option<Newcomer> {
        let Socket { stream, place } = socket;
        let size = |shard: &&Arc<Shard>| shard.size.load(Ordering::Relaxed);
        let shard = match matches!(scope.sessions, Only::These(_)) {
            true => self.shards.iter().cycle().skip(home).take(self.shards.len()).find(|it| size(it) < ROOM_AT_HOME),
            false => None,
        };
        let shard = shard.or_else(|| self.shards.iter().min_by_key(size))?;
        // The socket belongs to the runtime it was accepted on; the shard registers it with its own.
        match stream.into_std() {
            Ok(socket) => shard.take(Newcomer { socket, place, introduce }),
            Err(error) => {
                debug!(%error, "connection ended");
                None
            }
        }
    }

    /// Looks after one that has come too late for any lane, until it has gone: it has been told to leave, as has everybody by then. The
    /// wheel may stand still already: one that takes nothing ends with its listener.
    pub(crate) async fn see_off(&self, Newcomer { socket, place, introduce }: Newcomer) {
        let Ok(stream) = TcpStream::from_std(socket) else { return };
        let mut follower = introduce(Socket { stream, place });
        let mut lent = Lent { pieces: VecDeque::new(), bytes: 0, write_timeout: self.write_timeout };
        poll_fn(|context| {
            lent.bytes = 0;
            follower.poll(context, &mut lent)
        })
        .await;
    }

    /// How long the lane that is worst off has not had a turn, as seen from the wheel.
    pub(crate) fn standstill(&self, wheel: &Wheel) -> Duration {
        let last = self.shards.iter().map(|shard| shard.beat.load(Ordering::Relaxed)).min();
        let ticks = wheel.now().saturating_sub(last.unwrap_or(u64::MAX));
        TICK.saturating_mul(u32::try_from(ticks).unwrap_or(u32::MAX))
    }

    /// Writes until `end`, and then what is left for a moment.
    pub(crate) async fn run(&self, lanes: impl Iterator<Item = &Handle>, wheel: &Arc<Wheel>, end: CancellationToken) {
        let mut tasks = JoinSet::new();
        for (shard, lane) in self.shards.iter().zip(lanes) {
            // Its own turns are what keeps it from holding a thread for long.
            let work = unconstrained(Arc::clone(shard).run(self.write_timeout, Arc::clone(wheel), end.clone()));
            tasks.spawn_on(work, lane);
        }
        tasks.join_all().await;
    }
}

/// What others leave for one task.
#[derive(Debug)]
pub(super) struct Shard {
    pub(super) lane: usize,
    inbox: Mutex<Inbox>,
    pub(super) waker: AtomicWaker,
    /// Subscribers that it has, or is about to have.
    pub(super) size: AtomicUsize,
    /// The tick of its last sign of life.
    pub(super) beat: AtomicU64,
}

#[derive(Debug, Default)]
pub(super) struct Inbox {
    pub(super) newcomers: Vec<Newcomer>,
    /// Those whose bell has rung.
    pub(super) woken: Vec<usize>,
    /// Flocks for which something has arrived.
    pub(super) called: Vec<usize>,
    is_closed: bool,
}

/// A subscriber on its way to its lane.
pub(crate) struct Newcomer {
    pub(super) socket: std::net::TcpStream,
    pub(super) place: Place,
    pub(super) introduce: Introduction,
}

/// Makes a subscriber of what it came with and its socket, once that belongs to its lane.
pub(crate) type Introduction = Box<dyn FnOnce(Socket) -> Box<dyn Follower> + Send>;

impl fmt::Debug for Newcomer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Newcomer").field("socket", &self.socket).finish_non_exhaustive()
    }
}

impl Shard {
    pub(super) fn new(lane: usize) -> Self {
        Self {
            lane,
            inbox: Mutex::default(),
            waker: AtomicWaker::new(),
            size: AtomicUsize::new(0),
            beat: AtomicU64::new(0),
        }
    }

    fn take(&self, newcomer: Newcomer) -> Option<Newcomer> {
        let mut newcomer = Some(newcomer);
        self.leave(|inbox| {
            if !inbox.is_closed {
                self.size.fetch_add(1, Ordering::Relaxed);
                inbox.newcomers.extend(newcomer.take());
            }
        });
        newcomer
    }

    /// Leaves something for the task, which need be woken for the first only.
    fn leave(&self, what: impl FnOnce(&mut Inbox)) {
        let mut inbox = self.inbox();
        let was_empty = inbox.is_empty();
        what(&mut inbox);
        let is_first = was_empty && !inbox.is_empty();
        drop(inbox);
        if is_first {
            self.waker.wake();
        }
    }

    async fn run(self: Arc<Self>, write_timeout: Duration, wheel: Arc<Wheel>, end: CancellationToken) {
        let mut crowd = Crowd::new(&self, write_timeout, &wheel);
        let serve = poll_fn(|context| {
            crowd.turn(context);
            Poll::<()>::Pending
        });
        end.run_until_cancelled(serve).await;
        self.inbox().is_closed = true;
        let finish = poll_fn(|context| {
            crowd.turn(context);
            if crowd.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        });
        // Whoever takes nothing now is cut off.
        let _ = timeout(END_GRACE, finish).await;
    }

    pub(super) fn inbox(&self) -> MutexGuard<'_, Inbox> {
        // A list is whole after each change.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inbox {
    fn is_empty(&self) -> bool {
        self.newcomers.is_empty() && self.woken.is_empty() && self.called.is_empty()
    }
}

/// Tells a shard which of its subscribers has something to do.
#[derive(Debug)]
pub(super) struct Bell {
    shard: Arc<Shard>,
    /// Of the subscriber; of another one after it has gone, which does no harm.
    number: usize,
    pub(super) has_rung: AtomicBool,
}

impl Bell {
    /// The bell of a subscriber.
    pub(super) fn new(shard: &Arc<Shard>, number: usize) -> Arc<Self> {
        Arc::new(Self { shard: Arc::clone(shard), number, has_rung: AtomicBool::new(false) })
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.has_rung.swap(true, Ordering::SeqCst) {
            self.shard.leave(|inbox| inbox.woken.push(self.number));
        }
    }
}

/// Tells a shard for which of its flocks something has arrived.
#[derive(Debug)]
pub(super) struct Call {
    shard: Arc<Shard>,
    number: usize,
}

impl Call {
    /// The call of a flock.
    pub(super) fn new(shard: &Arc<Shard>, number: usize) -> Self {
        Self { shard: Arc::clone(shard), number }
    }
}

impl Wake for Call {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.shard.leave(|inbox| inbox.called.push(self.number));
    }
}

/// Subscribers on a lane after which those of one session go to another.
const ROOM_AT_HOME: usize = 16_384;

/// What they may take to end once the relay does.
const END_GRACE: Duration = Duration::from_secs(5);
