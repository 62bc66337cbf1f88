//! The router of a listener, which can be replaced while it serves, and the settings of its connections.
//!
//! May use: `timer_wheel`.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use axum::Router;

use super::tls::ReloadableTls;
use crate::timer_wheel::TimerWheel;

/// What a listener answers with. Another router may take its place: requests that come from then on are answered by that one, on
/// connections that stand, too.
#[derive(Clone, Debug)]
pub(crate) struct Routes(Arc<RwLock<Router>>);

impl Routes {
    /// Routes that begin with this.
    pub(crate) fn new(router: Router) -> Self {
        Self(Arc::new(RwLock::new(router)))
    }

    /// Puts another router in its place.
    pub(crate) fn replace(&self, router: Router) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = router;
    }

    pub(super) fn current(&self) -> Router {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone() // counts a reference
    }
}

/// How a listener treats its peers.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionSettings {
    /// For the first byte, for TLS, and for the rest of a request's head, each; and without a request, for the next one.
    pub(crate) head_timeout: Duration,
    /// A socket or stream that takes nothing for this long is closed.
    pub(crate) write_timeout: Duration,
    /// The timer for both.
    pub(crate) wheel: Arc<TimerWheel>,
    /// Connections at one time; a few more are told that there is no place.
    pub(crate) max_connections: usize,
    /// Set: nothing is spoken without TLS.
    pub(crate) tls: Option<Arc<ReloadableTls>>,
}
