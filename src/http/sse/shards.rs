//! The tasks that write the streams: a few, each with many.
//!
//! A task for each stream would cost a wake-up, a place in a queue and a turn for every delivery. Here, an event wakes each task
//! once, and the task goes through those of its streams that are concerned.
//!
//! ```text
//! fan-out ─ rings a stream's bell ─► woken: [ 7, 12, 31 ] ─► the shard's task polls 7, 12, 31
//! wheel, socket ────────┘
//! ```
//!
//! May use: `net` (the socket).

use std::{
    collections::VecDeque,
    future::poll_fn,
    mem,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use atomic_waker::AtomicWaker;
use bytes::Bytes;
use slab::Slab;
use tokio::{
    net::TcpStream,
    runtime::Handle,
    task::{JoinSet, coop::unconstrained},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{events::Events, stream::Stream};
use crate::net::{Place, Socket};

/// All streams that are written without hyper.
#[derive(Debug)]
pub(crate) struct Shards {
    shards: Box<[Arc<Shard>]>,
    write_timeout: Duration,
}

impl Shards {
    /// So many shards, one for each lane.
    pub(crate) fn new(count: usize, write_timeout: Duration) -> Arc<Self> {
        let shards = (0..count).map(|_| Arc::default()).collect();
        Arc::new(Self { shards, write_timeout })
    }

    /// Goes on with a stream whose head has been sent; `home` is the lane of its product. While the relay is ending, that ends it.
    ///
    /// An event that goes to everybody goes to every lane in any case, so those who get everything are spread evenly. One that goes
    /// to a single session costs less if nobody else need be woken, so those who listen to few stay at home while there is room.
    pub(super) fn take(&self, socket: Socket, events: Events, home: usize) {
        let Socket { stream, place } = socket;
        let size = |shard: &&Arc<Shard>| shard.size.load(Ordering::Relaxed);
        let shard = match events.is_of_sessions() {
            true => self.shards.iter().cycle().skip(home).take(self.shards.len()).find(|it| size(it) < ROOM_AT_HOME),
            false => None,
        };
        if let Some(shard) = shard.or_else(|| self.shards.iter().min_by_key(size)) {
            // The socket belongs to the runtime it was accepted on; the shard registers it with its own.
            match stream.into_std() {
                Ok(socket) => shard.take(Newcomer { socket, place, events }),
                Err(error) => debug!(%error, "connection ended"),
            }
        }
    }

    /// Writes until `end`, and then what is left for a moment.
    pub(crate) async fn run(&self, lanes: impl Iterator<Item = &Handle>, end: CancellationToken) {
        let mut tasks = JoinSet::new();
        for (shard, lane) in self.shards.iter().zip(lanes) {
            // Its own turns are what keeps it from holding a thread for long.
            let work = unconstrained(Arc::clone(shard).run(self.write_timeout, end.clone()));
            tasks.spawn_on(work, lane);
        }
        tasks.join_all().await;
    }
}

/// What others leave for one task.
#[derive(Debug, Default)]
struct Shard {
    inbox: Mutex<Inbox>,
    waker: AtomicWaker,
    /// Streams that it has, or is about to have.
    size: AtomicUsize,
}

#[derive(Debug, Default)]
struct Inbox {
    newcomers: Vec<Newcomer>,
    woken: Vec<usize>,
    is_closed: bool,
}

/// A stream on its way to its lane.
#[derive(Debug)]
struct Newcomer {
    socket: std::net::TcpStream,
    place: Place,
    events: Events,
}

impl Shard {
    fn take(&self, newcomer: Newcomer) {
        let mut inbox = self.inbox();
        if !inbox.is_closed {
            self.size.fetch_add(1, Ordering::Relaxed);
            inbox.newcomers.push(newcomer);
            drop(inbox);
            self.waker.wake();
        }
    }

    fn ring(&self, number: usize) {
        let mut inbox = self.inbox();
        inbox.woken.push(number);
        let is_first = inbox.woken.len() == 1;
        drop(inbox);
        if is_first {
            self.waker.wake();
        }
    }

    async fn run(self: Arc<Self>, write_timeout: Duration, end: CancellationToken) {
        let mut crowd = Crowd {
            shard: Arc::clone(&self),
            streams: Slab::new(),
            due: VecDeque::new(),
            woken: Vec::new(),
            pieces: VecDeque::new(),
            write_timeout,
        };
        let serve = poll_fn(|context| {
            crowd.turn(context);
            Poll::<()>::Pending
        });
        end.run_until_cancelled(serve).await;
        self.inbox().is_closed = true;
        let finish = poll_fn(|context| {
            crowd.turn(context);
            if crowd.streams.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        });
        // Whoever takes nothing now is cut off.
        let _ = timeout(END_GRACE, finish).await;
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The streams of one shard, in the hands of its task.
#[derive(Debug)]
struct Crowd {
    shard: Arc<Shard>,
    /// In boxes: they stay where they are when there come more.
    streams: Slab<Box<Member>>,
    /// Those that have been woken.
    due: VecDeque<usize>,
    /// Changes places with the list in the inbox, so that neither is ever allocated anew.
    woken: Vec<usize>,
    /// Lent to the stream that is being written.
    pieces: VecDeque<Bytes>,
    write_timeout: Duration,
}

#[derive(Debug)]
struct Member {
    stream: Stream,
    bell: Arc<Bell>,
    waker: Waker,
}

impl Crowd {
    /// Has some of the streams that were woken do their work.
    fn turn(&mut self, context: &Context<'_>) {
        self.shard.waker.register(context.waker());
        self.look_into_the_inbox();
        for _ in 0..TURN {
            let Some(number) = self.due.pop_front() else { return };
            let Some(member) = self.streams.get_mut(number) else { continue };
            member.bell.has_rung.store(false, Ordering::SeqCst);
            let mut context = Context::from_waker(&member.waker);
            if member.stream.poll(&mut context, self.write_timeout, &mut self.pieces).is_ready() {
                self.pieces.clear();
                self.streams.remove(number);
                self.shard.size.fetch_sub(1, Ordering::Relaxed);
            }
        }
        if !self.due.is_empty() {
            context.waker().wake_by_ref();
        }
    }

    fn look_into_the_inbox(&mut self) {
        let newcomers = {
            let mut inbox = self.shard.inbox();
            mem::swap(&mut inbox.woken, &mut self.woken);
            mem::take(&mut inbox.newcomers)
        };
        self.due.extend(self.woken.drain(..));
        for Newcomer { socket, place, events } in newcomers {
            let stream = match TcpStream::from_std(socket) {
                Ok(stream) => Stream::new(Socket { stream, place }, events),
                Err(error) => {
                    debug!(%error, "connection ended");
                    self.shard.size.fetch_sub(1, Ordering::Relaxed);
                    continue;
                }
            };
            let place = self.streams.vacant_entry();
            let number = place.key();
            let bell = Arc::new(Bell { shard: Arc::clone(&self.shard), number, has_rung: AtomicBool::new(true) });
            let waker = Waker::from(Arc::clone(&bell));
            place.insert(Box::new(Member { stream, bell, waker }));
            self.due.push_back(number);
        }
    }
}

/// Tells a shard which of its streams has something to do.
#[derive(Debug)]
struct Bell {
    shard: Arc<Shard>,
    /// Of the stream; of another one after it has gone, which does no harm.
    number: usize,
    has_rung: AtomicBool,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.has_rung.swap(true, Ordering::SeqCst) {
            self.shard.ring(self.number);
        }
    }
}

/// Streams on a lane after which those of one session go to another.
const ROOM_AT_HOME: usize = 16_384;

/// Streams in one turn: what else the thread has to do waits for no more than these.
const TURN: usize = 32;

/// What streams may take to end once the relay does.
const END_GRACE: Duration = Duration::from_secs(5);
