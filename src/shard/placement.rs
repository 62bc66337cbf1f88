//! Placement: chooses the shard of each new subscriber.
//!
//! In: subscribers whose response head has been sent. Out: a [`PendingSubscriber`] in one shard's
//! mailbox, and one task for each shard.
//!
//! May use: `event`, `net`, `subscriber`, `timer_wheel`.

use std::{
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
    mailbox::{PendingSubscriber, ShardMailbox, SubscriberFactory},
    scheduler,
    spread::ShardSpread,
};
use crate::{
    event::{NarrowestLimit, Scope},
    net::AcceptedSocket,
    subscriber::WriteScratch,
    timer_wheel::{TICK, TimerWheel},
};

/// The mailboxes of all shards, and the rule that assigns subscribers to them.
#[derive(Debug)]
pub(crate) struct ShardPlacement {
    mailboxes: Box<[Arc<ShardMailbox>]>,
    write_timeout: Duration,
}

impl ShardPlacement {
    /// Returns a placement over `shard_count` shards, one for each thread of
    /// [`ShardThreads`](super::threads::ShardThreads).
    pub(crate) fn new(shard_count: usize, write_timeout: Duration) -> Arc<Self> {
        let mailboxes = (0..shard_count).map(|shard| Arc::new(ShardMailbox::new(shard))).collect();
        Arc::new(Self { mailboxes, write_timeout })
    }

    /// Assigns a subscriber whose response has been sent to a shard; `home` is the shard of its
    /// product. Returns the subscriber if the shards have ended already; dropping it disconnects
    /// the client.
    ///
    /// A subscriber goes to its product's home shard, where an event for it wakes no second thread,
    /// and to the next shard once the home shard is full. A subscriber of all sessions and users
    /// also goes on if the shard is busy. Once all are full or busy, the one with the lowest load
    /// takes it.
    pub(crate) fn take(
        &self,
        socket: AcceptedSocket,
        scope: &Scope,
        home: usize,
        factory: SubscriberFactory,
    ) -> Option<PendingSubscriber> {
        let AcceptedSocket { stream, permit } = socket;
        // Relaxed: the load is an estimate for balancing; no other memory is read through it.
        let load = |mailbox: &&Arc<ShardMailbox>| mailbox.load.load(Ordering::Relaxed);
        let is_free = |mailbox: &&Arc<ShardMailbox>| match scope.narrowest_limit() {
            NarrowestLimit::Sessions(_) | NarrowestLimit::Users(_) => {
                load(mailbox) < MAX_HOME_SUBSCRIBERS
            }
            NarrowestLimit::Kinds(_) | NarrowestLimit::Unlimited => {
                load(mailbox) < MAX_HOME_SUBSCRIBERS_OF_ALL && !mailbox.is_busy()
            }
        };
        let mut from_home = self.mailboxes.iter().cycle().skip(home).take(self.mailboxes.len());
        let mailbox = from_home.find(is_free).or_else(|| self.mailboxes.iter().min_by_key(load))?;
        // The socket is registered with the runtime that accepted it. `into_std` removes that
        // registration, and the shard registers the socket with its own runtime.
        match stream.into_std() {
            Ok(socket) => mailbox.push(PendingSubscriber { socket, permit, factory }),
            Err(error) => {
                debug!(%error, "connection ended");
                None
            }
        }
    }

    /// Polls a subscriber that came after the shards had ended, until it has ended.
    ///
    /// All subscribers have a disconnect reason by then. The timer wheel may have stopped, so no
    /// deadline ends a client that accepts nothing: such a client ends with its listener's task.
    pub(crate) async fn finish_off_shard(
        &self,
        PendingSubscriber { socket, permit, factory }: PendingSubscriber,
    ) {
        let Ok(stream) = TcpStream::from_std(socket) else { return };
        let mut subscriber = factory(AcceptedSocket { stream, permit });
        let mut scratch = WriteScratch::new(self.write_timeout);
        poll_fn(|context| {
            scratch.written_bytes = 0;
            subscriber.poll(context, &mut scratch)
        })
        .await;
    }

    /// Returns the time since the last sign of life of the shard that has been silent longest, in
    /// whole ticks of `wheel`.
    pub(crate) fn longest_stall(&self, wheel: &TimerWheel) -> Duration {
        // Relaxed: a health check reads the tick, and nothing else depends on it.
        let oldest_turn = self
            .mailboxes
            .iter()
            .map(|mailbox| mailbox.last_turn_tick.load(Ordering::Relaxed))
            .min();
        let ticks = wheel.current_tick().saturating_sub(oldest_turn.unwrap_or(u64::MAX));
        TICK.saturating_mul(u32::try_from(ticks).unwrap_or(u32::MAX))
    }

    /// Runs one task per shard until `shutdown`, then until the subscribers have ended or
    /// `SHARD_SHUTDOWN_GRACE` has passed.
    pub(crate) async fn run(
        &self,
        threads: impl Iterator<Item = &Handle>,
        wheel: &Arc<TimerWheel>,
        shutdown: CancellationToken,
    ) {
        let mut tasks = JoinSet::new();
        for (mailbox, thread) in self.mailboxes.iter().zip(threads) {
            // Without tokio's cooperative budget: once a turn had used it up, sockets would report
            // `Pending` although they are ready. The bounds of a turn keep the task from holding
            // the thread for long.
            let task = unconstrained(scheduler::run(
                Arc::clone(mailbox),
                ShardSpread::new(&self.mailboxes, thread.metrics()),
                self.write_timeout,
                Arc::clone(wheel),
                shutdown.clone(),
            ));
            tasks.spawn_on(task, thread);
        }
        tasks.join_all().await;
    }
}

/// Subscribers on a shard after which subscribers of a few sessions go to the next shard.
///
/// Up to there, an event for one subscriber costs less than waking a second thread for it.
const MAX_HOME_SUBSCRIBERS: usize = 16_384;

/// Subscribers on a shard after which subscribers of all sessions go to the next shard: the last of
/// them waits for as many deliveries, some ten milliseconds.
const MAX_HOME_SUBSCRIBERS_OF_ALL: usize = 2_048;
