//! The limit on connections, and the reserve file descriptor.
//!
//! Connections within the limit are served. A few beyond it are accepted, too, to be answered 503;
//! all others are closed without an answer. A permit lives as long as its socket.
//!
//! May use: `log_limit`.

use std::{fs::File, sync::Arc};

use tokio::{net::TcpStream, sync::Semaphore};

use crate::log_limit::LogRateLimit;

/// Permits for the connections of one listener.
#[derive(Debug)]
pub(super) struct ConnectionLimit {
    within_limit: Arc<Semaphore>,
    over_limit: Arc<Semaphore>,
}

/// Accepted socket and its permit, which stay together until the socket is closed.
#[derive(Debug)]
pub(crate) struct AcceptedSocket {
    pub(crate) stream: TcpStream,
    pub(crate) permit: ConnectionPermit,
}

/// Permit for one connection, returned when dropped. Half as large as tokio's, which counts.
#[derive(Debug)]
pub(crate) struct ConnectionPermit(Arc<Semaphore>);

impl ConnectionPermit {
    /// Takes a permit of `semaphore`, if one is free.
    fn try_acquire(semaphore: &Arc<Semaphore>) -> Option<Self> {
        semaphore.try_acquire().ok()?.forget();
        Some(Self(Arc::clone(semaphore)))
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.0.add_permits(1);
    }
}

#[cfg(test)]
impl ConnectionPermit {
    /// Returns a permit that no limit counts.
    pub(crate) fn uncounted() -> Self {
        Self::try_acquire(&Arc::new(Semaphore::new(1))).expect("a new semaphore has a permit")
    }
}

impl ConnectionLimit {
    /// Admits `max_connections`, and up to `max_over_limit` more that are only answered 503.
    pub(super) fn new(max_connections: usize, max_over_limit: usize) -> Self {
        // `Semaphore::new` panics above MAX_PERMITS, and the limit comes from the configuration.
        let semaphore =
            |permits: usize| Arc::new(Semaphore::new(permits.min(Semaphore::MAX_PERMITS)));
        Self { within_limit: semaphore(max_connections), over_limit: semaphore(max_over_limit) }
    }

    /// Returns whether the next permit is one beyond the limit.
    pub(super) fn is_exhausted(&self) -> bool {
        self.within_limit.available_permits() == 0
    }

    /// Returns whether those beyond the limit are taken, too.
    pub(super) fn is_exhausted_beyond(&self) -> bool {
        self.is_exhausted() && self.over_limit.available_permits() == 0
    }

    /// Returns a permit, and whether it is one beyond the limit; `None` if those are taken, too.
    ///
    /// Never waits: a connection that must wait for a permit would hold a descriptor meanwhile.
    pub(super) fn try_acquire(&self) -> Option<(ConnectionPermit, bool)> {
        let regular = ConnectionPermit::try_acquire(&self.within_limit).map(|it| (it, false));
        regular.or_else(|| ConnectionPermit::try_acquire(&self.over_limit).map(|it| (it, true)))
    }
}

/// File descriptor that is kept open to accept one connection with when no other is left.
///
/// Released, it lets one connection in, which is closed at once. So peers are refused instead of
/// waiting in the accept queue for a descriptor that may never come.
#[derive(Debug)]
pub(super) struct ReserveDescriptor {
    file: Option<File>,
    /// Limits the warnings to the operator: connections may be refused at any rate.
    pub(super) throttle: LogRateLimit,
}

impl ReserveDescriptor {
    pub(super) fn new() -> Self {
        Self { file: File::open(DEV_NULL).ok(), throttle: LogRateLimit::default() }
    }

    /// Closes the descriptor. Returns false if it could not be reacquired since it was last
    /// released: then the caller can only wait.
    pub(super) fn release(&mut self) -> bool {
        self.file.take().is_some()
    }

    /// Tries to open the descriptor again.
    pub(super) fn reacquire(&mut self) {
        self.file = File::open(DEV_NULL).ok();
    }
}

/// A file that can be opened without waiting and without reading anything.
const DEV_NULL: &str = "/dev/null";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_the_limit_a_few_connections_get_a_permit_and_others_none_until_a_permit_returns() {
        let connection_limit = ConnectionLimit::new(2, 3);
        let over_limit_flag = |acquired: &Option<(ConnectionPermit, bool)>| {
            acquired.as_ref().map(|(_, is_surplus)| *is_surplus)
        };
        let mut regular: Vec<_> = (0..2).map(|_| connection_limit.try_acquire()).collect();
        assert!(regular.iter().all(|permit| over_limit_flag(permit) == Some(false)));
        let surplus: Vec<_> = (0..3).map(|_| connection_limit.try_acquire()).collect();
        assert!(surplus.iter().all(|permit| over_limit_flag(permit) == Some(true)));
        assert!(connection_limit.try_acquire().is_none());
        regular.pop();
        assert_eq!(over_limit_flag(&connection_limit.try_acquire()), Some(false));
    }
}
