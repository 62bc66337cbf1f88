//! Connections of a listener, of which the oldest idle one gives way to a newcomer.
//!
//! In: newcomers, and the exchanges that last. Out: a place for each newcomer, at the cost of a
//! connection that does nothing. So clients that open connections and send nothing keep no other
//! client out. The address block with most such connections is charged.
//!
//! ```text
//! Place ─► displaceable, by block ◄─► exempt, while a stream or a page is sent
//!            └─ by number: the oldest first
//! ```
//!
//! A newcomer costs a few steps in ordered maps. Only where another connection has to give way are
//! connections looked at, and then a bounded number.
//!
//! May use: `client_address`.

#[cfg(test)]
mod tests;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    future::poll_fn,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed, Ordering::SeqCst},
    },
    task::Poll,
    time::Duration,
};

use atomic_waker::AtomicWaker;
use parking_lot::{Mutex, MutexGuard};
use tokio::{sync::Notify, task::yield_now, time::timeout};

use super::detach::ConnectionState;
use crate::client_address::{AddressBlock, ClientAddress};

/// Connections of one listener that hyper serves. A detached connection is not among them.
#[derive(Debug)]
pub(super) struct ConnectionTable {
    shares: ConnectionShares,
    entries: Mutex<TableEntries>,
}

/// Rules by which connections of a listener give way.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct ConnectionShares {
    /// Connections that may have to give way, at one time.
    pub(crate) total: usize,
    /// Those of one address block.
    pub(crate) per_address: usize,
    /// Further connections, with an exchange that is to last. Beyond these, such a connection has
    /// to give way like any other.
    pub(crate) exempt: usize,
    /// A connection that a handler is working for never gives way; otherwise it is the last to.
    pub(crate) spares_working: bool,
}

impl ConnectionShares {
    /// Rules of a listener on which only idle connections give way, and only when it is full.
    ///
    /// An address has no share: behind a proxy all connections have one address.
    pub(crate) const UNTIL_FULL: Self = Self {
        total: usize::MAX,
        per_address: usize::MAX,
        exempt: usize::MAX,
        spares_working: true,
    };
}

#[derive(Debug, Default)]
struct TableEntries {
    last_number: u64,
    blocks: HashMap<AddressBlock, BlockEntries>,
    /// Blocks, the one that is charged next last.
    ranking: BTreeSet<(BlockRank, AddressBlock)>,
    /// Connections in `blocks`.
    displaceable: usize,
    /// Running exchanges of each connection that is exempt, by its number.
    exempt: HashMap<u64, usize>,
}

/// Orders blocks by their number of connections, and those of one number by their oldest.
type BlockRank = (usize, Reverse<u64>);

/// Connections of one address block that may have to give way, by number.
#[derive(Debug, Default)]
struct BlockEntries {
    by_number: BTreeMap<u64, Arc<TableEntry>>,
    /// Number from which on the block is looked through.
    next_look: u64,
    /// All that were looked at last had a handler working for them.
    was_busy: bool,
}

/// Connection in the table.
#[derive(Debug)]
pub(super) struct TableEntry {
    table: Arc<ConnectionTable>,
    number: u64,
    block: AddressBlock,
    state: Arc<ConnectionState>,
    // SeqCst, though AtomicWaker would need less: the table stores and then wakes, the connection
    // registers and then loads, so one of the two sees the other.
    must_give_way: AtomicBool,
    waker: AtomicWaker,
    has_ended: Notify,
}

impl ConnectionTable {
    pub(super) fn new(shares: ConnectionShares) -> Arc<Self> {
        Arc::new(Self { shares, entries: Mutex::default() })
    }

    /// Ends the connection that gives way to a newcomer, if there is no room without, and waits
    /// until it has returned its permit.
    ///
    /// `is_full` tells whether the listener is out of permits.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future leaves the connection ended, and the newcomer without a place.
    pub(super) async fn make_room(&self, newcomer: IpAddr, is_full: impl Fn() -> bool) {
        let block = ClientAddress::new(newcomer).block();
        let mut has_displaced = false;
        for _ in 0..MAX_DISPLACED {
            let Some(displaced) = self.displace(block, is_full()) else { break };
            has_displaced = true;
            // Its task drops the socket at its next turn. Bounded, so that the accept loop does not
            // depend on it.
            let _ = timeout(DISPLACEMENT_TIMEOUT, displaced.has_ended.notified()).await;
            // A connection that was ending by itself has returned its permit before, and an earlier
            // newcomer may have it.
            if !is_full() {
                break;
            }
        }
        if !has_displaced && self.shares.per_address < usize::MAX {
            // A share is soon reached. On a runtime of one thread the tasks of earlier connections
            // run now, so that none of them has to give way before its request was looked for.
            yield_now().await;
        }
    }

