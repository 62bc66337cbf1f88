//! Bounds the memory of pages and publish bodies, with a share for each client address.
//!
//! In: a demand for a number of units. Out: a permit, returned when its holder is dropped. A
//! request that finds no units left waits a moment, in order of arrival; a client that stalls holds
//! up the requests of its own address only.
//!
//! May use: no other module.

use std::{net::IpAddr, sync::Arc, time::Duration};

use dashmap::DashMap;
use tokio::{
    sync::{AcquireError, Semaphore},
    time::timeout,
};

/// So many units for all, and so many for each address.
#[derive(Clone, Debug)]
pub(super) struct MemoryQuota(Arc<QuotaState>);

#[derive(Debug)]
struct QuotaState {
    total: Semaphore,
    capacity: u32,
    share_per_address: u32,
    /// An address is here while a client from it is.
    shares: DashMap<IpAddr, Arc<Semaphore>>,
}

impl MemoryQuota {
    /// Room for `capacity`, of which one address has `share_per_address` at the most.
    pub(super) fn new(capacity: u32, share_per_address: u32) -> Self {
        Self(Arc::new(QuotaState {
            total: Semaphore::new(capacity as usize),
            capacity,
            share_per_address,
            shares: DashMap::new(),
        }))
    }

    /// A holder for a client from `address`, with nothing in it yet.
    pub(super) fn permit_for(&self, address: IpAddr) -> QuotaPermit {
        let share = || Arc::new(Semaphore::new(self.0.share_per_address as usize));
        let share = Arc::clone(&self.0.shares.entry(address).or_insert_with(share));
        QuotaPermit {
            quota: Arc::clone(&self.0),
            address,
            share,
            held_of_share: 0,
            held_of_total: 0,
        }
    }
}

/// What one client holds.
#[derive(Debug)]
pub(super) struct QuotaPermit {
    quota: Arc<QuotaState>,
    address: IpAddr,
    share: Arc<Semaphore>,
    held_of_share: u32,
    held_of_total: u32,
}

impl QuotaPermit {
    /// Waits until it holds `units`, or what there is if that is less: who needs more than a share
    /// has the whole of one, and who needs more than all has all.
    ///
    /// # Errors
    ///
    /// [`QuotaExhausted`] when that takes too long; what it holds already stays.
    pub(super) async fn grow_to(&mut self, units: usize) -> Result<(), QuotaExhausted> {
        timeout(QUOTA_WAIT_TIMEOUT, self.acquire(u32::try_from(units).unwrap_or(u32::MAX)))
            .await
            .ok()
            .and_then(Result::ok)
            .ok_or(QuotaExhausted)
    }

    /// From the share first: nobody holds what is for all while waiting for its own.
    async fn acquire(&mut self, units: u32) -> Result<(), AcquireError> {
        let missing = units.min(self.quota.share_per_address).saturating_sub(self.held_of_share);
        if missing > 0 {
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
        // The map's and this one: nobody else is here. Who enters does so under the same lock.
        self.quota.shares.remove_if(&self.address, |_, share| Arc::strong_count(share) <= 2);
    }
}

/// There is no room at this moment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct QuotaExhausted;

/// Longer than most hold anything, shorter than clients wait.
const QUOTA_WAIT_TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    async fn acquired(
        quota: &MemoryQuota,
        address: IpAddr,
        units: usize,
    ) -> Result<QuotaPermit, QuotaExhausted> {
        let mut permit = quota.permit_for(address);
        permit.grow_to(units).await.map(|()| permit)
    }

    #[tokio::test(start_paused = true)]
    async fn one_address_leaves_the_others_their_quota_and_no_trace() {
        let quota = MemoryQuota::new(10, 4);
        let stalled =
            [acquired(&quota, A, 3).await.unwrap(), acquired(&quota, A, 1).await.unwrap()];
        let began = Instant::now();
        assert_eq!(acquired(&quota, A, 1).await.unwrap_err(), QuotaExhausted);
        assert_eq!(began.elapsed(), QUOTA_WAIT_TIMEOUT, "not for ever");
        let other = acquired(&quota, B, 4).await.unwrap();
        assert_eq!(began.elapsed(), QUOTA_WAIT_TIMEOUT, "others do not wait");
        assert_eq!(quota.0.shares.len(), 2);
        drop(stalled);
        let again = acquired(&quota, A, 4).await.unwrap();
        drop((other, again));
        assert_eq!((quota.0.shares.len(), quota.0.total.available_permits()), (0, 10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_needs_more_than_its_share_gets_it_piece_by_piece_while_there_is_quota() {
        let quota = MemoryQuota::new(10, 4);
        let mut large = quota.permit_for(A);
        for units in [1, 3, 6, 5, 8] {
            large.grow_to(units).await.unwrap();
        }
        assert_eq!((large.held_of_share, large.held_of_total), (4, 8));
        let other = acquired(&quota, B, 2).await.unwrap();
        assert_eq!(large.grow_to(1000).await, Err(QuotaExhausted));
        drop(other);
        large.grow_to(1000).await.unwrap();
        assert_eq!(large.held_of_total, 10, "all there is");
        drop(large);
        assert_eq!(quota.0.total.available_permits(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn who_stops_waiting_takes_nothing() {
        let quota = MemoryQuota::new(10, 4);
        let stalled = acquired(&quota, A, 4).await.unwrap();
        let mut waiting = quota.permit_for(A);
        assert!(timeout(Duration::from_secs(1), waiting.grow_to(2)).await.is_err());
        drop((stalled, waiting));
        assert_eq!((quota.0.shares.len(), quota.0.total.available_permits()), (0, 10));
    }
}
