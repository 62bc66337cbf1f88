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
    future::poll_fn,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    net::TcpStream,
    runtime::Handle,
    task::{JoinSet, coop::unconstrained},
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{
    WriteScratch,
    mailbox::{PendingSubscriber, ShardMailbox, SubscriberFactory},
    scheduler,
};
use crate::{
    event::{Only, Scope},
    net::AcceptedSocket,
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

    /// Goes on with a subscriber whose answer has been sent; `home` is the lane of its product. One that comes when the lanes have ended
    /// is returned, and goes when it is dropped.
    ///
    /// An event that goes to everybody goes to every lane in any case, so those who get everything are spread evenly. One that goes
    /// to a single session costs less if nobody else need be woken, so those who listen to few stay at home while there is room.
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
        // The socket belongs to the runtime it was accepted on; the shard registers it with its own.
        match stream.into_std() {
            Ok(socket) => mailbox.push(PendingSubscriber { socket, permit, factory: introduce }),
            Err(error) => {
                debug!(%error, "connection ended");
                None
            }
        }
    }

    /// Looks after one that has come too late for any lane, until it has gone: it has been told to leave, as has everybody by then. The
    /// wheel may stand still already: one that takes nothing ends with its listener.
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
            let task = unconstrained(scheduler::run(
                Arc::clone(mailbox),
                self.write_timeout,
                Arc::clone(wheel),
                shutdown.clone(),
            ));
            tasks.spawn_on(task, thread);
        }
        tasks.join_all().await;
    }
}

/// Subscribers on a lane after which those of one session go to another.
const MAX_HOME_SUBSCRIBERS: usize = 16_384;
