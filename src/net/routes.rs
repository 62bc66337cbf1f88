//! The router of a listener, which can be replaced while it serves, and the settings of its
//! connections.
//!
//! May use: `timer_wheel`.

use std::{sync::Arc, time::Duration};

use axum::Router;
use parking_lot::RwLock;

use super::{displacement::ConnectionShares, tls::ReloadableTls};
use crate::timer_wheel::TimerWheel;

/// Router of one listener, shared by its connections.
///
/// Each request looks here once. After [`Routes::replace`], requests go to the new router, also on
/// connections that are open already; a request that is being answered keeps the router it began
/// with.
#[derive(Clone, Debug)]
pub(crate) struct Routes(Arc<RwLock<Router>>);

impl Routes {
    /// Creates routes that begin with `router`.
    pub(crate) fn new(router: Router) -> Self {
        Self(Arc::new(RwLock::new(router)))
    }

    /// Replaces the router for all requests that begin from now on.
    pub(crate) fn replace(&self, router: Router) {
        *self.0.write() = router;
    }

    /// Returns the router in force.
    pub(super) fn current(&self) -> Router {
        // The lock is held to clone an `Arc`: a reload never waits for a request, and no guard
        // lives across an await.
        self.0.read().clone() // counts a reference
    }
}

/// Deadlines and limits of a listener's connections.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionSettings {
    /// Time for the TLS handshake, and for the head of a request, each; on a connection without a
    /// request, the time for the next one.
    pub(crate) head_timeout: Duration,
    /// Time after which a socket or stream that took nothing is closed.
    pub(crate) write_timeout: Duration,
    /// Timer for both.
    pub(crate) wheel: Arc<TimerWheel>,
    /// Time for the first byte of a connection.
    pub(crate) first_byte_timeout: Duration,
    /// Connections served at one time.
    pub(crate) max_connections: usize,
    /// Further connections that are only answered 503.
    pub(crate) max_over_limit: usize,
    /// Rules by which the oldest idle connection gives way to a newcomer.
    pub(crate) shares: ConnectionShares,
    /// TLS settings; with them every connection must begin with a handshake.
    pub(crate) tls: Option<Arc<ReloadableTls>>,
}
