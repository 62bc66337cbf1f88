//! Bounds the memory of pages and publish bodies, with a share for each client address.
//!
//! In: a demand for a number of units. Out: a permit, returned when its holder is dropped. A
//! request that finds no units left waits a moment, in order of arrival; a client that stalls holds
//! up the requests of its own address only.
//!
//! May use: `client_address`.

use std::{sync::Arc, time::Duration};

use dashmap::DashMap;
use tokio::{
    sync::{AcquireError, Semaphore},
    time::timeout,
};

use crate::client_address::{AddressBlock, ClientAddress};

/// Quota of pages that are in memory at one time. One unit is one page.
#[derive(Clone, Debug)]
pub(crate) struct PageQuota(MemoryQuota);

impl Default for PageQuota {
    fn default() -> Self {
        // A quarter for one address: one client, or all behind one proxy that is not trusted,
        // leaves three quarters to the others.
        Self(MemoryQuota::new(MAX_CONCURRENT_PAGES, MAX_CONCURRENT_PAGES / 4))
    }
}

impl PageQuota {
    /// Returns an empty permit for a client at `address`.
    pub(super) fn permit_for(&self, address: ClientAddress) -> QuotaPermit {
        self.0.permit_for(address)
    }
}

/// Quota of published bodies that are being received. One unit is [`BODY_QUOTA_UNIT_BYTES`].
#[derive(Clone, Debug)]
pub(crate) struct BodyQuota(MemoryQuota);

impl Default for BodyQuota {
    fn default() -> Self {
        // A quarter for one address, as for pages.
        Self(MemoryQuota::new(BODY_QUOTA_UNITS, BODY_QUOTA_UNITS / 4))
    }
}

impl BodyQuota {
    /// Returns an empty permit for a client at `address`.
    pub(super) fn permit_for(&self, address: ClientAddress) -> QuotaPermit {
        self.0.permit_for(address)
    }
}

/// Units that all clients share, with a bound on the units of one address.
#[derive(Clone, Debug)]
struct MemoryQuota(Arc<QuotaState>);

#[derive(Debug)]
struct QuotaState {
    total: Semaphore,
    capacity: u32,
    share_per_address: u32,
    /// Semaphores of the addresses that have a permit at this moment, and of no others.
    shares: DashMap<AddressBlock, Arc<Semaphore>>,
}

impl MemoryQuota {
    /// Creates a quota of `capacity` units, of which one address has `share_per_address` at most.
    fn new(capacity: u32, share_per_address: u32) -> Self {
        Self(Arc::new(QuotaState {
            total: Semaphore::new(capacity as usize),
            capacity,
            share_per_address,
            shares: DashMap::new(),
        }))
    }

    fn permit_for(&self, address: ClientAddress) -> QuotaPermit {
        let block = address.block();
        let share = || Arc::new(Semaphore::new(self.0.share_per_address as usize));
        // Cloned under the entry's lock, so that the drop of another permit of this address counts
        // this one; see `QuotaPermit::drop`.
        let share = Arc::clone(&self.0.shares.entry(block).or_insert_with(share));
        QuotaPermit { quota: Arc::clone(&self.0), block, share, held_of_share: 0, held_of_total: 0 }
    }
}

/// Units that one client holds. Dropping the permit returns them.
#[derive(Debug)]
pub(super) struct QuotaPermit {
    quota: Arc<QuotaState>,
    block: AddressBlock,
    share: Arc<Semaphore>,
    held_of_share: u32,
    held_of_total: u32,
}

impl QuotaPermit {
    /// Waits until the permit holds `units`, within its bounds: a client that asks for more than a
    /// share gets the whole share, and one that asks for more than all gets all.
    ///
    /// # Errors
    ///
    /// [`QuotaExhausted`] after [`QUOTA_WAIT_TIMEOUT`]. The permit keeps the units that it has.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future takes no units beyond those that the permit counts: tokio's semaphore
    /// gives a waiter all of its units or none, and the permit counts them without an await
    /// between.
    pub(super) async fn grow_to(&mut self, units: usize) -> Result<(), QuotaExhausted> {
        timeout(QUOTA_WAIT_TIMEOUT, self.acquire(u32::try_from(units).unwrap_or(u32::MAX)))
            .await
            .ok()
            .and_then(Result::ok)
            .ok_or(QuotaExhausted)
    }

