//! How many connections there may be, and the last file descriptor.
//!
//! Whoever comes when all places are taken is still let in to be told so, as long as there is one of a few more places for that;
//! everybody beyond is turned away without a word.
//!
//! May use: `throttle`.

use std::{fs::File, sync::Arc};

use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
};

use crate::log_limit::LogRateLimit;

/// The places of one listener.
#[derive(Debug)]
pub(super) struct ConnectionLimit {
    within_limit: Arc<Semaphore>,
    over_limit: Arc<Semaphore>,
}

/// A connection's socket, and its place among those of the listener.
#[derive(Debug)]
pub(crate) struct AcceptedSocket {
    pub(crate) stream: TcpStream,
    pub(crate) permit: ConnectionPermit,
}

/// A connection's place, given back when this is dropped.
#[derive(Debug)]
pub(crate) struct ConnectionPermit {
    _permit: OwnedSemaphorePermit,
}

#[cfg(test)]
impl ConnectionPermit {
    /// Where nobody counts.
    pub(crate) fn uncounted() -> Self {
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned();
        Self { _permit: permit.expect("there is one") }
    }
}

impl ConnectionLimit {
    /// So many, and a few more.
    pub(super) fn new(max_connections: usize) -> Self {
        let semaphore =
            |permits: usize| Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)));
        Self {
            within_limit: semaphore(max_connections),
            over_limit: semaphore(MAX_OVER_LIMIT_CONNECTIONS),
        }
    }

    /// A place, and whether it is one of those beyond the limit. None if these are taken, too.
    pub(super) fn try_acquire(&self) -> Option<(ConnectionPermit, bool)> {
        let take = |semaphore: &Arc<Semaphore>| Arc::clone(semaphore).try_acquire_owned().ok();
        let connection_permit =
            |permit, is_over_limit| (ConnectionPermit { _permit: permit }, is_over_limit);
        let regular = take(&self.within_limit).map(|permit| connection_permit(permit, false));
        regular.or_else(|| take(&self.over_limit).map(|permit| connection_permit(permit, true)))
    }
}

/// A file descriptor that is kept for the moment when there is no other: given up, it lets in one connection, which is closed at
/// once. So newcomers are turned away instead of waiting for what may never come.
#[derive(Debug)]
pub(super) struct ReserveDescriptor {
    file: Option<File>,
    /// The operator need not hear of each connection.
    pub(super) throttle: LogRateLimit,
}

impl ReserveDescriptor {
    pub(super) fn new() -> Self {
        Self { file: File::open(DEV_NULL).ok(), throttle: LogRateLimit::default() }
    }

    /// Gives it up. False if it is gone: then there is nothing to do but to wait.
    pub(super) fn release(&mut self) -> bool {
        self.file.take().is_some()
    }

    /// Tries to have it again.
    pub(super) fn reacquire(&mut self) {
        self.file = File::open(DEV_NULL).ok();
    }
}

/// Those who are being told that there is no place.
const MAX_OVER_LIMIT_CONNECTIONS: usize = 64;

/// Opening it neither waits nor reads anything.
const DEV_NULL: &str = "/dev/null";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_the_limit_a_few_are_told_and_the_others_turned_away_until_somebody_leaves() {
        let connection_limit = ConnectionLimit::new(2);
        let over_limit_flag = |acquired: &Option<(ConnectionPermit, bool)>| {
            acquired.as_ref().map(|(_, is_surplus)| *is_surplus)
        };
        let mut regular: Vec<_> = (0..2).map(|_| connection_limit.try_acquire()).collect();
        assert!(regular.iter().all(|place| over_limit_flag(place) == Some(false)));
        let surplus: Vec<_> =
            (0..MAX_OVER_LIMIT_CONNECTIONS).map(|_| connection_limit.try_acquire()).collect();
        assert!(surplus.iter().all(|place| over_limit_flag(place) == Some(true)));
        assert!(connection_limit.try_acquire().is_none());
        regular.pop();
        assert_eq!(over_limit_flag(&connection_limit.try_acquire()), Some(false));
    }
}
