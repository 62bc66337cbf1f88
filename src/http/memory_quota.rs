//! Room for what clients send and are sent, with a share of it for each address.
//!
//! In: who needs how much. Out: that much, given back when its holder is dropped. Who finds none left waits a moment, in the
//! order they come; a client that stalls holds up those of its own address, and leaves the others theirs.
//!
//! May use: nothing.

use std::{net::IpAddr, sync::Arc, time::Duration};

use dashmap::DashMap;
use tokio::{
    sync::{AcquireError, Semaphore},
    time::timeout,
};

/// So many units for all, and so many for each address.
#[derive(Clone, Debug)]
pub(super) struct Room(Arc<Units>);

#[derive(Debug)]
struct Units {
    all: Semaphore,
    most: u32,
    share: u32,
    /// An address is here while a client from it is.
    shares: DashMap<IpAddr, Arc<Semaphore>>,
}

impl Room {
    /// Room for `most`, of which one address has `share` at the most.
    pub(super) fn new(most: u32, share: u32) -> Self {
        Self(Arc::new(Units { all: Semaphore::new(most as usize), most, share, shares: DashMap::new() }))
    }

    /// A holder for a client from `address`, with nothing in it yet.
    pub(super) fn enter(&self, address: IpAddr) -> Held {
        let share = || Arc::new(Semaphore::new(self.0.share as usize));
        let share = Arc::clone(&self.0.shares.entry(address).or_insert_with(share));
        Held { room: Arc::clone(&self.0), address, share, of_share: 0, of_all: 0 }
    }
}

/// What one client holds.
#[derive(Debug)]
pub(super) struct Held {
    room: Arc<Units>,
    address: IpAddr,
    share: Arc<Semaphore>,
    of_share: u32,
    of_all: u32,
}

impl Held {
    /// Waits until it holds `units`, or what there is if that is less: who needs more than a share has the whole of one, and who
    /// needs more than all has all.
    ///
    /// # Errors
    ///
    /// [`Full`] when that takes too long; what it holds already stays.
    pub(super) async fn grow_to(&mut self, units: usize) -> Result<(), Full> {
        timeout(PATIENCE, self.take(u32::try_from(units).unwrap_or(u32::MAX)))
            .await
            .ok()
            .and_then(Result::ok)
            .ok_or(Full)
    }

    /// From the share first: nobody holds what is for all while waiting for its own.
    async fn take(&mut self, units: u32) -> Result<(), AcquireError> {
        let missing = units.min(self.room.share).saturating_sub(self.of_share);
        if missing > 0 {
            self.share.acquire_many(missing).await?.forget();
            self.of_share += missing;
        }
        let missing = units.min(self.room.most).saturating_sub(self.of_all);
        if missing > 0 {
            self.room.all.acquire_many(missing).await?.forget();
            self.of_all += missing;
        }
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.share.add_permits(self.of_share as usize);
        self.room.all.add_permits(self.of_all as usize);
        // The map's and this one: nobody else is here. Who enters does so under the same lock.
        self.room.shares.remove_if(&self.address, |_, share| Arc::strong_count(share) <= 2);
    }
}

/// There is no room at this moment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Full;

/// Longer than most hold anything, shorter than clients wait.
const PATIENCE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    async fn held(room: &Room, address: IpAddr, units: usize) -> Result<Held, Full> {
        let mut held = room.enter(address);
        held.grow_to(units).await.map(|()| held)
    }

    #[tokio::test(start_paused = true)]
    async fn one_address_leaves_the_others_their_room_and_no_trace() {
        let room = Room::new(10, 4);
        let stalled = [held(&room, A, 3).await.unwrap(), held(&room, A, 1).await.unwrap()];
        let began = Instant::now();
        assert_eq!(held(&room, A, 1).await.unwrap_err(), Full);
        assert_eq!(began.elapsed(), PATIENCE, "not for ever");
        let other = held(&room, B, 4).await.unwrap();
        assert_eq!(began.elapsed(), PATIENCE, "others do not wait");
        assert_eq!(room.0.shares.len(), 2);
        drop(stalled);
        let again = held(&room, A, 4).await.unwrap();
        drop((other, again));
        assert_eq!((room.0.shares.len(), room.0.all.available_permits()), (0, 10));
    }

    #[tokio::test(start_paused = true)]
    async fn who_needs_more_than_a_share_gets_it_piece_by_piece_while_there_is_room() {
        let room = Room::new(10, 4);
        let mut large = room.enter(A);
        for units in [1, 3, 6, 5, 8] {
            large.grow_to(units).await.unwrap();
        }
        assert_eq!((large.of_share, large.of_all), (4, 8));
        let other = held(&room, B, 2).await.unwrap();
        assert_eq!(large.grow_to(1000).await, Err(Full));
        drop(other);
        large.grow_to(1000).await.unwrap();
        assert_eq!(large.of_all, 10, "all there is");
        drop(large);
        assert_eq!(room.0.all.available_permits(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn who_stops_waiting_takes_nothing() {
        let room = Room::new(10, 4);
        let stalled = held(&room, A, 4).await.unwrap();
        let mut waiting = room.enter(A);
        assert!(timeout(Duration::from_secs(1), waiting.grow_to(2)).await.is_err());
        drop((stalled, waiting));
        assert_eq!((room.0.shares.len(), room.0.all.available_permits()), (0, 10));
    }
}