    /// Adds a connection.
    pub(super) fn admit(self: &Arc<Self>, peer: IpAddr, state: &Arc<ConnectionState>) -> Place {
        let mut entries = self.lock();
        entries.last_number += 1;
        let entry = Arc::new(TableEntry {
            table: Arc::clone(self),
            number: entries.last_number,
            block: ClientAddress::new(peer).block(),
            state: Arc::clone(state),
            must_give_way: AtomicBool::default(),
            waker: AtomicWaker::new(),
            has_ended: Notify::new(),
        });
        entries.insert(Arc::clone(&entry));
        Place(entry)
    }

    /// Tells the connection that gives way to a newcomer of this block to end.
    fn displace(&self, newcomer: AddressBlock, is_full: bool) -> Option<Arc<TableEntry>> {
        let displaced = self.lock().take_for(newcomer, &self.shares, is_full)?;
        displaced.must_give_way.store(true, SeqCst);
        displaced.waker.wake();
        Some(displaced)
    }

    fn lock(&self) -> MutexGuard<'_, TableEntries> {
        self.entries.lock()
    }
}

impl TableEntries {
    fn is_at_share(&self, block: AddressBlock, shares: &ConnectionShares) -> bool {
        let count = self.blocks.get(&block).map_or(0, |entries| entries.by_number.len());
        count >= shares.per_address
    }

    fn must_displace(&self, block: AddressBlock, shares: &ConnectionShares, is_full: bool) -> bool {
        is_full || self.displaceable >= shares.total || self.is_at_share(block, shares)
    }

    /// Takes the connection that gives way to a newcomer of this block.
    fn take_for(
        &mut self,
        newcomer: AddressBlock,
        shares: &ConnectionShares,
        is_full: bool,
    ) -> Option<Arc<TableEntry>> {
        if self.is_at_share(newcomer, shares) {
            return self.take_from(newcomer, shares.spares_working);
        }
        if !self.must_displace(newcomer, shares, is_full) {
            return None;
        }
        (0..MAX_BLOCKS_LOOKED_AT).find_map(|_| {
            let (_, block) = self.ranking.last()?;
            self.take_from(*block, shares.spares_working)
        })
    }

    /// Takes the connection of a block that gives way before its others.
    fn take_from(&mut self, block: AddressBlock, spares_working: bool) -> Option<Arc<TableEntry>> {
        let taken = self.change_block(block, |entries| entries.take(spares_working));
        self.displaceable -= usize::from(taken.is_some());
        taken
    }

    fn insert(&mut self, entry: Arc<TableEntry>) {
        self.displaceable += 1;
        self.change_block(entry.block, |entries| {
            entries.was_busy = false;
            entries.by_number.insert(entry.number, entry)
        });
    }

    fn remove(&mut self, entry: &TableEntry) -> bool {
        let is_there =
            self.change_block(entry.block, |entries| entries.by_number.remove(&entry.number));
        self.displaceable -= usize::from(is_there.is_some());
        is_there.is_some()
    }

    /// Changes the connections of a block, and its rank with them.
    fn change_block<T>(
        &mut self,
        block: AddressBlock,
        change: impl FnOnce(&mut BlockEntries) -> T,
    ) -> T {
        let entries = self.blocks.entry(block).or_default();
        let former = entries.rank();
        let result = change(entries);
        let rank = entries.rank();
        if former != rank {
            self.ranking.extend(rank.map(|rank| (rank, block)));
            former.map(|rank| self.ranking.remove(&(rank, block)));
        }
        if rank.is_none() {
            self.blocks.remove(&block);
        }
        result
    }
}

impl BlockEntries {
    /// Returns the block's place among the others; `None` without connections.
    fn rank(&self) -> Option<BlockRank> {
        let (oldest, _) = self.by_number.first_key_value()?;
        // Last of all: a proxy whose connections are all in use must not hide another address.
        let count = if self.was_busy { 0 } else { self.by_number.len() };
        Some((count, Reverse(*oldest)))
    }