    /// Acquires from the share first, then from the total: while a client waits for its own
    /// address's units, it holds none of the total that it does not use.
    async fn acquire(&mut self, units: u32) -> Result<(), AcquireError> {
        let missing = units.min(self.quota.share_per_address).saturating_sub(self.held_of_share);
        if missing > 0 {
            // `forget` and a count instead of tokio's guards: a guard borrows its semaphore, and a
            // permit that grows piece by piece would have to keep one guard a piece.
            self.share.acquire_many(missing).await?.forget();
            self.held_of_share += missing;
        }
        let missing = units.min(self.quota.capacity).saturating_sub(self.held_of_total);
        if missing > 0 {
            self.quota.total.acquire_many(missing).await?.forget();
            self.held_of_total += missing;
        }
        Ok(())
    }
}

impl Drop for QuotaPermit {
    fn drop(&mut self) {
        self.share.add_permits(self.held_of_share as usize);
        self.quota.total.add_permits(self.held_of_total as usize);
        // At most two references, the map's and this permit's: the address has no other client.
        // Another client of it clones the share under the lock that `remove_if` holds, hence before
        // the count or after the removal, when it gets a share of its own.
        self.quota.shares.remove_if(&self.block, |_, share| Arc::strong_count(share) <= 2);
    }
}

/// No units have come free in time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct QuotaExhausted;

/// Longer than most clients hold units, shorter than clients wait for an answer.
const QUOTA_WAIT_TIMEOUT: Duration = Duration::from_secs(5);

/// Pages in memory at one time. A page takes milliseconds unless its client is slow; then 16 pages
/// pin 16 MiB, or 16 of the largest events if these are larger.
const MAX_CONCURRENT_PAGES: u32 = 16;

/// Bytes of one unit. A body takes a unit for each KiB that it has begun.
pub(super) const BODY_QUOTA_UNIT_BYTES: usize = 1024;

/// 64 MiB of bodies at one time: as much as one event can have, or tens of thousands of the usual
/// size.
pub(super) const BODY_QUOTA_UNITS: u32 = 64 * 1024;

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    fn client(last: u8) -> ClientAddress {
        ClientAddress::new([192, 0, 2, last].into())
    }

    async fn acquired(
        quota: &MemoryQuota,
        address: ClientAddress,
        units: usize,
    ) -> Result<QuotaPermit, QuotaExhausted> {
        let mut permit = quota.permit_for(address);
        permit.grow_to(units).await.map(|()| permit)
    }

    #[tokio::test(start_paused = true)]
    async fn one_address_leaves_the_others_their_quota_and_no_trace() {
        let quota = MemoryQuota::new(10, 4);
        let stalled = [
            acquired(&quota, client(1), 3).await.unwrap(),
            acquired(&quota, client(1), 1).await.unwrap(),
        ];
        let began = Instant::now();
        assert_eq!(acquired(&quota, client(1), 1).await.unwrap_err(), QuotaExhausted);
        assert_eq!(began.elapsed(), QUOTA_WAIT_TIMEOUT, "not for ever");
        let other = acquired(&quota, client(2), 4).await.unwrap();
        assert_eq!(began.elapsed(), QUOTA_WAIT_TIMEOUT, "others do not wait");
        assert_eq!(quota.0.shares.len(), 2);
        drop(stalled);
        let again = acquired(&quota, client(1), 4).await.unwrap();
        drop((other, again));
        assert_eq!((quota.0.shares.len(), quota.0.total.available_permits()), (0, 10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_needs_more_than_its_share_gets_it_piece_by_piece_while_there_is_quota() {
        let quota = MemoryQuota::new(10, 4);
        let mut large = quota.permit_for(client(1));
        for units in [1, 3, 6, 5, 8] {
            large.grow_to(units).await.unwrap();
        }
        assert_eq!((large.held_of_share, large.held_of_total), (4, 8));
        let other = acquired(&quota, client(2), 2).await.unwrap();
        assert_eq!(large.grow_to(1000).await, Err(QuotaExhausted));
        drop(other);
        large.grow_to(1000).await.unwrap();
        assert_eq!(large.held_of_total, 10, "all there is");
        drop(large);
        assert_eq!(quota.0.total.available_permits(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stops_waiting_takes_nothing() {
        let quota = MemoryQuota::new(10, 4);
        let stalled = acquired(&quota, client(1), 4).await.unwrap();
        let mut waiting = quota.permit_for(client(1));
        assert!(timeout(Duration::from_secs(1), waiting.grow_to(2)).await.is_err());
        drop((stalled, waiting));
        assert_eq!((quota.0.shares.len(), quota.0.total.available_permits()), (0, 10));
    }
}