    /// Takes the connection that gives way before the others, of those that are looked at.
    fn take(&mut self, spares_working: bool) -> Option<Arc<TableEntry>> {
        let from = self.next_look;
        let looked_at = self.by_number.range(from..).chain(self.by_number.range(..from));
        let looked_at = looked_at.take(MAX_CONNECTIONS_LOOKED_AT).map(|(_, entry)| entry);
        let last = looked_at.clone().last()?.number;
        let first = looked_at.min_by_key(|entry| (entry.rank(), entry.number))?;
        self.was_busy = spares_working && first.state.activity.is_working();
        if self.was_busy {
            self.next_look = last + 1;
            return None;
        }
        let number = first.number;
        self.by_number.remove(&number)
    }
}

impl TableEntry {
    /// Orders connections: the first one gives way. A connection that a handler is working for
    /// comes last, and one without a request so far first; among these, the one idle longest.
    fn rank(&self) -> (bool, bool, u64) {
        let activity = &self.state.activity;
        let has_request = self.state.has_request.load(Relaxed);
        (activity.is_working(), has_request, activity.idle_since())
    }

    /// Exempts the connection from giving way until the returned guard is dropped, as far as the
    /// table has room for such.
    pub(super) fn exempt(self: &Arc<Self>) -> Exemption {
        let mut entries = self.table.lock();
        let is_counted = if let Some(exchanges) = entries.exempt.get_mut(&self.number) {
            *exchanges += 1;
            true
        } else {
            let has_room = entries.exempt.len() < self.table.shares.exempt;
            has_room && entries.remove(self) && {
                entries.exempt.insert(self.number, 1);
                true
            }
        };
        drop(entries);
        Exemption { entry: Arc::clone(self), is_counted }
    }
}

/// Exchange that is to last, such as a stream: its connection does not give way to a newcomer.
#[derive(Debug)]
pub(crate) struct Exemption {
    entry: Arc<TableEntry>,
    is_counted: bool,
}

impl Drop for Exemption {
    fn drop(&mut self) {
        if !self.is_counted {
            return;
        }
        let mut entries = self.entry.table.lock();
        // Not there: the connection has ended or was detached before.
        let Some(exchanges) = entries.exempt.get_mut(&self.entry.number) else { return };
        *exchanges -= 1;
        if *exchanges == 0 {
            entries.exempt.remove(&self.entry.number);
            entries.insert(Arc::clone(&self.entry));
        }
    }
}

/// Place of one connection, returned when dropped.
#[derive(Debug)]
pub(super) struct Place(Arc<TableEntry>);

impl Place {
    pub(super) fn entry(&self) -> &Arc<TableEntry> {
        &self.0
    }

    /// Runs the connection until it ends, or gives way.
    pub(super) async fn run<F: Future + ?Sized>(
        &self,
        mut connection: Pin<Box<F>>,
    ) -> Option<F::Output> {
        poll_fn(|context| {
            self.0.waker.register(context.waker());
            // Before the poll, which may answer many requests that have arrived together.
            match self.0.must_give_way.load(SeqCst) {
                true => Poll::Ready(None),
                false => connection.as_mut().poll(context).map(Some),
            }
        })
        .await
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut entries = self.0.table.lock();
        if entries.exempt.remove(&self.0.number).is_none() {
            entries.remove(&self.0);
        }
        drop(entries);
        // Behind the socket's end: the waiting accept loop looks for its permit.
        self.0.has_ended.notify_one();
    }
}

/// Connections of one address block that are looked at for a newcomer: the share of an address on
/// an operators' listener, so that there the choice is exact.
const MAX_CONNECTIONS_LOOKED_AT: usize = 64;

/// Address blocks that are looked at for a newcomer. More than one matters only where all that was
/// looked at in the first is in use.
const MAX_BLOCKS_LOOKED_AT: usize = 4;

/// Connections that give way to one newcomer, where they were ending by themselves.
const MAX_DISPLACED: usize = 4;

/// Time for a connection that gives way to end. Its task needs one turn; on a saturated runtime the
/// newcomer is then answered as one beyond the limit.
const DISPLACEMENT_TIMEOUT: Duration = Duration::from_millis(200);
